//! For `fuzz/` and the test over its corpora: each parser of what comes from outside, from bytes to where its result
//! ends up, with what must hold whatever the bytes are. No part of the library's interface.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;

use crate::{
    discovery::{cgroup, engine, netlink::Link, procfs},
    ebpf::{DropRing, EventRing, Ring, btf::Btf, drops, tcp},
    events,
    model::{
        Book, ContainerInfo, Dropped, InterfaceKey, Looked, NetworkInfo, Packet, State, Update, dns::message,
        event::EventBatch,
    },
    netlink,
    output::{
        format::is_hostile,
        json, prometheus, table,
        topology::{self, Topology},
        trace::Writer,
    },
    serve::web,
    trace::{order::Captured, reader},
};

/// A target: its name, as of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 10] = [
    ("engine", engine_answers),
    ("cgroup", cgroup_paths),
    ("netlink", netlink_messages),
    ("events", event_records),
    ("dns", dns_messages),
    ("trace", trace_records),
    ("drops", drop_records),
    ("tcp", tcp_records),
    ("btf", type_information),
    ("web", web_configuration),
];

/// Longer names and labels are cut.
const LONGEST_TEXT: usize = 4096;

/// What a runtime says of a pod and of a container, whichever these bytes are.
fn pods(bytes: &[u8]) -> Vec<ContainerInfo> {
    use engine::cri::{
        convert::{self, Detail},
        messages::{
            ContainerStatusResponse, ListContainersResponse, ListPodSandboxResponse, PodSandboxStatusResponse,
        },
    };
    use prost::Message as _;
    let of_pod = PodSandboxStatusResponse::decode(bytes).map(Detail::of_sandbox).unwrap_or_default();
    let of_one = ContainerStatusResponse::decode(bytes).map(Detail::of_container).unwrap_or_default();
    let sandboxes = ListPodSandboxResponse::decode(bytes).unwrap_or_default().items;
    let containers = ListContainersResponse::decode(bytes).unwrap_or_default().containers;
    let sandbox = sandboxes.first().map(|sandbox| (sandbox, &of_pod));
    let pods = sandboxes.iter().map(|one| convert::sandbox("containerd", one, &of_pod, "pods"));
    pods.chain(containers.iter().map(|one| convert::container("containerd", one, &of_one, sandbox))).collect()
}

/// What Docker and Podman answer, as JSON, and runtimes, up to what is shown of it.
pub fn engine_answers(bytes: &[u8]) {
    use bollard::models::{ContainerInspectResponse, Network};
    let mut updates = Vec::new();
    let add_container = |updates: &mut Vec<Update>, info: ContainerInfo| {
        for text in [&info.name, &info.image, &info.network_mode] {
            assert!(text.len() <= LONGEST_TEXT);
        }
        updates.push(Update::Container(info));
    };
    let mut networks: Vec<NetworkInfo> = Vec::new();
    if let Ok(answer) = serde_json::from_slice::<Network>(bytes) {
        networks.extend(engine::convert::network("docker", answer));
    }
    if let Ok(answer) = serde_json::from_slice::<Vec<engine::libpod::Network>>(bytes) {
        networks.extend(answer.into_iter().filter_map(|one| engine::convert::of_podman("podman", one, true)));
    }
    if let Ok(answer) = serde_json::from_slice::<ContainerInspectResponse>(bytes)
        && let Some(mut info) = engine::convert::container("docker", answer)
    {
        engine::convert::find_networks(&mut info, &networks);
        add_container(&mut updates, info);
    }
    if let Ok(attributes) = serde_json::from_slice::<HashMap<String, String>>(bytes) {
        add_container(&mut updates, engine::convert::from_event("docker", &"e".repeat(64), &attributes));
    }
    for info in pods(bytes) {
        add_container(&mut updates, info);
    }
    updates.push(Update::Networks { engine: "docker".to_owned(), networks });
    show(State::new("auto", Duration::from_secs(60)), updates);
}

/// Every way of showing it; none lets a name do anything.
fn show(mut state: State, updates: Vec<Update>) {
    let now = Instant::now();
    for update in updates {
        state.apply(update, now);
    }
    let snapshot = state.snapshot(now, SystemTime::UNIX_EPOCH);
    let topology = Topology::of(&snapshot);
    let texts = [
        table::table(&snapshot, Some(120)),
        prometheus::encode(&snapshot).expect("an exposition"),
        json::line(&snapshot).expect("JSON"),
        topology::tree(&topology),
        topology::dot(&topology),
        topology::mermaid(&topology),
    ];
    for text in texts {
        assert!(text.chars().all(|character| character == '\n' || !is_hostile(character)), "{text:?}");
    }
}

/// Files of `/proc` about other processes.
pub fn cgroup_paths(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(id) = cgroup::container_id(&text) {
        assert!(id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit()));
        if let Some(path) = cgroup::v2_path(&text, id) {
            assert!(path.ends_with(id) || path.contains(id));
        }
    }
    let _ = cgroup::v2_root(&text);
    let _ = procfs::proxy(&text);
}

/// Datagrams of rtnetlink.
pub fn netlink_messages(bytes: &[u8]) {
    for message in netlink::messages(bytes).flatten() {
        if let NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        ) = message.payload
        {
            let link = Link::from(&link);
            let _ = (link.is_observed_on_host(), link.observed_inside(Some(0), &BTreeSet::from([1])));
        }
    }
}

