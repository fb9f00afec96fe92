//! Which block of counters belongs to which attachment.

/// Counter slots, lowest free first, so that the pages in use stay few.
#[derive(Debug)]
pub struct Slots {
    used: Vec<bool>,
}

impl Slots {
    pub fn new(capacity: u32) -> Self {
        Self { used: vec![false; capacity as usize] }
    }

    pub fn capacity(&self) -> u32 {
        u32::try_from(self.used.len()).unwrap_or(u32::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_slot_first_and_none_when_full() {
        let mut slots = Slots::new(2);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(0), Some(1), None));
        slots.release(0);
        assert_eq!(slots.take(), Some(0));
        assert_eq!(slots.capacity(), 2);
    }
}
