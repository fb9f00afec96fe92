//! Processes of containers, read from `/proc`.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use super::cgroup;

/// A container's process: the one with the lowest number, which is nearly always its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// 64 hex digits.
    pub container_id: String,
}

/// One process of each container. Processes that end meanwhile are left out.
///
/// # Errors
/// If `proc_root` cannot be listed.
pub fn containers(proc_root: &Path) -> io::Result<Vec<Process>> {
    let mut first: BTreeMap<String, u32> = BTreeMap::new();
    for entry in fs::read_dir(proc_root)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup")) else { continue };
        if let Some(id) = cgroup::container_id(&text) {
            let lowest = first.entry(id.to_owned()).or_insert(pid);
            *lowest = pid.min(*lowest);
        }
    }
    Ok(first.into_iter().map(|(container_id, pid)| Process { pid, container_id }).collect())
}

/// What a network namespace is told by: `(dev, inode)` of `/proc/PID/ns/net`.
///
/// # Errors
/// If the process is gone, or may not be looked at (`CAP_SYS_PTRACE`).
pub fn netns_identity(proc_root: &Path, pid: u32) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(proc_root.join(pid.to_string()).join("ns/net"))?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_of_each_container() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let id = "c".repeat(64);
        for (pid, cgroup) in [
            ("300", format!("0::/docker/{id}\n")),
            ("20", format!("0::/docker/{id}\n")),
            ("1", "0::/init.scope\n".to_owned()),
            ("self", format!("0::/docker/{}\n", "d".repeat(64))),
        ] {
            fs::create_dir(root.path().join(pid))?;
            fs::write(root.path().join(pid).join("cgroup"), cgroup)?;
        }
        // Ends between listing and reading.
        fs::create_dir(root.path().join("7"))?;
        assert_eq!(containers(root.path())?, [Process { pid: 20, container_id: id }]);
        Ok(())
    }

    #[test]
    fn namespaces_have_an_identity() -> io::Result<()> {
        let own = netns_identity(Path::new("/proc"), std::process::id())?;
        assert_ne!(own.1, 0);
        assert!(netns_identity(Path::new("/proc"), u32::MAX).is_err());
        Ok(())
    }
}
