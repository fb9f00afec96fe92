//! Draining the flows that the programs count: cells of each CPU, and the overflow map.
//!
//! In two steps with a grace period between, after which no program still runs that began before it:
//! [`Flows::begin`] marks cells that are to be taken back and turns the programs to the other overflow map;
//! [`Flows::finish`] then reads what nobody writes any more, frees it, and reads what goes on.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt as _};
use netobs_common::{FREE_CELL, FlowCell, FlowKey, FlowOwner, LEAVING_CELL, OverflowFlow};

use super::{
    batch::{self, Command, Plain},
    mapping::Mapping,
};

/// Words of a cell, as [`FlowCell`] has them.
const CELL: usize = size_of::<FlowCell>() / 8;
const OWNER: usize = size_of::<FlowOwner>() / 8;

/// Entries of the overflow map that one system call takes.
const BATCH: usize = 4096;

/// What the kernel needs memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub cpus: u32,
    /// A power of two.
    pub cells_per_cpu: u32,
    pub overflow: u32,
}

impl Size {
    /// For about so many flows at a time; none for no flows.
    pub fn new(max_flows: u32, cpus: u32) -> Option<Self> {
        (max_flows > 0).then(|| Self {
            cpus,
            cells_per_cpu: (max_flows / cpus).max(2).next_power_of_two(),
            overflow: (max_flows / 8).max(2),
        })
    }

    pub const fn cells(self) -> u32 {
        self.cpus * self.cells_per_cpu
    }
}

/// What was counted of a flow since it was last read, in the directions of the interface. A flow may be told of
/// more than once in one draining: by each CPU.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub key: FlowKey,
    /// By direction.
    pub counts: [Count; 2],
    /// By direction: TCP flags, [`netobs_common::FIRST`], [`netobs_common::OPENED`].
    pub flags: [u8; 2],
    pub first: Instant,
    pub last: Instant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
    /// What unfolding super-packets adds.
    pub unfolded: u64,
    pub unfolded_bytes: u64,
}

pub struct Flows {
    size: Size,
    cells: Mapping,
    owners: Mapping,
    overflow: [OwnedFd; 2],
    epoch: Mapping,
    /// Cells as they were last read, their tags included, by index; those that somebody has.
    read: HashMap<u32, [u64; CELL]>,
    /// Cells that were in use when the draining began.
    taken: Vec<u32>,
    /// Of the kernel's jiffies.
    tick: Duration,
}

/// The programs' maps.
pub struct Maps {
    pub cells: Mapping,
    pub owners: Mapping,
    pub overflow: [OwnedFd; 2],
    pub epoch: Mapping,
}

/// Words of a cell, see [`FlowCell`].
mod word {
    pub const TAG: usize = 0;
    pub const FIRST_NS: usize = 1;
    pub const BYTES: [usize; 2] = [2, 3];
    pub const COUNT: [usize; 2] = [4, 5];
    pub const UNFOLDED_BYTES: usize = 6;
    pub const LAST_AND_FLAGS: usize = 7;
}

const _: () = assert!(
    std::mem::offset_of!(FlowCell, first_ns) == 8 * word::FIRST_NS
        && std::mem::offset_of!(FlowCell, bytes) == 8 * word::BYTES[0]
        && std::mem::offset_of!(FlowCell, count) == 8 * word::COUNT[0]
        && std::mem::offset_of!(FlowCell, unfolded_bytes) == 8 * word::UNFOLDED_BYTES
        && std::mem::offset_of!(FlowCell, last) == 8 * word::LAST_AND_FLAGS
        && std::mem::offset_of!(FlowCell, flags) == 8 * word::LAST_AND_FLAGS + 4
);

impl Flows {
    pub fn new(size: Size, maps: Maps) -> Self {
        let Maps { cells, owners, overflow, epoch } = maps;
        let (read, taken) = (HashMap::new(), Vec::new());
        Self { size, cells, owners, overflow, epoch, read, taken, tick: tick() }
    }

