//! Random frames with the structure of real ones, so that most of them go deep into a parser: tags, options,
//! extension headers, fragments, then changed and cut anywhere. The same seed makes the same frames.

use crate::{reference::OWN_MAC, test_run::Gso};

/// Numbers that are the same in each run (splitmix64).
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.number() >> 32) as usize * bound) >> 32
    }

    pub fn byte(&mut self) -> u8 {
        self.number() as u8
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, count: usize, into: &mut Vec<u8>) {
        for at in (0..count).step_by(8) {
            let word = self.number().to_le_bytes();
            into.extend(&word[..(count - at).min(8)]);
        }
    }
}

/// A frame, and how it goes through a hook.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub frame: &'a [u8],
    /// Received by the interface, or else sent.
    pub ingress: bool,
    pub gso: Gso,
    /// Beside it there is a VLAN tag that the kernel keeps outside the frame.
    pub tag_outside: bool,
}

/// Many cases in one piece of memory.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    cases: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    end: usize,
    ingress: bool,
    gso: Gso,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// # Panics
    /// If there are not so many.
    pub fn case(&self, number: usize) -> Case<'_> {
        let Entry { start, end, ingress, gso } = self.cases[number];
        Case { frame: &self.bytes[start..end], ingress, gso, tag_outside: false }
    }

    pub fn push(&mut self, frame: &[u8], ingress: bool) {
        let start = self.bytes.len();
        self.bytes.extend(frame);
        self.cases.push(Entry { start, end: self.bytes.len(), ingress, gso: Gso::default() });
    }

    /// Those that `BPF_PROG_TEST_RUN` takes: no IP packet without a tag is shorter than its fixed header.
    pub fn for_test_run(seed: u64, count: usize) -> Self {
        let mut random = Random::new(seed);
        let mut batch = Self { bytes: Vec::with_capacity(count * 128), cases: Vec::with_capacity(count) };
        for _ in 0..count {
            let start = batch.bytes.len();
            frame(&mut random, start, &mut batch.bytes);
            let least = match batch.bytes[start + 12..start + 14] {
                [0x08, 0x00] => 34,
                [0x86, 0xdd] => 54,
                _ => 14,
            };
            let end = batch.bytes.len().max(start + least);
            batch.bytes.resize(end, 0);
            let gso = if random.percent(10) { gso(&mut random) } else { Gso::default() };
            let ingress = random.percent(60);
            batch.cases.push(Entry { start, end, ingress, gso });
        }
        batch
    }

    /// Those that a raw socket sends and another interface receives; half of them are so long that the kernel keeps
    /// nothing of them in the linear part of the skb but the Ethernet header.
    pub fn for_socket(seed: u64, count: usize) -> Self {
        /// More than a page.
        const LONG: usize = 4200;
        let mut random = Random::new(seed);
        let mut batch = Self::default();
        for _ in 0..count {
            let start = batch.bytes.len();
            frame(&mut random, start, &mut batch.bytes);
            if random.percent(50) {
                let pad = LONG.saturating_sub(batch.bytes.len() - start) + random.below(200);
                random.bytes(pad, &mut batch.bytes);
            }
            let end = batch.bytes.len();
            batch.cases.push(Entry { start, end, ingress: true, gso: Gso::default() });
        }
        batch
    }
}

fn gso(random: &mut Random) -> Gso {
    let size = match random.below(4) {
        0 => 1448,
        1 => 1 + random.below(64),
        2 => 1 + random.below(9000),
        _ => 1 + random.below(65_535),
    };
    Gso { segments: random.below(48) as u32, size: size as u32 }
}

const ETHERTYPE_AT: usize = 12;
const ETHERNET_LEN: usize = 14;

/// Appends one frame; `start` is where that is.
fn frame(random: &mut Random, start: usize, into: &mut Vec<u8>) {
    if random.percent(4) {
        let length = ETHERNET_LEN + random.below(300);
        random.bytes(length, into);
        if random.percent(70) {
            let ethertype: u16 = random.pick(&[0x0800, 0x86dd, 0x8100, 0x88a8]);
            into[start + ETHERTYPE_AT..start + ETHERNET_LEN].copy_from_slice(&ethertype.to_be_bytes());
        }
        return;
    }
    into.extend(destination(random));
    let mut source = OWN_MAC;
    if random.percent(50) {
        source[5] = random.byte();
    }
    into.extend(source);
    let tags = random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 3]);
    for _ in 0..tags {
        into.extend(random.pick(&[[0x81, 0x00], [0x88, 0xa8]]));
        random.bytes(2, into);
    }
    match random.below(20) {
        0..9 => {
            into.extend([0x08, 0x00]);
            ipv4(random, into);
        }
        9..18 => {
            into.extend([0x86, 0xdd]);
            ipv6(random, into);
        }
        18 => {
            into.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
            random.bytes(20, into);
        }
        _ => {
            // Among them a tag that is none of 802.1's, and 802.3's length.
            into.extend(random.pick(&[[0x91, 0x00], [0x88, 0xcc], [0x00, 0x40], [0x88, 0x47], [0x08, 0x01]]));
            let length = random.below(60);
            random.bytes(length, into);
        }
    }
    if random.percent(20) {
        for _ in 0..=random.below(3) {
            let at = start + random.below(into.len() - start);
            into[at] = random.byte();
        }
    }
    if random.percent(25) {
        let length = into.len() - start;
        into.truncate(start + ETHERNET_LEN + random.below(length + 1 - ETHERNET_LEN));
    } else if random.percent(15) {
        // Padding of Ethernet, and all sizes.
        let length = random.pick(&[60, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 1025, 1518, 1519, 3400]);
        let end = into.len().max(start + length);
        into.resize(end, 0);
    }
}

