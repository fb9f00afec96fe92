//! `cargo xtask ebpf`: the kernel object, built so that the same sources give the same bytes anywhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    process::{output, root, run as run_command, target},
    rustc,
    setup::{self, Tools},
};

const TARGET: &str = "bpfel-unknown-none";

/// Binaries of `netobs-ebpf`; each becomes an object `netobs/bpf/NAME.bpf.o`.
const OBJECTS: &[&str] = &["netobs", "trace", "drops", "tcp"];

pub fn run(check: bool) -> anyhow::Result<()> {
    let tools = setup::run(false).context("`cargo xtask setup` gets what is missing")?;
    build(&tools)?;
    let folder = root().join("netobs/bpf");
    fs::create_dir_all(&folder)?;
    for name in OBJECTS {
        let bytes = stripped(&tools, name)?;
        let committed = folder.join(format!("{name}.bpf.o"));
        if check {
            compare(&committed, &bytes, &tools)?;
        } else {
            fs::write(&committed, &bytes)?;
            println!("{}: {} bytes", committed.display(), bytes.len());
            run_command(Command::new("sha256sum").arg(&committed))?;
        }
    }
    Ok(())
}

/// An error if the committed object is not what was built.
fn compare(committed: &Path, built: &[u8], tools: &Tools) -> anyhow::Result<()> {
    let there = fs::read(committed).with_context(|| format!("read {}", committed.display()))?;
    if there != built {
        bail!(
            "{} is not the build of these sources ({} bytes, the build has {}): run `cargo xtask ebpf` and \
             commit it. This was {} with {}",
            committed.display(),
            there.len(),
            built.len(),
            output(Command::new("rustc").arg("--version"))?,
            tools.bpf_linker.display(),
        );
    }
    println!("{} is the build of these sources", committed.display());
    Ok(())
}

/// Clippy for the kernel programs, warnings as errors.
pub fn clippy(tools: &Tools) -> anyhow::Result<()> {
    run_command(cargo(tools, "clippy")?.args(["--", "-D", "warnings"]))
}

/// Builds all objects.
fn build(tools: &Tools) -> anyhow::Result<()> {
    let folder = folder();
    // From nothing, half a minute: what another compiler or another xtask has left must not get in.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let mut cargo = cargo(tools, "build")?;
    rustc::wrap(&mut cargo, &folder.join("rustc-wrapper"))?;
    run_command(&mut cargo)
}

/// A built object without its debug information, which holds the paths of the library sources.
fn stripped(tools: &Tools, name: &str) -> anyhow::Result<Vec<u8>> {
    let unstripped = folder().join(TARGET).join("release").join(name);
    let stripped = folder().join(format!("{name}.bpf.o"));
    run_command(Command::new(&tools.llvm_strip).arg("-g").arg("-o").arg(&stripped).arg(&unstripped))?;
    Ok(fs::read(&stripped)?)
}

fn folder() -> PathBuf {
    target().join("ebpf")
}

/// Cargo for the kernel programs: the stable compiler with the switches that building `core` needs, and
/// without any path of this machine in what it makes.
fn cargo(tools: &Tools, subcommand: &str) -> anyhow::Result<Command> {
    let registry = PathBuf::from(
        std::env::var_os("CARGO_HOME")
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo").into()))
            .context("neither CARGO_HOME nor HOME is set")?,
    )
    .join("registry/src");
    let mut flags = vec![
        "-C".to_owned(),
        format!("linker={}", tools.bpf_linker.display()),
        "-C".to_owned(),
        "link-arg=--btf".to_owned(),
        "-C".to_owned(),
        "debuginfo=2".to_owned(),
    ];
    // Line information names the registry's folder, which is another on another machine.
    for entry in fs::read_dir(&registry).into_iter().flatten().filter_map(Result::ok) {
        flags.push(format!("--remap-path-prefix={}=/registry", entry.path().display()));
    }
    flags.push(format!("--remap-path-prefix={}=/netobs", root().display()));
    if let Some(folder) = &tools.rust_src {
        let library = fs::canonicalize(folder.join("library"))?;
        flags.push(format!("--remap-path-prefix={}=/rust/library", library.display()));
    }
    let mut command = Command::new("cargo");
    command
        .current_dir(setup::ebpf_folder())
        .args([subcommand, "--quiet", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(folder())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_UNSTABLE_TRIM_PATHS", "true")
        .env("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    if let Some(folder) = &tools.rust_src {
        // Cargo's own name for it; look again when the toolchain changes.
        command.env("__CARGO_TESTS_ONLY_SRC_ROOT", fs::canonicalize(folder.join("library"))?);
    }
    Ok(command)
}
