//! The distribution's packages: installed for everybody where we are root, or fetched and unpacked into a
//! folder of ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;

use crate::process::{find, find_anywhere, output, run};

/// Held while packages are installed: apt lets nobody else do so meanwhile, and does not wait.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Installs the packages of those programs that are missing. Gives back the packages that could not be had.
pub fn install_missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut packages: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| find_anywhere(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    if packages.is_empty() || find("apt-get").is_none() {
        return packages;
    }
    if let Err(error) = install(&packages) {
        eprintln!("install {}: {error:#}", packages.join(" "));
    }
    packages.retain(|package| {
        programs.iter().any(|(program, of)| of == package && find_anywhere(program).is_none())
    });
    packages
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    if run(&mut command).is_err() {
        output(Command::new("apt-get").args(["update", "-qq"])).context("apt-get update")?;
        run(&mut command)?;
    }
    Ok(())
}

/// Suites of the distribution, with lists and a cache in a folder of ours: needs no root, and the machine's
/// own apt does not notice.
pub struct Suites {
    folder: PathBuf,
}

impl Suites {
    /// From the mirror that the machine's own sources name.
    ///
    /// # Errors
    /// Says what is missing. A suite that the mirror does not have is no error: it has no packages.
    pub fn fetch(folder: &Path, suites: &[&str]) -> anyhow::Result<Self> {
        find("apt-get").context("no apt-get")?;
        let mirror = mirror().context("no mirror in apt's sources")?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let lines: String = suites.iter().map(|suite| format!("deb {mirror} {suite} main\n")).collect();
        fs::write(folder.join("sources.list"), lines)?;
        // What is installed here has nothing to do with it.
        fs::write(folder.join("status"), "")?;
        let suites = Self { folder: folder.to_path_buf() };
        let _ = run(suites.command("apt-get").arg("update"));
        Ok(suites)
    }

    /// Versions of a package, as the suites have them.
    pub fn versions(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let listed = output(self.command("apt-cache").args(["madison", package]))?;
        Ok(listed.lines().filter_map(|line| line.split('|').nth(1)).map(|it| it.trim().to_owned()).collect())
    }

    /// Names of the packages that a package depends on.
    pub fn dependencies(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let listed = output(self.command("apt-cache").args(["depends", "--important", package]))?;
        let names = listed.lines().filter_map(|line| line.split_once("Depends: "));
        Ok(names.map(|(_, name)| name.trim().to_owned()).collect())
    }

    /// Unpacks a package (`name` or `name=version`) into a folder.
    pub fn unpack(&self, package: &str, into: &Path) -> anyhow::Result<()> {
        run(self.command("apt-get").args(["download", package]))?;
        let file = fs::read_dir(&self.folder)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")?;
        fs::create_dir_all(into)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
        fs::remove_file(&file)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::State::Lists", self.folder.join("lists")),
            ("Dir::State::Status", self.folder.join("status")),
            ("Dir::Etc::SourceList", self.folder.join("sources.list")),
            ("Dir::Etc::SourceParts", PathBuf::from("-")),
            ("Dir::Cache", self.folder.join("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        // As the user that runs this; and without descriptions, which nobody reads here.
        command.args(["-qq", "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        command.current_dir(&self.folder);
        command
    }
}

/// The first mirror in the machine's own sources.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| {
        text.lines()
            .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
            .flat_map(str::split_whitespace)
            .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
            .map(str::to_owned)
    })
}
