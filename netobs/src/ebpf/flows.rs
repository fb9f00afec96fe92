//! Draining the flows that the programs count: cells of each CPU, and the overflow map.
//!
//! In two steps with a grace period between, after which no program still runs that began before it:
//! [`Flows::begin`] marks cells that are to be taken back and turns the programs to the other overflow map;
//! [`Flows::finish`] then reads what nobody writes any more, frees it, and reads what goes on: some at a time, so that
//! nobody has to hold all of it.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use netobs_common::{FREE_CELL, FlowCell, FlowKey, FlowOwner, LEAVING_CELL, OverflowFlow};

use super::{
    batch::{self, Command, Plain},
    events::monotonic_ns,
    mapping::Mapping,
};

/// Words of a cell, as [`FlowCell`] has them.
const CELL: usize = size_of::<FlowCell>() / 8;
const OWNER: usize = size_of::<FlowOwner>() / 8;

/// Entries of the overflow map that one system call takes.
const BATCH: usize = 1024;

/// Cells of each CPU that are read together, so that what several CPUs have of a flow is told of together: their cells of
/// it are next to each other.
const BLOCK: u32 = 64;

/// Flows that are told of at a time, about.
const SOME: usize = 1024;

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
    /// TCP windows of 0.
    pub zero_windows: u64,
}

pub struct Flows {
    size: Size,
    cells: Mapping,
    owners: Mapping,
    overflow: [OwnedFd; 2],
    epoch: Mapping,
    /// What cells had counted when they were last read, by index; all zero: not since they were taken. Memory is taken
    /// page by page as cells are.
    read: Vec<Read>,
    /// A bit for each cell that was in use when the draining began.
    taken: Vec<u64>,
    /// Blocks that have been told of, in this draining and by [`Flows::peek`].
    finished: u32,
    peeked: u32,
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
    pub const ZERO_WINDOWS: usize = 1;
    pub const BYTES: [usize; 2] = [2, 3];
    pub const COUNT: [usize; 2] = [4, 5];
    pub const UNFOLDED_BYTES: usize = 6;
    pub const LAST_AND_FLAGS: usize = 7;
}

const _: () = assert!(
    std::mem::offset_of!(FlowCell, zero_windows) == 8 * word::ZERO_WINDOWS
        && std::mem::offset_of!(FlowCell, bytes) == 8 * word::BYTES[0]
        && std::mem::offset_of!(FlowCell, count) == 8 * word::COUNT[0]
        && std::mem::offset_of!(FlowCell, unfolded_bytes) == 8 * word::UNFOLDED_BYTES
        && std::mem::offset_of!(FlowCell, last) == 8 * word::LAST_AND_FLAGS
        && std::mem::offset_of!(FlowCell, flags) == 8 * word::LAST_AND_FLAGS + 4
);

impl Flows {
    pub fn new(size: Size, maps: Maps) -> Self {
        let Maps { cells, owners, overflow, epoch } = maps;
        let count = size.cells() as usize;
        let (read, taken) = (vec![[0; READ]; count], vec![0; count.div_ceil(64)]);
        Self { size, cells, owners, overflow, epoch, read, taken, finished: 0, peeked: 0, tick: tick() }
    }

    /// Marks the cells that have counted nothing since they were last read, to be taken back, and turns the
    /// programs to the other overflow map. Then [`wait_for_programs`], then [`Self::finish`].
    pub fn begin(&mut self) {
        self.finished = 0;
        self.taken.fill(0);
        let cells = self.cells.words(0, self.size.cells() as usize * CELL).chunks_exact(CELL);
        for (index, cell) in cells.enumerate() {
            let tag = cell[word::TAG].load(Ordering::Acquire);
            if tag == FREE_CELL {
                continue;
            }
            self.taken[index / 64] |= 1 << (index % 64);
            let read = &self.read[index];
            let is_idle = || {
                *read != NOT_READ
                    && word::COUNT.iter().zip(read.as_chunks::<2>().0).all(|(&count, read)| {
                        halves(cell[count].load(Ordering::Relaxed)) == (read[0], read[1])
                    })
            };
            if tag != LEAVING_CELL && is_idle() {
                cell[word::TAG].store(LEAVING_CELL, Ordering::Release);
            }
        }
        self.epoch.store(0, self.active() as u64 ^ 1);
    }

