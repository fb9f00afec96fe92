//! Attaching programs to an interface or a cgroup.
//!
//! A filter at a clsact qdisc is attached in a tenth of a millisecond. A TCX link makes the kernel wait for
//! an RCU grace period, some ten milliseconds each, with the lock held that all network configuration
//! needs. So filters are the rule. TCX is for interfaces where others use it already, since a TCX
//! program that ends the chain hides packets from filters, and for those with traffic and no clsact yet, which the
//! kernel cannot make without dropping some of it (docs/adr/0002-clsact-before-tcx.md).

use std::{
    fmt, io,
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use serde::Serialize;

use super::{
    clsact::{self, Lasting},
    resolvers::LOOPBACK,
};
use crate::netlink::Netlink;

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// Filters; TCX links where another program has one, or a clsact qdisc would cost packets.
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

/// By what an interface is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Filter,
    Link,
    /// By a filter; by a link where others have one, or where there is no room for the filter.
    FilterOrLink,
    /// By a link; by a filter if that cannot be.
    LinkOrFilter,
}

/// One program on one interface or cgroup, and direction.
#[derive(Debug)]
pub enum Attached {
    /// Of a TCX hook or a cgroup. Detached by closing it.
    Link(OwnedFd),
    /// Must be removed.
    Clsact(clsact::Filter),
}

/// How a program of ours stands at its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Before all that others have there.
    First,
    /// Others run before it, and may end the chain.
    Behind,
    /// Others have removed it.
    Gone,
}

/// The loaded programs for one kind of interface and one direction.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// For filters, of both directions: finds slot and direction in the filter's class ID.
    pub filter: BorrowedFd<'a>,
    /// For TCX: finds its slot by the ifindex.
    pub tcx: BorrowedFd<'a>,
}

