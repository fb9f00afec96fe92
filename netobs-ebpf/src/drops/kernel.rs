//! Reading the kernel's structs, whose layout userspace has told.

use aya_ebpf::helpers::generated;
use netobs_common::drops::{KernelLayout, MAX_SKB_LEN};
use netobs_ebpf::kernel::INUMS;
pub use netobs_ebpf::kernel::{read, read_into};

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
    skb_length: 0,
    skb_data: 0,
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

    /// Bytes from [`Self::data`] on.
    pub fn length(&self) -> u32 {
        self.member(layout!(skb_length))
    }

    /// Where in the packet the kernel was; of the struct at this address.
    pub fn data(skb: u64) -> u64 {
        read(skb, layout!(skb_data), 0)
    }

    /// Offsets from the head, as the ones below.
    pub fn network_header(&self) -> u64 {
        u64::from(self.member::<u16>(layout!(skb_network_header)))
    }

    /// [`Self::NO_MAC_HEADER`] while there is none.
    pub fn mac_header(&self) -> u64 {
        u64::from(self.member::<u16>(layout!(skb_mac_header)))
    }

    pub const NO_MAC_HEADER: u64 = u16::MAX as u64;

    /// End of the linear part.
    pub fn tail(&self) -> u64 {
        u64::from(self.member::<u32>(layout!(skb_tail)))
    }

    /// For whom it was: one of [`packet_type`] or another.
    pub fn packet_type(&self) -> u8 {
        let byte: u8 = self.member(layout!(skb_pkt_type));
        byte >> (layout!(skb_pkt_type_shift) & 7) & 7
    }
}

/// linux/if_packet.h
pub mod packet_type {
    pub const BROADCAST: u8 = 1;
    pub const MULTICAST: u8 = 2;
    pub const OTHER_HOST: u8 = 3;
}

/// A device, with the namespace that it is in. All zero: the address was none of a device. (No `Option`: of
/// one that is `None` the compiler moves undefined bytes about, which verifiers before 6.3 refuse.)
#[derive(Clone, Copy)]
pub struct Device {
    pub ifindex: u32,
    pub net: u64,
}

impl Device {
    #[inline(always)]
    pub fn read(device: u64) -> Self {
        Self { ifindex: read(device, layout!(dev_ifindex), 0), net: read(device, layout!(dev_net), 0) }
    }
}

/// The inode number of a namespace; 0 if the address is none of one.
#[inline(always)]
pub fn inum(net: u64) -> u32 {
    let inum = read(net, layout!(net_inum), 0u32);
    if INUMS.contains(&inum) { inum } else { 0 }
}

/// The namespace of a socket, or 0.
#[inline(always)]
pub fn net_of_socket(socket: u64) -> u64 {
    read(socket, layout!(sock_net), 0)
}

/// The device that a routing decision leads to.
#[inline(always)]
pub fn device_of(destination: u64) -> Device {
    Device::read(read(destination, layout!(dst_dev), 0))
}
