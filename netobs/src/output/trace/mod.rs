//! Captured packets, written as text, JSON lines or pcapng.

mod dissect;
#[cfg(test)]
pub(super) mod fixture;
pub(super) mod json;
mod pcapng;
pub(super) mod text;

use std::collections::BTreeMap;

pub use dissect::{Layers, Transport};

use crate::model::{Book, Dropped, InterfaceKey, Packet, TraceCounts};
use pcapng::Pcapng;

/// How packets are written: each function appends what is to be written to `into`.
pub enum Writer {
    Text { names: bool },
    Json { names: bool },
    Pcapng(Pcapng),
}

impl Writer {
    /// With `names`, addresses are told with the containers that have them.
    pub const fn text(names: bool) -> Self {
        Self::Text { names }
    }

    pub const fn json(names: bool) -> Self {
        Self::Json { names }
    }

    pub const fn pcapng(names: bool, snaplen: u32) -> Self {
        Self::Pcapng(Pcapng::new(names, snaplen))
    }

    /// What is before the first packet.
    pub fn begin(&self, into: &mut Vec<u8>) {
        if let Self::Pcapng(_) = self {
            pcapng::section(into);
        }
    }

    /// # Errors
    /// When a packet cannot be told as JSON, which does not happen.
    pub fn packet(&mut self, packet: &Packet, book: &Book, into: &mut Vec<u8>) -> serde_json::Result<()> {
        let nobody = Book::default();
        let book = |names: bool| if names { book } else { &nobody };
        match self {
            Self::Text { names } => text::line(packet, &Layers::of(packet), book(*names), into),
            Self::Json { names } => json::line(packet, &Layers::of(packet), book(*names), into)?,
            Self::Pcapng(pcapng) => {
                let book = book(pcapng.names());
                pcapng.packet(packet, book, into);
            }
        }
        Ok(())
    }

    /// A packet that the kernel dropped.
    ///
    /// # Errors
    /// As [`Self::packet`].
    pub fn dropped(&mut self, dropped: Dropped, into: &mut Vec<u8>) -> serde_json::Result<()> {
        let names = match self {
            Self::Text { names } | Self::Json { names } => *names,
            Self::Pcapng(pcapng) => pcapng.names(),
        };
        let dropped = if names { dropped } else { dropped.numeric() };
        match self {
            Self::Text { .. } => text::dropped(&dropped, &Layers::of(&dropped.packet), into),
            Self::Json { .. } => json::dropped(&dropped, &Layers::of(&dropped.packet), into)?,
            Self::Pcapng(pcapng) => pcapng.dropped(&dropped, into),
        }
        Ok(())
    }

    /// Bytes that [`Self::end`] will append.
    pub fn end_bytes(&self) -> usize {
        if let Self::Pcapng(pcapng) = self { pcapng.end_bytes() } else { 0 }
    }

    /// What is after the last packet: what became of those that matched, by attachment, and of those that were
    /// dropped.
    pub fn end(
        &self,
        counts: &BTreeMap<InterfaceKey, TraceCounts>,
        dropped: TraceCounts,
        [start_ns, end_ns]: [u64; 2],
        into: &mut Vec<u8>,
    ) {
        if let Self::Pcapng(pcapng) = self {
            pcapng.statistics(counts, dropped, [start_ns, end_ns], into);
        }
    }
}
