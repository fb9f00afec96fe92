//! What programs count by key, read from two maps in turns: while they count in one, the other is emptied.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use aya::maps::MapData;

use super::{
    batch::{self, Command, Plain},
    mapping::Mapping,
};

/// Programs that found an entry before the maps were switched have added to it by then.
const SETTLED: Duration = Duration::from_millis(20);

/// Values of such maps.
pub trait Amount: Plain {
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
    /// Taken out of the other map and not told of yet.
    late: Vec<(K, V)>,
}

impl<K: Plain + Eq + Hash, V: Amount> Table<K, V> {
    pub fn new(maps: [MapData; 2], active: Mapping, capacity: u32) -> Self {
        Self {
            maps,
            active,
            current: 0,
            capacity: capacity as usize,
            switched: Instant::now(),
            told: HashMap::new(),
            late: Vec::new(),
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
    /// What `bpf(2)` says; nothing is lost then, but told of the next time.
    pub fn drain(&mut self) -> io::Result<Vec<(K, V)>> {
        if !self.is_due() {
            return Ok(Vec::new());
        }
        let other = 1 - self.current;
        // What came late to the other one, before it is counted in again.
        let late = self.read(other, Command::LookupAndDelete)?.into_iter();
        for (key, amount) in late {
            self.late
                .extend(amount.since(self.told.remove(&key).unwrap_or_default()).map(|more| (key, more)));
        }
        self.told.clear();
        self.active.store(0, other as u64);
        let full = std::mem::replace(&mut self.current, other);
        self.switched = Instant::now();
        let events = self.read(full, Command::Lookup)?;
        self.told.extend(events.iter().copied());
        let mut all = std::mem::take(&mut self.late);
        all.extend(events);
        Ok(all)
    }

    /// All of a map in one call.
    fn read(&self, map: usize, command: Command) -> io::Result<Vec<(K, V)>> {
        let mut keys = vec![K::default(); self.capacity];
        let mut values = vec![V::default(); self.capacity];
        let (count, _) = batch::read(self.maps[map].fd().as_fd(), command, &mut keys, &mut values)?;
        Ok(keys.into_iter().zip(values).take(count).collect())
    }
}