    /// Tells some of what was counted in cells since the last time, and takes nothing back; what is in the overflow
    /// map is told of by [`Self::finish`]. Whether that was all; the next call begins anew then.
    pub fn peek(&mut self, mut tell: impl FnMut(Flow)) -> bool {
        let clock = Clock::now(self.tick);
        let mut told = 0;
        while told < SOME && self.peeked < self.blocks() {
            for index in self.block(self.peeked) {
                let at = index as usize;
                let tag = self.cells.load(at * CELL + word::TAG).unwrap_or(FREE_CELL);
                // Whose a new one is was written before its tag, which can be relied on where stores are seen in
                // their order; elsewhere it waits for the next draining.
                if tag == FREE_CELL
                    || tag == LEAVING_CELL
                    || (self.read[at] == NOT_READ && cfg!(not(target_arch = "x86_64")))
                {
                    continue;
                }
                let cell: [u64; CELL] = load(&self.cells, at);
                if let Some(flow) = self.changed(at, &cell, &clock) {
                    tell(flow);
                    told += 1;
                }
            }
            self.peeked += 1;
        }
        let is_all = self.peeked == self.blocks();
        if is_all {
            self.peeked = 0;
        }
        is_all
    }

    /// Tells some of what was counted since the last time, and frees what was marked and all that is of attachments
    /// that had been let go when the draining began. Whether that was all.
    ///
    /// # Errors
    /// When the overflow map cannot be read: what is in it is told of next time.
    pub fn finish(&mut self, gone: &BTreeSet<u32>, mut tell: impl FnMut(Flow)) -> io::Result<bool> {
        let clock = Clock::now(self.tick);
        let mut told = 0;
        while self.finished < self.blocks() {
            if told >= SOME {
                return Ok(false);
            }
            for index in self.block(self.finished) {
                let at = index as usize;
                // Once only: after this a cell may be somebody else's.
                if self.taken[at / 64] & 1 << (at % 64) == 0 {
                    continue;
                }
                let cell: [u64; CELL] = load(&self.cells, at);
                if let Some(flow) = self.changed(at, &cell, &clock) {
                    tell(flow);
                    told += 1;
                }
                if cell[word::TAG] == LEAVING_CELL || gone.contains(&u32::from(self.owner(at).key.slot)) {
                    self.read[at] = NOT_READ;
                    self.cells.store(at * CELL + word::TAG, FREE_CELL);
                }
            }
            self.finished += 1;
        }
        let idle = self.active() ^ 1;
        drain(&self.overflow[idle], |key, flow| tell(overflowed(key, flow, &clock)))
    }

    const fn blocks(&self) -> u32 {
        self.size.cells_per_cpu.div_ceil(BLOCK)
    }

    /// Indexes of the cells of all CPUs in a block.
    fn block(&self, block: u32) -> impl Iterator<Item = u32> + use<> {
        let Size { cpus, cells_per_cpu, .. } = self.size;
        let from = block * BLOCK;
        let to = cells_per_cpu.min(from + BLOCK);
        (0..cpus).flat_map(move |cpu| (from..to).map(move |cell| cpu * cells_per_cpu + cell))
    }

    /// What a cell has counted since it was last read, which is now. None if that is nothing.
    fn changed(&mut self, at: usize, cell: &[u64; CELL], clock: &Clock) -> Option<Flow> {
        let now = read(cell);
        let before = std::mem::replace(&mut self.read[at], now);
        if now == before {
            return None;
        }
        Some(flow(cell, &now, &before, &self.owner(at), clock))
    }

