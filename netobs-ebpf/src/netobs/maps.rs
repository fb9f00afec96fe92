//! Every map: its size, who writes and reads it, what happens when it is full.

#[expect(deprecated, reason = "the newer map needs the task's cgroup, and kernel 6.2")]
use aya_ebpf::maps::CgroupStorage;
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap, PerCpuHashMap},
};
use netobs_common::{ClientKey, Counters, IFACE_CELLS, PortCounters, PortKey, counter_index};

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
/// (every kernel but PREEMPT_RT).
#[map]
static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// All that passed one published port. Entries are made and removed by userspace, and it makes no more
/// than there is room for; counted by the programs.
#[map]
static PORTS: PerCpuHashMap<PortKey, PortCounters> =
    PerCpuHashMap::with_max_entries(netobs_common::MAX_PORTS, BPF_F_NO_PREALLOC);

/// The same by client. Entries are made by the programs; when it is full, further clients are counted in
/// [`PORTS`] alone, so that how much is theirs is known.
#[map]
static CLIENTS: PerCpuHashMap<ClientKey, PortCounters> =
    PerCpuHashMap::with_max_entries(netobs_common::MAX_CLIENTS, BPF_F_NO_PREALLOC);

/// The counters of this CPU for a slot, `None` for one that there is not. The look-up is inlined by the JIT.
#[inline(always)]
pub fn counters(slot: u32, direction: u32) -> Option<*mut Counters> {
    // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
    let max_interfaces = unsafe { core::ptr::read_volatile(&raw const MAX_INTERFACES) };
    // SAFETY: takes no argument and cannot fail.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    COUNTERS.get_ptr_mut(counter_index(cpu, max_interfaces, slot, direction))
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

/// The totals of a published port on this CPU; `None` if the port is not published.
#[inline(always)]
pub fn port(key: &PortKey) -> Option<*mut PortCounters> {
    PORTS.get_ptr_mut(key)
}

/// The counters of one client of a published port on this CPU; `None` when there is no room for one more.
#[inline(always)]
pub fn client(key: &ClientKey) -> Option<*mut PortCounters> {
    if let Some(counters) = CLIENTS.get_ptr_mut(key) {
        return Some(counters);
    }
    // Another CPU may be making the same one: then it is there now. Zeroed on all CPUs.
    let _ = CLIENTS.insert(key, PortCounters::ZERO, u64::from(aya_ebpf::bindings::BPF_NOEXIST));
    CLIENTS.get_ptr_mut(key)
}
