//! Every map: its size, who writes and reads it, what happens when it is full.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap},
};
use netobs_common::{Counters, IFACE_CELLS, counter_index};

/// Slots per CPU in [`COUNTERS`]; set by userspace before loading, together with the map's size.
#[unsafe(no_mangle)]
static MAX_INTERFACES: u32 = 1;

/// Directory of attached interfaces: `ifindex & (IFACE_CELLS - 1)` to [`netobs_common::iface_cell`].
/// Userspace maps it into its memory and writes it; 512 KiB; never full (see [`CROWDED`]).
#[map]
static IFACES: Array<u64> = Array::with_max_entries(IFACE_CELLS, BPF_F_MMAPABLE);

/// ifindex to slot for an interface whose cell in [`IFACES`] another attached interface holds.
/// Written by userspace. Full only when userspace has no slot left, and then it does not attach.
#[map]
static CROWDED: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// The exact layer, indexed by [`counter_index`]; sized by userspace to possible CPUs × interfaces × 2.
/// Written by the CPU that a block belongs to and by nobody else; userspace maps it and reads it. The
/// race that this accepts: none on a kernel where a TC program is not preempted by another on its CPU
/// (every kernel but PREEMPT_RT).
#[map]
static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The counters of this CPU for an attached interface, `None` for one that is not (any more) in the
/// directory. All look-ups of the common path are inlined by the JIT.
#[inline(always)]
pub fn counters(ifindex: u32, direction: u32) -> Option<*mut Counters> {
    let cell = *IFACES.get(ifindex & (IFACE_CELLS - 1))?;
    let slot = if (cell >> 32) as u32 == ifindex {
        cell as u32
    } else {
        // SAFETY: the value is a plain u32 that userspace never changes while it is in the map.
        *unsafe { CROWDED.get(ifindex) }?
    };
    // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
    let max_interfaces = unsafe { core::ptr::read_volatile(&raw const MAX_INTERFACES) };
    // SAFETY: takes no argument and cannot fail.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    COUNTERS.get_ptr_mut(counter_index(cpu, max_interfaces, slot, direction))
}
