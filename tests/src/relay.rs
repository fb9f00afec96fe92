//! A relay between two interfaces of a namespace that are connected by nothing else: it holds frames back for a
//! time, and lets those vanish that a test wants to vanish.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::netns::Netns;

/// A frame on its way, from its Ethernet header on.
pub struct Frame<'a> {
    /// Index of the interface that it came in by.
    pub from: usize,
    pub bytes: &'a [u8],
}

/// A TCP segment of IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub destination: [u8; 4],
    pub flags: u8,
    pub window: u16,
    /// Bytes of payload, of a super-packet those of all its segments.
    pub payload: usize,
}

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

impl Frame<'_> {
    pub fn segment(&self) -> Option<Segment> {
        let ip = self.bytes.get(14..)?;
        if self.bytes[12..14] != [0x08, 0x00] || *ip.get(9)? != 6 {
            return None;
        }
        let header = usize::from(ip[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let tcp = ip.get(header..)?;
        Some(Segment {
            destination: ip.get(16..20)?.try_into().ok()?,
            flags: *tcp.get(13)?,
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
            payload: total.checked_sub(header + usize::from(tcp[12] >> 4) * 4)?,
        })
    }
}

/// The running relay; ends when dropped.
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the kernel says of a frame beside its bytes (`struct virtio_net_hdr`): checksums that are not there yet,
/// super-packets. Passed on as it is.
const HEADER_LEN: usize = 10;

impl Relay {
    /// Each frame for which `passes` holds is sent on by the other interface, `delay` after it came.
    ///
    /// # Panics
    /// Without root, or such interfaces.
    pub fn start(
        host: &Netns,
        interfaces: [&'static str; 2],
        delay: Duration,
        passes: impl FnMut(&Frame<'_>) -> bool + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = channel();
        let thread = host.spawn(move || {
            let sockets = interfaces.map(open);
            ready.send(()).expect("a test that waits");
            run(&sockets, delay, passes, &stopped);
        });
        is_ready.recv().expect("a relay");
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.take().is_some_and(|thread| thread.join().is_err());
        assert!(!failed || std::thread::panicking(), "the relay failed");
    }
}

fn run(
    sockets: &[OwnedFd; 2],
    delay: Duration,
    mut passes: impl FnMut(&Frame<'_>) -> bool,
    stopped: &AtomicBool,
) {
    let mut waiting: VecDeque<(Instant, usize, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; HEADER_LEN + 70_000];
    while !stopped.load(Ordering::Relaxed) {
        for (from, socket) in sockets.iter().enumerate() {
            while let Some(len) = receive(socket, &mut buffer) {
                let frame = Frame { from, bytes: &buffer[HEADER_LEN..len] };
                if passes(&frame) {
                    waiting.push_back((Instant::now() + delay, 1 - from, buffer[..len].to_vec()));
                }
            }
        }
        while let Some((due, to, _)) = waiting.front() {
            if *due > Instant::now() {
                break;
            }
            let to = *to;
            let Some((_, _, bytes)) = waiting.pop_front() else { break };
            send(&sockets[to], &bytes);
        }
        let due = waiting.front().map_or(Duration::from_millis(20), |(due, ..)| {
            due.saturating_duration_since(Instant::now()).min(Duration::from_millis(20))
        });
        let timeout =
            PollTimeout::try_from(due.as_millis() as i32 + i32::from(!due.is_zero())).expect("a timeout");
        let mut fds = sockets.each_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds, timeout);
    }
}

/// A packet socket of all frames that come in by an interface.
fn open(interface: &'static str) -> OwnedFd {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
    let set = |option: libc::c_int, value: libc::c_int| {
        // SAFETY: the value is as long as is said.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as u32,
            )
        };
        assert_eq!(set, 0, "{:?}", io::Error::last_os_error());
    };
    const PACKET_VNET_HDR: libc::c_int = 15;
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    set(PACKET_VNET_HDR, 1);
    set(PACKET_IGNORE_OUTGOING, 1);
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = nix::net::if_::if_nametoindex(interface).expect("its index").cast_signed();
    // SAFETY: the address is as long as is said.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    assert_eq!(bound, 0, "{:?}", io::Error::last_os_error());
    socket
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: the buffer is as long as is said.
    let len = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(len).ok().filter(|len| *len >= HEADER_LEN + 14)
}

fn send(socket: &OwnedFd, bytes: &[u8]) {
    // SAFETY: as above.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    assert_eq!(sent, bytes.len() as isize, "{:?}", io::Error::last_os_error());
}
