//! Network namespaces of processes, looked at from the host's where it can be: nothing is entered then.
//!
//! The kernel numbers the namespaces that the host's is connected with (`RTM_GETNSID`); with that number
//! the interfaces and addresses inside can be listed from outside (kernel 4.20 and later).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    nsid::{NsidAttribute, NsidMessage},
};

use super::{netlink, procfs};
use crate::{
    model::{InnerLink, InterfaceKind, Namespace},
    netlink::{Entrance, Netlink, ways},
};

/// `NETNSA_NSID_NOT_ASSIGNED` of linux/net_namespace.h.
const NOT_ASSIGNED: i32 = -1;

/// The namespace of a process, with what is in it. One that the host has no number for is entered.
///
/// # Errors
/// If the process is gone, or its namespace may not be looked at (`CAP_SYS_PTRACE`).
pub fn of_process(netlink: &mut Netlink, proc_root: &Path, pid: u32) -> io::Result<Namespace> {
    let identity = procfs::netns_identity(proc_root, pid)?;
    let host = identity == procfs::netns_identity(proc_root, std::process::id())?;
    let mut namespace = Namespace { identity, host, ..Namespace::default() };
    if host {
        return Ok(namespace);
    }
    namespace.embedded_dns = procfs::has_embedded_dns(proc_root, pid)?;
    namespace.nsid = nsid(netlink, pid)?;
    if namespace.nsid.is_some() {
        namespace.links = inner_links(netlink, namespace.nsid, (proc_root, pid))?;
        return Ok(namespace);
    }
    let path = proc_root.join(pid.to_string()).join("ns/net");
    match (Entrance { path, identity }).connect() {
        Ok(mut inside) => namespace.links = inner_links(&mut inside, None, (proc_root, pid))?,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let why = "its network namespace could not be entered (CAP_SYS_ADMIN and CAP_SYS_PTRACE)";
            namespace.unseen = Some(why.to_owned());
        }
        Err(error) => return Err(error),
    }
    Ok(namespace)
}

/// The number by which the client's namespace knows that of a process (or thread); none if it has none.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn nsid(netlink: &mut Netlink, pid: u32) -> io::Result<Option<i32>> {
    let mut request = NsidMessage::default();
    request.attributes.push(NsidAttribute::Pid(pid));
    let RouteNetlinkMessage::NewNsId(answer) = netlink.get(RouteNetlinkMessage::GetNsId(request))? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id != NOT_ASSIGNED => Some(*id),
        _ => None,
    }))
}

/// What is in the namespace that the client knows as `nsid`, or in its own; that of a process.
fn inner_links(
    netlink: &mut Netlink,
    nsid: Option<i32>,
    (proc_root, pid): (&Path, u32),
) -> io::Result<Vec<InnerLink>> {
    let links = netlink::links(netlink, nsid)?;
    let mut addresses = addresses(netlink, nsid)?;
    // Asked for last: it is when telling of a veth that leads to the host that the kernel numbers it.
    let host = self::nsid(netlink, std::process::id())?;
    let mut within = BTreeSet::new();
    if links.iter().any(|link| link.observed_inside(host, &within) == Some(InterfaceKind::Veth)) {
        for process in procfs::within_container(proc_root, pid)? {
            // One that has ended meanwhile has no number.
            within.extend(self::nsid(netlink, process).ok().flatten());
        }
    }
    Ok(links
        .into_iter()
        .map(|link| InnerLink {
            inside: link.observed_inside(host, &within),
            ifindex: link.ifindex,
            mac: format_mac(&link.mac),
            addresses: addresses.remove(&link.ifindex).unwrap_or_default(),
            name: link.name,
        })
        .collect())
}

/// Addresses of the client's own namespace.
///
/// # Errors
/// What netlink says.
pub fn own_addresses(netlink: &mut Netlink) -> io::Result<BTreeSet<IpAddr>> {
    Ok(addresses(netlink, None)?.into_values().flatten().collect())
}

/// By ifindex.
fn addresses(netlink: &mut Netlink, nsid: Option<i32>) -> io::Result<BTreeMap<u32, Vec<IpAddr>>> {
    let mut request = AddressMessage::default();
    request.attributes.extend(nsid.map(AddressAttribute::TargetNetNsId));
    let all = netlink.dump(&RouteNetlinkMessage::GetAddress(request), |message| {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        Some((message.header.index, address?))
    })?;
    let mut found: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (ifindex, address) in all {
        found.entry(ifindex).or_default().push(address);
    }
    Ok(found)
}

fn format_mac(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
/// A way into each network namespace that a process is in, or that is mounted somewhere, but our own.
pub fn others(proc_root: &Path) -> io::Result<Vec<Entrance>> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let own = identity(&proc_root.join("self/ns/net"))?;
    let mut found: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    for path in ways(proc_root)? {
        // Who has no right to see where it is has none to enter it.
        if let Ok(identity) = identity(&path)
            && identity != own
        {
            found.entry(identity).or_insert(path);
        }
    }
    Ok(found.into_iter().map(|(identity, path)| Entrance { path, identity }).collect())
}
