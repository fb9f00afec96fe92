//! A blocking rtnetlink client: one socket, one request at a time. It belongs to the network namespace
//! of the thread that opened it.

use std::{fs::File, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};

/// Larger than any message that the kernel sends (a dump's are at most 32 KiB).
pub const RECEIVE_BYTES: usize = 64 * 1024;

/// Dumps that the kernel reports as inconsistent are repeated so many times, then taken as they are.
const DUMP_TRIES: usize = 3;

/// The way into another network namespace: it can be taken again and again, and does not keep the
/// namespace alive, as an open descriptor would.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    /// `/proc/PID/ns/net`.
    pub path: PathBuf,
    /// `(dev, inode)` of what was there when it was found; another namespace may be there later.
    pub identity: (u64, u64),
}

impl Entrance {
    /// A client inside. A thread of its own enters the namespace, opens the client and ends. The
    /// namespace lives as long as the client at least: not to be kept.
    ///
    /// # Errors
    /// `NotFound` if the process is gone or is elsewhere now; `PermissionDenied` without `CAP_SYS_ADMIN`
    /// and `CAP_SYS_PTRACE`.
    pub fn connect(&self) -> io::Result<Netlink> {
        let namespace = File::open(&self.path)?;
        let metadata = namespace.metadata()?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let enter = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Netlink::connect()
        };
        std::thread::Builder::new()
            .name("netobs-enter".to_owned())
            .spawn(enter)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that enters a namespace failed")))
    }

    /// Whether it still leads where it did.
    pub fn is_open(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity)
    }
}

pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// # Errors
    /// Only when the process is out of descriptors or may not use netlink.
    pub fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it some dumps ignore the namespace that is asked for. Kernel 4.20 and later.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Sends a change and waits for the kernel's answer.
    ///
    /// # Errors
    /// The kernel's own error number.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, &mut |_| {}).map(drop)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// The kernel's own error number; `NotFound` if it answers nothing.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut answer = None;
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, &mut |message| answer = Some(message))?;
        answer.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Asks for all of a kind, and keeps what is made of each answer: a thousand interfaces as the library
    /// describes them are many megabytes.
    ///
    /// # Errors
    /// The kernel's own error number.
    pub fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut kept = Vec::new();
        for _ in 0..DUMP_TRIES {
            kept.clear();
            let consistent = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, &mut |message| {
                kept.extend(keep(message));
            })?;
            if consistent {
                break;
            }
        }
        Ok(kept)
    }

    /// False if the kernel says that a dump was interrupted by changes.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        each: &mut dyn FnMut(RouteNetlinkMessage),
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut consistent = true;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    NetlinkPayload::Done(_) => return Ok(consistent),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(consistent),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

/// `NLM_F_DUMP_INTR` of linux/netlink.h.
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The messages of one datagram. What does not parse is an error in its place; the rest goes on.
pub fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        if length < 16 || length > rest.len() {
            return None;
        }
        let (message, _) = rest.split_at(length);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message).map_err(io::Error::other))
    })
}
