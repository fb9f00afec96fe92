//! The endpoint's connections: how many there may be, how long each may take, and which go when there are too many.
//!
//! A client is never waited for at another's cost. When the last place is taken, the connection goes that has moved
//! nothing for longest, of the address that has most of them; so a newcomer that asks at once is answered, however
//! many others stand about.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::model::snapshot::HttpHealth;

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 256;
/// Of the files that the process may have open, connections take this part at most: the rest is for links and maps.
const SHARE_OF_FILES: u64 = 4;
/// Bytes of answers that clients have not taken yet, of all connections together. An answer that is larger by itself
/// is given all the same.
const MAX_UNSENT_BYTES: usize = 128 << 20;

/// For the TLS handshake, and for the head of a request from its first byte on.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Between two requests. Longer than Prometheus's usual minute between scrapes.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// From the head of a request until its answer has been taken. Longer than any sensible timeout of a scrape.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The TLS handshake.
    Handshake,
    /// The first byte of a request.
    Idle,
    /// The rest of its head.
    Head,
    /// Us.
    Work,
    /// That the client takes the answer.
    Answer,
}

impl Phase {
    const fn limit(self) -> Duration {
        match self {
            Self::Handshake | Self::Head => HEAD_LIMIT,
            Self::Idle => IDLE_LIMIT,
            Self::Work | Self::Answer => ANSWER_LIMIT,
        }
    }
}

struct State {
    phase: Phase,
    /// When the phase began; that of `Work` is `Answer`'s too.
    since: Instant,
    /// When bytes were moved last.
    moved: Instant,
    /// Of the answer.
    unsent_bytes: usize,
}

/// One connection, as its own task and the table of all know it.
pub struct Connection {
    address: IpAddr,
    state: Mutex<State>,
    close: Notify,
    flushed: Notify,
}

impl Connection {
    fn new(address: IpAddr, now: Instant) -> Self {
        let state = State { phase: Phase::Handshake, since: now, moved: now, unsent_bytes: 0 };
        Self { address, state: Mutex::new(state), close: Notify::new(), flushed: Notify::new() }
    }

    /// Whose it is: an address, or all that one client may have (IPv6).
    pub fn network(&self) -> IpAddr {
        network(self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state();
        state.phase = phase;
        state.since = Instant::now();
        state.unsent_bytes = 0;
    }

    /// The handshake is over, or there is none.
    pub fn ready(&self) {
        self.enter(Phase::Idle);
    }

    /// Returns when the answer before has been taken: otherwise hyper has sixteen of them made ahead.
    pub async fn is_taken(&self) {
        while self.state().phase == Phase::Answer {
            self.flushed.notified().await;
        }
    }

    /// A request's head is complete.
    pub fn asked(&self) {
        self.enter(Phase::Work);
    }

    /// Returns when the connection has to be closed.
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    fn has_received(&self) {
        let mut state = self.state();
        state.moved = Instant::now();
        if state.phase == Phase::Idle {
            state.phase = Phase::Head;
            state.since = state.moved;
        }
    }

    fn has_sent(&self) {
        self.state().moved = Instant::now();
    }

    fn has_flushed(&self) {
        if self.state().phase == Phase::Answer {
            self.enter(Phase::Idle);
            self.flushed.notify_one();
        }
    }
}

/// All connections that there are.
#[derive(Default)]
pub struct Connections {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Connection>>,
    next: u64,
    health: HttpHealth,
}

impl Table {
    /// Closes one. Its place is free at once, its socket as soon as its task runs.
    fn close(&mut self, id: u64) {
        if let Some(connection) = self.open.remove(&id) {
            connection.close.notify_one();
        }
    }
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one in. Where there are already `most`, another is closed for it.
    pub fn admit(self: &Arc<Self>, address: IpAddr, most: usize) -> Admitted {
        if self.table().open.len() >= most {
            self.make_room();
        }
        let connection = Arc::new(Connection::new(address, Instant::now()));
        let mut table = self.table();
        let id = table.next;
        table.next += 1;
        table.open.insert(id, Arc::clone(&connection));
        Admitted { id, connection, all: Arc::clone(self) }
    }

    /// Closes the one that can be spared first.
    pub fn make_room(&self) {
        let mut table = self.table();
        let mut of_address: HashMap<IpAddr, usize> = HashMap::new();
        for connection in table.open.values() {
            *of_address.entry(network(connection.address)).or_default() += 1;
        }
        let spared = table.open.iter().min_by_key(|(_, connection)| {
            let state = connection.state();
            let crowd = of_address.get(&network(connection.address)).copied().unwrap_or_default();
            (state.phase == Phase::Work, std::cmp::Reverse(crowd), state.moved)
        });
        if let Some(id) = spared.map(|(id, _)| *id) {
            table.close(id);
            table.health.closed_crowded += 1;
        }
    }

    /// Closes those that have taken too long.
    pub fn sweep(&self, now: Instant) {
        let mut table = self.table();
        let late: Vec<u64> = table
            .open
            .iter()
            .filter(|(_, connection)| {
                let state = connection.state();
                now.saturating_duration_since(state.since) > state.phase.limit()
            })
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            table.close(id);
            table.health.closed_slow += 1;
        }
    }

    pub fn health(&self) -> HttpHealth {
        let table = self.table();
        HttpHealth { connections: table.open.len(), ..table.health }
    }

