//! How connections fare: handshakes, round-trip times, retransmits, resets. An object of its own, whose programs
//! run when a connection changes its state or something is wrong, never for an ordinary packet.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target has no atomic types, and stable Rust no other way to add")]

mod count;
mod event;
mod maps;
mod socket;
mod state;

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use netobs_common::tcp::{cell, event_flag};

use self::socket::{Namespace, Socket, layout};

/// `trace_inet_sock_set_state(sk, oldstate, newstate)`, before the state is changed; of all kinds of sockets.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn netobs_tcp_state(ctx: RawTracePointContext) -> i32 {
    state::changes(Socket(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

/// `trace_tcp_retransmit_skb(sk, skb[, err])`, after it was sent; since 6.16 also where that has failed, as the
/// kernel's own counter has it.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn netobs_tcp_retransmit(ctx: RawTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let namespace = Namespace::of_socket(socket);
    if namespace.is_told_of() {
        let segments = socket::segments(ctx.arg(1));
        count::add(&namespace, cell::of(cell::RETRANSMITTED, cell::NO_BUCKET), segments, 0);
        event::tell(&namespace, socket, 0, 0);
    }
    0
}

/// `trace_tcp_retransmit_synack(sk, req)`: the socket is the listening one.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn netobs_tcp_retransmit_synack(ctx: RawTracePointContext) -> i32 {
    count::one(&Namespace::of_socket(Socket(ctx.arg(0))), cell::RETRANSMITTED);
    0
}

/// `trace_tcp_send_reset(sk, skb[, reason])`: with what it answers, if it answers anything. Since 6.10 also
/// without a socket; the namespace is then that of the device that the packet came in by.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn netobs_tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let namespace = if socket.0 != 0 || layout!(has_socketless_resets) == 0 {
        Namespace::of_socket(socket)
    } else {
        Namespace::of_packet(ctx.arg(1))
    };
    count::one(&namespace, cell::RESET_SENT);
    state::is_reset(&namespace, socket, event_flag::RESET_SENT);
    0
}

/// `trace_tcp_receive_reset(sk)`
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn netobs_tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let namespace = Namespace::of_socket(socket);
    count::one(&namespace, cell::RESET_RECEIVED);
    state::is_reset(&namespace, socket, event_flag::RESET_RECEIVED);
    0
}

/// `bpf_probe_read_kernel` wants it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
