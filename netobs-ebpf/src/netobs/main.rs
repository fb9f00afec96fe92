//! The kernel object: entry points only. Each hook's work is in the module of its name.
#![no_std]
#![no_main]

mod exact;
mod maps;
mod published;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use netobs_common::{EGRESS, INGRESS};

/// Clsact filter at ingress. "Next" whatever happens: netobs only looks.
#[classifier]
pub fn netobs_ingress(ctx: TcContext) -> i32 {
    filter::<INGRESS>(&ctx)
}

/// Clsact filter at egress.
#[classifier]
pub fn netobs_egress(ctx: TcContext) -> i32 {
    filter::<EGRESS>(&ctx)
}

/// TCX at ingress.
#[classifier]
pub fn netobs_tcx_ingress(ctx: TcContext) -> i32 {
    link::<INGRESS>(&ctx)
}

/// TCX at egress.
#[classifier]
pub fn netobs_tcx_egress(ctx: TcContext) -> i32 {
    link::<EGRESS>(&ctx)
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

/// The filter's class ID is the slot plus one: the kernel hands it over with each packet
/// (`cls_bpf_classify`), so that nothing has to be looked up, in whatever namespace the interface is.
#[inline(always)]
fn filter<const DIRECTION: u32>(ctx: &TcContext) -> i32 {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    let classid = unsafe { (*ctx.skb.skb).tc_classid };
    if classid != 0 {
        exact::count::<DIRECTION, true>(ctx.skb.skb, classid - 1);
    }
    TC_ACT_UNSPEC
}

/// At TCX the class ID is whatever was in that memory; the slot is found by the interface.
#[inline(always)]
fn link<const DIRECTION: u32>(ctx: &TcContext) -> i32 {
    // SAFETY: as above.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    if let Some(slot) = maps::slot_of_interface(ifindex) {
        exact::count::<DIRECTION, true>(ctx.skb.skb, slot);
    }
    TC_ACT_UNSPEC
}

/// 1: the packet passes.
#[inline(always)]
fn cgroup<const DIRECTION: u32>(ctx: &SkBuffContext) -> i32 {
    if let Some(slot) = maps::slot_of_cgroup() {
        exact::count::<DIRECTION, false>(ctx.skb.skb, slot);
    }
    1
}

/// The helpers used are GPL-free; the kernel asks for the line all the same.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
