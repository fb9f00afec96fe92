//! How the programs at TCX hooks find an interface's slot: by ifindex, in the host's namespace.

use std::{collections::BTreeSet, sync::atomic::Ordering};

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

    /// Makes the programs find the slot. They look into the cell first: what an earlier process has left there of this
    /// interface must not stay.
    pub fn enter(&mut self, ifindex: u32, slot: u32) -> Result<(), MapError> {
        let cell = cell_of(ifindex);
        if let Some(cells) = &self.cells
            && cells.load(cell).is_some_and(|found| found == 0 || interface(found) == ifindex)
        {
            cells.store(cell, iface_cell(ifindex, slot));
        } else {
            self.crowded.insert(ifindex, slot, 0)?;
            self.in_crowded.insert(ifindex);
        }
        Ok(())
    }

    /// Forgets all interfaces but these.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        let cells = self.cells.as_ref().map(|cells| cells.words(0, IFACE_CELLS as usize));
        for cell in cells.unwrap_or_default() {
            let ifindex = interface(cell.load(Ordering::Acquire));
            if ifindex != 0 && !keep(ifindex) {
                cell.store(0, Ordering::Release);
            }
        }
        let crowded: Vec<u32> = self.crowded.keys().filter_map(Result::ok).collect();
        for ifindex in crowded.into_iter().filter(|ifindex| !keep(*ifindex)) {
            if let Err(error) = self.crowded.remove(&ifindex) {
                tracing::warn!(%error, ifindex, "remove from the directory of interfaces");
            }
        }
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

/// The ifindex of which a cell tells; 0: of none.
const fn interface(cell: u64) -> u32 {
    (cell >> 32) as u32
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
