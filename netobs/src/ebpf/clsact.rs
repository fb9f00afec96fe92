//! Filters at a clsact qdisc, by rtnetlink.
//!
//! Only filters of netobs are ever removed (by priority, handle and name), and never a qdisc: another
//! program may have begun to use it meanwhile, and an empty one does nothing.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use crate::netlink::Netlink;

/// Before the 49152 from which the kernel hands out priorities downwards, so that a filter that ends the
/// chain does not hide packets from us.
const PRIORITY: u16 = 1;

/// Name that filters are listed under, in `tc filter show`.
const FILTER_NAME: &str = "netobs";

/// linux/pkt_sched.h
const TC_H_CLSACT: u16 = 0xffff;
const TC_H_MIN_INGRESS: u16 = 0xfff2;
const TC_H_MIN_EGRESS: u16 = 0xfff3;

/// A filter of ours. [`Self::remove`] takes it away; a process that dies leaves it behind.
#[derive(Debug)]
pub struct Filter {
    ifindex: u32,
    ingress: bool,
    handle: u32,
}

impl Filter {
    /// Adds a filter, and the clsact qdisc if there is none. The handle tells whose it is: the process.
    /// The class ID tells the program its slot; with a bpf filter that decides itself it means nothing else.
    pub fn add(
        netlink: &mut Netlink,
        program: BorrowedFd<'_>,
        ifindex: u32,
        ingress: bool,
        slot: u32,
    ) -> io::Result<Self> {
        let filter = Self { ifindex, ingress, handle: std::process::id() };
        let mut message = filter.message();
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ClassId(TcHandle::from(slot + 1))),
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(FILTER_NAME.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let add = |netlink: &mut Netlink| {
            netlink.change(RouteNetlinkMessage::NewTrafficFilter(message.clone()), NLM_F_CREATE | NLM_F_EXCL)
        };
        match add(netlink) {
            Ok(()) => {}
            // No clsact qdisc yet.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                add_qdisc(netlink, ifindex)?;
                add(netlink)?;
            }
            Err(error) => return Err(error),
        }
        Ok(filter)
    }

    /// Removes the filter; one that is gone (with its interface, or by another's hand) is no error.
    pub fn remove(&self, netlink: &mut Netlink) -> io::Result<()> {
        match netlink.change(RouteNetlinkMessage::DelTrafficFilter(self.message()), 0) {
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn message(&self) -> TcMessage {
        let mut message = TcMessage::with_index(self.ifindex.cast_signed());
        let minor = if self.ingress { TC_H_MIN_INGRESS } else { TC_H_MIN_EGRESS };
        message.header.parent = TcHandle { major: TC_H_CLSACT, minor };
        message.header.handle = TcHandle::from(self.handle);
        message.header.info = (u32::from(PRIORITY) << 16) | u32::from((libc::ETH_P_ALL as u16).to_be());
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        message
    }
}

/// Interfaces that have the older `ingress` qdisc, which leaves no room for clsact. It has one block of
/// filters only: one for egress would land among those for ingress.
pub fn with_ingress_qdisc(netlink: &mut Netlink) -> io::Result<BTreeSet<u32>> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let found = netlink.dump(&request, |answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer else { return None };
        let ingress = TcAttribute::Kind("ingress".to_owned());
        qdisc.attributes.contains(&ingress).then_some(qdisc.header.index.cast_unsigned())
    })?;
    Ok(found.into_iter().collect())
}

/// Removes the filters of netobs processes that are no more; how many there were.
pub fn remove_leftovers(netlink: &mut Netlink, ifindex: u32) -> io::Result<usize> {
    let mut removed = 0;
    for ingress in [true, false] {
        for handle in ours(netlink, ifindex, ingress)? {
            // A process of this number that is not netobs has it by chance; this one has none yet.
            let owner = std::fs::read_to_string(format!("/proc/{handle}/comm"));
            let alive = owner.is_ok_and(|comm| comm.trim_end() == "netobs");
            if alive && handle != std::process::id() {
                continue;
            }
            Filter { ifindex, ingress, handle }.remove(netlink)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Handles of all filters with our priority and name.
fn ours(netlink: &mut Netlink, ifindex: u32, ingress: bool) -> io::Result<Vec<u32>> {
    let mut request = TcMessage::with_index(ifindex.cast_signed());
    let minor = if ingress { TC_H_MIN_INGRESS } else { TC_H_MIN_EGRESS };
    request.header.parent = TcHandle { major: TC_H_CLSACT, minor };
    let answers = netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request), |answer| {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = answer else { return None };
        let handle = u32::from(filter.header.handle);
        let priority = (filter.header.info >> 16) as u16;
        let is_ours = handle != 0 && priority == PRIORITY && name(&filter) == Some(FILTER_NAME);
        is_ours.then_some(handle)
    });
    match answers {
        // No clsact qdisc, or no such interface: nothing of ours.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        answers => answers,
    }
}

/// The name that a bpf filter was given.
fn name(filter: &TcMessage) -> Option<&str> {
    filter.attributes.iter().find_map(|attribute| {
        let TcAttribute::Options(options) = attribute else { return None };
        options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.as_str()),
            _ => None,
        })
    })
}

/// One that is there already, whoever made it, is as good.
fn add_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.handle = TcHandle { major: TC_H_CLSACT, minor: 0 };
    message.header.parent = TcHandle { major: TC_H_CLSACT, minor: 0xfff1 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    match netlink.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}
