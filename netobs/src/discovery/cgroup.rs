//! Container IDs in cgroup paths: who a process belongs to, where no engine says; and the directory of a
//! container's cgroup.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// Digits of a full container ID.
const ID_LEN: usize = 64;

/// The container that `/proc/PID/cgroup` puts a process into; none for a process of the host.
///
/// Lines are `hierarchy:controllers:path` (cgroups(7)). With containers inside a container, the path has
/// several IDs: the first is the one that the host's engine knows, and whose namespace its veth leads to.
pub fn container_id(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let mut components = path.split('/').peekable();
        while let Some(component) = components.next() {
            if let Some(id) = id_of_component(component) {
                let of_pod = component == id && components.peek().is_some_and(|next| is_in_pod(next));
                return if of_pod { id_of_component(components.next()?) } else { Some(id) };
            }
        }
        None
    })
}

/// What Podman makes in a pod's cgroup, whose name is a bare ID: cgroups of containers and of their monitors.
fn is_in_pod(component: &str) -> bool {
    component.starts_with("libpod-") || component == "conmon"
}

/// The path of a container's own cgroup in the v2 tree, by a process's `/proc/PID/cgroup`, from the tree's
/// root: what is below it belongs to the container as well. None if the process is in no v2 cgroup of the
/// container's own.
pub fn v2_path<'a>(cgroup: &'a str, container_id: &str) -> Option<&'a str> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut end = 0;
    for component in path.split('/') {
        end += component.len();
        if id_of_component(component) == Some(container_id) {
            return path.get(..end);
        }
        end += 1;
    }
    None
}

/// Where the v2 tree is mounted, by `/proc/self/mountinfo` (proc(5)): at `/sys/fs/cgroup`, or beside the
/// older hierarchies at `/sys/fs/cgroup/unified`.
pub fn v2_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        // A part of the tree would not do.
        let whole = fields.next()? == "/" && filesystem.starts_with("cgroup2 ");
        whole.then(|| unescape(fields.next().unwrap_or_default()))
    })
}

/// Spaces and the like are `\\ooo` in `mountinfo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Path::new(&OsString::from_vec(bytes)).to_path_buf()
}

/// `<id>`, `docker-<id>.scope`, `libpod-payload-<id>`, `cri-containerd-<id>.scope`, …
fn id_of_component(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    // `libpod-conmon-` is the monitor, which is in the host's namespace.
    if name.starts_with("libpod-conmon-") {
        return None;
    }
    let id = name.rsplit('-').next()?;
    let is_id = id.len() == ID_LEN && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_id.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_layouts() {
        let id = "0123456789abcdef".repeat(4);
        let inner = "f".repeat(64);
        for (cgroup, what) in [
            (format!("12:pids:/docker/{id}\n0::/docker/{id}\n"), "cgroupfs, hybrid"),
            (format!("0::/system.slice/docker-{id}.scope\n"), "systemd, v2"),
            (format!("0::/docker/{id}/init.scope\n"), "below the container"),
            (format!("0::/docker/{id}/docker/{inner}\n"), "a container in a container"),
            (format!("0::/machine.slice/libpod-{id}.scope/container\n"), "podman"),
            (format!("0::/libpod_parent/libpod-payload-{id}\n"), "podman, cgroupfs"),
            (format!("0::/libpod_parent/{inner}/libpod-{id}\n"), "podman, a pod"),
            (
                format!("0::/machine.slice/machine-libpod_pod_{inner}.slice/libpod-{id}.scope\n"),
                "podman, a pod's slice",
            ),
            (format!("0::/docker/{id}/libpod_parent/libpod-{inner}\n"), "podman in a container"),
            (format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope\n"), "CRI"),
            (format!("3:cpu:/kubepods/burstable/pod1b-2c/{id}\n"), "CRI, cgroupfs"),
            (format!("1:name=systemd:/a:b/crio-{id}.scope"), "CRI-O, a colon in the path"),
        ] {
            assert_eq!(container_id(&cgroup), Some(id.as_str()), "{what}");
        }
    }

    #[test]
    fn processes_of_the_host() {
        let id = "a".repeat(64);
        for cgroup in [
            String::new(),
            "0::/\n".to_owned(),
            "0::/../..\n".to_owned(),
            "no colons at all".to_owned(),
            "0::/user.slice/user-0.slice/session-1.scope\n".to_owned(),
            format!("0::/docker/{}\n", &id[..63]),
            format!("0::/docker/{}\n", id.to_uppercase()),
            format!("0::/machine.slice/libpod-conmon-{id}.scope\n"),
            format!("0::/libpod_parent/{id}/libpod-conmon-{id}\n"),
            format!("1:cpu:/libpod_parent/{id}/conmon\n0::/\n"),
        ] {
            assert_eq!(container_id(&cgroup), None, "{cgroup}");
        }
    }

    #[test]
    fn own_cgroups_in_the_v2_tree() {
        let (id, other) = ("a".repeat(64), "b".repeat(64));
        for (cgroup, expected) in [
            (format!("5:cpu:/docker/{id}\n0::/docker/{id}\n"), Some(format!("docker/{id}"))),
            (
                format!("0::/system.slice/docker-{id}.scope/init\n"),
                Some(format!("system.slice/docker-{id}.scope")),
            ),
            (format!("0::/docker/{id}/docker/{other}\n"), Some(format!("docker/{id}"))),
            (format!("5:cpu:/docker/{id}\n0::/\n"), None),
            (format!("5:cpu:/docker/{id}\n"), None),
            (format!("0::/docker/{other}\n"), None),
        ] {
            assert_eq!(v2_path(&cgroup, &id).map(str::to_owned), expected, "{cgroup}");
        }
    }

    #[test]
    fn where_the_v2_tree_is() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      35 25 0:31 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_root(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let spaced = "35 25 0:31 / /mnt/a\\040b rw - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_root(spaced), Some(PathBuf::from("/mnt/a b")));
        let part = "35 25 0:31 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_root(part), None);
        assert_eq!(v2_root("nonsense\n"), None);
    }
}
