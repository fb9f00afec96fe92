//! Loads for as long as they are wanted: small datagrams of many flows, and TCP in bulk. Who sends has a CPU of its
//! own, and so has who receives.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netobs_tests::netns::Netns;
use nix::sched::{CpuSet, sched_setaffinity};

/// Flow n is from port 1024 + n % 50,000 to port 9000 + n / 50,000.
const FLOWS_A_PORT: u32 = 50_000;
const FIRST_SOURCE: u32 = 1024;
const FIRST_PORT: u16 = 9000;
const PORTS: u16 = 2;

/// Of an Ethernet frame of 64 bytes, without its checksum.
const PAYLOAD: usize = 22;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PACKET: usize = IP_HEADER + UDP_HEADER + PAYLOAD;

/// Packets in one system call.
const BATCH: usize = 64;

/// UDP in turns: each packet is of another flow than the one before, if there are several.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub flows: u32,
    /// Of which the first packet is.
    pub first: u32,
    /// None: as many as go.
    pub a_second: Option<u32>,
}

/// Sends for so long out of a namespace. The flow whose turn it is then.
pub fn datagrams(from: &Netns, load: Datagrams, time: Duration) -> u32 {
    from.run(move || {
        pin(0);
        send(&load, time)
    })
}

fn send(load: &Datagrams, time: Duration) -> u32 {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)
        .expect("a raw socket");
    setsockopt(&socket, sockopt::SndBufForce, &(8 << 20)).expect("a large buffer");
    let packet = packet(load);
    let mut packets = [packet; BATCH];
    let mut vectors: Vec<libc::iovec> = packets
        .iter_mut()
        .map(|packet| libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: PACKET })
        .collect();
    // SAFETY: all zero is a valid sockaddr_in.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as u16;
    to.sin_addr.s_addr = u32::from_ne_bytes(load.to.octets());
    let mut messages: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: all zero is a valid mmsghdr.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut to).cast();
            message.msg_hdr.msg_namelen = size_of_val(&to) as u32;
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let start = Instant::now();
    let (mut sent, mut flow) = (0u64, load.first);
    while start.elapsed() < time {
        let mut count = BATCH as u64;
        if let Some(rate) = load.a_second {
            count = count.min(start.elapsed().as_millis() as u64 * u64::from(rate) / 1000 - sent);
            if count == 0 {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
        }
        for (n, packet) in (0..).zip(&mut packets).take(count as usize) {
            ports(packet, (flow + n) % load.flows);
        }
        // SAFETY: the messages, and all that they point to, live through the call.
        let done = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, 0) };
        // A full queue on the way is no reason to stop.
        let done = u32::try_from(done).unwrap_or_default();
        sent += u64::from(done);
        flow = (flow + done) % load.flows;
    }
    flow
}

fn packet(load: &Datagrams) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
    (packet[8], packet[9]) = (64, 17);
    packet[12..16].copy_from_slice(&load.from.octets());
    packet[16..20].copy_from_slice(&load.to.octets());
    packet[24..26].copy_from_slice(&((UDP_HEADER + PAYLOAD) as u16).to_be_bytes());
    packet
}

fn ports(packet: &mut [u8; PACKET], flow: u32) {
    let source = (FIRST_SOURCE + flow % FLOWS_A_PORT) as u16;
    let destination = FIRST_PORT + (flow / FLOWS_A_PORT) as u16;
    packet[20..22].copy_from_slice(&source.to_be_bytes());
    packet[22..24].copy_from_slice(&destination.to_be_bytes());
}

/// Reads what [`datagrams`] sends, so that it is not dropped; as long as the value.
pub struct Sink {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Sink {
    pub fn new(inside: &Netns) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |port| {
            let stop = Arc::clone(&stop);
            let socket = inside.run(move || UdpSocket::bind(("0.0.0.0", FIRST_PORT + port)).expect("bind"));
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(256 << 20))
                .expect("a large buffer");
            std::thread::spawn(move || {
                pin(1);
                receive(&socket, &stop);
            })
        };
        let threads = (0..PORTS).map(thread).collect();
        Self { stop, threads }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a receiver");
        }
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
    // SAFETY: all zero is a valid mmsghdr: nothing of the packet is copied.
    let mut messages: [libc::mmsghdr; 256] = unsafe { std::mem::zeroed() };
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: the messages live through the call.
        unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            );
        }
    }
}

/// One TCP connection for so long; bytes a second.
pub fn bulk(from: &Netns, to: &Netns, address: SocketAddr, time: Duration) -> f64 {
    let listener = to.run(move || TcpListener::bind(address).expect("listen"));
    let receiver = std::thread::spawn(move || {
        pin(1);
        let (mut stream, _) = listener.accept().expect("accept");
        let mut buffer = vec![0; 1 << 18];
        let (start, mut received) = (Instant::now(), 0u64);
        loop {
            match stream.read(&mut buffer).expect("receive") {
                0 => return received as f64 / start.elapsed().as_secs_f64(),
                length => received += length as u64,
            }
        }
    });
    from.run(move || {
        pin(0);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connect");
        let (chunk, start) = (vec![0; 1 << 17], Instant::now());
        while start.elapsed() < time {
            stream.write_all(&chunk).expect("send");
        }
    });
    receiver.join().expect("the receiver")
}

/// The calling thread stays on a CPU, or on the last where there are fewer.
fn pin(cpu: usize) {
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let mut set = CpuSet::new();
    set.set(cpu.min(last)).expect("a CPU's number");
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("stay on a CPU");
}
