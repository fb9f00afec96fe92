//! The states of a connection, and what follows from their changes.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use netobs_common::tcp::{cell, event_flag};

use crate::{
    count::{self, increase},
    event, maps,
    socket::{Namespace, Socket},
};

/// `enum` of net/tcp_states.h.
pub mod tcp_state {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const TIME_WAIT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const LISTEN: u32 = 10;
    pub const NEW_SYN_RECV: u32 = 12;
}

/// asm-generic/errno.h
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;

#[inline(always)]
pub fn changes(socket: Socket, from: u32, to: u32) {
    if from == tcp_state::SYN_SENT && to == tcp_state::SYN_RECV {
        return meets(socket);
    }
    let is_told = match to {
        tcp_state::SYN_SENT => true,
        tcp_state::ESTABLISHED => from == tcp_state::SYN_SENT || from == tcp_state::SYN_RECV,
        tcp_state::CLOSE => from != tcp_state::LISTEN && from != tcp_state::CLOSE,
        _ => false,
    };
    if !is_told || !socket.is_tcp() {
        return;
    }
    let namespace = Namespace::of_socket(socket);
    if !namespace.is_told_of() {
        return;
    }
    if to == tcp_state::SYN_SENT {
        begins(socket);
    } else if to == tcp_state::ESTABLISHED {
        is_established(&namespace, socket, from);
    } else if from == tcp_state::SYN_SENT {
        fails(&namespace, socket);
    } else {
        ends(&namespace, socket, from);
    }
}

#[inline(always)]
fn begins(socket: Socket) {
    // SAFETY: takes no argument and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    if maps::STARTS.insert(socket.0, now, 0).is_err()
        && let Some(totals) = maps::totals()
    {
        // SAFETY: within the block, whose address the map gave.
        increase(unsafe { &raw mut (*totals).lost_start }, 1);
    }
}

/// In what [`maps::STARTS`] has of a socket whose SYN has met the other end's.
const MET: u64 = 1 << 63;

#[inline(always)]
fn meets(socket: Socket) {
    if let Some(start) = maps::STARTS.get_ptr_mut(socket.0) {
        // SAFETY: nobody else writes the entry of a socket whose state is just being changed.
        unsafe { *start |= MET };
    }
}

/// What [`maps::STARTS`] has of a socket, or 0; it is forgotten.
#[inline(always)]
fn take_start(socket: Socket) -> u64 {
    // SAFETY: nobody writes the entry of a socket whose state is just being changed.
    let start = unsafe { maps::STARTS.get(socket.0) }.copied().unwrap_or(0);
    if start != 0 {
        let _ = maps::STARTS.remove(socket.0);
    }
    start
}

/// The one end measures from its SYN on, whatever has to be sent again. The other's figure is the kernel's, which
/// measures from its SYN-ACK on (`tcp_synack_rtt_meas` of net/ipv4/tcp_input.c), and without timestamps does not
/// if that had to be sent again.
#[inline(always)]
fn is_established(namespace: &Namespace, socket: Socket, from: u32) {
    let start = take_start(socket);
    // One of those that open at the same time was asked to accept when it connected. Without that mark the entry is of a
    // socket that was here before, and whose end was not seen: the kernel leaves a program out that already runs.
    let start = if from == tcp_state::SYN_SENT {
        start
    } else if start & MET != 0 {
        start & !MET
    } else {
        0
    };
    let rtt_us = socket.rtt_us();
    let subject = if from == tcp_state::SYN_SENT || start != 0 { cell::CONNECTED } else { cell::ACCEPTED };
    let handshake_us = if subject == cell::ACCEPTED {
        rtt_us
    } else if start != 0 {
        // SAFETY: takes no argument and cannot fail.
        (unsafe { bpf_ktime_get_ns() }.saturating_sub(start) / 1000).min(u64::from(u32::MAX)) as u32
    } else {
        0
    };
    if handshake_us == 0 {
        count::add(namespace, cell::of(subject, cell::NO_BUCKET), 1, 0);
    } else {
        count::duration(namespace, subject, handshake_us);
    }
    if rtt_us != 0 {
        count::duration(namespace, cell::RTT, rtt_us);
    }
    event::tell(namespace, socket, handshake_us, event_flag::BEGINS | event_flag::ESTABLISHED);
}

/// The error is there before the state is changed: `tcp_reset`, `tcp_write_err`, `tcp_v4_err`.
#[inline(always)]
fn fails(namespace: &Namespace, socket: Socket) {
    take_start(socket);
    let (subject, flag) = match socket.error() {
        ECONNREFUSED => (cell::REFUSED, event_flag::REFUSED),
        ETIMEDOUT => (cell::TIMED_OUT, event_flag::TIMED_OUT),
        // Closed while it waited; or nothing could be sent at all.
        0 if socket.has_sent() => (cell::GIVEN_UP, event_flag::GIVEN_UP),
        _ => (cell::FAILED, event_flag::FAILED),
    };
    count::one(namespace, subject);
    event::tell(namespace, socket, 0, event_flag::BEGINS | event_flag::ENDS | flag);
}

/// Tells of a reset, `flag` is which way it went. The socket may be none, or one of many connections, or what is left
/// of one: then there is nothing to tell.
#[inline(always)]
pub fn is_reset(namespace: &Namespace, socket: Socket, flag: u32) {
    if socket.0 == 0 || !namespace.is_told_of() {
        return;
    }
    let flags = match socket.state() {
        tcp_state::LISTEN | tcp_state::TIME_WAIT | tcp_state::NEW_SYN_RECV => return,
        tcp_state::SYN_SENT => flag | event_flag::BEGINS,
        // What a program gives up is closed first, and reset then: `tcp_disconnect`, `__tcp_close`.
        tcp_state::CLOSE => flag | event_flag::ENDS,
        _ => flag,
    };
    event::tell(namespace, socket, 0, flags);
}

#[inline(always)]
fn ends(namespace: &Namespace, socket: Socket, from: u32) {
    let rtt_us = socket.rtt_us();
    if rtt_us != 0 {
        count::duration(namespace, cell::RTT, rtt_us);
    }
    event::tell(namespace, socket, 0, event_flag::ENDS);
    // One of those that open at the same time, and got no further.
    if from == tcp_state::SYN_RECV {
        take_start(socket);
    }
}
