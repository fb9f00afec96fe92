//! Reading the kernel's structs, whose layout userspace has told.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use netobs_common::drops::{KernelLayout, MAX_SKB_LEN};

/// See [`KernelLayout`].
#[unsafe(no_mangle)]
pub static LAYOUT: KernelLayout = KernelLayout {
    skb_start: 0,
    skb_len: 8,
    skb_dev: 0,
    skb_sk: 0,
    skb_refdst: 0,
    skb_iif: 0,
    skb_protocol: 0,
    skb_network_header: 0,
    skb_mac_header: 0,
    skb_tail: 0,
    skb_head: 0,
    skb_pkt_type: 0,
    skb_pkt_type_shift: 0,
    dev_ifindex: 0,
    dev_net: 0,
    net_inum: 0,
    sock_net: 0,
    dst_dev: 0,
    has_reason: 0,
    has_socket: 0,
};

/// A member of the layout; the verifier knows it as a constant.
macro_rules! layout {
    ($member:ident) => {
        // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::LAYOUT.$member) }
    };
}
pub(crate) use layout;

/// Inode numbers that network namespaces have: from below `PROC_DYNAMIC_FIRST` of linux/proc_ns.h on, where
/// the first one is in newer kernels, and not as far as the upper half of a kernel address. Anything else
/// came from memory that was something else by then.
const INUMS: core::ops::Range<u32> = 0xefff_ff00..0xff00_0000;

/// What of `struct sk_buff` is needed.
pub struct Skb {
    bytes: [core::mem::MaybeUninit<u64>; MAX_SKB_LEN / 8],
}

impl Skb {
    /// To be filled by [`Self::read`]; in place, for there is no room on the stack for two.
    #[inline(always)]
    pub const fn unread() -> Self {
        Self { bytes: [const { core::mem::MaybeUninit::uninit() }; MAX_SKB_LEN / 8] }
    }

    #[inline(always)]
    pub fn read(&mut self, skb: u64) -> bool {
        let len = layout!(skb_len);
        if len as usize > MAX_SKB_LEN {
            return false;
        }
        let from = (skb + u64::from(layout!(skb_start))) as *const core::ffi::c_void;
        // SAFETY: the destination is as long as was just checked; the helper bears any source address.
        unsafe { generated::bpf_probe_read_kernel(self.bytes.as_mut_ptr().cast(), len, from) == 0 }
    }

    #[inline(always)]
    fn member<T: Copy>(&self, offset: u32) -> T {
        let start = (&raw const self.bytes).cast::<u8>();
        // SAFETY: userspace has checked that its offsets are inside; the verifier holds it to that.
        unsafe { core::ptr::read_volatile(start.add(offset as usize).cast::<T>()) }
    }

    pub fn device(&self) -> u64 {
        self.member(layout!(skb_dev))
    }

    pub fn socket(&self) -> u64 {
        self.member(layout!(skb_sk))
    }

    /// The routing decision, without the low bits, which say how it is held (`SKB_DST_PTRMASK`).
    pub fn destination(&self) -> u64 {
        self.member::<u64>(layout!(skb_refdst)) & !7
    }

    /// The interface that it came in by.
    pub fn received_by(&self) -> u32 {
        self.member(layout!(skb_iif))
    }

    pub fn ethertype(&self) -> u16 {
        u16::from_be(self.member(layout!(skb_protocol)))
    }

    pub fn head(&self) -> u64 {
        self.member(layout!(skb_head))
    }

    /// Offsets from the head, as the ones below.
    pub fn network_header(&self) -> u64 {
        u64::from(self.member::<u16>(layout!(skb_network_header)))
    }

    /// `None` while there is none.
    pub fn mac_header(&self) -> Option<u64> {
        let offset = self.member::<u16>(layout!(skb_mac_header));
        (offset != u16::MAX).then_some(u64::from(offset))
    }

    /// End of the linear part.
    pub fn tail(&self) -> u64 {
        u64::from(self.member::<u32>(layout!(skb_tail)))
    }

    /// Whether it was for more than this host, or for another: `PACKET_BROADCAST`, `PACKET_MULTICAST` or
    /// `PACKET_OTHERHOST` of linux/if_packet.h.
    pub fn is_for_others(&self) -> bool {
        let byte: u8 = self.member(layout!(skb_pkt_type));
        matches!(byte >> (layout!(skb_pkt_type_shift) & 7) & 7, 1..=3)
    }
}

/// A device, with the namespace that it is in.
pub struct Device {
    pub ifindex: u32,
    pub net: u64,
}

impl Device {
    /// `None` if the address is none of a device.
    #[inline(always)]
    pub fn read(device: u64) -> Option<Self> {
        let net = read::<u64>(device, layout!(dev_net))?;
        Some(Self { ifindex: read(device, layout!(dev_ifindex))?, net })
    }
}

/// The inode number of a namespace; 0 if the address is none of one.
#[inline(always)]
pub fn inum(net: u64) -> u32 {
    match read::<u32>(net, layout!(net_inum)) {
        Some(inum) if INUMS.contains(&inum) => inum,
        _ => 0,
    }
}

/// The namespace of a socket.
#[inline(always)]
pub fn net_of_socket(socket: u64) -> Option<u64> {
    read(socket, layout!(sock_net))
}

/// The device that a routing decision leads to.
#[inline(always)]
pub fn device_of(destination: u64) -> Option<Device> {
    Device::read(read(destination, layout!(dst_dev))?)
}

/// `None` for a null pointer and for what cannot be read.
#[inline(always)]
pub fn read<T>(from: u64, offset: u32) -> Option<T> {
    if from == 0 {
        return None;
    }
    // SAFETY: the helper bears any address.
    unsafe { bpf_probe_read_kernel((from + u64::from(offset)) as *const T) }.ok()
}