/// Attaches at the head of the chain of an interface of the client's namespace.
pub fn attach(
    netlink: &mut Netlink,
    programs: Programs<'_>,
    way: Way,
    ifindex: u32,
    ingress: bool,
    slot: u32,
    lasting: Lasting,
) -> io::Result<Attached> {
    let filter = |netlink: &mut Netlink| {
        clsact::Filter::add(netlink, programs.filter, ifindex, ingress, slot, lasting).map(Attached::Clsact)
    };
    let link = || tcx_link(programs.tcx, ifindex, ingress).map(Attached::Link);
    match way {
        Way::Link => link(),
        Way::Filter => filter(netlink),
        Way::FilterOrLink if has_tcx(ifindex, ingress) => link(),
        // A filter of another kind at our priority leaves no room; TCX does not mind it.
        Way::FilterOrLink => filter(netlink).or_else(|error| link().map_err(|_| error)),
        Way::LinkOrFilter => link().or_else(|error| {
            tracing::debug!(%error, ifindex, "link a program");
            filter(netlink)
        }),
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
    clsact::Filter::add(netlink, programs.filter, ifindex, ingress, slot, Lasting::Process)
        .map(Attached::Clsact)
}

/// Puts this program in the place of that of a link to an interface, between two packets.
pub fn adopt_link(link: OwnedFd, programs: Programs<'_>, ifindex: u32) -> io::Result<Attached> {
    let Ok(LinkInfo { kind: BPF_LINK_TYPE_TCX, target, .. }) = link_info(link.as_fd()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if target != u64::from(ifindex) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let program = programs.tcx.as_raw_fd().cast_unsigned();
    bpf(BPF_LINK_UPDATE, &mut [link.as_raw_fd().cast_unsigned(), program, 0, 0])?;
    Ok(Attached::Link(link))
}

/// How what was attached to an interface of the client's namespace stands there. Filters are looked at only if
/// they may have been touched.
pub fn standing(
    netlink: &mut Netlink,
    attached: &Attached,
    mode: AttachMode,
    (ifindex, ingress): (u32, bool),
    filters_touched: bool,
) -> io::Result<Standing> {
    match attached {
        Attached::Link(link) => link_standing(link.as_fd(), ifindex, ingress),
        Attached::Clsact(filter) => match filter_standing(netlink, filter, filters_touched)? {
            // They run before all filters.
            Standing::First if mode == AttachMode::Auto && others_at_tcx(ifindex, ingress) => {
                Ok(Standing::Behind)
            }
            standing => Ok(standing),
        },
    }
}

fn filter_standing(netlink: &mut Netlink, filter: &clsact::Filter, touched: bool) -> io::Result<Standing> {
    if touched { filter.standing(netlink) } else { Ok(Standing::First) }
}

/// Whether a link to a cgroup is still there.
pub fn is_linked(attached: &Attached) -> bool {
    match attached {
        Attached::Link(link) => link_info(link.as_fd()).is_ok_and(|info| info.target != 0),
        Attached::Clsact(_) => false,
    }
}

fn link_standing(link: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<Standing> {
    let LinkInfo { id, target, .. } = link_info(link)?;
    // Zero when it was detached by another's hand, or with its interface.
    if target == 0 {
        return Ok(Standing::Gone);
    }
    let before = tcx_programs(ifindex, ingress)?.into_iter().take_while(|(_, link)| *link != id);
    let others = before.filter(|(program, _)| !is_netobs(*program)).count();
    Ok(if others == 0 { Standing::First } else { Standing::Behind })
}

/// Whether a program that is not netobs's is at a TCX hook.
fn others_at_tcx(ifindex: u32, ingress: bool) -> bool {
    tcx_programs(ifindex, ingress)
        .is_ok_and(|programs| programs.into_iter().any(|(program, _)| !is_netobs(program)))
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
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_CGROUP_INET_INGRESS: u32 = 0;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;

const fn tcx_hook(ingress: bool) -> u32 {
    if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS }
}

/// `bpf(2)` with an attribute that is the beginning of `union bpf_attr`; the rest is zero.
pub fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is initialised, lives through the call and is passed with its size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `BPF_PROG_QUERY` of `union bpf_attr`.
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

/// Whether the kernel knows TCX (6.6 and later).
pub fn has_tcx_at_all() -> bool {
    let mut query = Query { target_ifindex: LOOPBACK, attach_type: tcx_hook(true), ..Default::default() };
    bpf(BPF_PROG_QUERY, &mut query).is_ok()
}

/// Whether any program is at a TCX hook of the interface. Kernels without TCX have none.
fn has_tcx(ifindex: u32, ingress: bool) -> bool {
    let mut query = Query { target_ifindex: ifindex, attach_type: tcx_hook(ingress), ..Default::default() };
    bpf(BPF_PROG_QUERY, &mut query).is_ok() && query.count > 0
}

/// Programs and links (0: none) at a TCX hook by their numbers, in the order in which they run; at most as many
/// as the kernel has room for at a hook.
fn tcx_programs(ifindex: u32, ingress: bool) -> io::Result<Vec<(u32, u32)>> {
    /// `BPF_MPROG_MAX`
    const MAX: usize = 64;
    let (mut programs, mut links) = ([0u32; MAX], [0u32; MAX]);
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type: tcx_hook(ingress),
        prog_ids: programs.as_mut_ptr() as u64,
        link_ids: links.as_mut_ptr() as u64,
        count: MAX as u32,
        ..Default::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    Ok(programs.into_iter().zip(links).take(query.count as usize).collect())
}

/// What is asked of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    /// Of TCX the ifindex in its lower half and the hook in the upper; of a cgroup its ID.
    target: u64,
    _rest: [u64; 4],
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    // Of TCX the upper half is the hook, which stays.
    if info.kind == BPF_LINK_TYPE_TCX {
        info.target &= 0xffff_ffff;
    }
    Ok(info)
}

const BPF_LINK_TYPE_TCX: u32 = 11;

fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Ask {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut ask = Ask {
        fd: object.as_raw_fd().cast_unsigned(),
        len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut ask).map(drop)
}

/// Whether a program is netobs's, of this or another process, by its name: it lets every packet pass. False if
/// that may not be asked (`CAP_SYS_ADMIN`).
fn is_netobs(program: u32) -> bool {
    /// The beginning of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        _kind_to_map_ids: [u64; 8],
        name: [u8; 16],
    }
    let mut ask = [program, 0, 0, 0];
    let Ok(fd) = bpf(BPF_PROG_GET_FD_BY_ID, &mut ask) else { return false };
    let Ok(fd) = i32::try_from(fd) else { return false };
    // SAFETY: a new descriptor that nobody else owns.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = Info::default();
    let ours = |name: [u8; 16]| name.starts_with(b"netobs_") || name.starts_with(b"trace_tcx_");
    object_info(program.as_fd(), &mut info).is_ok() && ours(info.name)
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