fn destination(random: &mut Random) -> [u8; 6] {
    random.pick(&[
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
        [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff],
        [0xff; 6],
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xfe],
        [0xff, 0xff, 0, 0xff, 0xff, 0xff],
        [0x01, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ])
}

fn ipv4(random: &mut Random, into: &mut Vec<u8>) {
    let start = into.len();
    let words = match random.below(10) {
        0..5 => 5,
        5..9 => 5 + random.below(11),
        _ => random.below(16),
    };
    let version = if random.percent(97) { 4 } else { random.below(16) };
    let protocol = protocol(random);
    into.extend([(version << 4 | words) as u8, random.byte(), 0, 0]);
    // Few identifiers: fragments of one packet come often, and overlap.
    into.extend([0, random.below(4) as u8]);
    into.extend(fragment(random).to_be_bytes());
    into.extend([64, protocol, 0, 0]);
    into.extend(address4(random));
    into.extend(address4(random));
    if words > 5 {
        random.bytes((words - 5) * 4, into);
    }
    transport(random, protocol, into);
    let length = if random.percent(80) { (into.len() - start) as u16 } else { random.number() as u16 };
    into[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Flags and offset.
fn fragment(random: &mut Random) -> u16 {
    match random.below(10) {
        0..5 => 0,
        5 => 0x4000,
        6 => 0x2000,
        // Over the transport header of the first one, and over each other.
        7 => 0x2000 | random.below(4) as u16,
        8 => random.below(4) as u16,
        _ => random.number() as u16,
    }
}

fn ipv6(random: &mut Random, into: &mut Vec<u8>) {
    /// Hop-by-hop, routing, fragment, authentication, destination, mobility; and what looks like one and is none
    /// that is followed.
    const EXTENSIONS: [u8; 10] = [0, 43, 44, 44, 44, 51, 60, 60, 135, 139];
    let start = into.len();
    let version = if random.percent(97) { 0x60 } else { random.byte() };
    into.extend([version, 0, 0, 0, 0, 0, 0, 64]);
    into.extend(address6(random));
    into.extend(address6(random));
    let mut next_at = start + 6;
    let extensions = random.pick(&[0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 7, 8, 9, 12]);
    for _ in 0..extensions {
        let kind = random.pick(&EXTENSIONS);
        into[next_at] = kind;
        next_at = into.len();
        extension(random, kind, into);
    }
    let protocol = protocol(random);
    into[next_at] = protocol;
    transport(random, protocol, into);
    let length = (into.len() - start - 40) as u16;
    into[start + 4..start + 6].copy_from_slice(&length.to_be_bytes());
}

/// One that says how long it is, right or (seldom) wrong.
fn extension(random: &mut Random, kind: u8, into: &mut Vec<u8>) {
    if kind == 44 {
        let offset = fragment(random);
        // As IPv4 has it, but for where the flag is.
        into.extend([0, if random.percent(90) { 0 } else { random.byte() }]);
        into.extend(((offset & 0x1fff) << 3 | offset >> 13 & 1).to_be_bytes());
        into.extend([0, 0, 0, random.below(4) as u8]);
        return;
    }
    let units = random.pick(&[0, 0, 0, 1, 1, 2, 3]);
    let length = 8 + units * if kind == 51 { 4 } else { 8 };
    let said = if random.percent(96) { units as u8 } else { random.byte() };
    into.extend([0, said]);
    random.bytes(length - 2, into);
}

fn protocol(random: &mut Random) -> u8 {
    match random.below(12) {
        0..4 => 6,
        4..6 => 17,
        6 => 1,
        7 => 58,
        8 => 132,
        9 | 10 => random.pick(&[0, 2, 4, 41, 43, 44, 47, 50, 51, 59, 60, 89, 135, 255]),
        _ => random.byte(),
    }
}

fn transport(random: &mut Random, protocol: u8, into: &mut Vec<u8>) {
    const PORTS: [u16; 6] = [0, 53, 80, 443, 40_000, 65_535];
    if matches!(protocol, 6 | 17 | 132) {
        into.extend(random.pick(&PORTS).to_be_bytes());
        into.extend(random.pick(&PORTS).to_be_bytes());
    }
    match protocol {
        6 => {
            random.bytes(8, into);
            let words = if random.percent(80) { 5 } else { random.below(16) };
            let flags = if random.percent(80) {
                random.pick(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14])
            } else {
                random.byte()
            };
            into.extend([(words << 4) as u8, flags]);
            random.bytes(6 + words.saturating_sub(5) * 4, into);
        }
        1 | 58 => {
            let kind = random.pick(&[0, 8, 128, 129, 3, 135]);
            into.extend([kind, random.below(2) as u8, 0, 0, 0, random.below(3) as u8, 0, 1]);
        }
        _ => {}
    }
    let payload = random.below(40);
    random.bytes(payload, into);
}

fn address4(random: &mut Random) -> [u8; 4] {
    random.pick(&[[10, 0, 0, 1], [10, 0, 0, 2], [192, 0, 2, 1], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]])
}

fn address6(random: &mut Random) -> [u8; 16] {
    random.pick(&[
        [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0; 16],
        // 10.0.0.1, as flows have it.
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1],
    ])
}
