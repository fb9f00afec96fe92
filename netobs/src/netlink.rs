//! A blocking rtnetlink client: one socket, one request at a time. It belongs to the network namespace
//! of the thread that opened it.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::Stats64,
    stats::{StatsAttribute, StatsFilterMask, StatsMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};

/// Larger than any message that the kernel sends (a dump's are at most 32 KiB).
pub const RECEIVE_BYTES: usize = 64 * 1024;

/// Dumps that the kernel reports as inconsistent are repeated so many times, then taken as they are.
const DUMP_TRIES: usize = 3;

/// The way into another network namespace: it can be taken again and again, and does not keep the
/// namespace alive, as an open descriptor would. If the process that it was found by ends, any other that is in
/// there will do, and so will a mount that keeps it (`ip netns`, CNI).
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
    /// `NotFound` if nothing leads there any more; `PermissionDenied` without `CAP_SYS_ADMIN`
    /// and `CAP_SYS_PTRACE`.
    pub fn connect(&self) -> io::Result<Netlink> {
        self.enter(Netlink::connect)
    }

    /// What is to be done inside, by a thread of its own.
    ///
    /// # Errors
    /// As [`Self::connect`], and what comes of it.
    pub fn enter<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let namespace = File::open(self.path_now()?)?;
        let metadata = namespace.metadata()?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let enter = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            inside()
        };
        std::thread::Builder::new()
            .name("netobs-enter".to_owned())
            .spawn(enter)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that enters a namespace failed")))
    }

    /// Whether it still leads where it did.
    pub fn is_open(&self) -> bool {
        self.path_now().is_ok()
    }

    /// A path that leads there at this moment.
    fn path_now(&self) -> io::Result<Cow<'_, Path>> {
        match self.leads_there(&self.path) {
            Ok(()) => Ok(Cow::Borrowed(&self.path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            Err(error) => {
                let proc_root = self.path.ancestors().nth("PID/ns/net".split('/').count()).ok_or(error)?;
                let found = ways(proc_root)?.find(|path| self.leads_there(path).is_ok());
                found.map(Cow::Owned).ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    fn leads_there(&self, path: &Path) -> io::Result<()> {
        let now = fs::metadata(path)?;
        if (now.dev(), now.ino()) == self.identity { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// What may lead to a network namespace: each process, and then where one is mounted.
///
/// # Errors
/// When there is no `/proc`.
pub fn ways(proc_root: &Path) -> io::Result<impl Iterator<Item = PathBuf>> {
    let processes = fs::read_dir(proc_root)?.filter_map(Result::ok);
    let processes = processes
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .map(|entry| entry.path().join("ns/net"));
    // Those of our mount namespace, and of the first process's; none where that may not be seen. Read when wanted.
    let mounts = ["self", "1"].map(|process| proc_root.join(process)).into_iter();
    Ok(processes.chain(mounts.flat_map(|process| mounted(&process))))
}

/// Where network namespaces are mounted in a process's mount namespace, as paths for us.
fn mounted(process: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    // ID, parent, device, root, mount point (proc_pid_mountinfo(5)); of nsfs the root is the namespace.
    let point = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let is_namespace = fields.next()?.starts_with("net:[");
        let point = fields.next()?.trim_start_matches('/');
        is_namespace.then(|| process.join("root").join(unescaped(point)))
    };
    mounts.lines().filter_map(point).collect()
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescaped(path: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
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

/// The counters of all interfaces of the client's namespace, or what is kept of them, by ifindex. Much less work than
/// a listing of the interfaces, for the kernel and for us.
///
/// # Errors
/// What netlink says.
pub fn stats<T>(netlink: &mut Netlink, mut keep: impl FnMut(&Stats64) -> T) -> io::Result<BTreeMap<u32, T>> {
    let mut request = StatsMessage::default();
    request.header.filter_mask = StatsFilterMask::Link64;
    let stats = netlink.dump(&RouteNetlinkMessage::GetStats(request), |message| {
        let RouteNetlinkMessage::NewStats(message) = message else { return None };
        message.attributes.iter().find_map(|attribute| match attribute {
            StatsAttribute::Link64(stats) => Some((message.header.ifindex, keep(stats))),
            _ => None,
        })
    })?;
    Ok(stats.into_iter().collect())
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
        let message = readable_names(message);
        Some(NetlinkMessage::deserialize(&message).map_err(io::Error::other))
    })
}

/// The kernel takes any bytes for the name of an interface; the library that decodes messages, only UTF-8. Whatever is
/// none becomes `?`, so that nobody can hide an interface, and all others of a listing, by its name.
fn readable_names(message: &[u8]) -> Cow<'_, [u8]> {
    let kind = message.get(4..6).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let (header, names): (usize, &[u16]) = match kind {
        RTM_NEWLINK | RTM_DELLINK => (LINK_HEADER_BYTES, &[IFLA_IFNAME, IFLA_IFALIAS, IFLA_PROP_LIST]),
        RTM_NEWADDR | RTM_DELADDR => (ADDRESS_HEADER_BYTES, &[IFA_LABEL]),
        _ => return Cow::Borrowed(message),
    };
    let Some(attributes) = message.get(16 + header..) else { return Cow::Borrowed(message) };
    let unreadable: Vec<Range<usize>> = attribute_ranges(attributes)
        .filter(|(kind, range)| names.contains(kind) && str::from_utf8(&attributes[range.clone()]).is_err())
        .map(|(_, range)| range.start + 16 + header..range.end + 16 + header)
        .collect();
    if unreadable.is_empty() {
        return Cow::Borrowed(message);
    }
    let mut message = message.to_vec();
    for range in unreadable {
        make_readable(&mut message[range]);
    }
    Cow::Owned(message)
}

const RTM_NEWLINK: u16 = libc::RTM_NEWLINK;
const RTM_DELLINK: u16 = libc::RTM_DELLINK;
const RTM_NEWADDR: u16 = libc::RTM_NEWADDR;
const RTM_DELADDR: u16 = libc::RTM_DELADDR;
const IFLA_IFNAME: u16 = libc::IFLA_IFNAME;
const IFLA_IFALIAS: u16 = libc::IFLA_IFALIAS;
/// Of linux/if_link.h, with the flag of nested attributes: alternative names.
const IFLA_PROP_LIST: u16 = 52 | 0x8000;
const IFA_LABEL: u16 = libc::IFA_LABEL;
/// `struct ifinfomsg`, `struct ifaddrmsg`.
const LINK_HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;

/// Kinds of attributes, and where their values are.
fn attribute_ranges(bytes: &[u8]) -> impl Iterator<Item = (u16, Range<usize>)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let header: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let range = at + 4..at.checked_add(length)?;
        if length < 4 || range.end > bytes.len() {
            return None;
        }
        at += length.next_multiple_of(4);
        Some((u16::from_ne_bytes([header[2], header[3]]), range))
    })
}

/// In place: a `?` for each byte that is in no character.
fn make_readable(mut bytes: &mut [u8]) {
    while let Err(error) = str::from_utf8(bytes) {
        let from = error.valid_up_to();
        let length = error.error_len().unwrap_or(bytes.len() - from);
        bytes[from..from + length].fill(b'?');
        bytes = &mut bytes[from + length..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, header: usize, attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = attributes.concat();
        let length = u32::try_from(16 + header + body.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16 + header, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn names_that_are_no_text_hide_nothing() {
        let bad =
            message(RTM_NEWLINK, 16, &[attribute(IFLA_IFNAME, b"a\xff\xe2\x80\0"), attribute(4, &[0xff; 4])]);
        let good = message(RTM_NEWLINK, 16, &[attribute(IFLA_IFNAME, "ä\0".as_bytes())]);
        let label = message(RTM_NEWADDR, 8, &[attribute(IFA_LABEL, b"\xffb\0")]);
        let datagram = [bad, good, label].concat();
        let read: Vec<String> =
            messages(&datagram).map(|message| format!("{:?}", message.expect("decoded").payload)).collect();
        assert_eq!(read.len(), 3);
        for (text, name) in read.iter().zip(["a???", "ä", "?b"]) {
            assert!(text.contains(&format!("{name:?}")), "{name}: {text}");
        }
        assert!(read[0].contains("4294967295"), "other attributes stay: {}", read[0]);
    }
}
