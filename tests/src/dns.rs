//! DNS messages made by hand, and a server that answers as the name says.

use std::{
    net::{SocketAddr, UdpSocket},
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
            let first = message[13];
            if !b"ijq".contains(&first) {
                std::thread::sleep(WAIT);
            }
            (message[2], message[3]) = match first {
                b'n' | b'j' => (0x81, 0x83),
                b's' => (0x81, 0x82),
                _ => (0x81, 0x80),
            };
            let times = match first {
                b'q' => 0,
                b'd' => 2,
                _ => 1,
            };
            for _ in 0..times {
                socket.send_to(&message[..length], client).expect("answer");
            }
        });
        Self { _thread }
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
