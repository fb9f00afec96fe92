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
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    // r0 = -1; exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];
    let mut attribute = Load {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
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
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).expect("fdinfo");
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).expect("a program");
    id.trim().parse().expect("a number")
}

/// Attaches a classifier to an interface by TCX, as long as the value lives (kernel 6.6 and later).
///
/// # Errors
/// What the kernel says.
pub fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<OwnedFd> {
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
        attach_type: if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS },
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
