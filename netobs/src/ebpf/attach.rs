//! Attaching the two programs to an interface.
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

/// One program on one interface and direction.
#[derive(Debug)]
pub enum Attached {
    /// Detached by closing it.
    Tcx(#[expect(dead_code, reason = "held for its Drop, which detaches")] OwnedFd),
    /// Must be removed.
    Clsact(clsact::Filter),
}

/// Attaches a loaded program at the head of the chain of an interface.
pub fn attach(
    netlink: &mut Netlink,
    program: BorrowedFd<'_>,
    mode: AttachMode,
    ifindex: u32,
    ingress: bool,
) -> io::Result<Attached> {
    let filter =
        |netlink: &mut Netlink| clsact::Filter::add(netlink, program, ifindex, ingress).map(Attached::Clsact);
    let link = || tcx_link(program, ifindex, ingress).map(Attached::Tcx);
    match mode {
        AttachMode::Tcx => link(),
        AttachMode::Clsact => filter(netlink),
        AttachMode::Auto if has_tcx(ifindex, ingress) => link(),
        // Somebody's ingress qdisc, or a filter of another kind at our priority, leaves no room; TCX does
        // not mind them.
        AttachMode::Auto => filter(netlink).or_else(|error| link().map_err(|_| error)),
    }
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
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;

const fn tcx_hook(ingress: bool) -> u32 {
    if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS }
}

/// `bpf(2)` with an attribute that is the beginning of `union bpf_attr`; the rest is zero.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_long> {
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

/// By ifindex: aya attaches by name, and a name may be another interface's by then.
fn tcx_link(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct LinkCreate {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative_fd: u32,
        _pad: u32,
        expected_revision: u64,
    }
    let mut create = LinkCreate {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        target_ifindex: ifindex,
        attach_type: tcx_hook(ingress),
        // Before everybody else: a program that ends the chain must not hide packets from us.
        flags: BPF_F_BEFORE,
        ..Default::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut create)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
