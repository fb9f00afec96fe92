//! How events are counted: totals of each CPU, and by key.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap},
};
use netobs_common::drops::{DropCount, DropKey, DropTotals, REASONS};

/// Totals, a block for each possible CPU. Userspace maps it and reads it; never full.
#[map]
static TOTALS: Array<DropTotals> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Which of the two maps events are counted in now. Userspace maps it and writes it.
#[map]
static ACTIVE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Events by key. Two, so that userspace empties one while events are counted in the other. Sized by
/// userspace, all memory taken at load, as programs at tracepoints must not allocate. When the active one
/// is full, further keys are counted in `lost_full`. The race that this accepts: a program that found its
/// entry before userspace switched maps may add to it after; so userspace reads once more before it empties.
#[map]
static EVENTS_0: HashMap<DropKey, DropCount> = HashMap::with_max_entries(1, 0);

/// See [`EVENTS_0`].
#[map]
static EVENTS_1: HashMap<DropKey, DropCount> = HashMap::with_max_entries(1, 0);

/// The totals of this CPU.
#[inline(always)]
pub fn totals() -> Option<*mut DropTotals> {
    // SAFETY: takes no argument and cannot fail.
    TOTALS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// All that happened, for this reason.
#[inline(always)]
pub fn seen(totals: *mut DropTotals, reason: usize) {
    // SAFETY: within the block, whose address the map gave.
    add(unsafe { (&raw mut (*totals).seen).cast::<u64>().add(reason & (REASONS - 1)) });
}

/// An ordinary end that is not told of any further.
#[inline(always)]
pub fn hidden(totals: *mut DropTotals, reason: usize) {
    // SAFETY: as above.
    add(unsafe { (&raw mut (*totals).hidden).cast::<u64>().add(reason & (REASONS - 1)) });
}

/// Counts by key, or what is lost. `first` makes the entry of a key that there is none for.
#[inline(always)]
pub fn event(totals: *mut DropTotals, key: &DropKey, first: impl Fn() -> DropCount) {
    let second = ACTIVE.get(0).is_some_and(|active| *active != 0);
    let failed = if second { count_in(&EVENTS_1, key, first) } else { count_in(&EVENTS_0, key, first) };
    match failed {
        0 => {}
        E2BIG => lost_full(totals),
        _ => lost_busy(totals),
    }
}

/// There was no room for it.
#[inline(always)]
pub fn lost_full(totals: *mut DropTotals) {
    // SAFETY: within the block, whose address the map gave.
    add(unsafe { &raw mut (*totals).lost_full });
}

/// It could not be written or read.
#[inline(always)]
pub fn lost_busy(totals: *mut DropTotals) {
    // SAFETY: as above.
    add(unsafe { &raw mut (*totals).lost_busy });
}

const E2BIG: i32 = -7;

#[inline(always)]
fn count_in(map: &HashMap<DropKey, DropCount>, key: &DropKey, first: impl Fn() -> DropCount) -> i32 {
    if let Some(count) = map.get_ptr_mut(key) {
        add_packet(count);
        return 0;
    }
    let Err(error) = map.insert(key, first(), u64::from(BPF_NOEXIST)) else { return 0 };
    // Another CPU may have made it meanwhile.
    match map.get_ptr_mut(key) {
        Some(count) => {
            add_packet(count);
            0
        }
        None => error,
    }
}

#[inline(always)]
fn add_packet(count: *mut DropCount) {
    // SAFETY: within the value, whose address the map gave.
    add(unsafe { &raw mut (*count).packets });
}

/// Atomically: an interrupt may run this program while it runs (up to 6.0), and entries are shared by CPUs.
#[inline(always)]
fn add(to: *mut u64) {
    // SAFETY: an aligned word of a map's value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, 1) };
}
