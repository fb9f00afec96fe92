//! How the programs at TCX hooks find an interface's slot: by ifindex, in the host's namespace.

use std::collections::BTreeSet;

use aya::maps::{HashMap, MapData, MapError};
use netobs_common::{IFACE_CELLS, iface_cell};

use super::mapping::Mapping;

pub struct Directory {
    /// None: all are in the hash.
    cells: Option<Mapping>,
    crowded: HashMap<MapData, u32, u32>,
    /// Interfaces without a cell of their own; they are in the hash instead.
    in_crowded: BTreeSet<u32>,
}

impl Directory {
    pub const fn new(cells: Option<Mapping>, crowded: HashMap<MapData, u32, u32>) -> Self {
        Self { cells, crowded, in_crowded: BTreeSet::new() }
    }

    /// Makes the programs find the slot.
    pub fn enter(&mut self, ifindex: u32, slot: u32) -> Result<(), MapError> {
        let cell = cell_of(ifindex);
        if let Some(cells) = &self.cells
            && cells.load(cell) == Some(0)
        {
            cells.store(cell, iface_cell(ifindex, slot));
        } else {
            self.crowded.insert(ifindex, slot, 0)?;
            self.in_crowded.insert(ifindex);
        }
        Ok(())
    }

    /// Undoes [`Self::enter`].
    pub fn leave(&mut self, ifindex: u32) {
        if !self.in_crowded.remove(&ifindex) {
            if let Some(cells) = &self.cells {
                cells.store(cell_of(ifindex), 0);
            }
        } else if let Err(error) = self.crowded.remove(&ifindex) {
            tracing::warn!(%error, ifindex, "remove from the directory of interfaces");
        }
    }
}

/// Index of the directory cell for an ifindex.
const fn cell_of(ifindex: u32) -> usize {
    (ifindex & (IFACE_CELLS - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ifindexes_a_directory_apart_share_a_cell() {
        assert_eq!(cell_of(7), cell_of(7 + IFACE_CELLS));
        assert_ne!(cell_of(7), cell_of(8));
    }
}
