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

/// Zero for a null pointer and for what cannot be read. Without a branch: what comes after it is walked once, and
/// verifiers before 6.3 do not mistake what depends on it for what is never reached.
///
/// # Safety
/// All zero must be a value of the type, and any bytes must be.
#[inline(always)]
pub unsafe fn read_or_zero<T: Copy>(from: u64, offset: u32) -> T {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    let address = (from + u64::from(offset)) as *const core::ffi::c_void;
    // SAFETY: the destination is as long as is said; the helper bears any source address, and writes zeros where
    // it cannot read (since 5.5).
    unsafe {
        generated::bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address);
        value.assume_init()
    }
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
