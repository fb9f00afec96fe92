//! Which events are ordinary ends of a packet's life: the rule, as docs/output.md has it.
//!
//! The tracepoint is where the kernel frees what it does not pass on. That is not always a loss: a duplicate
//! that TCP had already, a copy of a broadcast that nobody here wanted, the last packet of a connection.

use netobs_common::drops::{REASONS, rule};

use super::layout::Reasons;

/// What the packet carried has been taken, or is there already.
const ALWAYS: [&str; 8] = [
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
    // Part of a message of which all has been read (local sockets).
    "UNIX_SKIP_OOB",
];

/// If the packet was not for this host alone: every receiver that has no use for its copy frees it.
const GROUP: [&str; 8] = [
    NOT_SPECIFIED,
    "OTHERHOST",
    "UNHANDLED_PROTO",
    "IPV6DISABLED",
    "NO_SOCKET",
    "IP_NOPROTO",
    "UNICAST_IN_L2_MULTICAST",
    "IP_INADDRERRORS",
];

const NOT_SPECIFIED: &str = "NOT_SPECIFIED";

/// Where packets end that have been dealt with, if no reason is specified: the functions free both these and
/// those that are wrong, and only the latter have a reason.
pub const PLACES: [&str; 0] = [];

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
            | of(&[NOT_SPECIFIED], rule::PLACE)
            | of(&["NO_SOCKET"], rule::ECHO_REPLY);
    }
    rules
}
