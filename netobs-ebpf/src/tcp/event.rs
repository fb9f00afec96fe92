//! What is told of single connections.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use netobs_common::tcp::TcpEvent;

use crate::{
    count::increase,
    maps,
    socket::{Namespace, Socket},
};

/// Not 0: single connections are told of.
#[unsafe(no_mangle)]
static FLOWS: u32 = 0;

/// How a connection stands now. `flags` are of [`netobs_common::tcp::event_flag`].
#[inline(never)]
pub fn tell(namespace: &Namespace, socket: Socket, handshake_us: u32, flags: u32) -> u32 {
    // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
    if unsafe { core::ptr::read_volatile(&raw const FLOWS) } == 0 {
        return 0;
    }
    let (local_port, remote_port) = socket.ports();
    let mut event = TcpEvent {
        cookie: namespace.cookie,
        netns: namespace.inum,
        handshake_us,
        rtt_us: socket.rtt_us(),
        retransmitted: socket.retransmitted(),
        local: [0; 16],
        remote: [0; 16],
        local_port,
        remote_port,
        flags,
    };
    socket.addresses(&mut event.local, &mut event.remote);
    if maps::EVENTS.output::<TcpEvent>(&event, u64::from(BPF_RB_NO_WAKEUP)).is_err()
        && let Some(totals) = maps::totals()
    {
        // SAFETY: within the block, whose address the map gave.
        increase(unsafe { &raw mut (*totals).lost_flow }, 1);
    }
    0
}
