//! What an agent has taken of its own and of the host's: what is left when all that it was for is gone.

use std::{collections::BTreeMap, fs, time::Duration};

use netobs::{discovery::namespace, netlink::Netlink};

use crate::{bpf, netns::Netns, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// What there is of netobs at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// Of the agent, by kind.
    pub descriptors: BTreeMap<String, usize>,
    pub threads: usize,
    /// Entries of its maps.
    pub maps: BTreeMap<String, usize>,
    /// Its filters on interfaces of the host.
    pub filters: usize,
    /// Other namespaces that the host has a number for: it goes with the namespace.
    pub namespaces: usize,
    pub host_interfaces: usize,
}

impl Traces {
    /// # Panics
    /// If there is no such process.
    pub fn of(host: &Netns, pid: u32) -> Self {
        let lines = |script: &str| host.sh(script).lines().count();
        Self {
            descriptors: bpf::descriptors(pid),
            threads: fs::read_dir(format!("/proc/{pid}/task")).expect("a process").count(),
            maps: bpf::map_entries(pid),
            filters: filters(host),
            namespaces: namespaces(host),
            host_interfaces: lines("ip -o link show"),
        }
    }

    /// Those that stay the same: the last answer's connection, too, is closed.
    ///
    /// # Panics
    /// If they go on changing.
    pub fn settled(host: &Netns, pid: u32) -> Self {
        let mut last = None;
        wait_for("traces that stay the same", LIMIT, || {
            std::thread::sleep(Duration::from_millis(300));
            let now = Self::of(host, pid);
            match last.replace(now) {
                Some(before) if Some(&before) == last.as_ref() => Ok(before),
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// BPF links that the agent holds.
    pub fn links(&self) -> usize {
        self.descriptors.iter().filter(|(kind, _)| kind.contains("link")).map(|(_, count)| count).sum()
    }
}

/// Filters of netobs on all interfaces of a host.
pub fn filters(host: &Netns) -> usize {
    host.sh("for i in $(ip -o link show | cut -d' ' -f2 | cut -d@ -f1 | tr -d :); do \
             tc filter show dev $i ingress; tc filter show dev $i egress; done")
        .matches(" netobs ")
        .count()
}

/// Other namespaces that the host has a number for. It has one for itself as well, once the kernel has told of
/// the other end of a veth inside (`rtnl_fill_link_netnsid`).
///
/// # Panics
/// Without root.
pub fn namespaces(host: &Netns) -> usize {
    let own = host.run(|| {
        let thread = u32::try_from(nix::unistd::gettid().as_raw()).expect("a number");
        namespace::nsid(&mut Netlink::connect().expect("netlink"), thread).expect("the kernel tells")
    });
    host.sh("ip netns list-id").lines().count() - usize::from(own.is_some())
}
