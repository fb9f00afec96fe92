//! Runs that the kernel leaves out: a program at a tracepoint that already runs on that CPU, in what has been interrupted,
//! is not run a second time (`bpf_trace_run`).

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;

use super::attach::bpf;

/// Times that the kernel left a program out, since 6.1 (`recursion_misses` of `struct bpf_prog_info`); before, nobody
/// knows.
pub fn runs(ebpf: &Ebpf, program: &str) -> u64 {
    /// Of `struct bpf_prog_info`.
    const RECURSION_MISSES: usize = 208 / 8;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    #[repr(C)]
    struct GetInfo {
        fd: u32,
        len: u32,
        info: u64,
    }
    let Some(fd) = ebpf.program(program).and_then(|program| program.fd().ok()) else { return 0 };
    let mut info = [0u64; RECURSION_MISSES + 1];
    let mut get = GetInfo {
        fd: fd.as_fd().as_raw_fd().cast_unsigned(),
        len: u32::try_from(size_of_val(&info)).unwrap_or_default(),
        info: info.as_mut_ptr() as u64,
    };
    // A kernel that does not tell leaves it 0.
    let _ = bpf(BPF_OBJ_GET_INFO_BY_FD, &mut get);
    info[RECURSION_MISSES]
}
