//! DNS over TCP (RFC 7766): where messages begin in a connection's segments. Each is behind its length, of two bytes
//! (RFC 1035, section 4.2.2). What cannot be followed is said to be unread, and never guessed.

use std::collections::HashMap;

use crate::model::{
    capture::Way,
    event::{Datagram, Event},
    update::{FlowEnd, InterfaceKey},
};

/// Directions of connections that are followed at a time.
pub const MAX_STREAMS: usize = 16_384;

/// How long one is followed in which nothing passes; and one in which nothing has passed yet, or which has ended.
const IDLE_NS: u64 = 600 * SECOND_NS;
const LINGER_NS: u64 = 60 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// Bytes before each message, with its length.
const PREFIX: usize = 2;

/// Bytes of a DNS header.
const HEADER: usize = 12;

/// What is read of a TCP header (RFC 9293, section 3.1): all but its checksum and what follows.
struct Tcp {
    sequence: u32,
    /// Bytes, with options.
    len: u16,
    flags: u8,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

impl Tcp {
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[_, _, _, _, s3, s2, s1, s0, _, _, _, _, offset, flags, ..] = bytes else { return None };
        let len = u16::from(offset >> 4) * 4;
        (len >= 20).then_some(Self { sequence: u32::from_be_bytes([s3, s2, s1, s0]), len, flags })
    }

    const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// One direction of a connection, at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StreamKey {
    interface: InterfaceKey,
    way: Way,
    local: FlowEnd,
    remote: FlowEnd,
}

#[derive(Debug)]
struct Stream {
    /// Sequence number of the next byte that is needed: of the next message's beginning, behind `begun`.
    next: u32,
    /// Sequence numbers of the connection before `next`, that of its SYN included.
    before: u64,
    /// What has been seen of the next message, with its length: not yet all of its header.
    begun: Vec<u8>,
    until_ns: u64,
}

/// What there was in a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those whose header ended in it, as far as they are there.
    pub messages: Vec<Datagram>,
    /// It had a payload, and what else begins there is not known.
    pub is_unread: bool,
}

/// Connections that are followed.
#[derive(Debug, Default)]
pub struct Streams {
    streams: HashMap<StreamKey, Stream>,
    swept_ns: u64,
}

impl Streams {
    /// Takes in a segment, from its TCP header on.
    pub fn segment(&mut self, event: &Event, segment: &Datagram) -> Found {
        let Some(tcp) = Tcp::read(&segment.bytes) else {
            return Found { is_unread: true, ..Found::default() };
        };
        let (interface, way, local, remote) = (event.interface, event.way, segment.local, segment.remote);
        let key = StreamKey { interface, way, local, remote };
        let mut sequence = tcp.sequence;
        if tcp.has(SYN) {
            sequence = sequence.wrapping_add(1);
            self.begin(key, sequence, event.time_ns);
        }
        let mut found = Found::default();
        let len = segment.payload_len.saturating_sub(tcp.len);
        if len > 0 && !tcp.has(RST) {
            let payload = segment.bytes.get(usize::from(tcp.len)..).unwrap_or_default();
            let payload = &payload[..payload.len().min(usize::from(len))];
            let each = |length, bytes: Vec<u8>| {
                found.messages.push(Datagram { local, remote, payload_len: length, bytes });
            };
            let stream = self.streams.get_mut(&key);
            let read = stream.and_then(|stream| {
                stream.until_ns = event.time_ns.saturating_add(IDLE_NS);
                stream.read(sequence, len, payload, each)
            });
            if read.is_none() {
                found.is_unread = true;
                self.streams.remove(&key);
            }
        }
        if tcp.has(FIN | RST) {
            self.end(key, event.time_ns);
        }
        if tcp.has(RST) {
            self.end(StreamKey { way: key.way.other(), ..key }, event.time_ns);
        }
        found
    }

    /// Where there is no room, all of it will be unread.
    fn begin(&mut self, key: StreamKey, first: u32, now_ns: u64) {
        let is_known = match self.streams.get(&key) {
            // Sent again.
            Some(stream) if stream.first() == first => return,
            known => known.is_some(),
        };
        if is_known || self.streams.len() < MAX_STREAMS {
            let until_ns = now_ns.saturating_add(LINGER_NS);
            self.streams.insert(key, Stream { next: first, before: 1, begun: Vec::new(), until_ns });
        }
    }

    /// It stays for a while: segments may be sent again, or may be on their way.
    fn end(&mut self, key: StreamKey, now_ns: u64) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.until_ns = now_ns.saturating_add(LINGER_NS);
        }
    }

    /// Forgets those in which nothing passes, by what was seen up to a time.
    pub fn expire(&mut self, read_ns: u64) {
        if read_ns >= self.swept_ns.saturating_add(SECOND_NS) {
            self.swept_ns = read_ns;
            self.streams.retain(|_, stream| stream.until_ns > read_ns);
        }
    }
}

