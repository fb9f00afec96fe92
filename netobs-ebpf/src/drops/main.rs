//! Packets that the kernel drops. An object of its own: loaded only where drops are asked for.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target has no atomic types, and stable Rust no other way to add")]

mod count;
mod event;
mod kernel;
mod ring;

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

/// `trace_kfree_skb(skb, location, reason, rx_sk)`; reason since 5.17, rx_sk since 6.11.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn netobs_drops(ctx: RawTracePointContext) -> i32 {
    event::record::<false>(&ctx);
    0
}

/// The same, where each event is told by itself.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn netobs_each(ctx: RawTracePointContext) -> i32 {
    event::record::<true>(&ctx);
    0
}

/// `bpf_probe_read_kernel` and `bpf_get_stack` want it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
