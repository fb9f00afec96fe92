//! Which block of counters belongs to which attachment, and how the programs find it by ifindex.

use netobs_common::IFACE_CELLS;

/// Counter slots, lowest free first, so that the pages in use stay few.
#[derive(Debug)]
pub struct Slots {
    used: Vec<bool>,
}

impl Slots {
    pub fn new(capacity: u32) -> Self {
        Self { used: vec![false; capacity as usize] }
    }

    /// None when all are in use.
    pub fn take(&mut self) -> Option<u32> {
        let slot = self.used.iter().position(|used| !used)?;
        self.used[slot] = true;
        u32::try_from(slot).ok()
    }

    pub fn release(&mut self, slot: u32) {
        if let Some(used) = self.used.get_mut(slot as usize) {
            *used = false;
        }
    }
}

/// Index of the directory cell for an ifindex.
pub const fn cell_of(ifindex: u32) -> usize {
    (ifindex & (IFACE_CELLS - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_slot_first_and_none_when_full() {
        let mut slots = Slots::new(2);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(0), Some(1), None));
        slots.release(0);
        assert_eq!(slots.take(), Some(0));
    }

    #[test]
    fn ifindexes_a_directory_apart_share_a_cell() {
        assert_eq!(cell_of(7), cell_of(7 + IFACE_CELLS));
        assert_ne!(cell_of(7), cell_of(8));
    }
}
