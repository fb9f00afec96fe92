//! Filters at a clsact qdisc, by rtnetlink.
//!
//! Only filters of netobs are ever removed (by priority, handle and name), and never a qdisc: another
//! program may have begun to use it meanwhile, and an empty one does nothing.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netobs_common::{EGRESS, Hook, INGRESS};

use super::{attach::Standing, owner};
use crate::netlink::{Entrance, Netlink};

/// Before the 49152 from which the kernel hands out priorities downwards, so that a filter that ends the
/// chain does not hide packets from us.
const PRIORITY: u16 = 1;

/// Name that filters are listed under, in `tc filter show`.
const FILTER_NAME: &str = "netobs";

/// linux/pkt_sched.h
const TC_H_CLSACT: u16 = 0xffff;
const TC_H_MIN_INGRESS: u16 = 0xfff2;
const TC_H_MIN_EGRESS: u16 = 0xfff3;

/// How long what is attached is to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// As the process, or until somebody finds that it is gone.
    Process,
    /// Until it is given up.
    Pinned,
}

/// A filter of ours. [`Self::remove`] takes it away; a process that dies leaves it behind.
#[derive(Debug)]
pub struct Filter {
    ifindex: u32,
    ingress: bool,
    handle: u32,
    /// There was no clsact qdisc.
    pub made_qdisc: bool,
}

impl Filter {
    /// Adds a filter, and the clsact qdisc if there is none. The handle tells whose it is.
    /// The class ID tells the program where it is; with a bpf filter that decides itself it means nothing else.
    pub fn add(
        netlink: &mut Netlink,
        program: BorrowedFd<'_>,
        ifindex: u32,
        ingress: bool,
        slot: u32,
        lasting: Lasting,
    ) -> io::Result<Self> {
        let handle = match lasting {
            Lasting::Process => owner::handle(),
            Lasting::Pinned => owner::PINNED,
        };
        let mut filter = Self { ifindex, ingress, handle, made_qdisc: false };
        let message = filter.with_program(program, slot);
        let add = |netlink: &mut Netlink| {
            netlink.change(RouteNetlinkMessage::NewTrafficFilter(message.clone()), NLM_F_CREATE | NLM_F_EXCL)
        };
        match add(netlink) {
            Ok(()) => {}
            // No clsact qdisc yet.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                add_qdisc(netlink, ifindex)?;
                add(netlink)?;
                filter.made_qdisc = true;
            }
            Err(error) => return Err(error),
        }
        Ok(filter)
    }

    /// A pinned filter that is there, with its program replaced by this one; between two packets.
    pub fn adopt(
        netlink: &mut Netlink,
        program: BorrowedFd<'_>,
        ifindex: u32,
        ingress: bool,
        slot: u32,
    ) -> io::Result<Self> {
        let filter = Self::pinned(ifindex, ingress);
        let message = filter.with_program(program, slot);
        netlink.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_REPLACE)?;
        Ok(filter)
    }

    /// One that may be there.
    pub const fn pinned(ifindex: u32, ingress: bool) -> Self {
        Self { ifindex, ingress, handle: owner::PINNED, made_qdisc: false }
    }

    fn with_program(&self, program: BorrowedFd<'_>, slot: u32) -> TcMessage {
        let hook = Hook::new(slot, if self.ingress { INGRESS } else { EGRESS });
        let mut message = self.message();
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ClassId(TcHandle::from(hook.class_id()))),
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(FILTER_NAME.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        message
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

    /// How it stands among those of its priority: no filter has a smaller one, but the kernel puts a new one of
    /// the same before those that are there.
    pub fn standing(&self, netlink: &mut Netlink) -> io::Result<Standing> {
        let mut others = 0;
        for (handle, is_netobs) in beside(netlink, self.ifindex, self.ingress)? {
            match is_netobs {
                true if handle == self.handle => {
                    return Ok(if others == 0 { Standing::First } else { Standing::Behind });
                }
                // Another netobs lets every packet pass, as we do.
                true => {}
                false => others += 1,
            }
        }
        Ok(Standing::Gone)
    }

    fn message(&self) -> TcMessage {
        let mut message = at_hook(self.ifindex, self.ingress);
        message.header.handle = TcHandle::from(self.handle);
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        message
    }
}

