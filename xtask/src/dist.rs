//! What is handed to others: the static binary with its completions and man pages, a Debian package, an image.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::{
    process::{output, root, run, target},
    setup,
};

/// Named, so that `crt-static` is for the program and not for the compiler's own plug-ins.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "dist";

/// Shells, and what their completions are called.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "netobs.bash"), ("zsh", "_netobs"), ("fish", "netobs.fish")];

/// An image is larger than that only by mistake.
const MAX_IMAGE_BYTES: u64 = 15_000_000;

fn folder() -> PathBuf {
    target().join(TRIPLE).join(PROFILE)
}

/// The binary, which needs nothing of the machine that it is for but a kernel, and `generated/` beside it.
pub fn build() -> anyhow::Result<PathBuf> {
    run(Command::new("cargo")
        .args(["build", "--locked", "--profile", PROFILE, "--package", "netobs", "--target", TRIPLE])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(root()))?;
    let binary = folder().join("netobs");
    let generated = folder().join("generated");
    let _ = fs::remove_dir_all(&generated);
    fs::create_dir_all(&generated)?;
    run(Command::new(&binary).args(["generate", "man"]).arg(generated.join("man")))?;
    for (shell, file) in COMPLETIONS {
        let file = fs::File::create(generated.join(file))?;
        run(Command::new(&binary).args(["generate", "completions", shell]).stdout(Stdio::from(file)))?;
    }
    Ok(binary)
}

/// `cargo xtask deb`: the package's file.
pub fn deb() -> anyhow::Result<PathBuf> {
    let cargo_deb = setup::cargo_deb()?;
    build()?;
    let file = folder().join("netobs.deb");
    run(Command::new(cargo_deb)
        .args(["--no-build", "--no-strip", "--locked", "--quiet", "--package", "netobs"])
        .args(["--target", TRIPLE, "--profile", PROFILE])
        .arg("--output")
        .arg(&file)
        .current_dir(root()))?;
    println!("{}", file.display());
    Ok(file)
}

/// `cargo xtask image`: by the engine that `docker` talks to.
pub fn image(tag: &str) -> anyhow::Result<()> {
    let binary = build()?;
    let context = folder().join("image");
    let _ = fs::remove_dir_all(&context);
    fs::create_dir_all(&context)?;
    for file in [&binary, &root().join("LICENSE-APACHE"), &root().join("LICENSE-MIT")] {
        fs::copy(file, context.join(file.file_name().context("a file")?))?;
    }
    let mut command = Command::new("docker");
    command.args(["build", "--quiet", "--tag", tag, "--file"]).arg(root().join("deploy/docker/Dockerfile"));
    command.args(["--build-arg", &format!("VERSION={}", env!("CARGO_PKG_VERSION"))]).arg(&context);
    // The classic builder, where the plug-in for the other is not installed.
    if !has_buildx() {
        command.env("DOCKER_BUILDKIT", "0");
    }
    output(&mut command)?;
    let bytes: u64 =
        output(Command::new("docker").args(["image", "inspect", "--format", "{{.Size}}", tag]))?.parse()?;
    println!("{tag}: {:.1} MB", bytes as f64 / 1e6);
    ensure!(bytes < MAX_IMAGE_BYTES, "{tag} has {bytes} bytes; {MAX_IMAGE_BYTES} is too many");
    Ok(())
}

fn has_buildx() -> bool {
    Command::new("docker")
        .args(["buildx", "version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
