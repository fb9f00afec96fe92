//! What the kernel objects share. Each object is a binary of its own, with maps of its own, so that what
//! is not asked for is not loaded.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod headers;
pub mod kernel;
pub mod packet;
pub mod source;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
