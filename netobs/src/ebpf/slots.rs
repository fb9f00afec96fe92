//! Which block of counters belongs to which attachment.

/// Counter slots.
#[derive(Debug)]
pub struct Slots {
    used: Vec<bool>,
    /// Where the next free one is looked for, if they are given out in turn.
    turn: Option<usize>,
}

impl Slots {
    /// Lowest free first, so that the pages in use stay few.
    pub fn new(capacity: u32) -> Self {
        Self { used: vec![false; capacity as usize], turn: None }
    }

    /// In turn, so that one is not used again soon.
    pub fn in_turn(capacity: u32) -> Self {
        Self { turn: Some(0), ..Self::new(capacity) }
    }

    pub fn capacity(&self) -> u32 {
        u32::try_from(self.used.len()).unwrap_or(u32::MAX)
    }

    /// None when all are in use.
    pub fn take(&mut self) -> Option<u32> {
        let first = self.turn.unwrap_or(0);
        let mut all = (first..self.used.len()).chain(0..first);
        let slot = all.find(|slot| !self.used[*slot])?;
        self.used[slot] = true;
        if let Some(turn) = &mut self.turn {
            *turn = slot + 1;
        }
        u32::try_from(slot).ok()
    }

    /// A certain one; false if it is in use.
    pub fn take_exactly(&mut self, slot: u32) -> bool {
        self.used.get_mut(slot as usize).is_some_and(|used| !std::mem::replace(used, true))
    }

    /// Those that nobody has.
    pub fn free(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.used).filter(|(_, used)| !**used).map(|(slot, _)| slot)
    }

    pub fn release(&mut self, slot: u32) {
        if let Some(used) = self.used.get_mut(slot as usize) {
            *used = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_slot_first_and_none_when_full() {
        let mut slots = Slots::new(2);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(0), Some(1), None));
        slots.release(0);
        assert!(slots.free().eq([0]));
        assert_eq!(slots.take(), Some(0));
        assert_eq!(slots.capacity(), 2);
        assert!(!slots.take_exactly(0) && !slots.take_exactly(2));
        slots.release(1);
        assert!(slots.take_exactly(1) && slots.take().is_none());
    }

    #[test]
    fn in_turn_none_is_used_again_soon() {
        let mut slots = Slots::in_turn(3);
        for expected in [0, 1, 2, 0, 1] {
            assert_eq!(slots.take(), Some(expected));
            slots.release(expected);
        }
        assert_eq!(
            (slots.take(), slots.take(), slots.take(), slots.take()),
            (Some(2), Some(0), Some(1), None)
        );
    }
}
