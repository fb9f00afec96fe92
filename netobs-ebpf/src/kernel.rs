//! Reading the kernel's memory, whose layout userspace tells.

use aya_ebpf::helpers::generated;

/// Inode numbers that network namespaces have: from below `PROC_DYNAMIC_FIRST` of linux/proc_ns.h on, where
/// the first one is in newer kernels, and not as far as the upper half of a kernel address. Anything else
/// came from memory that was something else by then.
pub const INUMS: core::ops::Range<u32> = 0xefff_ff00..0xff00_0000;

/// `otherwise` for a null pointer and for what cannot be read.
#[inline(always)]
pub fn read<T: Copy>(from: u64, offset: u32, otherwise: T) -> T {
    let mut value = otherwise;
    if read_into(&mut value, from, offset) { value } else { otherwise }
}

/// In place. What cannot be read becomes zero, or is left for a null pointer.
#[inline(always)]
pub fn read_into<T: Copy>(to: &mut T, from: u64, offset: u32) -> bool {
    let address = (from + u64::from(offset)) as *const core::ffi::c_void;
    // SAFETY: the destination is as long as is said; the helper bears any source address.
    from != 0
        && unsafe {
            generated::bpf_probe_read_kernel(core::ptr::from_mut(to).cast(), size_of::<T>() as u32, address)
                == 0
        }
}
