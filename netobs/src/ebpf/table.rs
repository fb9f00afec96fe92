//! What programs count by key, read from two maps in turns: while they count in one, the other is emptied.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use aya::maps::MapData;

use super::{attach::bpf, mapping::Mapping};

/// Programs that found an entry before the maps were switched have added to it by then.
const SETTLED: Duration = Duration::from_millis(20);

/// linux/bpf.h
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;

/// Keys of such maps.
///
/// # Safety
/// Integers without padding: any bytes are one, and all of its bytes are.
pub unsafe trait Key: Copy + Default + Eq + Hash {}

/// Values of such maps.
///
/// # Safety
/// As of [`Key`].
pub unsafe trait Amount: Copy + Default {
    /// What was added since `told`; none if nothing was.
    fn since(self, told: Self) -> Option<Self>;
}

#[derive(Debug)]
pub struct Table<K, V> {
    maps: [MapData; 2],
    /// Index of the map that is counted in.
    active: Mapping,
    current: usize,
    capacity: usize,
    /// When the other map was switched away from, and what was told of it then.
    switched: Instant,
    told: HashMap<K, V>,
}

impl<K: Key, V: Amount> Table<K, V> {
    pub fn new(maps: [MapData; 2], active: Mapping, capacity: u32) -> Self {
        Self {
            maps,
            active,
            current: 0,
            capacity: capacity as usize,
            switched: Instant::now(),
            told: HashMap::new(),
        }
    }

    /// Whether it is long enough since the last call that another one tells anything.
    pub fn is_due(&self) -> bool {
        self.switched.elapsed() >= SETTLED
    }

    /// Whether what the last call told of may yet have been added to.
    pub fn may_have_more(&self) -> bool {
        !self.told.is_empty()
    }

    /// Events since the last call, by key; some of the last milliseconds may be left for the next one.
    ///
    /// # Errors
    /// What `bpf(2)` says; nothing is lost then.
    pub fn drain(&mut self) -> io::Result<Vec<(K, V)>> {
        if !self.is_due() {
            return Ok(Vec::new());
        }
        let other = 1 - self.current;
        // What came late to the other one, before it is counted in again.
        let late = self.read(other, BPF_MAP_LOOKUP_AND_DELETE_BATCH)?.into_iter();
        let mut late: Vec<(K, V)> = late
            .filter_map(|(key, amount)| {
                Some((key, amount.since(self.told.remove(&key).unwrap_or_default())?))
            })
            .collect();
        self.told.clear();
        self.active.store(0, other as u64);
        let full = std::mem::replace(&mut self.current, other);
        self.switched = Instant::now();
        let events = self.read(full, BPF_MAP_LOOKUP_BATCH)?;
        self.told.extend(events.iter().copied());
        late.extend(events);
        Ok(late)
    }

    /// All of a map in one call.
    fn read(&self, map: usize, command: libc::c_int) -> io::Result<Vec<(K, V)>> {
        #[repr(C)]
        #[derive(Default)]
        struct Batch {
            in_batch: u64,
            out_batch: u64,
            keys: u64,
            values: u64,
            count: u32,
            map_fd: u32,
            elem_flags: u64,
            flags: u64,
        }
        let mut keys = vec![K::default(); self.capacity];
        let mut values = vec![V::default(); self.capacity];
        let mut next = 0u32;
        let mut batch = Batch {
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(self.capacity).map_err(io::Error::other)?,
            map_fd: self.maps[map].fd().as_fd().as_raw_fd().cast_unsigned(),
            ..Batch::default()
        };
        match bpf(command, &mut batch) {
            Ok(_) => {}
            // That was all.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(keys.into_iter().zip(values).take(batch.count as usize).collect())
    }
}
