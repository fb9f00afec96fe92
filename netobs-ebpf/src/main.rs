//! The kernel object: entry points only. Each hook's work is in the module of its name.
#![no_std]
#![no_main]

mod exact;
mod maps;
mod packet;

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use netobs_common::{EGRESS, INGRESS};

/// TC ingress of an interface. "Next" whatever happens: netobs only looks.
#[classifier]
pub fn netobs_ingress(ctx: TcContext) -> i32 {
    exact::count::<INGRESS>(&ctx);
    TC_ACT_UNSPEC
}

/// TC egress of an interface.
#[classifier]
pub fn netobs_egress(ctx: TcContext) -> i32 {
    exact::count::<EGRESS>(&ctx);
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The helpers used are GPL-free; the kernel asks for the line all the same.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
