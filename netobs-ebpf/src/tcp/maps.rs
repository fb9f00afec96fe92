//! Every map.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use netobs_common::tcp::{TcpCount, TcpKey, TcpTotals};

/// A block for each possible CPU. Userspace maps it and reads it; never full.
#[map]
static TOTALS: Array<TcpTotals> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Which of the two maps is counted in now. Userspace maps it and writes it.
#[map]
pub static ACTIVE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Counts. Two, so that userspace empties one while the other is counted in. Sized by userspace, all memory taken
/// at load, as programs at tracepoints must not allocate. When the active one is full, what belongs to further
/// keys is in `lost_full`. The race that this accepts: a program that found its entry before userspace
/// switched maps may add to it after; so userspace reads once more before it empties.
#[map]
pub static COUNTS_0: HashMap<TcpKey, TcpCount> = HashMap::with_max_entries(1, 0);

/// See [`COUNTS_0`].
#[map]
pub static COUNTS_1: HashMap<TcpKey, TcpCount> = HashMap::with_max_entries(1, 0);

/// When sockets that wait for a SYN-ACK began, `CLOCK_MONOTONIC` in ns, and in the uppermost bit whether they got a SYN
/// instead; by address. Removed when they leave these states, unless that run is left out. When it is full, a connect's duration is not known: `lost_start`.
#[map]
pub static STARTS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);

/// [`netobs_common::tcp::TcpEvent`]s; sized by userspace, which reads it from time to time and is not woken. Full:
/// counted in `lost_flow`.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// The totals of this CPU.
#[inline(always)]
pub fn totals() -> Option<*mut TcpTotals> {
    // SAFETY: takes no argument and cannot fail.
    TOTALS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}
