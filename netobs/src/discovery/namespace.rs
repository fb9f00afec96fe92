//! Network namespaces of processes, looked at from the host's: nothing is entered, nothing assigned.
//!
//! The kernel numbers the namespaces that the host's is connected with (`RTM_GETNSID`); with that number
//! the interfaces and addresses inside can be listed from outside (kernel 4.20 and later).

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    nsid::{NsidAttribute, NsidMessage},
};

use super::{
    netlink::{self, Link},
    procfs,
};
use crate::{
    model::{InnerLink, Namespace},
    netlink::Netlink,
};

/// `NETNSA_NSID_NOT_ASSIGNED` of linux/net_namespace.h.
const NOT_ASSIGNED: i32 = -1;

/// The namespace of a process, with what is in it.
///
/// # Errors
/// If the process is gone, or its namespace may not be looked at (`CAP_SYS_PTRACE`).
pub fn of_process(netlink: &mut Netlink, proc_root: &Path, pid: u32) -> io::Result<Namespace> {
    let identity = procfs::netns_identity(proc_root, pid)?;
    let host = identity == procfs::netns_identity(proc_root, std::process::id())?;
    let nsid = if host { None } else { nsid(netlink, pid)? };
    let links = match nsid {
        Some(nsid) => inner_links(netlink, nsid)?,
        None => Vec::new(),
    };
    Ok(Namespace { identity, nsid, host, links })
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

fn inner_links(netlink: &mut Netlink, nsid: i32) -> io::Result<Vec<InnerLink>> {
    let mut addresses = addresses(netlink, nsid)?;
    Ok(netlink::links(netlink, Some(nsid))?
        .into_iter()
        .map(|Link { ifindex, name, mac, .. }| InnerLink {
            ifindex,
            name,
            mac: format_mac(&mac),
            addresses: addresses.remove(&ifindex).unwrap_or_default(),
        })
        .collect())
}

/// By ifindex.
fn addresses(netlink: &mut Netlink, nsid: i32) -> io::Result<BTreeMap<u32, Vec<IpAddr>>> {
    let mut request = AddressMessage::default();
    request.attributes.push(AddressAttribute::TargetNetNsId(nsid));
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
