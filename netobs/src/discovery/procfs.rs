//! Processes of containers, read from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::cgroup;
use crate::model::{Protocol, Proxy};

/// A container's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// 64 hex digits.
    pub container_id: String,
}

/// One process of each container, the one with the lowest number, which is nearly always its first. Processes that end
/// meanwhile are left out.
///
/// # Errors
/// If `proc_root` cannot be listed.
pub fn containers(proc_root: &Path) -> io::Result<Vec<Process>> {
    let mut first: BTreeMap<String, u32> = BTreeMap::new();
    for Process { pid, container_id } in all(proc_root)? {
        let lowest = first.entry(container_id).or_insert(pid);
        *lowest = pid.min(*lowest);
    }
    Ok(first.into_iter().map(|(container_id, pid)| Process { pid, container_id }).collect())
}

/// All processes of containers.
fn all(proc_root: &Path) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc_root)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup")) else { continue };
        let container_id = cgroup::container_id(&text).map(str::to_owned);
        found.extend(container_id.map(|container_id| Process { pid, container_id }));
    }
    Ok(found)
}

/// The directory of a container's own cgroup in the v2 tree, by one of its processes.
///
/// # Errors
/// `Unsupported`, with what is missing; or what reading says, for one if the process is gone.
pub fn v2_cgroup(proc_root: &Path, pid: u32, container_id: &str) -> io::Result<PathBuf> {
    let unsupported = |why| io::Error::new(io::ErrorKind::Unsupported, why);
    let mountinfo = fs::read_to_string(proc_root.join("self/mountinfo"))?;
    let root = cgroup::v2_root(&mountinfo)
        .ok_or_else(|| unsupported("this host has no cgroup v2 tree to count it by"))?;
    let text = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup"))?;
    let path = cgroup::v2_path(&text, container_id)
        .ok_or_else(|| unsupported("it has no cgroup of its own in the v2 tree to count it by"))?;
    Ok(root.join(path))
}

/// A process in each network namespace that others of a process's container are in, but the host's and its own: of
/// containers within the container.
///
/// # Errors
/// If the process is gone, or `proc_root` cannot be listed.
pub fn within_container(proc_root: &Path, pid: u32) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup"))?;
    let Some(container) = cgroup::container_id(&text) else { return Ok(Vec::new()) };
    let processes = match v2_cgroup(proc_root, pid, container) {
        Ok(folder) => {
            let mut found = Vec::new();
            processes_below(&folder, &mut found)?;
            found
        }
        // The v2 tree does not tell: a look at every process.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let of_it = all(proc_root)?.into_iter().filter(|process| process.container_id == container);
            of_it.map(|process| process.pid).collect()
        }
        Err(error) => return Err(error),
    };
    let [own, host] = [pid, std::process::id()].map(|pid| netns_identity(proc_root, pid));
    let mut seen = BTreeSet::from([own?, host?]);
    let in_another = |pid: &u32| netns_identity(proc_root, *pid).is_ok_and(|identity| seen.insert(identity));
    Ok(processes.into_iter().filter(in_another).collect())
}

