//! Frames built by hand, header by header.

pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 8];
/// Nobody's.
pub const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 9];

pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = RECEIVER.to_vec();
    frame.extend(SENDER);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Puts a VLAN tag in front of what a frame has behind its addresses.
pub fn tag(ethertype: u16, id: u16, mut frame: Vec<u8>) -> Vec<u8> {
    let [a, b] = ethertype.to_be_bytes();
    let [c, d] = id.to_be_bytes();
    frame.splice(12..12, [a, b, c, d]);
    frame
}

/// `fragment` as the header has it: flags and offset.
pub fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 1]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    // Bridges with netfilter drop what has a wrong one.
    let words = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let checksum = !((sum >> 16) + (sum & 0xffff)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header.extend(payload);
    header
}

/// From fd77::FROM to fd77::TO.
pub fn ipv6(next: u8, from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload.len() as u16).to_be_bytes());
    header.extend([next, 64]);
    for last in [from, to] {
        header.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    header.extend(payload);
    header
}

/// Ports, and zeros up to a length: UDP and SCTP, as far as anybody looks here.
pub fn ports(from: u16, to: u16, length: usize) -> Vec<u8> {
    let mut header = from.to_be_bytes().to_vec();
    header.extend(to.to_be_bytes());
    header.extend((length as u16).to_be_bytes());
    header.resize(length.max(8), 0);
    header
}

pub fn tcp(from: u16, to: u16, flags: u8, length: usize) -> Vec<u8> {
    let mut header = ports(from, to, 20);
    (header[4], header[5], header[12], header[13]) = (0, 0, 5 << 4, flags);
    header.resize(length.max(20), 0);
    header
}

/// A request of IPv4 over Ethernet.
pub fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(SENDER);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    packet
}