    /// Marks the cells that have counted nothing since they were last read, to be taken back, and turns the
    /// programs to the other overflow map. Then [`wait_for_programs`], then [`Self::finish`].
    pub fn begin(&mut self) {
        self.taken.clear();
        let cells = self.cells.words(0, self.size.cells() as usize * CELL).chunks_exact(CELL);
        for (index, cell) in (0..).zip(cells) {
            let tag = cell[word::TAG].load(Ordering::Acquire);
            if tag == FREE_CELL {
                continue;
            }
            self.taken.push(index);
            let is_idle = |read: &[u64; CELL]| {
                read[word::TAG] == tag
                    && word::COUNT.iter().all(|&count| cell[count].load(Ordering::Relaxed) == read[count])
            };
            if self.read.get(&index).is_some_and(is_idle) {
                cell[word::TAG].store(LEAVING_CELL, Ordering::Release);
            }
        }
        self.epoch.store(0, self.active() as u64 ^ 1);
    }

    /// Tells what was counted in cells since the last time, and takes nothing back; what is in the overflow map
    /// is told of by [`Self::finish`].
    pub fn peek(&mut self, mut tell: impl FnMut(Flow)) {
        let clock = Clock::now(self.tick);
        for index in 0..self.size.cells() {
            let at = index as usize;
            let tag = self.cells.load(at * CELL + word::TAG).unwrap_or(FREE_CELL);
            // Whose a new one is was written before its tag, which can be relied on where stores are seen in
            // their order; elsewhere it waits for the next draining.
            if tag == FREE_CELL || tag == LEAVING_CELL {
                continue;
            }
            let read = self.read.get(&index).copied().unwrap_or_default();
            if read[word::TAG] != tag && cfg!(not(target_arch = "x86_64")) {
                continue;
            }
            let cell: [u64; CELL] = load(&self.cells, at);
            if let Some(flow) = changed(&cell, &read, &owner(load(&self.owners, at)), &clock) {
                tell(flow);
                self.read.insert(index, cell);
            }
        }
    }

    /// Tells what was counted since the last time, and frees what was marked and all that is of attachments
    /// that had been let go when the draining began.
    ///
    /// # Errors
    /// When the overflow map cannot be read: what is in it is told of next time.
    pub fn finish(&mut self, gone: &BTreeSet<u32>, mut tell: impl FnMut(Flow)) -> io::Result<()> {
        let clock = Clock::now(self.tick);
        // Once only: after this a cell may be somebody else's.
        for index in std::mem::take(&mut self.taken) {
            let at = index as usize;
            let cell: [u64; CELL] = load(&self.cells, at);
            let read = self.read.get(&index).copied().unwrap_or_default();
            let owner: FlowOwner = owner(load(&self.owners, at));
            if let Some(flow) = changed(&cell, &read, &owner, &clock) {
                tell(flow);
            }
            if cell[word::TAG] == LEAVING_CELL || gone.contains(&u32::from(owner.key.slot)) {
                self.read.remove(&index);
                self.cells.store(at * CELL + word::TAG, FREE_CELL);
            } else {
                self.read.insert(index, cell);
            }
        }
        // As many flows as there may once have been.
        if self.read.capacity() / 4 > self.read.len() {
            self.read.shrink_to_fit();
        }
        let idle = self.active() ^ 1;
        drain(&self.overflow[idle], |key, flow| tell(overflowed(key, flow, &clock)))
    }

    /// Which overflow map the programs write.
    fn active(&self) -> usize {
        usize::from(self.epoch.load(0).is_some_and(|epoch| epoch & 1 != 0))
    }
}

