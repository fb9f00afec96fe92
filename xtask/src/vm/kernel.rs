//! Kernels of the distribution's cloud images, unpacked and kept.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, bail, ensure};

use crate::{apt::Suites, process::target};

/// What `--kernel` may say, and the suite that has this kernel.
pub const KERNELS: [(&str, &str); 4] = [
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "bookworm-backports"),
    // Whatever is the newest now.
    (NEWEST, "trixie-backports"),
];
const NEWEST: &str = "newest";

/// Depends on the suite's kernel for virtual machines, whatever its version is now.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Newer kernels are in several packages; others that an image depends on are not for us.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// What the tests need of the kernel's modules; what they depend on comes along.
const MODULES: [&str; 10] =
    ["ipv6", "veth", "bridge", "macvlan", "ipvlan", "dummy", "sch_ingress", "cls_bpf", "cls_u32", "vxlan"];

/// A kernel's files.
pub struct Kernel {
    pub label: &'static str,
    pub image: PathBuf,
    pub version: String,
    modules: PathBuf,
}

impl Kernel {
    /// The one that is kept, else the distribution's newest of this suite. Removing its folder below
    /// target/vm gets a newer one.
    pub fn get(label: &'static str, suite: &str) -> anyhow::Result<Self> {
        // Two of these may run at the same time.
        static GETTING: Mutex<()> = Mutex::new(());
        let _getting = GETTING.lock();
        let folder = target().join("vm").join(label);
        let kept = folder.join("kernel");
        if !kept.exists() {
            let suites = Suites::fetch(&folder.join("apt"), &[suite])?;
            // Takes its place when it is whole.
            let unpacked = folder.join("unpacking");
            let _ = fs::remove_dir_all(&unpacked);
            for package in packages(&suites).with_context(|| format!("packages in {suite}"))? {
                println!("{label}: {package} of {suite}");
                suites.unpack(&package, &unpacked)?;
            }
            fs::rename(&unpacked, &kept)?;
        }
        Self::in_folder(label, &kept).with_context(|| format!("files in {}", kept.display()))
    }

    fn in_folder(label: &'static str, folder: &Path) -> anyhow::Result<Self> {
        let modules = ["usr/lib/modules", "lib/modules"]
            .iter()
            .find_map(|place| fs::read_dir(folder.join(place)).ok()?.next()?.ok())
            .context("no modules")?;
        let version = modules.file_name().to_string_lossy().into_owned();
        let is_it = label == NEWEST || version.starts_with(&format!("{label}."));
        ensure!(is_it, "{version} is no {label}");
        let modules = modules.path();
        let image = [folder.join("boot").join(format!("vmlinuz-{version}")), modules.join("vmlinuz")]
            .into_iter()
            .find(|image| image.exists())
            .context("no vmlinuz")?;
        Ok(Self { label, image, version, modules })
    }

    /// Writes the modules uncompressed into a folder, and `order` beside them: their names, each after all
    /// that it depends on. One that is not there is built in, or this kernel does not have it.
    pub fn write_modules(&self, into: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(into)?;
        let mut files = Vec::new();
        find_modules(&self.modules, &mut files)?;
        let mut order = Vec::new();
        for name in MODULES {
            add_module(name, &files, into, &mut order)?;
        }
        fs::write(into.join("order"), order.join("\n") + "\n")?;
        Ok(())
    }
}

/// The packages that the kernel of this suite is in now.
fn packages(suites: &Suites) -> anyhow::Result<Vec<String>> {
    let mut found = vec![METAPACKAGE.to_owned()];
    let mut at = 0;
    while let Some(package) = found.get(at).cloned() {
        for name in suites.dependencies(&package)? {
            if PARTS.iter().any(|part| name.starts_with(part)) && !found.contains(&name) {
                found.push(name);
            }
        }
        at += 1;
    }
    // It has nothing in it.
    found.remove(0);
    if found.is_empty() {
        bail!("no {METAPACKAGE}");
    }
    Ok(found)
}

fn find_modules(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), files)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn add_module(name: &str, files: &[PathBuf], into: &Path, order: &mut Vec<String>) -> anyhow::Result<()> {
    if order.iter().any(|there| there == name) {
        return Ok(());
    }
    let Some(file) = files.iter().find(|file| module_name(file) == name) else { return Ok(()) };
    let bytes = read_module(file).with_context(|| format!("module {}", file.display()))?;
    for dependency in dependencies(&bytes) {
        add_module(&dependency, files, into, order)?;
    }
    fs::write(into.join(format!("{name}.ko")), bytes)?;
    order.push(name.to_owned());
    Ok(())
}

/// As the kernel has it: files may have hyphens instead.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn read_module(file: &Path) -> anyhow::Result<Vec<u8>> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(fs::read(file)?),
        Some("xz") => {
            let mut command = Command::new("busybox");
            let output = command.args(["xzcat"]).arg(file).stderr(Stdio::inherit()).output()?;
            if !output.status.success() {
                bail!("busybox xzcat: {}", output.status);
            }
            Ok(output.stdout)
        }
        _ => bail!("compressed in a way that is not known here"),
    }
}

/// From the module's `.modinfo`: strings that end with a zero, one of them `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_say_what_they_depend_on() {
        let module = b"\x7fELF\0license=GPL\0depends=stp,nf-llc\0name=bridge\0";
        assert_eq!(dependencies(module), ["stp", "nf_llc"]);
        assert_eq!(dependencies(b"license=GPL\0depends=\0name=veth\0"), [""; 0]);
        assert_eq!(dependencies(b""), [""; 0]);
    }

    #[test]
    fn modules_are_named_as_the_kernel_does() {
        assert_eq!(module_name(Path::new("/lib/nf-llc.ko.xz")), "nf_llc");
    }
}
