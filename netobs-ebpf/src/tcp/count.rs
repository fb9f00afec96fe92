//! Counting by namespace.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{bindings::BPF_NOEXIST, maps::HashMap};
use netobs_common::tcp::{TCP_BOUNDS_US, TcpCount, TcpKey, cell};

use crate::{maps, socket::Namespace};

/// One of a subject that has no duration.
#[inline(always)]
pub fn one(namespace: &Namespace, subject: u32) {
    if namespace.is_told_of() {
        add(namespace, cell::of(subject, cell::NO_BUCKET), 1, 0);
    }
}

/// One of a subject, that took so long.
#[inline(always)]
pub fn duration(namespace: &Namespace, subject: u32, us: u32) {
    let mut bucket = 0;
    for bound in TCP_BOUNDS_US {
        bucket += u32::from(us > bound);
    }
    add(namespace, cell::of(subject, bucket), 1, u64::from(us));
}

/// (A function of its own, so that the verifier walks it once for each call and not for each way to it.)
#[inline(never)]
pub fn add(namespace: &Namespace, cell: u32, count: u64, sum_us: u64) -> u32 {
    let Some(totals) = maps::totals() else { return 0 };
    let key = TcpKey { cookie: namespace.cookie, netns: namespace.inum, cell };
    let more = TcpCount { count, sum_us };
    let second = maps::ACTIVE.get(0).is_some_and(|active| *active != 0);
    let failed =
        if second { add_in(&maps::COUNTS_1, &key, &more) } else { add_in(&maps::COUNTS_0, &key, &more) };
    match failed {
        0 => {}
        // SAFETY: within the block, whose address the map gave.
        E2BIG => increase(unsafe { &raw mut (*totals).lost_full }, 1),
        // SAFETY: as above.
        _ => increase(unsafe { &raw mut (*totals).lost_busy }, 1),
    }
    // Last: who sees it finds what was counted.
    // SAFETY: as above.
    increase(unsafe { &raw mut (*totals).events }, 1);
    0
}

const E2BIG: i32 = -7;

#[inline(always)]
fn add_in(map: &HashMap<TcpKey, TcpCount>, key: &TcpKey, more: &TcpCount) -> i32 {
    if let Some(there) = map.get_ptr_mut(key) {
        add_to(there, more);
        return 0;
    }
    let Err(error) = map.insert(key, more, u64::from(BPF_NOEXIST)) else { return 0 };
    // Another CPU may have made it meanwhile.
    match map.get_ptr_mut(key) {
        Some(there) => {
            add_to(there, more);
            0
        }
        None => error,
    }
}

#[inline(always)]
fn add_to(there: *mut TcpCount, more: &TcpCount) {
    // SAFETY: within the value, whose address the map gave.
    unsafe {
        increase(&raw mut (*there).count, more.count);
        increase(&raw mut (*there).sum_us, more.sum_us);
    }
}

/// Atomically: entries are shared by CPUs, and an interrupt may run a program while one runs.
#[inline(always)]
pub fn increase(to: *mut u64, by: u64) {
    // SAFETY: an aligned word of a map's value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, by) };
}
