//! Every map: its size, who writes and reads it, what happens when it is full.

#[expect(deprecated, reason = "the newer map needs the task's cgroup, and kernel 6.2")]
use aya_ebpf::maps::CgroupStorage;
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap},
};
use netobs_common::{
    Counters, FlowCell, FlowKey, FlowOwner, Hook, IFACE_CELLS, OverflowFlow, Sender, counter_index,
};

/// Slots per CPU in [`COUNTERS`]; set by userspace before loading, together with the map's size.
#[unsafe(no_mangle)]
static MAX_INTERFACES: u32 = 1;

/// Directory of interfaces attached by TCX: `ifindex & (IFACE_CELLS - 1)` to
/// [`netobs_common::iface_cell`]. Userspace maps it into its memory and writes it; 512 KiB; never full
/// (see [`CROWDED`]).
#[map]
static IFACES: Array<u64> = Array::with_max_entries(IFACE_CELLS, BPF_F_MMAPABLE);

/// ifindex to slot for an interface whose cell in [`IFACES`] another attached interface holds.
/// Written by userspace. Full only when userspace has no slot left, and then it does not attach.
#[map]
static CROWDED: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// Slot plus one of an attached cgroup, by cgroup and direction; 0 until userspace has written it. The
/// kernel makes an entry when a program is attached and frees it with the cgroup or the program.
#[map]
#[expect(deprecated, reason = "as above")]
static CGROUPS: CgroupStorage<u64> = CgroupStorage::new();

/// The exact layer, indexed by [`counter_index`]; sized by userspace to possible CPUs × interfaces × 2.
/// Written by the CPU that a block belongs to and by nobody else; userspace maps it and reads it. The
/// race that this accepts: none on a kernel where a TC program is not preempted by another on its CPU
/// (every kernel but PREEMPT_RT). Programs of cgroups, which another may interrupt, add by atomics.
#[map]
static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Indexed by [`Hook::index`]; sized by userspace to interfaces × 2. The programs write a `mac` that is 0, and add
/// by atomics; userspace maps it, reads it, and writes it when a slot is taken or the address is known. The race
/// that this accepts: two first frames on two CPUs are not compared with each other.
#[map]
static SENDERS: Array<Sender> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Cells per CPU in [`FLOW_CELLS`], a power of two, less one; set by userspace before loading.
#[unsafe(no_mangle)]
static FLOW_MASK: u32 = 0;

/// Of the hash over a flow's key, so that nobody can choose flows that have the same; set by userspace.
#[unsafe(no_mangle)]
static FLOW_SEED: u64 = 0;

/// Flows that found a cell, those of each CPU together; sized by userspace. Written by the CPU that a cell
/// belongs to; userspace maps it, reads it, and takes cells back. When it has no free cell for a flow, that is
/// in the overflow map.
#[map]
static FLOW_CELLS: Array<FlowCell> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Whose the cells are, at the same index.
#[map]
static FLOW_OWNERS: Array<FlowOwner> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Flows that found no cell; sized by userspace. Two, of which the programs write the one that
/// [`OVERFLOW_EPOCH`] names, while userspace empties the other: so nothing is deleted that may still be
/// counted in. When it is full, packets of further flows are counted in `unflowed`.
#[map]
static OVERFLOW_EVEN: HashMap<FlowKey, OverflowFlow> = HashMap::with_max_entries(1, 0);
#[map]
static OVERFLOW_ODD: HashMap<FlowKey, OverflowFlow> = HashMap::with_max_entries(1, 0);

/// One word: even or odd. Written by userspace.
#[map]
static OVERFLOW_EPOCH: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The CPU that the program runs on, and stays on.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { bpf_get_smp_processor_id() }
}

/// The counters of this CPU for a hook, `None` for one that there is not. The look-up is inlined by the JIT.
#[inline(always)]
pub fn counters(cpu: u32, hook: Hook) -> Option<*mut Counters> {
    // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
    let max_interfaces = unsafe { core::ptr::read_volatile(&raw const MAX_INTERFACES) };
    COUNTERS.get_ptr_mut(counter_index(cpu, max_interfaces, hook))
}

/// The look-up is inlined by the JIT.
#[inline(always)]
pub fn sender(hook: Hook) -> Option<*mut Sender> {
    SENDERS.get_ptr_mut(hook.index())
}

/// `None` for an interface that is not (any more) in the directory. Inlined by the JIT as well.
#[inline(always)]
pub fn slot_of_interface(ifindex: u32) -> Option<u32> {
    let cell = *IFACES.get(ifindex & (IFACE_CELLS - 1))?;
    if (cell >> 32) as u32 == ifindex {
        return Some(cell as u32);
    }
    // SAFETY: the value is a plain u32 that userspace never changes while it is in the map.
    unsafe { CROWDED.get(ifindex) }.copied()
}

/// The slot of the cgroup that the program runs for.
#[inline(always)]
pub fn slot_of_cgroup() -> Option<u32> {
    // SAFETY: the pointer is valid while the program runs; userspace writes the word once.
    let word = unsafe { core::ptr::read_volatile(CGROUPS.get_ptr_mut()) };
    (word as u32).checked_sub(1)
}

/// A cell of this CPU; of the index the lower bits count. The look-up is inlined by the JIT.
#[inline(always)]
pub fn flow_cell(cpu: u32, index: u32) -> Option<*mut FlowCell> {
    FLOW_CELLS.get_ptr_mut(flow_index(cpu, index))
}

/// Whose that cell is.
#[inline(always)]
pub fn flow_owner(cpu: u32, index: u32) -> Option<*mut FlowOwner> {
    FLOW_OWNERS.get_ptr_mut(flow_index(cpu, index))
}

#[inline(always)]
fn flow_index(cpu: u32, index: u32) -> u32 {
    // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
    let mask = unsafe { core::ptr::read_volatile(&raw const FLOW_MASK) };
    cpu * (mask + 1) + (index & mask)
}

#[inline(always)]
pub fn flow_seed() -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const FLOW_SEED) }
}

/// Whether flows are counted: without, nothing of it is in the program.
#[inline(always)]
pub fn flows() -> bool {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const FLOW_MASK) != 0 }
}

#[inline(always)]
fn overflow() -> &'static HashMap<FlowKey, OverflowFlow> {
    match OVERFLOW_EPOCH.get(0) {
        Some(epoch) if *epoch & 1 != 0 => &OVERFLOW_ODD,
        _ => &OVERFLOW_EVEN,
    }
}

/// A flow of the overflow map.
#[inline(always)]
pub fn overflow_flow(key: &FlowKey) -> Option<*mut OverflowFlow> {
    overflow().get_ptr_mut(key)
}

/// Makes a flow in the overflow map; `None` when there is no room.
#[inline(always)]
pub fn new_overflow_flow(key: &FlowKey, now: u64) -> Option<*mut OverflowFlow> {
    let flow = OverflowFlow { first_ns: now, ..OverflowFlow::ZERO };
    let map = overflow();
    // Another CPU may be making the same one: then it is there now.
    let _ = map.insert(key, flow, u64::from(aya_ebpf::bindings::BPF_NOEXIST));
    map.get_ptr_mut(key)
}

/// Adds to a word that others may add to at the same time. One instruction, and no fetch, which kernels before 5.12 don't have.
#[inline(always)]
pub fn increase(word: &mut u64, by: u64) {
    // SAFETY: an aligned word of a map's value.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(word, by)
    };
}