/// Records of DNS messages and ARP packets, each two bytes of length and the record; up to what is shown.
pub fn event_records(bytes: &[u8]) {
    let looked = Looked { dns: true, names: true, arp: true };
    let mut events = Vec::new();
    for (n, record) in records(bytes).enumerate() {
        if let Some((header, bytes)) = EventRing::parts(record) {
            events.push(events::event(&header, bytes.to_vec(), InterfaceKey(n as u64 % 3), n % 2 == 0));
        }
    }
    let read_ns = events.iter().map(|event| event.time_ns).max().unwrap_or_default();
    let batch = EventBatch { events, read_ns, ..EventBatch::default() };
    let state = State::new("auto", Duration::from_secs(60)).with_events(looked);
    show(state, vec![Update::Events(batch)]);
}

fn records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
        let (record, behind) = behind.split_at(length);
        rest = behind;
        Some(record)
    })
}

/// DNS messages, and the names that they ask for.
pub fn dns_messages(bytes: &[u8]) {
    let _ = message::read(bytes, u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    if let Some(name) = message::name(bytes) {
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
    }
}

/// A captured packet, in all forms.
pub fn trace_records(bytes: &[u8]) {
    let Some((header, bytes)) = Ring::parts(bytes) else { return };
    let captured = Captured { header, bytes: bytes.to_vec(), dropped: None };
    let packet = reader::packet(captured, &Book::default(), 0, 65_535);
    write(|writer, text| writer.packet(&packet, &Book::default(), text));
}

/// A dropped packet, in all forms.
pub fn drop_records(bytes: &[u8]) {
    let Some((header, bytes)) = DropRing::parts(bytes) else { return };
    let reasons = [(2, "NO_SOCKET".to_owned())].into();
    let names = drops::names::Names::new(reasons, true, false);
    let record = DropRing::record(&names, &header, bytes.to_vec());
    let kind = Book::default().directory.kind(&record.event);
    let captured = Captured::of_drop(record);
    let packet = reader::packet(captured, &Book::default(), 0, 65_535);
    let dropped = Dropped { packet: Packet { point: None, ..packet }, kind };
    write(|writer, text| writer.dropped(dropped.clone(), text));
}

/// Text and JSON of a packet are a line each.
fn write(each: impl Fn(&mut Writer, &mut Vec<u8>) -> serde_json::Result<()>) {
    for (mut writer, is_text) in
        [(Writer::text(true), true), (Writer::json(true), true), (Writer::pcapng(true, 65_535), false)]
    {
        let mut written = Vec::new();
        writer.begin(&mut written);
        each(&mut writer, &mut written).expect("written");
        if is_text {
            let text = String::from_utf8(written).expect("UTF-8");
            let line = text.strip_suffix('\n').expect("a line");
            assert!(!line.contains(is_hostile), "{line:?}");
        } else {
            assert_eq!(written.len() % 4, 0, "blocks are whole words");
        }
    }
}

/// What is told of a TCP connection.
pub fn tcp_records(bytes: &[u8]) {
    let _ = tcp::connection(bytes);
}

/// The kernel's type information.
pub fn type_information(bytes: &[u8]) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    let _ = (
        drops::layout::layout(&btf).is_ok(),
        drops::layout::reasons(&btf),
        tcp::layout::layout(&btf).is_ok(),
    );
}

/// The file of `--web-config-file`.
pub fn web_configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(file) = web::File::parse(text) {
        // Certificates may be in the file itself; no other is read here.
        let tls = file.tls_server_config.as_ref().map(|tls| tls.server(|_| Ok(text.to_owned())));
        let _ = tls.map(|server| server.map(Arc::new).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What fuzzing has found and kept goes through on stable Rust, too.
    #[test]
    fn corpora() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            let mut seen = 0;
            for entry in fs::read_dir(folder.join(name)).expect(name) {
                target(&fs::read(entry.expect("an entry").path()).expect("a file"));
                seen += 1;
            }
            assert!(seen > 0, "{name} has no corpus");
        }
    }

    /// A little of what `cargo xtask fuzz` does, without what that needs: the same inputs in the same order each time,
    /// as many as there is time for.
    #[test]
    fn mutated_corpora() {
        const EACH: Duration = Duration::from_millis(500);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            let mut paths: Vec<_> = fs::read_dir(folder.join(name))
                .expect(name)
                .map(|entry| entry.expect("an entry").path())
                .collect();
            paths.sort();
            let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("a file")).collect();
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            let end = Instant::now() + EACH;
            while Instant::now() < end {
                let input = mutated(&corpus, &mut random);
                if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                    eprintln!("{name} on {input:02x?}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    /// Xorshift.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound.max(1) as u64) as usize
        }
    }

    fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.below(256) as u8),
                2 => {
                    let other = &corpus[random.below(corpus.len())];
                    let from = random.below(other.len());
                    bytes.splice(at.., other[from..].iter().copied());
                }
                3 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                4 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
                _ if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
                _ => {}
            }
        }
        bytes
    }

    #[test]
    fn each_target_is_a_program() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("the manifest");
        let programs = manifest.matches("[[bin]]").count();
        assert_eq!(programs, TARGETS.len());
        assert!(TARGETS.iter().all(|(name, _)| manifest.contains(&format!("name = \"{name}\""))));
    }
}