/// Waits until no kernel program runs any more that ran when this was called.
pub fn wait_for_programs() {
    /// linux/membarrier.h: waits for an RCU grace period, and the programs run inside RCU's read side.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Refused where CPUs run without a tick. A program takes some microseconds.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a cell has counted since it was last read. None if that is nothing.
fn changed(cell: &[u64; CELL], read: &[u64; CELL], owner: &FlowOwner, clock: &Clock) -> Option<Flow> {
    let counts = [0, 1].map(|direction| {
        let (packets, unfolded) = halves(cell[word::COUNT[direction]]);
        let (packets_read, unfolded_read) = halves(read[word::COUNT[direction]]);
        let unfolded_bytes = |cell: &[u64; CELL]| {
            let (ingress, egress) = halves(cell[word::UNFOLDED_BYTES]);
            if direction == 0 { ingress } else { egress }
        };
        Count {
            packets: packets.wrapping_sub(packets_read).into(),
            bytes: cell[word::BYTES[direction]].wrapping_sub(read[word::BYTES[direction]]),
            unfolded: unfolded.wrapping_sub(unfolded_read).into(),
            unfolded_bytes: unfolded_bytes(cell).wrapping_sub(unfolded_bytes(read)).into(),
        }
    });
    if counts == [Count::default(); 2] {
        return None;
    }
    let (last, rest) = halves(cell[word::LAST_AND_FLAGS]);
    let [ingress_flags, egress_flags, ..] = rest.to_le_bytes();
    let first = clock.at(cell[word::FIRST_NS]);
    Some(Flow {
        key: owner.key,
        counts,
        flags: [ingress_flags, egress_flags],
        first,
        last: (first + clock.tick * last.wrapping_sub(owner.first)).min(clock.now),
    })
}

fn overflowed(key: FlowKey, flow: &OverflowFlow, clock: &Clock) -> Flow {
    Flow {
        key,
        counts: [0, 1].map(|direction| Count {
            packets: flow.packets[direction],
            bytes: flow.bytes[direction],
            unfolded: flow.unfolded[direction],
            unfolded_bytes: flow.unfolded_bytes[direction],
        }),
        flags: flow.flags.map(|flags| flags as u8),
        first: clock.at(flow.first_ns),
        last: clock.at(flow.last_ns),
    }
}

/// Turns the kernel's times into ours. Both are `CLOCK_MONOTONIC`.
struct Clock {
    now: Instant,
    now_ns: u64,
    tick: Duration,
}

impl Clock {
    fn now(tick: Duration) -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes the timespec; this clock always is.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
        let now_ns = time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs();
        Self { now: Instant::now(), now_ns, tick }
    }

    fn at(&self, ns: u64) -> Instant {
        let ago = Duration::from_nanos(self.now_ns.saturating_sub(ns));
        self.now.checked_sub(ago).unwrap_or(self.now)
    }
}

/// One jiffy: what the coarse clocks step by.
fn tick() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Lower and upper half, as two neighbouring 32-bit fields are in a word.
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// The words of one entry of an array.
fn load<const WORDS: usize>(array: &Mapping, index: usize) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, there) in words.iter_mut().zip(array.words(index * WORDS, WORDS)) {
        *word = there.load(Ordering::Relaxed);
    }
    words
}

fn owner(words: [u64; OWNER]) -> FlowOwner {
    // SAFETY: integers only, in repr(C), and as many words long.
    unsafe { std::mem::transmute::<[u64; OWNER], FlowOwner>(words) }
}

/// Empties an overflow map that no program writes.
fn drain(map: &OwnedFd, mut tell: impl FnMut(FlowKey, &OverflowFlow)) -> io::Result<()> {
    let mut keys = vec![FlowKey::default(); BATCH];
    let mut values = vec![OverflowFlow::default(); BATCH];
    loop {
        // From its beginning each time: what was told of is deleted.
        let (count, is_all) = batch::read(map.as_fd(), Command::LookupAndDelete, &mut keys, &mut values)?;
        for (key, value) in keys.iter().zip(&values).take(count) {
            tell(*key, value);
        }
        if is_all || count == 0 {
            return Ok(());
        }
    }
}

// SAFETY: integers that leave no padding between them.
unsafe impl Plain for FlowKey {}
// SAFETY: as above.
unsafe impl Plain for OverflowFlow {}
