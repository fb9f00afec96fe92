//! Where the headers of a packet are read.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};

use crate::headers::{Be16, Header, MAX_OFFSET};

/// Where the headers of a packet are read. Offsets are from where it begins: with the
/// Ethernet header at TC hooks (`LINK`), with the IP header at cgroup hooks.
pub trait Source: Sized {
    /// The same packet, `offset` bytes on. Less than 32,768.
    fn at(&self, offset: usize) -> Self;
    /// `None` if the packet ends inside it. One check for each header, not for each of its fields: what is known
    /// of a packet so far has to be kept apart for each place where it may end.
    fn read<T: Header>(&self, offset: usize) -> Option<T>;

    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        self.read(offset)
    }

    #[inline(always)]
    fn be16(&self, offset: usize) -> Option<u16> {
        Some(self.read::<Be16>(offset)?.get())
    }
}

/// The linear part of the skb, read in place.
pub struct Linear {
    pub data: usize,
    pub end: usize,
}

impl Source for Linear {
    #[inline(always)]
    fn at(&self, offset: usize) -> Self {
        Self { data: pointer(self.data, offset), end: self.end }
    }

    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let address = self.data + offset;
        if address + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: inside the linear part, as just checked; the verifier holds us to it.
        Some(unsafe { *(address as *const T) })
    }
}

/// A pointer into a packet, as one value that the compiler takes as it is: taken apart and put together anew,
/// the verifier would not know that a check of one is a check of the other.
#[inline(always)]
pub fn pointer(data: usize, offset: usize) -> usize {
    let mut pointer = data + (offset & MAX_OFFSET);
    // SAFETY: a move to itself; with no instruction at all there would be line information for none, which
    // the kernel refuses.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags))
    };
    pointer
}

/// The whole skb, by helper: for the few whose headers are not in the linear part.
pub struct Whole {
    pub skb: *mut __sk_buff,
    /// Where offsets count from.
    pub start: usize,
}

impl Source for Whole {
    #[inline(always)]
    fn at(&self, offset: usize) -> Self {
        Self { skb: self.skb, start: self.start + offset }
    }

    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the destination is as long; the helper checks the offset, and fills it also when it fails.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                (self.start + offset) as u32,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        // SAFETY: filled, and any bytes are a value.
        (failed == 0).then_some(unsafe { value.assume_init() })
    }
}
