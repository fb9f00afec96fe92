//! What the virtual machines run: an initramfs with the tests, the program, and what these call.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::kernel::Kernel;
use crate::process::{find_anywhere, run};

/// The machine's own programs: busybox, and those that it has otherwise or not at all. `sh` is among them
/// because busybox's runs its own applets (`ip`, too) before anything on PATH.
const PROGRAMS: [&str; 11] =
    ["busybox", "sh", "ip", "tc", "nsenter", "unshare", "setpriv", "sysctl", "pgrep", "sleep", "seq"];

/// The first process.
const INIT: &str = include_str!("init.sh");

/// A test binary, and the name that it has in the guest.
pub struct TestBinary {
    pub name: String,
    pub file: PathBuf,
}

/// The part of the initramfs that is the same for all kernels.
pub struct Guest {
    folder: PathBuf,
    archive: PathBuf,
}

impl Guest {
    /// Below `folder`, made anew.
    pub fn build(
        folder: &Path,
        netobs: &Path,
        tests: &[TestBinary],
        arguments: &[String],
    ) -> anyhow::Result<Self> {
        let root = folder.join("root");
        let _ = fs::remove_dir_all(&root);
        for part in ["bin", "tests", "proc", "sys", "dev", "run", "tmp", "modules"] {
            fs::create_dir_all(root.join(part))?;
        }
        let mut binaries = vec![strip(netobs, &root.join("bin/netobs"))?];
        for test in tests {
            binaries.push(strip(&test.file, &root.join("tests").join(&test.name))?);
        }
        for program in PROGRAMS {
            let file = find_anywhere(program).with_context(|| format!("no program {program}"))?;
            let inside = root.join("bin").join(program);
            fs::copy(&file, &inside).with_context(|| format!("copy {}", file.display()))?;
            binaries.push(inside);
        }
        for binary in &binaries {
            copy_libraries(binary, &root)?;
        }
        fs::write(root.join("arguments"), arguments.join("\n"))?;
        fs::write(root.join("init"), INIT)?;
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
        let archive = folder.join("guest.cpio");
        pack(&root, &archive)?;
        Ok(Self { folder: folder.to_path_buf(), archive })
    }

    /// The initramfs for one kernel: the kernel takes several archives, one after the other. Uncompressed,
    /// because unpacking is what an emulated processor is slow at.
    pub fn initramfs(&self, kernel: &Kernel) -> anyhow::Result<PathBuf> {
        let root = self.folder.join(kernel.label).join("root");
        let _ = fs::remove_dir_all(&root);
        kernel.write_modules(&root.join("modules"))?;
        let initramfs = self.folder.join(kernel.label).join("initramfs.cpio");
        pack(&root, &initramfs)?;
        let mut whole = File::options().append(true).open(&initramfs)?;
        io::copy(&mut File::open(&self.archive)?, &mut whole)?;
        Ok(initramfs)
    }
}

fn copy_libraries(program: &Path, root: &Path) -> anyhow::Result<()> {
    for library in libraries(program)? {
        let inside = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(inside.parent().context("a library in no folder")?)?;
        if !inside.exists() {
            fs::copy(&library, &inside).with_context(|| format!("copy {}", library.display()))?;
        }
    }
    Ok(())
}

/// A copy without debug information, which is most of a test binary.
fn strip(file: &Path, into: &Path) -> anyhow::Result<PathBuf> {
    run(Command::new("strip").arg("-g").arg("-o").arg(into).arg(file))?;
    Ok(into.to_path_buf())
}

/// The shared libraries of a program, and the loader; none if it is static, as busybox may be or not.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = Command::new("ldd").arg(program).stderr(Stdio::null()).output().context("start ldd")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    if let Some(missing) = listed.lines().find(|line| line.contains("not found")) {
        bail!("{} needs {}", program.display(), missing.trim());
    }
    // "libc.so.6 => /lib/libc.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// A folder as an archive of the kind that the kernel unpacks, everything in it root's.
fn pack(folder: &Path, archive: &Path) -> anyhow::Result<()> {
    let mut names = vec![PathBuf::from(".")];
    list(folder, Path::new(""), &mut names)?;
    let names: String = names.iter().map(|name| format!("{}\n", name.display())).collect();
    let list = archive.with_extension("list");
    fs::write(&list, names)?;
    let status = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(folder)
        .stdin(File::open(&list)?)
        .stdout(File::create(archive)?)
        .stderr(Stdio::null())
        .status()
        .context("start busybox")?;
    if !status.success() {
        bail!("busybox cpio of {}: {status}", folder.display());
    }
    Ok(())
}

/// All names below a folder, each folder before what is in it.
fn list(root: &Path, below: &Path, names: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        names.push(name.clone());
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}
