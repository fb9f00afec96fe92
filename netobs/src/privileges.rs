//! What netobs may do here, what it needs, and giving up the rest.

use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, setrlimit},
    },
    unistd::{AccessFlags, faccessat},
};

/// A capability that is needed and not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub capability: Capability,
    /// Another one that includes it.
    pub or: Option<Capability>,
    pub purpose: &'static str,
    /// Without it netobs does not run at all.
    pub required: bool,
}

/// All that is ever needed. `CAP_SYS_ADMIN`, which some are included in, is also needed to enter containers' network
/// namespaces.
pub const NEEDS: [Need; 5] = [
    Need {
        capability: Capability::CAP_BPF,
        or: Some(Capability::CAP_SYS_ADMIN),
        purpose: "load eBPF programs and maps",
        required: true,
    },
    Need {
        capability: Capability::CAP_PERFMON,
        or: Some(Capability::CAP_SYS_ADMIN),
        purpose: "let the programs compute addresses in packets",
        required: true,
    },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        or: None,
        purpose: "attach programs to interfaces and read other network namespaces' interfaces",
        required: true,
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        or: None,
        purpose: "tell which network namespace a container's process is in",
        required: false,
    },
    Need {
        capability: Capability::CAP_SYSLOG,
        or: None,
        purpose: "name the places in the kernel where packets are dropped",
        required: false,
    },
];

/// Those of [`NEEDS`] that this process does not have.
pub fn missing() -> Vec<Need> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    NEEDS.into_iter().filter(|need| !has(need.capability) && !need.or.is_some_and(has)).collect()
}

/// How to get what is missing, as one sentence.
pub fn how_to_grant() -> String {
    let program =
        std::env::current_exe().map_or_else(|_| "netobs".to_owned(), |path| path.display().to_string());
    format!(
        "run it as root, or once: sudo setcap cap_bpf,cap_perfmon,cap_net_admin,cap_sys_ptrace,cap_syslog+ep {program}"
    )
}

/// # Errors
/// Names each required capability that is missing and how to grant it.
pub fn require() -> anyhow::Result<()> {
    let missing: Vec<_> = missing().into_iter().filter(|need| need.required).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<_> =
        missing.iter().map(|need| format!("{} (to {})", need.capability, need.purpose)).collect();
    anyhow::bail!("missing privilege: {}; {}", list.join(", "), how_to_grant())
}

/// Gives up all capabilities but those of [`NEEDS`], for this thread, those that it starts and what they might
/// execute. Where a socket cannot be reached without, `CAP_DAC_OVERRIDE` is kept, and where a file cannot be read,
/// `CAP_DAC_READ_SEARCH`, and that is said: those of other users.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub fn give_up_others(sockets: &[PathBuf], files: &[PathBuf]) -> Result<(), caps::errors::CapsError> {
    // Before 5.11 maps are accounted as locked memory; to raise the limit takes CAP_SYS_RESOURCE, which nothing else
    // needs: without it, what netobs is started with has to be enough.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let permitted = caps::read(None, CapSet::Permitted)?;
    let needed = NEEDS.into_iter().flat_map(|need| [Some(need.capability), need.or]).flatten();
    let mut kept: CapsHashSet = needed.filter(|capability| permitted.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &kept)?;
    let is_unreached = |how| move |path: &&PathBuf| !is_reached(path, how);
    let socket = sockets.iter().find(is_unreached(AccessFlags::R_OK | AccessFlags::W_OK));
    let file = files.iter().find(is_unreached(AccessFlags::R_OK));
    caps::set(None, CapSet::Effective, &permitted)?;
    let others = [(socket, Capability::CAP_DAC_OVERRIDE), (file, Capability::CAP_DAC_READ_SEARCH)];
    for (path, capability) in others {
        if let Some(path) = path.filter(|_| permitted.contains(&capability)) {
            tracing::info!(path = %path.display(), "keeping {capability}, for what is another user's");
            kept.insert(capability);
        }
    }
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    // Never refused.
    let _ = prctl::set_no_new_privs();
    Ok(())
}

/// Whether a path, or as much of it as there is, is accessible with the effective capabilities.
fn is_reached(path: &Path, how: AccessFlags) -> bool {
    let may = |path: &Path, how| faccessat(AT_FDCWD, path, how, AtFlags::AT_EACCESS);
    match may(path, how) {
        Ok(()) => true,
        // It may come later.
        Err(nix::errno::Errno::ENOENT) => path
            .parent()
            .is_none_or(|parent| may(parent, AccessFlags::X_OK) != Err(nix::errno::Errno::EACCES)),
        Err(_) => false,
    }
}
