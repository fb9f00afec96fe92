//! `cargo xtask setup`: the tools for building the kernel object, by whichever way works here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    apt::Suites,
    process::{self, find, is_root, output, root, target},
};

/// The newest that works with this toolchain's LLVM.
const BPF_LINKER_VERSION: &str = "0.10.3";

/// Checks dependencies.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Builds fuzz targets.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// A folder or a .tar.xz with `library/` in it, for machines where nothing else works.
const RUST_SRC_VARIABLE: &str = "NETOBS_RUST_SRC";

/// Builds the Debian package.
const CARGO_DEB_VERSION: &str = "3.8.0";

/// Where things were found.
pub struct Tools {
    pub bpf_linker: PathBuf,
    pub llvm_strip: PathBuf,
    /// The folder that has `library/Cargo.toml`; none: the toolchain has it itself.
    pub rust_src: Option<PathBuf>,
}

pub fn run(rustup: bool) -> anyhow::Result<Tools> {
    let tools = Tools {
        bpf_linker: bpf_linker().context("bpf-linker")?,
        llvm_strip: llvm_strip().context("llvm-strip")?,
        rust_src: rust_src(rustup).context("library sources")?,
    };
    println!("bpf-linker {BPF_LINKER_VERSION}: {}", tools.bpf_linker.display());
    println!("llvm-strip: {}", tools.llvm_strip.display());
    match &tools.rust_src {
        Some(folder) => println!("library sources: {}", folder.display()),
        None => println!("library sources: in the toolchain"),
    }
    Ok(tools)
}

/// Outside of the repository: what takes minutes to build is there for every clone.
fn tools_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.map_or_else(|| target().join("tools"), |cache| cache.join("netobs-tools"))
}

fn bpf_linker() -> anyhow::Result<PathBuf> {
    cargo_tool("bpf-linker", BPF_LINKER_VERSION)
}

/// Built when first wanted, which takes some minutes.
pub fn cargo_deny() -> anyhow::Result<PathBuf> {
    cargo_tool("cargo-deny", CARGO_DENY_VERSION)
}

/// As [`cargo_deny`].
pub fn cargo_fuzz() -> anyhow::Result<PathBuf> {
    cargo_tool("cargo-fuzz", CARGO_FUZZ_VERSION)
}

/// As [`cargo_deny`].
pub fn cargo_deb() -> anyhow::Result<PathBuf> {
    cargo_tool("cargo-deb", CARGO_DEB_VERSION)
}

/// A program from the registry in exactly this version: ours, else the one on PATH, else built now.
fn cargo_tool(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    let own = tools_folder().join("bin").join(name);
    for candidate in [Some(own.clone()), find(name)].into_iter().flatten() {
        let answer = Command::new(&candidate).arg("--version").output();
        if answer.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(version)) {
            return Ok(candidate);
        }
    }
    println!("building {name} {version}, some minutes");
    process::run(
        Command::new("cargo")
            .args(["install", "--locked", "--quiet", "--root"])
            .arg(tools_folder())
            .arg(format!("{name}@{version}"))
            // Not this repository's settings, and not its build folder either.
            .env_remove("CARGO_TARGET_DIR")
            .current_dir(std::env::temp_dir()),
    )?;
    Ok(own)
}

fn llvm_strip() -> anyhow::Result<PathBuf> {
    if let Some(found) = find("llvm-strip") {
        return Ok(found);
    }
    if is_root() {
        process::run(Command::new("apt-get").args([
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            "llvm",
        ]))?;
        return find("llvm-strip").context("the package llvm has no llvm-strip");
    }
    bail!("not on PATH; install the distribution's llvm package")
}

fn rust_src(rustup: bool) -> anyhow::Result<Option<PathBuf>> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
    let in_toolchain = sysroot.join("lib/rustlib/src/rust/library/Cargo.toml");
    if in_toolchain.exists() {
        return Ok(None);
    }
    if rustup {
        process::run(Command::new("rustup").args(["component", "add", "rust-src"]))?;
        return Ok(None);
    }
    let folder = tools_folder().join(format!("rust-src-{}", rustc_version()?));
    if let Some(found) = library_in(&folder) {
        return Ok(Some(found));
    }
    let mut reasons = vec!["not in the toolchain (`--rustup` adds them)".to_owned()];
    match from_environment(&folder) {
        Ok(Some(found)) => return Ok(Some(found)),
        Ok(None) => reasons.push(format!("{RUST_SRC_VARIABLE} is not set")),
        Err(error) => reasons.push(format!("{RUST_SRC_VARIABLE}: {error:#}")),
    }
    match from_distribution(&folder) {
        Ok(found) => return Ok(Some(found)),
        Err(error) => reasons.push(format!("the distribution's package: {error:#}")),
    }
    bail!("{}", reasons.join("; "))
}

fn rustc_version() -> anyhow::Result<String> {
    let text = output(Command::new("rustc").arg("--version"))?;
    text.split(' ').nth(1).map(str::to_owned).context("version of rustc")
}

/// What somebody has set is meant, so it goes before a download.
fn from_environment(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some(given) = std::env::var_os(RUST_SRC_VARIABLE).map(PathBuf::from) else { return Ok(None) };
    if given.is_dir() {
        return library_in(&given).map(Some).with_context(|| format!("no library/ in {}", given.display()));
    }
    fs::create_dir_all(folder)?;
    process::run(Command::new("tar").arg("-C").arg(folder).arg("-xf").arg(&given))?;
    library_in(folder).map(Some).with_context(|| format!("no library/ in {}", given.display()))
}

/// The package `rust-src` of exactly rustc's version from any suite that the distribution has.
fn from_distribution(folder: &Path) -> anyhow::Result<PathBuf> {
    let version = rustc_version()?;
    let suites = ["trixie", "trixie-backports", "forky", "sid"];
    let suites = Suites::fetch(&tools_folder().join("apt"), &suites)?;
    let package = suites
        .versions("rust-src")?
        .into_iter()
        .find(|found| found.starts_with(&format!("{version}+")) || *found == version)
        .with_context(|| format!("no rust-src {version}"))?;
    suites.unpack(&format!("rust-src={package}"), folder)?;
    library_in(folder).context("the package has no library/")
}

/// The folder named `library` with the workspace of the library sources, here or below.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let packaged = fs::read_dir(folder.join("usr/src")).into_iter().flatten();
    ["", "usr/lib/rustlib/src/rust"]
        .iter()
        .map(|below| folder.join(below))
        .chain(packaged.filter_map(Result::ok).map(|entry| entry.path()))
        .find(|folder| folder.join("library/Cargo.toml").exists())
}

/// The manifest's folder of the kernel programs.
pub fn ebpf_folder() -> PathBuf {
    root().join("netobs-ebpf")
}
