//! Which events are ordinary ends of a packet's life: the rule, as docs/output.md has it.
//!
//! The tracepoint is where the kernel frees what it does not pass on. That is not always a loss: a duplicate
//! that TCP had already, a copy of a broadcast that nobody here wanted, the last packet of a connection.

use netobs_common::drops::{REASONS, rule};

use super::layout::Reasons;

/// What the packet carried has been taken, or is there already.
const ALWAYS: [&str; 10] = [
    // For another host, and not forwarded: it was flooded, or the interface is promiscuous.
    "OTHERHOST",
    // Not a drop, says the kernel.
    "NOT_DROPPED_YET",
    "CONSUMED",
    // Sent again, and there already: also what keepalives look like.
    "TCP_OLD_DATA",
    "TCP_OLD_SEQUENCE",
    "TCP_OLD_ACK",
    // Its data is in the queue, as part of another packet.
    "TCP_OFOMERGE",
    // A reset that has done its work.
    "TCP_RESET",
    // Left in a queue that is given up: of a socket that was closed before all was read.
    "QUEUE_PURGE",
    // Part of a message of which all has been read (local sockets).
    "UNIX_SKIP_OOB",
];

/// If it was broadcast or multicast: every receiver that has no use for its copy frees it.
const GROUP: [&str; 8] = [
    NOT_SPECIFIED,
    "UNHANDLED_PROTO",
    "IPV6DISABLED",
    "NO_SOCKET",
    "IP_NOPROTO",
    "UNICAST_IN_L2_MULTICAST",
    "IP_INADDRERRORS",
    "NO_TX_TARGET",
];

/// If it was for another host. Not if the reason is not specified: a bridge gives no other for what it does not
/// let through.
const OTHER_HOST: [&str; 1] = ["UNHANDLED_PROTO"];

const NOT_SPECIFIED: &str = "NOT_SPECIFIED";

/// Where packets end that have been dealt with, if no reason is specified: these functions free such packets
/// and wrong ones in one place, and give only the latter a reason.
const PLACES: [&str; 6] = [
    // What has the reason `QUEUE_PURGE` later (from 6.8 on).
    "sk_stream_kill_queues",
    "skb_queue_purge",
    "skb_rbtree_purge",
    // The last packets of a connection of which there is only the waiting time left.
    "tcp_v4_rcv",
    "tcp_v6_rcv",
    // Neighbour discovery (up to 6.2).
    "icmpv6_rcv",
];

/// The same on kernels that give no reasons. Here it takes wrong ICMP messages for answers to pings, too; TCP
/// frees there what nobody listens for, and so is not among them.
const PLACES_WITHOUT_REASONS: [&str; 5] =
    ["sk_stream_kill_queues", "skb_queue_purge", "skb_rbtree_purge", "icmp_rcv", "icmpv6_rcv"];

pub fn places(reasons: &Reasons) -> &'static [&'static str] {
    if reasons.is_empty() { &PLACES_WITHOUT_REASONS } else { &PLACES }
}

/// [`rule`] by reason. A kernel that tells no reasons gives none the number 0.
pub fn rules(reasons: &Reasons) -> [u8; REASONS] {
    let mut rules = [0; REASONS];
    if reasons.is_empty() {
        rules[0] = rule::GROUP | rule::PLACE;
    }
    // The last one stands for all others.
    for (number, name) in reasons.range(..REASONS as u32 - 1) {
        let name = name.as_str();
        let of = |names: &[&str], bit: u8| if names.contains(&name) { bit } else { 0 };
        rules[*number as usize] = of(&ALWAYS, rule::ALWAYS)
            | of(&GROUP, rule::GROUP)
            | of(&OTHER_HOST, rule::OTHER_HOST)
            | of(&[NOT_SPECIFIED], rule::PLACE)
            | of(&["NO_SOCKET"], rule::ECHO_REPLY);
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_go_by_name() {
        let reasons =
            [(1, "CONSUMED"), (2, "NOT_SPECIFIED"), (6, "NO_SOCKET"), (9, "NETFILTER_DROP"), (99999, "X")];
        let rules =
            super::rules(&reasons.into_iter().map(|(number, name)| (number, name.to_owned())).collect());
        assert_eq!(rules[1], rule::ALWAYS);
        assert_eq!(rules[2], rule::GROUP | rule::PLACE);
        assert_eq!(rules[6], rule::GROUP | rule::ECHO_REPLY);
        assert_eq!(rules[9], 0);
        assert!(rules[10..].iter().all(|rule| *rule == 0));
        assert_eq!(super::rules(&Reasons::new())[0], rule::GROUP | rule::PLACE);
    }

    #[test]
    fn there_is_room_for_all_places() {
        assert!(PLACES.len().max(PLACES_WITHOUT_REASONS.len()) <= netobs_common::drops::MAX_PLACES);
    }
}
