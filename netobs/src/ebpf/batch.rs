//! Many entries of a BPF hash map in one system call.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::attach::bpf;

/// linux/bpf.h, kernel 5.6.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Command {
    Lookup = 24,
    LookupAndDelete = 25,
}

/// Plain data, as maps have keys and values.
///
/// # Safety
/// Integers without padding: any bytes are one, and all of its bytes are.
pub unsafe trait Plain: Copy + Default {}

/// Takes as many entries as there is room for, from the map's beginning: how many that are, and whether that was
/// all. `keys` and `values` are as long as each other.
///
/// # Errors
/// What `bpf(2)` says.
pub fn read<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    command: Command,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    /// Of `union bpf_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Batch {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    // Where the next call would go on; of a hash map four bytes, of others a key.
    let mut position = [0u8; 64];
    let mut batch = Batch {
        out_batch: position.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?,
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..Batch::default()
    };
    let is_all = match bpf(command as libc::c_int, &mut batch) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    Ok((batch.count as usize, is_all))
}
