//! The kernel object of `netobs trace`: packets that match go into a ring, as far as they are asked for.
//! Entry points only.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target has no atomic additions but by the intrinsic")]

mod event;
mod filter;
mod maps;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use netobs_common::{EGRESS, Hook, INGRESS};

/// Clsact filter; its class ID says where it is (`cls_bpf_classify` hands it over). "Next" whatever happens: netobs
/// only looks.
#[classifier]
pub fn trace_filter(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    let class_id = unsafe { (*skb).tc_classid };
    if let Some(hook) = Hook::of_class_id(class_id)
        && filter::matches::<true>(skb)
    {
        event::send::<true>(skb, hook);
    }
    TC_ACT_UNSPEC
}

/// TCX at ingress.
#[classifier]
pub fn trace_tcx_ingress(ctx: TcContext) -> i32 {
    link::<INGRESS>(&ctx)
}

/// TCX at egress.
#[classifier]
pub fn trace_tcx_egress(ctx: TcContext) -> i32 {
    link::<EGRESS>(&ctx)
}

/// What sockets of a cgroup receive; from the IP header on.
#[cgroup_skb(ingress)]
pub fn trace_cgroup_in(ctx: SkBuffContext) -> i32 {
    cgroup::<INGRESS>(&ctx)
}

/// What sockets of a cgroup send; from the IP header on.
#[cgroup_skb(egress)]
pub fn trace_cgroup_out(ctx: SkBuffContext) -> i32 {
    cgroup::<EGRESS>(&ctx)
}

/// The slot is looked up for packets that match only.
#[inline(always)]
fn link<const DIRECTION: u32>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: as above.
    let ifindex = unsafe { (*skb).ifindex };
    if filter::matches::<true>(skb)
        && let Some(slot) = maps::slot_of_interface(ifindex)
    {
        event::send::<true>(skb, Hook::new(slot, DIRECTION));
    }
    TC_ACT_UNSPEC
}

/// 1: the packet passes.
#[inline(always)]
fn cgroup<const DIRECTION: u32>(ctx: &SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    if filter::matches::<false>(skb)
        && let Some(slot) = maps::slot_of_cgroup()
    {
        event::send::<false>(skb, Hook::new(slot, DIRECTION));
    }
    1
}

/// The helpers used are GPL-free; the kernel asks for the line all the same.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
