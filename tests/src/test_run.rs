//! `BPF_PROG_TEST_RUN`: a packet through a loaded program, without an interface.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// Offload fields that a packet is given.
#[derive(Clone, Copy, Default)]
pub struct Gso {
    pub segments: u32,
    pub size: u32,
}

/// Runs a packet (from its Ethernet header) through a classifier `repeat` times: the last verdict, and the
/// nanoseconds of one run in the kernel's own measure.
///
/// # Errors
/// What the kernel says; it refuses IP packets without their fixed header.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], gso: Gso, repeat: u32) -> io::Result<(i32, u32)> {
    /// `struct __sk_buff` of linux/bpf.h in words, and which of them are the offload fields.
    const CONTEXT_WORDS: usize = 48;
    const GSO_SEGS: usize = 41;
    const GSO_SIZE: usize = 44;
    #[repr(C)]
    #[derive(Default)]
    struct TestRun {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
    }
    let mut context = [0u32; CONTEXT_WORDS];
    context[GSO_SEGS] = gso.segments;
    context[GSO_SIZE] = gso.size;
    let mut attribute = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat,
        ctx_size_in: size_of_val(&context) as u32,
        ctx_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attribute)?;
    Ok((attribute.retval.cast_signed(), attribute.duration))
}

/// A classifier that does nothing but answer "next": what any program costs.
///
/// # Errors
/// What the kernel says.
pub fn empty_program() -> io::Result<OwnedFd> {
    program(BPF_PROG_TYPE_SCHED_CLS, -1)
}

/// A classifier that lets each packet pass and ends the chain.
///
/// # Errors
/// What the kernel says.
pub fn ending_program() -> io::Result<OwnedFd> {
    program(BPF_PROG_TYPE_SCHED_CLS, 0)
}

/// An XDP program that lets each packet pass.
///
/// # Errors
/// What the kernel says.
pub fn xdp_program() -> io::Result<OwnedFd> {
    const BPF_PROG_TYPE_XDP: u32 = 6;
    const XDP_PASS: i32 = 2;
    program(BPF_PROG_TYPE_XDP, XDP_PASS)
}

/// A program that does nothing but answer.
fn program(kind: u32, verdict: i32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    // r0 = verdict; exit
    let verdict = u64::from(verdict.cast_unsigned()) << 32;
    let instructions: [u64; 2] = [verdict | 0xb7, 0x0000_0000_0000_0095];
    let mut attribute = Load {
        prog_type: kind,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attribute)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The kernel's number of a loaded program.
///
/// # Panics
/// If the descriptor is no program's.
pub fn program_id(program: BorrowedFd<'_>) -> u32 {
    u32::try_from(program_info(program, "prog_id:")).expect("a program's number")
}

/// How often a program has run while the kernel measured.
///
/// # Panics
/// If the descriptor is no program's.
pub fn run_count(program: BorrowedFd<'_>) -> u64 {
    program_info(program, "run_cnt:")
}

fn program_info(program: BorrowedFd<'_>, what: &str) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).expect("fdinfo");
    let value = info.lines().find_map(|line| line.strip_prefix(what)).expect("a program");
    value.trim().parse().expect("a number")
}

/// Attaches a classifier to an interface by TCX, as long as the value lives (kernel 6.6 and later).
///
/// # Errors
/// What the kernel says.
pub fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<OwnedFd> {
    link(program, ifindex, if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS }, 0)
}

/// The same, before all that are there.
///
/// # Errors
/// What the kernel says.
pub fn attach_tcx_first(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<OwnedFd> {
    const BPF_F_BEFORE: u32 = 1 << 3;
    link(program, ifindex, if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS }, BPF_F_BEFORE)
}

/// Attaches an XDP program in the generic mode, as long as the value lives.
///
/// # Errors
/// What the kernel says.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_SKB_MODE: u32 = 2;
    link(program, ifindex, BPF_XDP, XDP_FLAGS_SKB_MODE)
}

/// Detaches a link of any process, as `bpftool link detach` does.
///
/// # Errors
/// What the kernel says.
pub fn detach_link(id: u32) -> io::Result<()> {
    const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let fd = bpf(BPF_LINK_GET_FD_BY_ID, &mut [id, 0, 0, 0])?;
    // SAFETY: a new descriptor that nobody else owns.
    let link = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd().cast_unsigned(), 0, 0, 0]).map(drop)
}

/// Detaches a pinned link, whose name stays.
///
/// # Errors
/// What the kernel says.
pub fn detach_pinned(path: &std::path::Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
    // SAFETY: a new descriptor that nobody else owns.
    let link = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd().cast_unsigned(), 0, 0, 0]).map(drop)
}

fn link(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct LinkCreate {
        prog_fd: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        more: [u64; 4],
    }
    let mut attribute = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ifindex,
        attach_type,
        flags,
        ..LinkCreate::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attribute)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

pub(crate) fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute and what it points to live through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
