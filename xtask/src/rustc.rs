//! rustc as it is called for the kernel object: what it writes must not depend on where things are.
//!
//! Two things would carry paths into the object. File names in the line info of `.BTF.ext`: each
//! package's directory is remapped to `name-version`. And symbol names: cargo gives each crate a
//! `-C metadata` hash that is made of, among others, the paths of path dependencies and of the library's
//! sources, and rustc mangles a digest of it into names; here it is made of the package's name and
//! version instead. Cargo calls this binary as its `RUSTC_WRAPPER`.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Context as _;

/// Set for the cargo that builds the object, with [`MARK_VALUE`].
const MARK: &str = "NETOBS_XTASK_RUSTC";
const MARK_VALUE: &str = "1";

/// Lets a cargo call rustc through us. The copy stays the same file while cargo rebuilds this binary.
pub fn wrap(cargo: &mut Command, copy: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(copy.parent().context("a file's path has a directory")?)?;
    // Renamed into place: another build may be running the old one.
    let new = copy.with_extension(format!("{}", std::process::id()));
    std::fs::copy("/proc/self/exe", &new).context("copy this program as rustc's wrapper")?;
    std::fs::rename(&new, copy)?;
    cargo.env("RUSTC_WRAPPER", copy).env(MARK, MARK_VALUE);
    Ok(())
}

/// Acts as rustc if that is what cargo calls us for.
pub fn run_if_wrapper() -> Option<ExitCode> {
    if std::env::var_os(MARK)? != MARK_VALUE {
        return None;
    }
    let mut args = std::env::args_os().skip(1);
    let rustc = args.next()?;
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let package = Package {
        name: variable("CARGO_PKG_NAME"),
        version: variable("CARGO_PKG_VERSION"),
        dir: variable("CARGO_MANIFEST_DIR"),
    };
    let error = Command::new(rustc).args(arguments(args.collect(), &package)).exec();
    eprintln!("error: run rustc: {error}");
    Some(ExitCode::FAILURE)
}

/// The package that is compiled, as cargo tells rustc.
struct Package {
    name: String,
    version: String,
    dir: String,
}

/// Changes the calls for the target; build scripts and macros are the host's and leave no trace.
fn arguments(args: Vec<OsString>, package: &Package) -> Vec<OsString> {
    if package.name.is_empty() || !args.iter().any(|arg| arg == "--target") {
        return args;
    }
    let name = format!("{}-{}", package.name, package.version);
    let mut changed: Vec<OsString> = args
        .into_iter()
        .map(|arg| match arg.to_str() {
            Some(text) if text.starts_with("metadata=") => format!("metadata={name}").into(),
            _ => arg,
        })
        .collect();
    changed.push(format!("--remap-path-prefix={}={name}", package.dir).into());
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &[&str]) -> Vec<String> {
        let package = Package { name: "a".into(), version: "1.2.3".into(), dir: "/home/me/a".into() };
        arguments(args.iter().map(OsString::from).collect(), &package)
            .into_iter()
            .map(|arg| arg.into_string().expect("text"))
            .collect()
    }

    #[test]
    fn paths_stay_out_of_what_is_built_for_the_target() {
        assert_eq!(
            call(&["--target", "bpfel-unknown-none", "-C", "metadata=0123", "src/lib.rs"]),
            [
                "--target",
                "bpfel-unknown-none",
                "-C",
                "metadata=a-1.2.3",
                "src/lib.rs",
                "--remap-path-prefix=/home/me/a=a-1.2.3"
            ]
        );
    }

    #[test]
    fn calls_for_the_host_pass_unchanged() {
        assert_eq!(call(&["-C", "metadata=0123", "build.rs"]), ["-C", "metadata=0123", "build.rs"]);
    }
}