    /// Makes room for an answer's bytes: those go who leave theirs lying for longest.
    fn reserve(&self, bytes: usize) {
        let mut table = self.table();
        let mut unsent: Vec<(Instant, u64, usize)> = table
            .open
            .iter()
            .filter_map(|(id, connection)| {
                let state = connection.state();
                (state.phase == Phase::Answer).then_some((state.moved, *id, state.unsent_bytes))
            })
            .collect();
        let mut total: usize = unsent.iter().map(|(_, _, bytes)| bytes).sum();
        unsent.sort_unstable();
        for (_, id, held) in unsent {
            if total + bytes <= MAX_UNSENT_BYTES {
                break;
            }
            table.close(id);
            table.health.closed_crowded += 1;
            total -= held;
        }
    }
}

/// A place among the connections, until it is dropped.
pub struct Admitted {
    id: u64,
    pub connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Admitted {
    /// The answer to what was [asked](Connection::asked) is made, and has so many bytes.
    pub fn answered(&self, bytes: usize) {
        self.all.reserve(bytes);
        let mut state = self.connection.state();
        state.phase = Phase::Answer;
        state.moved = Instant::now();
        state.unsent_bytes = bytes;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.all.table().open.remove(&self.id);
    }
}

/// How many connections this process can have, for the files that it may have open.
pub fn most_connections() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(files / SHARE_OF_FILES).unwrap_or(usize::MAX).clamp(1, MAX_CONNECTIONS)
}

/// Whose an address is taken to be: with IPv6 a host has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

/// A socket that tells its connection what moves.
pub struct Watched<S> {
    pub socket: S,
    pub connection: Arc<Connection>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.connection.has_received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(context, bytes))?;
        self.connection.has_sent();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, parts))?;
        self.connection.has_sent();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(context))?;
        // Both hyper and rustls flush when they have nothing more to write.
        self.connection.has_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const CROWD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

    fn open(all: &Connections, admitted: &Admitted) -> bool {
        all.table().open.contains_key(&admitted.id)
    }

    #[test]
    fn the_crowd_goes_first_and_of_it_the_stalest() {
        let all = Arc::new(Connections::default());
        let scraper = all.admit(SCRAPER, 4);
        let crowd: Vec<Admitted> = (0..3).map(|_| all.admit(CROWD, 4)).collect();
        crowd[0].connection.has_received();
        let fourth = all.admit(CROWD, 4);
        assert!(open(&all, &scraper), "the oldest of all, and alone");
        assert_eq!([0, 1, 2].map(|n| open(&all, &crowd[n])), [true, false, true]);
        // Whose request is being worked on stays as long as there is another.
        crowd[2].connection.asked();
        let _fifth = all.admit(CROWD, 4);
        assert_eq!([0, 2].map(|n| open(&all, &crowd[n])), [false, true]);
        assert!(open(&all, &fourth));
        assert_eq!(all.health(), HttpHealth { connections: 4, closed_crowded: 2, closed_slow: 0 });
        drop(scraper);
        assert_eq!(all.health().connections, 3);
    }

    #[test]
    fn one_host_has_many_ipv6_addresses() {
        let address = |text: &str| network(text.parse().expect("address"));
        assert_eq!(address("2001:db8:1:2::3"), address("2001:db8:1:2:ffff::4"));
        assert_ne!(address("2001:db8:1:2::3"), address("2001:db8:1:3::3"));
        assert_eq!(address("::ffff:192.0.2.1"), SCRAPER);
        assert_ne!(network(SCRAPER), network(CROWD));
    }

    #[test]
    fn each_phase_has_its_time() {
        let all = Arc::new(Connections::default());
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let [handshake, idle, head, work, answer] = &[(); 5].map(|()| all.admit(CROWD, 9));
        for one in [idle, head, work, answer] {
            one.connection.ready();
        }
        head.connection.has_received();
        work.connection.asked();
        answer.connection.asked();
        answer.answered(5);
        let left = || [handshake, idle, head, work, answer].map(|one| open(&all, one));
        all.sweep(at(9));
        assert_eq!(left(), [true; 5]);
        all.sweep(at(11));
        assert_eq!(left(), [false, true, false, true, true]);
        all.sweep(at(61));
        assert_eq!(left(), [false, true, false, false, false]);
        all.sweep(at(121));
        assert_eq!((left(), all.health().closed_slow), ([false; 5], 5));
    }

    #[test]
    fn a_byte_now_and_then_gives_no_more_time() {
        let all = Arc::new(Connections::default());
        let slow = all.admit(CROWD, 9);
        slow.connection.ready();
        slow.connection.has_received();
        let since = slow.connection.state().since;
        slow.connection.has_received();
        assert_eq!(slow.connection.state().since, since, "the head's time runs from its first byte");
        slow.connection.asked();
        slow.answered(5);
        let since = slow.connection.state().since;
        slow.connection.has_sent();
        assert_eq!(slow.connection.state().since, since);
        slow.connection.has_flushed();
        assert_eq!(slow.connection.state().phase, Phase::Idle);
    }

    #[test]
    fn answers_that_are_left_lying_make_room() {
        let all = Arc::new(Connections::default());
        let [first, second, third] = [(); 3].map(|()| {
            let one = all.admit(CROWD, 9);
            one.connection.asked();
            one
        });
        first.answered(MAX_UNSENT_BYTES / 2);
        second.answered(MAX_UNSENT_BYTES / 2);
        assert!(open(&all, &first) && open(&all, &second));
        third.answered(1);
        assert_eq!([&first, &second, &third].map(|one| open(&all, one)), [false, true, true]);
        let huge = all.admit(SCRAPER, 9);
        huge.connection.asked();
        huge.answered(2 * MAX_UNSENT_BYTES);
        assert!(open(&all, &huge), "alone it is given");
        assert!(!open(&all, &second) && !open(&all, &third));
    }
}
