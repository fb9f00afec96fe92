//! What netobs may do here, and what it needs.

use caps::{CapSet, Capability};

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

/// All that is ever needed.
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
