//! DNS messages made by hand, and a server that answers as the name says.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{background::Background, netns::Netns};

/// How long [`Server`] waits before it answers.
pub const WAIT: Duration = Duration::from_millis(50);

/// A query for an address of a name.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Messages as they are in a TCP stream: each behind its length.
pub fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
    let each = messages.iter().flat_map(|message| {
        let length = u16::try_from(message.len()).expect("64 KiB at most");
        [&length.to_be_bytes()[..], message].concat()
    });
    each.collect()
}

/// Bytes of a long answer: of several segments.
pub const LONG: usize = 6000;

/// Makes an answer of a query, and says how often it is given; waits where it is to be waited.
fn answer(message: &mut [u8]) -> usize {
    let first = message[13];
    if !b"ijq".contains(&first) {
        std::thread::sleep(WAIT);
    }
    (message[2], message[3]) = match first {
        b'n' | b'j' => (0x81, 0x83),
        b's' => (0x81, 0x82),
        _ => (0x81, 0x80),
    };
    match first {
        b'q' => 0,
        b'd' => 2,
        _ => 1,
    }
}

/// A name server, as long as the value.
pub struct Server {
    _thread: Background,
}

impl Server {
    /// It waits for [`WAIT`] and says by the first letter of the name: `n` NXDOMAIN, `s` SERVFAIL, `q` nothing at
    /// all, `d` NOERROR twice, `i` NOERROR and `j` NXDOMAIN without waiting, else NOERROR.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub fn start(netns: &Netns, address: SocketAddr) -> Self {
        let socket = netns.run(move || UdpSocket::bind(address).expect("bind the name server"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
        let mut message = [0; 512];
        let _thread = Background::repeat(move || {
            let Ok((length, client)) = socket.recv_from(&mut message) else { return };
            if length < 14 {
                return;
            }
            for _ in 0..answer(&mut message[..length]) {
                socket.send_to(&message[..length], client).expect("answer");
            }
        });
        Self { _thread }
    }
}

/// The same by TCP.
pub struct TcpServer {
    stop: Arc<AtomicBool>,
    _thread: Background,
}

impl TcpServer {
    /// It answers as [`Server`] does, in the order of the queries; to `l` with [`LONG`] bytes.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub fn start(netns: &Netns, address: SocketAddr) -> Self {
        let listener = netns.run(move || TcpListener::bind(address).expect("bind the name server"));
        listener.set_nonblocking(true).expect("a limit");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let _thread = Background::repeat(move || {
            let Ok((client, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                return;
            };
            let stopped = Arc::clone(&stopped);
            std::thread::spawn(move || serve(client, &stopped));
        });
        Self { stop, _thread }
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Until either end wants no more.
fn serve(mut client: TcpStream, stopped: &AtomicBool) {
    client.set_nonblocking(false).expect("to wait");
    client.set_nodelay(true).expect("no delay");
    while let Some(mut message) = read_message(&mut client) {
        let times = answer(&mut message);
        if message[13] == b'l' {
            message.resize(LONG, 0);
        }
        let answers = framed(&vec![message; times]);
        if stopped.load(Ordering::Relaxed) || client.write_all(&answers).is_err() {
            return;
        }
    }
}

fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// A client's connection.
pub struct TcpClient(TcpStream);

impl TcpClient {
    /// # Panics
    /// If there is no connection.
    pub fn connect(netns: &Netns, server: SocketAddr) -> Self {
        let stream = netns.run(move || TcpStream::connect(server).expect("connect"));
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
        Self(stream)
    }

    /// In a segment of its own, since nothing waits for anything.
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("send");
    }

    /// # Panics
    /// If there is no answer.
    pub fn receive(&mut self) -> Vec<u8> {
        read_message(&mut self.0).expect("an answer")
    }

    /// Its own port.
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    /// Asks for each name and waits for its answer; how long that took.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn ask(&mut self, names: &[&str]) -> Duration {
        let start = Instant::now();
        for (id, name) in (0..).zip(names) {
            self.send(&framed(&[query(id, name)]));
            assert_eq!(self.receive()[..2], id.to_be_bytes());
        }
        start.elapsed()
    }
}

/// Asks for a name again and again, and waits for each answer; how long that took as the client sees it.
///
/// # Panics
/// If there is no answer.
pub fn ask(netns: &Netns, server: SocketAddr, name: &str, times: u16) -> Duration {
    let name = name.to_owned();
    netns.run(move || {
        let socket = client(server);
        let mut total = Duration::ZERO;
        for id in 0..times {
            let start = Instant::now();
            socket.send(&query(id, &name)).expect("ask");
            let mut answer = [0; 512];
            socket.recv(&mut answer).expect("an answer");
            total += start.elapsed();
        }
        total
    })
}

/// Sends datagrams and waits for nothing.
///
/// # Panics
/// If one cannot be sent.
pub fn send(netns: &Netns, server: SocketAddr, datagrams: Vec<Vec<u8>>) {
    netns.run(move || {
        let socket = client(server);
        for datagram in datagrams {
            socket.send(&datagram).expect("send");
        }
    });
}

fn client(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    socket.connect(server).expect("connect");
    socket
}

/// What a snapshot says of a container's messages of one role, by one path.
pub fn messages(container: &Value, role: &str, via: &str) -> Option<Value> {
    let all = container["dns"]["messages"].as_array()?;
    all.iter().find(|messages| messages["role"] == role && messages["via"] == via).cloned()
}

/// Latencies that were observed: how many, and their sum.
///
/// # Panics
/// If they are not there.
pub fn latency(messages: &Value) -> (u64, Duration) {
    let buckets = messages["latency"]["buckets"].as_array().expect("buckets");
    let count = buckets.iter().map(|bucket| bucket.as_u64().expect("a number")).sum();
    (count, Duration::from_nanos(messages["latency"]["sum_ns"].as_u64().expect("a sum")))
}
