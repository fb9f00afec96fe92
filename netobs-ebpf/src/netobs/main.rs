//! The kernel object: entry points only. Each hook's work is in the module of its name.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "an atomic addition without fetch is in no other place")]

mod events;
mod exact;
mod fast;
mod flows;
mod maps;
mod senders;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use netobs_common::{EGRESS, Hook, INGRESS};

/// Clsact filter at a container's interface. "Next" whatever happens: netobs only looks.
#[classifier]
pub fn netobs_filter(ctx: TcContext) -> i32 {
    filter::<true>(&ctx)
}

/// TCX at ingress of a container's interface.
#[classifier]
pub fn netobs_tcx_ingress(ctx: TcContext) -> i32 {
    link::<INGRESS, true>(&ctx)
}

/// TCX at egress of a container's interface.
#[classifier]
pub fn netobs_tcx_egress(ctx: TcContext) -> i32 {
    link::<EGRESS, true>(&ctx)
}

/// Clsact filter at a bridge, whose packets are in flows at the interfaces of the containers.
#[classifier]
pub fn netobs_br_filter(ctx: TcContext) -> i32 {
    filter::<false>(&ctx)
}

/// TCX at ingress of a bridge.
#[classifier]
pub fn netobs_br_tcx_in(ctx: TcContext) -> i32 {
    link::<INGRESS, false>(&ctx)
}

/// TCX at egress of a bridge.
#[classifier]
pub fn netobs_br_tcx_out(ctx: TcContext) -> i32 {
    link::<EGRESS, false>(&ctx)
}

/// Clsact filter at egress of `lo` in a container's namespace, for the name server there. Counts nothing.
#[classifier]
pub fn netobs_lo(ctx: TcContext) -> i32 {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    if let Some(hook) = Hook::of_class_id(unsafe { (*ctx.skb.skb).tc_classid }) {
        events::look_at_loopback(ctx.skb.skb, hook);
    }
    TC_ACT_UNSPEC
}

/// What sockets of a cgroup receive; from the IP header on.
#[cgroup_skb(ingress)]
pub fn netobs_cgroup_in(ctx: SkBuffContext) -> i32 {
    cgroup::<INGRESS>(&ctx)
}

/// What sockets of a cgroup send; from the IP header on.
#[cgroup_skb(egress)]
pub fn netobs_cgroup_out(ctx: SkBuffContext) -> i32 {
    cgroup::<EGRESS>(&ctx)
}

/// One program for both directions: where a packet passes two hooks, it is still in the CPU's caches at the second.
/// The kernel hands the filter's class ID over with each packet (`cls_bpf_classify`), so that nothing has to be looked
/// up, in whatever namespace the interface is.
#[inline(always)]
fn filter<const FLOWS: bool>(ctx: &TcContext) -> i32 {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    if let Some(hook) = Hook::of_class_id(unsafe { (*ctx.skb.skb).tc_classid }) {
        exact::count::<true, FLOWS>(ctx.skb.skb, hook);
    }
    TC_ACT_UNSPEC
}

/// At TCX the class ID is whatever was in that memory; the slot is found by the interface.
#[inline(always)]
fn link<const DIRECTION: u32, const FLOWS: bool>(ctx: &TcContext) -> i32 {
    // SAFETY: as above.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    if let Some(slot) = maps::slot_of_interface(ifindex) {
        exact::count::<true, FLOWS>(ctx.skb.skb, Hook::new(slot, DIRECTION));
    }
    TC_ACT_UNSPEC
}

/// 1: the packet passes.
#[inline(always)]
fn cgroup<const DIRECTION: u32>(ctx: &SkBuffContext) -> i32 {
    if let Some(slot) = maps::slot_of_cgroup() {
        exact::count::<false, true>(ctx.skb.skb, Hook::new(slot, DIRECTION));
    }
    1
}

/// The helpers used are GPL-free; the kernel asks for the line all the same.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