/// A qdisc that has filters for what an interface receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qdisc {
    Clsact,
    /// The older one, which leaves no room for clsact. It has one block of filters only: one for egress would
    /// land among those for ingress.
    Ingress,
}

/// Which interfaces have one, by ifindex.
///
/// # Errors
/// What netlink says.
pub fn qdiscs(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Qdisc>> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let found = netlink.dump(&request, |answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer else { return None };
        let kind = qdisc.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        });
        let kind = match kind? {
            "clsact" => Qdisc::Clsact,
            "ingress" => Qdisc::Ingress,
            _ => return None,
        };
        Some((qdisc.header.index.cast_unsigned(), kind))
    })?;
    Ok(found.into_iter().collect())
}

/// A filter of a netobs process that is no more.
#[derive(Debug)]
pub struct Leftover {
    pub ifindex: u32,
    pub ingress: bool,
    /// The process ID, mostly.
    pub handle: u32,
}

impl Leftover {
    /// # Errors
    /// What the kernel says; one that is gone is no error.
    pub fn remove(&self, netlink: &mut Netlink) -> io::Result<()> {
        let Self { ifindex, ingress, handle } = *self;
        Filter { ifindex, ingress, handle, made_qdisc: false }.remove(netlink)
    }
}

/// Filters of netobs at an interface.
#[derive(Debug, Default)]
pub struct Found {
    pub leftovers: Vec<Leftover>,
    /// Of processes that live.
    pub alive: usize,
}

/// Which filters at an interface are of netobs processes that are no more. `inside` leads to the namespace, if that
/// is not ours.
///
/// `pinned`: those that were to outlive their process, too.
///
/// # Errors
/// What netlink says.
pub fn leftovers(
    netlink: &mut Netlink,
    ifindex: u32,
    inside: Option<&Entrance>,
    pinned: bool,
) -> io::Result<Found> {
    // A netobs that runs in the namespace itself is known there.
    let lives_inside = |handle| {
        inside.is_some_and(|inside| inside.enter(move || Ok(owner::is_claimed(handle))).unwrap_or(true))
    };
    let mut found = Found::default();
    for ingress in [true, false] {
        for handle in ours(netlink, ifindex, ingress)? {
            if (owner::is_leftover(handle) && !lives_inside(handle)) || pinned && handle == owner::PINNED {
                found.leftovers.push(Leftover { ifindex, ingress, handle });
            } else {
                found.alive += 1;
            }
        }
    }
    Ok(found)
}

/// Removes the filters of netobs processes that are no more; how many there were. `inside` as in [`leftovers`].
///
/// # Errors
/// What netlink says.
pub fn remove_leftovers(netlink: &mut Netlink, ifindex: u32, inside: Option<&Entrance>) -> io::Result<usize> {
    let leftovers = leftovers(netlink, ifindex, inside, false)?.leftovers;
    for leftover in &leftovers {
        leftover.remove(netlink)?;
    }
    Ok(leftovers.len())
}

/// Handles of all filters with our priority and name.
fn ours(netlink: &mut Netlink, ifindex: u32, ingress: bool) -> io::Result<Vec<u32>> {
    let beside = beside(netlink, ifindex, ingress)?;
    Ok(beside.into_iter().filter(|(_, is_netobs)| *is_netobs).map(|(handle, _)| handle).collect())
}

/// Where filters of our priority and protocol are.
fn at_hook(ifindex: u32, ingress: bool) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    let minor = if ingress { TC_H_MIN_INGRESS } else { TC_H_MIN_EGRESS };
    message.header.parent = TcHandle { major: TC_H_CLSACT, minor };
    message.header.info = (u32::from(PRIORITY) << 16) | u32::from((libc::ETH_P_ALL as u16).to_be());
    message
}

/// Handles of the filters of our priority in the order in which they run, and whether they have our name.
fn beside(netlink: &mut Netlink, ifindex: u32, ingress: bool) -> io::Result<Vec<(u32, bool)>> {
    let mut request = at_hook(ifindex, ingress);
    // What other chains have runs only where a filter sends packets there.
    request.attributes.push(TcAttribute::Chain(0));
    let answers = netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request), |answer| {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = answer else { return None };
        let handle = u32::from(filter.header.handle);
        let priority = (filter.header.info >> 16) as u16;
        // The first message of a priority tells of none yet.
        (handle != 0 && priority == PRIORITY).then(|| (handle, name(&filter) == Some(FILTER_NAME)))
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
