//! Container IDs in cgroup paths: who a process belongs to, where no engine says.

/// Digits of a full container ID.
const ID_LEN: usize = 64;

/// The container that `/proc/PID/cgroup` puts a process into; none for a process of the host.
///
/// Lines are `hierarchy:controllers:path` (cgroups(7)). With containers inside a container, the path has
/// several IDs: the first is the one that the host's engine knows, and whose namespace its veth leads to.
pub fn container_id(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').find_map(id_of_component)
    })
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
        ] {
            assert_eq!(container_id(&cgroup), None, "{cgroup}");
        }
    }
}
