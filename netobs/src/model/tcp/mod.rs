//! How TCP connections fare: what can be told of it, and added up.

mod owners;
#[cfg(test)]
mod tests;

use std::ops::AddAssign;

use netobs_common::tcp::TCP_BUCKETS;
use serde::{Deserialize, Serialize};

use super::{snapshot::ByName, update::FlowEnd};

pub(super) use self::owners::{TcpEnds, TcpState};

/// What is degraded where a part cannot be had.
pub mod feature {
    /// Handshakes, round-trip times, connects that fail.
    pub const CONNECTIONS: &str = "tcp connections";
    pub const RETRANSMITS: &str = "tcp retransmits";
    pub const RESETS: &str = "tcp resets";
}

/// A network namespace, as the kernel tells of it where its sockets are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpNamespace {
    /// Which another may have after it.
    pub inode: u64,
    /// Which no other ever has; 0 where the kernel gives none.
    pub cookie: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpSubject {
    Connected,
    Accepted,
    RoundTrip,
    Refused,
    TimedOut,
    Failed,
    GivenUp,
    Retransmitted,
    ResetSent,
    ResetReceived,
}

/// What was counted since it was last told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAmount {
    pub namespace: TcpNamespace,
    pub subject: TcpSubject,
    /// Of what has a duration, if that is known: into which bucket it falls.
    pub bucket: Option<usize>,
    pub count: u64,
    pub sum_us: u64,
}

/// How one connection stands, as the socket of one of its ends has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConnection {
    pub namespace: TcpNamespace,
    pub local: FlowEnd,
    pub remote: FlowEnd,
    pub begins: bool,
    pub ends: bool,
    pub handshake_us: Option<u32>,
    pub rtt_us: Option<u32>,
    pub retransmitted: u64,
    /// With `begins` only.
    pub outcome: Option<TcpOutcome>,
    /// What this is told for, if for that; it may be told after the end.
    pub reset_sent: bool,
    pub reset_received: bool,
}

/// How the beginning of a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpOutcome {
    Established,
    /// `ECONNREFUSED`: a reset came, or a message of ICMP.
    Refused,
    TimedOut,
    /// The program itself ended it before there was an answer.
    GivenUp,
    /// With any other error.
    Failed,
}

impl TcpOutcome {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::GivenUp => "given_up",
            Self::Failed => "failed",
        }
    }
}

/// What was read at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpSample {
    pub amounts: Vec<TcpAmount>,
    /// In the order in which it happened.
    pub connections: Vec<TcpConnection>,
    /// Events that are in neither, by cause, since the start.
    pub lost: ByName,
}

/// Durations, by [`netobs_common::tcp::TCP_BOUNDS_US`]; the last bucket has no bound. Not cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Distribution {
    pub buckets: [u64; TCP_BUCKETS],
    pub sum_us: u64,
    /// How many more there were, of which the duration is not known.
    pub unmeasured: u64,
}

impl Distribution {
    fn add(&mut self, amount: &TcpAmount) {
        match amount.bucket.and_then(|bucket| self.buckets.get_mut(bucket)) {
            Some(bucket) => *bucket += amount.count,
            None => self.unmeasured += amount.count,
        }
        self.sum_us += amount.sum_us;
    }

    pub fn measured(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn all(&self) -> u64 {
        self.measured() + self.unmeasured
    }
}

/// What the sockets of one container did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::model) struct TcpCounts {
    connections: TcpConnections,
    retransmitted_segments: u64,
    resets: TcpResets,
}

/// Connections that a container opened and accepted, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TcpConnections {
    /// Of connections that it opened: SYN to SYN-ACK.
    pub client_handshake: Distribution,
    /// Of connections that it accepted: SYN-ACK to ACK.
    pub server_handshake: Distribution,
    /// The kernel's smoothed figure, when a connection begins and when it ends.
    pub rtt: Distribution,
    /// Connects that failed: refused, not answered in time, with another error, ended by the program itself.
    pub refused: u64,
    pub timed_out: u64,
    pub failed: u64,
    pub given_up: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TcpResets {
    pub sent: u64,
    pub received: u64,
}

/// How the connections of a container fared, as far as the kernel lets it be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TcpHealth {
    pub connections: Option<TcpConnections>,
    /// SYN and SYN-ACK among them.
    pub retransmitted_segments: Option<u64>,
    pub resets: Option<TcpResets>,
}

impl TcpCounts {
    fn add(&mut self, amount: &TcpAmount) {
        let connections = &mut self.connections;
        let counter = match amount.subject {
            TcpSubject::Connected => return connections.client_handshake.add(amount),
            TcpSubject::Accepted => return connections.server_handshake.add(amount),
            TcpSubject::RoundTrip => return connections.rtt.add(amount),
            TcpSubject::Refused => &mut connections.refused,
            TcpSubject::TimedOut => &mut connections.timed_out,
            TcpSubject::Failed => &mut connections.failed,
            TcpSubject::GivenUp => &mut connections.given_up,
            TcpSubject::Retransmitted => &mut self.retransmitted_segments,
            TcpSubject::ResetSent => &mut self.resets.sent,
            TcpSubject::ResetReceived => &mut self.resets.received,
        };
        *counter += amount.count;
    }
}

impl AddAssign<&Distribution> for Distribution {
    fn add_assign(&mut self, other: &Self) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += more;
        }
        self.sum_us += other.sum_us;
        self.unmeasured += other.unmeasured;
    }
}

impl AddAssign<&TcpCounts> for TcpCounts {
    fn add_assign(&mut self, other: &Self) {
        let (sum, more) = (&mut self.connections, &other.connections);
        sum.client_handshake += &more.client_handshake;
        sum.server_handshake += &more.server_handshake;
        sum.rtt += &more.rtt;
        sum.refused += more.refused;
        sum.timed_out += more.timed_out;
        sum.failed += more.failed;
        sum.given_up += more.given_up;
        self.retransmitted_segments += other.retransmitted_segments;
        self.resets.sent += other.resets.sent;
        self.resets.received += other.resets.received;
    }
}

/// One end of a connection, by its own socket.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct TcpEnd {
    /// None: not known (yet), as of one that was there before.
    pub outcome: Option<TcpOutcome>,
    /// The client's: SYN to SYN-ACK. The server's: SYN-ACK to ACK. None: not known.
    pub handshake_seconds: Option<f64>,
    /// The kernel's smoothed figure, as it was last told: when the connection began, sent again, or ended.
    pub rtt_seconds: Option<f64>,
    /// The kernel's count.
    pub retransmitted_segments: u64,
    /// By its socket. None where the kernel does not let it be known.
    pub resets: Option<TcpResets>,
}