impl Stream {
    /// Sequence number of the first byte.
    const fn first(&self) -> u32 {
        self.next.wrapping_sub(self.before as u32).wrapping_add(1)
    }

    /// Hands over the messages whose header ends in `len` bytes from `sequence` on, of which the first are there.
    /// None: it is not known what else begins in them.
    fn read(
        &mut self,
        sequence: u32,
        len: u16,
        bytes: &[u8],
        mut each: impl FnMut(u16, Vec<u8>),
    ) -> Option<()> {
        let mut offset = self.next.wrapping_sub(sequence);
        // Of another connection; or it comes after what was not seen, as half of all numbers are behind.
        if u64::from(offset) > self.before || offset > u32::MAX / 2 {
            return None;
        }
        // Else what is needed comes later: the rest of a long message, or what was sent again.
        while offset < u32::from(len) {
            let there = bytes.get(offset as usize..).filter(|there| !there.is_empty())?;
            let wanted = match *self.begun {
                [high, low, ..] => PREFIX + HEADER.min(u16::from_be_bytes([high, low]).into()),
                _ => PREFIX,
            };
            let part = &there[..there.len().min(wanted - self.begun.len())];
            self.begun.extend(part);
            let mut passed = part.len() as u32;
            if let [high, low, ref header @ ..] = *self.begun
                && header.len() >= HEADER.min(u16::from_be_bytes([high, low]).into())
            {
                let length = u16::from_be_bytes([high, low]);
                let rest = usize::from(length) - header.len();
                let behind = &there[part.len()..];
                each(length, [header, &behind[..behind.len().min(rest)]].concat());
                passed += rest as u32;
                self.begun.clear();
            }
            self.next = self.next.wrapping_add(passed);
            self.before += u64::from(passed);
            offset += passed;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        dns::{Path, Transport},
        event::What,
    };

    /// Near where numbers begin anew.
    const FIRST: u32 = u32::MAX - 20;

    struct Connection {
        streams: Streams,
        time_ns: u64,
        port: u16,
    }

    impl Connection {
        fn new() -> Self {
            let mut connection = Self { streams: Streams::default(), time_ns: 1, port: 4000 };
            connection.begin();
            connection
        }

        fn begin(&mut self) {
            assert_eq!(self.segment(SYN, FIRST.wrapping_sub(1), 0, &[]), Found::default());
        }

        /// With a payload of `len`, of which some bytes are there.
        fn segment(&mut self, flags: u8, sequence: u32, len: u16, bytes: &[u8]) -> Found {
            let mut packet = vec![0; 20];
            packet[4..8].copy_from_slice(&sequence.to_be_bytes());
            (packet[12], packet[13]) = (5 << 4, flags);
            packet.extend(bytes);
            let end = |port| FlowEnd { address: [10, 0, 0, 1].into(), port };
            let segment =
                Datagram { local: end(self.port), remote: end(53), payload_len: 20 + len, bytes: packet };
            let what = What::Dns(Path::Wire, Transport::Tcp, segment.clone());
            let event = Event { interface: InterfaceKey(1), way: Way::Tx, time_ns: self.time_ns, what };
            self.streams.segment(&event, &segment)
        }

        /// Bytes of the stream, all there.
        fn part(&mut self, stream: &[u8], from: usize, to: usize) -> Found {
            let part = &stream[from..to];
            self.segment(0, FIRST.wrapping_add(from as u32), part.len() as u16, part)
        }
    }

    /// What is in messages, each of one value.
    fn stream(lengths: &[u16]) -> Vec<u8> {
        let each = lengths
            .iter()
            .zip(1..)
            .flat_map(|(&length, value)| [&length.to_be_bytes()[..], &vec![value; length.into()]].concat());
        each.collect()
    }

    /// Length as told, and value of the first byte; whether it is unread.
    fn told(found: &Found) -> (Vec<(u16, Option<u8>)>, bool) {
        let each = found.messages.iter().map(|message| (message.payload_len, message.bytes.first().copied()));
        (each.collect(), found.is_unread)
    }

    /// Of every size; each of them twice, and then once more with what was before.
    #[test]
    fn however_it_is_cut() {
        const LENGTHS: [u16; 6] = [40, 12, 0, 3, 300, 13];
        let stream = stream(&LENGTHS);
        let expected: Vec<_> =
            LENGTHS.iter().zip(1..).map(|(&length, value)| (length, (length > 0).then_some(value))).collect();
        for size in 1..=stream.len() {
            let mut connection = Connection::new();
            let mut all = Vec::new();
            for from in (0..stream.len()).step_by(size) {
                let to = (from + size).min(stream.len());
                for from in [from, from, from.saturating_sub(7)] {
                    let found = connection.part(&stream, from, to);
                    assert!(!found.is_unread, "segments of {size}, from {from}");
                    all.extend(told(&found).0);
                }
            }
            assert_eq!(all, expected, "segments of {size}");
        }
    }

    /// Of a long message only the beginning is told of, and nothing of what follows it in the same segment.
    #[test]
    fn what_is_not_told_of() {
        let all = stream(&[3000, 30]);
        let mut connection = Connection::new();
        let segment = |connection: &mut Connection, from: usize, to: usize| {
            let sequence = FIRST.wrapping_add(from as u32);
            connection.segment(0, sequence, (to - from) as u16, &all[from..to.min(from + 44)])
        };
        assert_eq!(told(&segment(&mut connection, 0, 1460)), (vec![(3000, Some(1))], false));
        assert_eq!(told(&segment(&mut connection, 1460, 2920)), (vec![], false));
        // One is lost that nothing begins in, and one in which the next begins.
        assert_eq!(told(&segment(&mut connection, 3002, 3034)), (vec![(30, Some(2))], false));
        let mut connection = Connection::new();
        segment(&mut connection, 0, 1460);
        assert_eq!(told(&segment(&mut connection, 2900, 3034)), (vec![], true));
        assert_eq!(told(&segment(&mut connection, 3002, 3034)), (vec![], true), "nor is what follows");
    }

    #[test]
    fn what_was_not_seen() {
        let all = stream(&[30, 30, 30]);
        let mut connection = Connection::new();
        assert_eq!(told(&connection.part(&all, 0, 32)), (vec![(30, Some(1))], false));
        assert_eq!(told(&connection.part(&all, 64, 96)), (vec![], true));
        assert_eq!(told(&connection.part(&all, 32, 64)), (vec![], true));
        // From its beginning on; a SYN that comes again is no other connection.
        connection.begin();
        connection.part(&all, 0, 32);
        connection.begin();
        assert_eq!(told(&connection.part(&all, 32, 64)), (vec![(30, Some(2))], false));
        // Another of the same ends, whose SYN was not seen: its numbers are before, or behind.
        for sequence in [FIRST.wrapping_sub(1000), FIRST.wrapping_add(1 << 30), FIRST.wrapping_add(1 << 31)] {
            connection.begin();
            connection.part(&all, 0, 32);
            assert_eq!(told(&connection.segment(0, sequence, 32, &all[..32])), (vec![], true));
        }
        // What keeps a connection alive is the byte before.
        connection.begin();
        assert_eq!(told(&connection.segment(0, FIRST.wrapping_sub(1), 1, &[0])), (vec![], false));
    }

    #[test]
    fn bounded_and_forgotten() {
        let message = stream(&[30]);
        let mut connection = Connection::new();
        connection.streams = Streams::default();
        for port in 0..=MAX_STREAMS as u16 {
            connection.port = port;
            connection.begin();
        }
        assert_eq!(told(&connection.part(&message, 0, 32)), (vec![], true), "no room");
        connection.port = 7;
        assert_eq!(told(&connection.part(&message, 0, 32)), (vec![(30, Some(1))], false));
        connection.port = 8;
        connection.part(&message, 0, 32);
        connection.segment(FIN, FIRST.wrapping_add(32), 0, &[]);
        connection.streams.expire(1 + LINGER_NS);
        let ports: Vec<_> = connection.streams.streams.keys().map(|key| key.local.port).collect();
        assert_eq!(ports, [7]);
        connection.streams.expire(1 + IDLE_NS);
        assert!(connection.streams.streams.is_empty());
    }

    /// Cut at every byte, with every byte changed: nothing panics, and no more is told of than there is.
    #[test]
    fn hostile_bytes() {
        let mut packet = vec![0; 20];
        (packet[12], packet[13]) = (5 << 4, SYN);
        packet.extend(stream(&[30, 0, 5]));
        let end = FlowEnd { address: [10, 0, 0, 1].into(), port: 53 };
        let mut streams = Streams::default();
        let mut try_all = |bytes: &[u8]| {
            for payload_len in [0, 19, 20, 21, 50, bytes.len() as u16, u16::MAX] {
                let segment = Datagram { local: end, remote: end, payload_len, bytes: bytes.to_vec() };
                let what = What::Dns(Path::Wire, Transport::Tcp, segment.clone());
                let event = Event { interface: InterfaceKey(1), way: Way::Tx, time_ns: 1, what };
                let found = streams.segment(&event, &segment);
                let told: usize = found.messages.iter().map(|message| message.bytes.len()).sum();
                assert!(told <= bytes.len() + HEADER, "{told} of {}", bytes.len());
            }
        };
        for end in 0..=packet.len() {
            try_all(&packet[..end]);
        }
        for at in 0..packet.len() {
            for value in 0..=255 {
                let mut changed = packet.clone();
                changed[at] = value;
                try_all(&changed);
            }
        }
    }
}