/// Of a cgroup of the v2 tree and those below.
fn processes_below(folder: &Path, found: &mut Vec<u32>) -> io::Result<()> {
    // One of threads does not say.
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(processes.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match processes_below(&entry.path(), found) {
                // Gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Whether Docker's name server is in a process's network namespace: a UDP socket of 127.0.0.11 (proc(5),
/// `/proc/PID/net/udp`). There are no IPv4 sockets where there is no IPv4.
///
/// # Errors
/// If the process is gone.
pub fn has_embedded_dns(proc_root: &Path, pid: u32) -> io::Result<bool> {
    let sockets = match fs::File::open(proc_root.join(pid.to_string()).join("net/udp")) {
        Ok(sockets) => sockets,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // `  123: 0B00007F:8A1C 00000000:0000 07 ...`, addresses as a number of the host's byte order.
    let server = format!("{:08X}:", u32::from_ne_bytes([127, 0, 0, 11]));
    for line in io::BufReader::new(sockets).lines() {
        if line?.split_whitespace().nth(1).is_some_and(|address| address.starts_with(&server)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The engine's proxies for published ports: processes called `docker-proxy`, whose command line says what
/// for. Processes that end meanwhile are left out.
///
/// # Errors
/// If `proc_root` cannot be listed.
pub fn proxies(proc_root: &Path) -> io::Result<BTreeSet<Proxy>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(proc_root)? {
        let folder = entry?.path();
        let is_proxy =
            fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == "docker-proxy");
        if is_proxy && let Ok(command) = fs::read_to_string(folder.join("cmdline")) {
            found.extend(proxy(&command));
        }
    }
    Ok(found)
}

/// `docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80`,
/// NUL after each argument (proc(5)).
pub(crate) fn proxy(command: &str) -> Option<Proxy> {
    let arguments: Vec<&str> = command.split('\0').collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| *argument == name)?;
        arguments.get(at + 1).copied()
    };
    let protocol = match value("-proto")? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some(Proxy {
        protocol,
        container_address: value("-container-ip")?.parse().ok()?,
        container_port: value("-container-port")?.parse().ok()?,
    })
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
    fn without_a_v2_tree_it_is_said_what_is_missing() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let id = "c".repeat(64);
        for folder in ["self", "20"] {
            fs::create_dir(root.path().join(folder))?;
        }
        let v1 = "36 25 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let v2 = "35 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let of = |mounts: &str, cgroups: &str| {
            fs::write(root.path().join("self/mountinfo"), mounts)?;
            fs::write(root.path().join("20/cgroup"), cgroups)?;
            Ok::<_, io::Error>(v2_cgroup(root.path(), 20, &id).map_err(|error| error.to_string()))
        };
        let both = format!("4:memory:/docker/{id}\n0::/docker/{id}\n");
        assert_eq!(of(v1, &both)?, Err("this host has no cgroup v2 tree to count it by".to_owned()));
        let only_v1 = format!("4:memory:/docker/{id}\n0::/\n");
        assert_eq!(
            of(&format!("{v1}{v2}"), &only_v1)?,
            Err("it has no cgroup of its own in the v2 tree to count it by".to_owned())
        );
        assert_eq!(
            of(&format!("{v1}{v2}"), &both)?,
            Ok(PathBuf::from(format!("/sys/fs/cgroup/unified/docker/{id}")))
        );
        Ok(())
    }

    /// One process of each namespace that a container's are in beside its own, by the v2 tree and without one.
    #[test]
    fn what_is_within_a_container() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let (id, other) = ("a".repeat(64), "b".repeat(64));
        let own = std::process::id();
        let process = |pid: u32, cgroup: &str, namespace: &str| -> io::Result<()> {
            let folder = root.path().join(pid.to_string());
            fs::create_dir_all(folder.join("ns"))?;
            fs::write(folder.join("cgroup"), format!("0::{cgroup}\n"))?;
            let file = root.path().join(namespace);
            fs::OpenOptions::new().append(true).create(true).open(&file)?;
            fs::hard_link(file, folder.join("ns/net"))?;
            let tree = root.path().join("tree").join(cgroup.trim_start_matches('/'));
            fs::create_dir_all(&tree)?;
            let procs = tree.join("cgroup.procs");
            let before = fs::read_to_string(&procs).unwrap_or_default();
            fs::write(procs, format!("{before}{pid}\n"))
        };
        let (node, pod) = (format!("/docker/{id}"), format!("/docker/{id}/kubelet/{other}"));
        process(own, "/init.scope", "host")?;
        process(1_000_020, &node, "node")?;
        process(1_000_021, &format!("{node}/init.scope"), "node")?;
        process(1_000_030, &pod, "pod")?;
        process(1_000_031, &pod, "pod")?;
        process(1_000_032, &pod, "host")?;
        process(1_000_040, &format!("/docker/{other}"), "other")?;
        fs::create_dir(root.path().join("self"))?;
        let tree = root.path().join("tree");
        for mounts in [format!("35 25 0:31 / {} rw - cgroup2 cgroup2 rw\n", tree.display()), String::new()] {
            fs::write(root.path().join("self/mountinfo"), &mounts)?;
            let found = within_container(root.path(), 1_000_020)?;
            assert!(matches!(found[..], [1_000_030 | 1_000_031]), "{mounts}: {found:?}");
            assert_eq!(within_container(root.path(), 1_000_040)?, [0_u32; 0], "{mounts}");
            assert_eq!(within_container(root.path(), own)?, [0_u32; 0], "{mounts}");
        }
        assert!(within_container(root.path(), 5).is_err(), "there is none");
        Ok(())
    }

    #[test]
    fn namespaces_have_an_identity() -> io::Result<()> {
        let own = netns_identity(Path::new("/proc"), std::process::id())?;
        assert_ne!(own.1, 0);
        assert!(netns_identity(Path::new("/proc"), u32::MAX).is_err());
        Ok(())
    }

    #[test]
    fn proxies_are_told_by_their_command_line() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let line = "/usr/sbin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 \
                    -container-ip 172.17.0.2 -container-port 80";
        for (pid, comm, command) in [
            ("1", "docker-proxy\n", line),
            ("2", "sh\n", line),
            ("3", "docker-proxy\n", "/usr/sbin/docker-proxy -proto"),
            ("4", "docker-proxy\n", "docker-proxy -proto tcp -container-ip x -container-port 99999"),
        ] {
            fs::create_dir(root.path().join(pid))?;
            fs::write(root.path().join(pid).join("comm"), comm)?;
            fs::write(root.path().join(pid).join("cmdline"), command.replace(' ', "\0"))?;
        }
        let expected =
            Proxy { protocol: Protocol::Tcp, container_address: [172, 17, 0, 2].into(), container_port: 80 };
        assert_eq!(proxies(root.path())?, BTreeSet::from([expected]));
        Ok(())
    }
}
