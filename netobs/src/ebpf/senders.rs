//! Source MAC addresses: the usual one of each attachment, and how many frames had another.

use std::sync::atomic::{AtomicU64, Ordering};

use netobs_common::{ANY_SENDER, DIRECTIONS, EGRESS, Hook, INGRESS, Sender, mac_word};

use super::mapping::Mapping;
use crate::model::{Count, Judged, Senders as Sample};

const WORDS: usize = size_of::<Sender>() / size_of::<u64>();

const _: () = assert!(std::mem::offset_of!(Sender, unjudged) == 24 && WORDS == 4);

/// What the programs know of senders, in shared memory.
#[derive(Debug)]
pub struct Senders {
    memory: Mapping,
}

impl Senders {
    pub fn new(memory: Mapping) -> Self {
        Self { memory }
    }

    /// Of a slot that is about to be attached: what frames of the direction `looked_at` are compared with is not
    /// known yet. None: nothing is compared.
    pub fn begin(&self, slot: u32, looked_at: Option<u32>) {
        for direction in [INGRESS, EGRESS] {
            let [mac, rest @ ..] = self.cell(slot, direction) else { continue };
            rest.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            mac.store(if looked_at == Some(direction) { 0 } else { ANY_SENDER }, Ordering::Release);
        }
    }

    /// Of a slot that is nobody's any more.
    pub fn end(&self, slot: u32) {
        for direction in [INGRESS, EGRESS] {
            self.cell(slot, direction).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// None where nothing is compared.
    pub fn read(&self, slot: u32) -> Option<Sample> {
        [INGRESS, EGRESS].into_iter().find_map(|direction| {
            let [mac, packets, bytes, unjudged] = self.cell(slot, direction) else { return None };
            let mac = mac.load(Ordering::Acquire);
            (mac != ANY_SENDER).then(|| Sample {
                usual: (mac != 0).then_some(mac),
                other: Count {
                    packets: packets.load(Ordering::Relaxed),
                    bytes: bytes.load(Ordering::Relaxed),
                },
                unjudged: unjudged.load(Ordering::Relaxed),
            })
        })
    }

    /// From now on frames are compared with this address. `passed` is asked for the frames that have passed; what was
    /// `judged` of them stays.
    pub fn correct(&self, slot: u32, address: [u8; 6], judged: Judged, passed: impl Fn(u32) -> u64) {
        for direction in 0..DIRECTIONS {
            let [mac, packets, bytes, unjudged] = self.cell(slot, direction) else { continue };
            if mac.load(Ordering::Relaxed) == ANY_SENDER {
                continue;
            }
            mac.store(mac_word(address), Ordering::Release);
            unjudged.store(passed(direction).saturating_sub(judged.frames), Ordering::Relaxed);
            // A program may be adding at this moment.
            for (word, judged) in [(packets, judged.foreign.packets), (bytes, judged.foreign.bytes)] {
                let too_many = word.load(Ordering::Relaxed).wrapping_sub(judged);
                word.fetch_sub(too_many, Ordering::Relaxed);
            }
        }
    }

    fn cell(&self, slot: u32, direction: u32) -> &[AtomicU64] {
        self.memory.words(Hook::new(slot, direction).index() as usize * WORDS, WORDS)
    }
}
