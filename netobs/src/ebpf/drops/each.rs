//! Each dropped packet by itself, out of a ring.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use netobs_common::drops::{DropCount, DropHeader, MAX_DROP_SNAPLEN};

use super::{DropsError, Loaded, Names, Sizes, TRACEPOINT, Totals, left_out, load, program};
use crate::{ebpf::wait_for_programs, model::drops::DropEvent};

const PROGRAM: &str = "netobs_each";

#[derive(Clone, Debug)]
pub struct EachOptions {
    /// Tell of ordinary ends of packets, too.
    pub all: bool,
    /// Bytes of each packet that are captured, as far as there is room.
    pub snaplen: u32,
    /// A power of two, a page at least.
    pub ring_bytes: u32,
    /// See [`super::BTF_FILE`].
    pub btf: PathBuf,
}

/// The program, and what it has counted; detached when dropped.
pub struct EachDrop {
    totals: Totals,
    /// None: detached.
    ebpf: Option<Ebpf>,
    recursion: u64,
}

/// What became of the events. When nothing is under way, `events` is the sum of the two others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounts {
    /// But for ordinary ends that are not told of.
    pub events: u64,
    /// Put into the ring.
    pub delivered: u64,
    /// The ring was full.
    pub lost: u64,
    /// Not even among the events: times that the kernel left the program out.
    pub recursion: u64,
}

/// An event, and the beginning of its packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRecord {
    pub event: DropEvent,
    /// `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Of the packet from the first of its bytes on.
    pub len: u32,
    /// Whether they begin with an Ethernet header; otherwise with the network header.
    pub link: bool,
    pub bytes: Vec<u8>,
}

impl EachDrop {
    /// Loads; attaches nothing yet.
    ///
    /// # Errors
    /// See [`DropsError`]. And why places are not known.
    pub fn load(options: &EachOptions) -> Result<(Self, DropRing, Option<String>), DropsError> {
        let sizes = Sizes {
            ring_bytes: options.ring_bytes,
            snaplen: options.snaplen.min(MAX_DROP_SNAPLEN),
            ..Sizes::default()
        };
        let Loaded { mut ebpf, totals, mut names, degraded } =
            load(&options.btf, options.all, sizes, PROGRAM)?;
        // Who takes events out of the ring must not wait for it.
        names.read_places().map_err(DropsError::Places)?;
        let Some(Map::RingBuf(ring)) = ebpf.take_map("RING") else { return Err(DropsError::Missing("RING")) };
        let ring = DropRing { ring: RingBuf::try_from(Map::RingBuf(ring))?, names };
        Ok((Self { totals, ebpf: Some(ebpf), recursion: 0 }, ring, degraded))
    }

    /// From now on events are in the ring.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self) -> Result<(), DropsError> {
        if let Some(ebpf) = &mut self.ebpf {
            program(ebpf, PROGRAM)?.attach(TRACEPOINT)?;
        }
        Ok(())
    }

    pub fn counts(&self) -> DropCounts {
        let sum = self.totals.read();
        let events = sum.seen.iter().sum::<u64>().saturating_sub(sum.hidden.iter().sum());
        let lost = sum.lost.iter().sum();
        let recursion = self.ebpf.as_ref().map_or(self.recursion, |ebpf| left_out::runs(ebpf, PROGRAM));
        DropCounts { events, delivered: events.saturating_sub(lost), lost, recursion }
    }

    /// Detaches, and waits for the programs that are still at work.
    pub fn detach(&mut self) {
        self.recursion = self.counts().recursion;
        self.ebpf = None;
        wait_for_programs();
    }
}

/// What the program tells.
pub struct DropRing {
    ring: RingBuf<MapData>,
    names: Names,
}

impl DropRing {
    /// To poll for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// At most `limit` events.
    pub fn take(&mut self, limit: usize) -> Vec<DropRecord> {
        let mut raw = Vec::new();
        while raw.len() < limit
            && let Some(record) = self.ring.next()
        {
            raw.extend(Self::parts(&record).map(|(header, bytes)| (header, bytes.to_vec())));
        }
        self.names.learn(
            raw.iter().flat_map(|(header, _)| [header.key.location, header.hook, header.hook_function]),
        );
        raw.into_iter().map(|(header, bytes)| Self::record(&self.names, &header, bytes)).collect()
    }

    /// A record's header, and what there is of the packet.
    pub(crate) fn parts(record: &[u8]) -> Option<(DropHeader, &[u8])> {
        let (header, room) = record.split_at_checked(size_of::<DropHeader>())?;
        // SAFETY: as many bytes as the header has, of plain integers; read unaligned.
        let header = unsafe { header.as_ptr().cast::<DropHeader>().read_unaligned() };
        Some((header, room.get(..header.captured as usize).unwrap_or(room)))
    }

    pub(crate) fn record(names: &Names, header: &DropHeader, bytes: Vec<u8>) -> DropRecord {
        let count = DropCount { packets: 1, hook: header.hook, hook_function: header.hook_function };
        DropRecord {
            event: names.event(&header.key, &count),
            time_ns: header.time_ns,
            len: header.len,
            link: header.link != 0,
            bytes,
        }
    }
}
