//! What one DNS message is, by its header (RFC 1035, section 4.1.1), and the name that it asks for.

use simple_dns::{OPCODE, Packet, PacketFlag, header_buffer};

/// A header, the root's name, type and class: no query is shorter.
const SHORTEST_QUERY: u16 = 12 + 1 + 4;

/// Where the counts of records begin in the header, after that of questions, and where it ends.
const RECORD_COUNTS: std::ops::Range<usize> = 6..12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Query {
        id: u16,
    },
    Response {
        id: u16,
        /// The header's four bits; the eight more that EDNS has are not looked at.
        rcode: u8,
        /// Not all of the answer: it is to be asked for by TCP.
        truncated: bool,
    },
    /// Neither: a notification, an update, a zone's transfer.
    Other,
}

/// From the first bytes of a datagram of `payload_len`. None: it is no DNS message.
pub fn read(bytes: &[u8], payload_len: u16) -> Option<Message> {
    let (id, questions) = (header_buffer::id(bytes).ok()?, header_buffer::questions(bytes).ok()?);
    let has = |flag| header_buffer::has_flags(bytes, flag).ok();
    let (is_response, truncated) = (has(PacketFlag::RESPONSE)?, has(PacketFlag::TRUNCATION)?);
    match header_buffer::opcode(bytes).ok()? {
        OPCODE::StandardQuery => {}
        OPCODE::Reserved => return None,
        _ => return Some(Message::Other),
    }
    if is_response {
        return (questions <= 1).then(|| Message::Response { id, rcode: bytes[3] & 0xf, truncated });
    }
    let records = [header_buffer::answers(bytes).ok()?, header_buffer::name_servers(bytes).ok()?];
    (questions == 1 && records == [0; 2] && payload_len >= SHORTEST_QUERY).then_some(Message::Query { id })
}

/// The name that a query asks for, in lower case, as in a zone file (RFC 1035, section 5.1). None if it is
/// not all there.
pub fn name(query: &[u8]) -> Option<String> {
    let mut question = query.to_vec();
    // What follows the question is not of interest, and may have been cut.
    question.get_mut(RECORD_COUNTS)?.fill(0);
    let packet = Packet::parse(&question).ok()?;
    let mut name = String::new();
    for label in packet.questions.first()?.qname.iter() {
        for &byte in label.as_ref() {
            match byte.to_ascii_lowercase() {
                escaped @ (b'.' | b'\\') => name.extend(['\\', char::from(escaped)]),
                plain @ b'!'..=b'~' => name.push(char::from(plain)),
                other => name.push_str(&format!("\\{other:03}")),
            }
        }
        name.push('.');
    }
    if name.len() > 1 {
        name.pop();
    }
    Some(if name.is_empty() { ".".to_owned() } else { name })
}

/// As IANA has it (DNS RCODEs).
pub const fn rcode_name(rcode: u8) -> &'static str {
    const NAMES: [&str; 16] = [
        "NOERROR",
        "FORMERR",
        "SERVFAIL",
        "NXDOMAIN",
        "NOTIMP",
        "REFUSED",
        "YXDOMAIN",
        "YXRRSET",
        "NXRRSET",
        "NOTAUTH",
        "NOTZONE",
        "DSOTYPENI",
        "RCODE12",
        "RCODE13",
        "RCODE14",
        "RCODE15",
    ];
    NAMES[(rcode & 0xf) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(labels: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label);
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Option<Message> {
        read(bytes, u16::try_from(bytes.len()).expect("short"))
    }

    #[test]
    fn queries_and_responses() {
        let mut bytes = query(&[b"www", b"Example", b"com"]);
        assert_eq!(read_all(&bytes), Some(Message::Query { id: 0x1234 }));
        assert_eq!(read(&bytes[..12], 33), Some(Message::Query { id: 0x1234 }), "the header is enough");
        bytes[2] = 0x83;
        bytes[3] = 0x83;
        assert_eq!(read_all(&bytes), Some(Message::Response { id: 0x1234, rcode: 3, truncated: true }));
        bytes[2] = 0x28;
        assert_eq!(read_all(&bytes), Some(Message::Other), "an update");
    }

    #[test]
    fn what_is_no_message() {
        for (bytes, what) in [
            (vec![], "nothing"),
            (vec![0; 11], "less than a header"),
            (vec![0; 40], "no question"),
            (vec![0xff; 40], "an operation that there is not"),
            (query(&[])[..16].to_vec(), "less than the shortest query"),
        ] {
            assert_eq!(read_all(&bytes), None, "{what}");
        }
        let mut answered = query(&[b"a"]);
        answered[7] = 1;
        assert_eq!(read_all(&answered), None, "a query with an answer");
    }

    #[test]
    fn names_as_in_a_zone_file() {
        for (labels, expected) in [
            (&[&b"www"[..], b"Example", b"com"][..], "www.example.com"),
            (&[], "."),
            (&[b"a.b", b"c\\d"], "a\\.b.c\\\\d"),
            (&[b"\x1b[2J\xff \""], "\\027[2j\\255\\032\""),
        ] {
            assert_eq!(name(&query(labels)).as_deref(), Some(expected));
        }
        // With records behind the question that are not all there.
        let mut more = query(&[b"web"]);
        more[11] = 1;
        more.extend([0, 0, 41]);
        assert_eq!(name(&more).as_deref(), Some("web"));
    }

    /// Whatever arrives, nothing panics: cut at every byte, and with every byte changed.
    #[test]
    fn hostile_bytes() {
        let whole = query(&[b"www", b"example", b"com"]);
        for end in 0..whole.len() {
            let _ = read_all(&whole[..end]);
            assert_eq!(name(&whole[..end]), None, "cut at {end}");
        }
        for at in 0..whole.len() {
            for value in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = read_all(&changed);
                let _ = name(&changed);
            }
        }
        // A name that points at itself, and one that points forward.
        for pointer in [12, 14, 0xff] {
            let mut bytes = query(&[]);
            bytes.splice(12..13, [0xc0, pointer]);
            assert_eq!(name(&bytes), None, "a pointer to {pointer}");
        }
    }
}
