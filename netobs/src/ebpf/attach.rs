//! Attaching programs to an interface or a cgroup.
//!
//! A filter at a clsact qdisc is attached in a tenth of a millisecond. A TCX link makes the kernel wait for
//! an RCU grace period, some ten milliseconds each, with the lock held that all network configuration
//! needs. So filters are the rule and TCX is for interfaces where others use it already, since a TCX
//! program that ends the chain hides packets from filters (docs/adr/0002-clsact-before-tcx.md).

use std::{
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use serde::Serialize;

use super::clsact;
use crate::netlink::Netlink;

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// Filters; TCX links on interfaces where another program has one.
    #[default]
    Auto,
    /// TCX links (kernel 6.6 and later): gone with the process, whatever ends it.
    Tcx,
    /// Filters at a clsact qdisc: found and removed at the next start if the process was killed.
    Clsact,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// One program on one interface or cgroup, and direction.
#[derive(Debug)]
pub enum Attached {
    /// Of a TCX hook or a cgroup. Detached by closing it.
    Link(#[expect(dead_code, reason = "held for its Drop, which detaches")] OwnedFd),
    /// Must be removed.
    Clsact(clsact::Filter),
}

/// The loaded programs of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// For filters: finds its slot in the filter's class ID.
    pub filter: BorrowedFd<'a>,
    /// For TCX: finds its slot by the ifindex.
    pub tcx: BorrowedFd<'a>,
    /// For cgroups: finds its slot in the cgroup's storage.
    pub cgroup: BorrowedFd<'a>,
}

/// Attaches at the head of the chain of an interface of the client's namespace.
pub fn attach(
    netlink: &mut Netlink,
    programs: Programs<'_>,
    mode: AttachMode,
    ifindex: u32,
    ingress: bool,
    slot: u32,
) -> io::Result<Attached> {
    let filter = |netlink: &mut Netlink| add_filter(netlink, programs, ifindex, ingress, slot);
    let link = || tcx_link(programs.tcx, ifindex, ingress).map(Attached::Link);
    match mode {
        AttachMode::Tcx => link(),
        AttachMode::Clsact => filter(netlink),
        AttachMode::Auto if has_tcx(ifindex, ingress) => link(),
        // Somebody's ingress qdisc, or a filter of another kind at our priority, leaves no room; TCX does
        // not mind them.
        AttachMode::Auto => filter(netlink).or_else(|error| link().map_err(|_| error)),
    }
}

/// Attaches a filter, whatever else there is: in another namespace than ours TCX is not to be had.
pub fn add_filter(
    netlink: &mut Netlink,
    programs: Programs<'_>,
    ifindex: u32,
    ingress: bool,
    slot: u32,
) -> io::Result<Attached> {
    clsact::Filter::add(netlink, programs.filter, ifindex, ingress, slot).map(Attached::Clsact)
}

/// Detaches; an interface that is gone took its programs with it, which is no error.
pub fn detach(netlink: &mut Netlink, attached: Attached) {
    if let Attached::Clsact(filter) = attached
        && let Err(error) = filter.remove(netlink)
    {
        tracing::warn!(%error, ?filter, "remove a clsact filter");
    }
}

/// linux/bpf.h
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_CGROUP_INET_INGRESS: u32 = 0;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;

const fn tcx_hook(ingress: bool) -> u32 {
    if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS }
}

/// `bpf(2)` with an attribute that is the beginning of `union bpf_attr`; the rest is zero.
pub(super) fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is initialised, lives through the call and is passed with its size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether any program is at a TCX hook of the interface. Kernels without TCX have none.
fn has_tcx(ifindex: u32, ingress: bool) -> bool {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        _pad: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut query = Query { target_ifindex: ifindex, attach_type: tcx_hook(ingress), ..Default::default() };
    bpf(BPF_PROG_QUERY, &mut query).is_ok() && query.count > 0
}

/// The attach type of a direction of a cgroup.
pub const fn cgroup_hook(ingress: bool) -> u32 {
    if ingress { BPF_CGROUP_INET_INGRESS } else { BPF_CGROUP_INET_EGRESS }
}

/// Attaches to a cgroup beside what others have there (kernel 5.7 and later).
pub fn cgroup_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, ingress: bool) -> io::Result<Attached> {
    let target = cgroup.as_raw_fd().cast_unsigned();
    link_create(program, target, cgroup_hook(ingress), 0).map(Attached::Link)
}

/// By ifindex: aya attaches by name, and a name may be another interface's by then. Before everybody
/// else: a program that ends the chain must not hide packets from us.
fn tcx_link(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<OwnedFd> {
    link_create(program, ifindex, tcx_hook(ingress), BPF_F_BEFORE)
}

/// `target` is an ifindex or a descriptor, as the hook wants it.
fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct LinkCreate {
        prog_fd: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        relative_fd: u32,
        _pad: u32,
        expected_revision: u64,
    }
    let mut create = LinkCreate {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        target,
        attach_type,
        flags,
        ..Default::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut create)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