    fn owner(&self, at: usize) -> FlowOwner {
        owner(load(&self.owners, at))
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

/// The counters of a cell: by direction packets and what unfolding adds; by direction lower and upper half of bytes; by
/// direction what unfolding adds to them; by direction windows of 0.
const READ: usize = 12;
type Read = [u32; READ];

/// No cell that is somebody's: it has at least a packet.
const NOT_READ: Read = [0; READ];

fn read(cell: &[u64; CELL]) -> Read {
    let words = [
        cell[word::COUNT[0]],
        cell[word::COUNT[1]],
        cell[word::BYTES[0]],
        cell[word::BYTES[1]],
        cell[word::UNFOLDED_BYTES],
        cell[word::ZERO_WINDOWS],
    ];
    let mut read = NOT_READ;
    for (read, word) in read.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        *read = halves(word).into();
    }
    read
}

/// What a cell has counted between two readings.
fn flow(cell: &[u64; CELL], now: &Read, before: &Read, owner: &FlowOwner, clock: &Clock) -> Flow {
    let bytes = |read: &Read, at: usize| u64::from(read[at]) | u64::from(read[at + 1]) << 32;
    let counts = [0, 1].map(|direction| {
        let at = 2 * direction;
        Count {
            packets: now[at].wrapping_sub(before[at]).into(),
            unfolded: now[at + 1].wrapping_sub(before[at + 1]).into(),
            bytes: bytes(now, 4 + at).wrapping_sub(bytes(before, 4 + at)),
            unfolded_bytes: now[8 + direction].wrapping_sub(before[8 + direction]).into(),
            zero_windows: now[10 + direction].wrapping_sub(before[10 + direction]).into(),
        }
    });
    let (last, rest) = halves(cell[word::LAST_AND_FLAGS]);
    let [ingress_flags, egress_flags, ..] = rest.to_le_bytes();
    let first = clock.at(owner.first_ns);
    Flow {
        key: owner.key,
        counts,
        flags: [ingress_flags, egress_flags],
        first,
        last: clock.after(first, last.wrapping_sub(owner.first)),
    }
}

fn overflowed(key: FlowKey, flow: &OverflowFlow, clock: &Clock) -> Flow {
    Flow {
        key,
        counts: [0, 1].map(|direction| Count {
            packets: flow.packets[direction],
            bytes: flow.bytes[direction],
            unfolded: flow.unfolded[direction],
            unfolded_bytes: flow.unfolded_bytes[direction],
            zero_windows: flow.zero_windows[direction],
        }),
        flags: flow.flags.map(|flags| flags as u8),
        first: clock.at(flow.first_ns),
        last: clock.at(flow.last_ns),
    }
}

/// Ticks by which a time may be ahead of now.
const LEEWAY: u128 = 1 << 24;

/// Turns the kernel's times into ours. Both are `CLOCK_MONOTONIC`.
struct Clock {
    now: Instant,
    now_ns: u64,
    tick: Duration,
}

impl Clock {
    fn now(tick: Duration) -> Self {
        Self { now: Instant::now(), now_ns: monotonic_ns(), tick }
    }

    /// So many ticks after `first`: of a number that has 32 bits and begins anew after 49 days (HZ=1000), the latest
    /// such time there has been.
    fn after(&self, first: Instant, ticks: u32) -> Instant {
        let tick = self.tick.as_nanos().max(1);
        let passed = self.now.saturating_duration_since(first).as_nanos() / tick;
        // What is counted while it is read may be a little ahead.
        let rounds = (passed + LEEWAY).saturating_sub(ticks.into()) >> u32::BITS;
        let ticks = u128::from(ticks) + (rounds << u32::BITS);
        let since = Duration::from_nanos(u64::try_from(ticks * tick).unwrap_or(u64::MAX));
        first.checked_add(since).map_or(self.now, |last| last.min(self.now))
    }

    fn at(&self, ns: u64) -> Instant {
        let ago = Duration::from_nanos(self.now_ns.saturating_sub(ns));
        self.now.checked_sub(ago).unwrap_or(self.now)
    }
}

/// One jiffy: what the coarse clocks step by.
fn tick() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the timespec; this clock always is.
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

/// Takes some out of an overflow map that no program writes; whether that was all.
fn drain(map: &OwnedFd, mut tell: impl FnMut(FlowKey, &OverflowFlow)) -> io::Result<bool> {
    let mut keys = vec![FlowKey::default(); BATCH];
    let mut values = vec![OverflowFlow::default(); BATCH];
    // From its beginning each time: what was told of is deleted.
    let (count, is_all) = batch::read(map.as_fd(), Command::LookupAndDelete, &mut keys, &mut values)?;
    for (key, value) in keys.iter().zip(&values).take(count) {
        tell(*key, value);
    }
    Ok(is_all || count == 0)
}

// SAFETY: integers that leave no padding between them.
unsafe impl Plain for FlowKey {}
// SAFETY: as above.
unsafe impl Plain for OverflowFlow {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cell knows its last packet in ticks of 32 bits since its first.
    #[test]
    fn a_flow_that_lasts_for_months_is_not_idle() {
        let tick = Duration::from_millis(1);
        let first = Instant::now();
        let idle = |age: Duration, ago: Duration| {
            let now = first + age;
            let ticks = (age - ago).as_millis() as u32;
            now - Clock { now, now_ns: 0, tick }.after(first, ticks)
        };
        let day = Duration::from_secs(86_400);
        for age in [Duration::from_secs(60), 40 * day, 49 * day, 50 * day, 99 * day, 365 * day] {
            for ago in [Duration::ZERO, Duration::from_secs(29)] {
                assert_eq!(idle(age, ago), ago, "{age:?}");
            }
        }
        // Counted after the time was taken.
        let now = first + 10 * day;
        let ticks = (10 * day).as_millis() as u32 + 7;
        assert_eq!(Clock { now, now_ns: 0, tick }.after(first, ticks), now);
    }
}
