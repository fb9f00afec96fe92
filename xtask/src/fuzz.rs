//! `cargo xtask fuzz`: the targets of `fuzz/`, each for a while from its kept corpus on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    process::{output, root, run as run_command},
    setup,
};

/// Has the compiler take flags that are not stable, for sanitizers and coverage: no other toolchain is needed.
const UNSTABLE_FLAGS: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");

/// A single input may take so long and so much, or it is a finding.
const INPUT_SECONDS: u32 = 10;
const MEMORY_MIB: u32 = 2048;

#[derive(Args)]
pub struct Options {
    /// For all targets together, without building them
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Put into the kept corpora what reaches code that nothing in them does
    #[arg(long)]
    keep: bool,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let folder = folder();
    build()?;
    let mut targets = targets(&folder)?;
    if let Some(only) = &options.target {
        targets.retain(|target| target == only);
    }
    if targets.is_empty() {
        bail!("no such target");
    }
    let count = u32::try_from(targets.len())?;
    let seconds = (options.seconds / count).max(1);
    for target in &targets {
        fuzz(&folder, target, seconds, options.keep).with_context(|| format!("target {target}"))?;
    }
    println!("{count} targets, {seconds} s each: nothing found");
    Ok(())
}

fn folder() -> PathBuf {
    root().join("fuzz")
}

/// All targets.
pub fn build() -> anyhow::Result<()> {
    let (folder, tool) = (folder(), setup::cargo_fuzz()?);
    run_command(
        Command::new(&tool)
            .args(["fuzz", "build", "--fuzz-dir"])
            .arg(&folder)
            .env(UNSTABLE_FLAGS.0, UNSTABLE_FLAGS.1)
            // Its flags are cargo-fuzz's.
            .env_remove("RUSTFLAGS")
            .current_dir(&folder),
    )
    .context("build the targets")
}

/// Those that there is a source of.
fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.join("targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn fuzz(folder: &Path, target: &str, seconds: u32, keep: bool) -> anyhow::Result<()> {
    let corpus = folder.join("corpus").join(target);
    // What is new goes into the first folder that is named.
    let found = folder.join("target/corpus").join(target);
    let artifacts = folder.join("artifacts").join(target);
    for needed in [&corpus, &found, &artifacts] {
        fs::create_dir_all(needed)?;
    }
    let program = program(folder, target)?;
    run_command(
        Command::new(&program)
            .args([&found, &corpus])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .args(["-print_final_stats=1", "-verbosity=0"])
            .current_dir(folder),
    )
    .with_context(|| format!("what was found is in {}", artifacts.display()))?;
    if keep {
        run_command(Command::new(&program).args(["-merge=1", "-verbosity=0"]).args([&corpus, &found]))?;
    }
    Ok(())
}

fn program(folder: &Path, target: &str) -> anyhow::Result<PathBuf> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let build = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| folder.join("target"), PathBuf::from);
    Ok(build.join(host).join("release").join(target))
}
