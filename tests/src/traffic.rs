//! Loads between namespaces: bounded in count, and counted.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use crate::{
    background::Background,
    netns::{Netns, enter},
};

/// A multiple of the payload of a full segment, so that pauses of the sender leave no half-filled ones.
const CHUNK_BYTES: usize = 1448 * 90;

/// Sends `count` datagrams of `payload_bytes` from a namespace to an address where somebody listens
/// (bound but unread, so that the rest is dropped silently).
pub fn udp(from: &Netns, to: &Netns, address: SocketAddr, count: u64, payload_bytes: usize) {
    let sink = to.run(move || UdpSocket::bind(address).expect("bind the sink"));
    from.run(move || {
        let socket = UdpSocket::bind(any(address)).expect("bind");
        socket.connect(address).expect("connect");
        let payload = vec![0u8; payload_bytes];
        for _ in 0..count {
            // A full queue on the way is no reason to stop; what was not sent is not counted by anybody.
            let _ = socket.send(&payload);
        }
    });
    drop(sink);
}

/// Sends datagrams of 18 bytes without a pause, as long as the value. Whether somebody listens does not matter.
///
/// # Panics
/// If there is no such address family in the namespace.
pub fn flood(from: &Netns, to: SocketAddr) -> Background {
    let socket = from.run(move || UdpSocket::bind(any(to)).expect("bind"));
    Background::repeat(move || {
        for _ in 0..1000 {
            // What the kernel does not take is not sent.
            let _ = socket.send_to(&[0; 18], to);
        }
    })
}

/// Answers every datagram with itself, as long as the value.
pub struct Echo {
    _thread: Background,
}

impl Echo {
    /// In the network namespace of a process.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub fn start(pid: u32, address: SocketAddr) -> Self {
        let bound = std::thread::spawn(move || {
            enter(pid);
            UdpSocket::bind(address).expect("bind the echo")
        });
        let socket = bound.join().expect("a thread in a namespace");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
        let mut datagram = [0; 2048];
        let _thread = Background::repeat(move || {
            if let Ok((length, client)) = socket.recv_from(&mut datagram) {
                socket.send_to(&datagram[..length], client).expect("answer");
            }
        });
        Self { _thread }
    }
}

/// Sends datagrams to an [`Echo`], each when the one before has come back.
///
/// # Panics
/// If one does not come back.
pub fn echoed(address: SocketAddr, count: u64, payload_bytes: usize) {
    let socket = UdpSocket::bind(any(address)).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    socket.connect(address).expect("connect");
    let (payload, mut answer) = (vec![7u8; payload_bytes], vec![0u8; payload_bytes + 1]);
    for _ in 0..count {
        socket.send(&payload).expect("send");
        assert_eq!(socket.recv(&mut answer).expect("an answer"), payload_bytes);
    }
}

/// Sends `bytes` over one TCP connection; returns when all has arrived.
///
/// # Panics
/// If not all arrives.
pub fn tcp(from: &Netns, to: &Netns, address: SocketAddr, bytes: u64) {
    let listener = to.run(move || TcpListener::bind(address).expect("listen"));
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut received = 0u64;
        loop {
            match stream.read(&mut buffer).expect("receive") {
                0 => return received,
                length => received += length as u64,
            }
        }
    });
    from.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connect");
        let chunk = vec![0; CHUNK_BYTES];
        let mut left = bytes;
        while left > 0 {
            let length = left.min(CHUNK_BYTES as u64) as usize;
            stream.write_all(&chunk[..length]).expect("send");
            left -= length as u64;
        }
    });
    assert_eq!(receiver.join().expect("the receiver"), bytes);
}

/// Sends frames as they are out of an interface.
///
/// # Panics
/// If one is refused.
pub fn raw(from: &Netns, interface: &'static str, frames: Vec<Vec<u8>>) {
    from.run(move || raw_here(interface, &frames));
}

/// As [`raw`], in the namespace that the thread is in.
///
/// # Panics
/// If one is refused.
pub fn raw_here(interface: &str, frames: &[Vec<u8>]) {
    let socket = RawSocket::open(interface);
    frames.iter().for_each(|frame| socket.send(frame));
}

/// Sends frames out of an interface of the namespace in which it was opened.
pub struct RawSocket {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl RawSocket {
    /// # Panics
    /// Without such an interface, or root.
    pub fn open(interface: &str) -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        // Of no protocol: one that listens would make frames that nobody handles look handled, and up to 6.15 in
        // all namespaces.
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("a packet socket");
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface).expect("its index").cast_signed();
        address.sll_halen = 6;
        Self { socket, address }
    }

    /// # Panics
    /// If it is refused.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the frame and the address live through the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.address).cast(),
                size_of_val(&self.address) as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{:?} {frame:02x?}", std::io::Error::last_os_error());
    }
}

fn any(like: SocketAddr) -> &'static str {
    if like.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}
