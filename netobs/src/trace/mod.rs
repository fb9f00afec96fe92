//! `netobs trace`: packets as they pass.
//!
//! This thread finds out what there is, attaches and detaches; another takes packets out of the ring and
//! writes them (`reader.rs`), so that neither waits for the other.

mod dropped;
pub(crate) mod order;
pub(crate) mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::{fs::OpenOptionsExt as _, net::UnixStream},
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{sync::oneshot, time::MissedTickBehavior};

use crate::{
    agent::{Agent, Config},
    cli::{TraceArgs, TraceOutput},
    ebpf::{DropCounts, EachDrop, EachOptions, PacketFilter, TraceOptions, Tracer},
    model::{
        Book, InterfaceKey, Point, TraceCounts,
        drops::{Directory, HostNames},
    },
    observe,
    output::{filter, format::escape, trace::Writer},
};
use dropped::Wanted;
use reader::{Drops, Final, Limits, Names, Reader, Written};

/// Bytes of each packet without `--snaplen`: what text and JSON tell of a packet is in the first of them.
const HEADERS_SNAPLEN: u32 = 128;

/// How often it is looked whether more is known, whether anything was lost, whether the reader is there.
const TICK: Duration = Duration::from_millis(250);

/// How long packets that are on their way in the kernel are waited for at the end, and then who does not
/// take the output.
const LAST_PACKETS: Duration = Duration::from_millis(500);
const LAST_OUTPUT: Duration = Duration::from_secs(3);

/// What has ended is of no interest here.
const GRACE: Duration = Duration::from_secs(10);

/// # Errors
/// Without privileges, with arguments that contradict each other, or when the output cannot be written.
pub fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    check(args)?;
    let output = args.output.unwrap_or(match args.write {
        Some(_) => TraceOutput::Pcapng,
        None => TraceOutput::Text,
    });
    let snaplen = args.snaplen.unwrap_or(match output {
        TraceOutput::Pcapng => netobs_common::trace::MAX_SNAPLEN,
        TraceOutput::Text | TraceOutput::Json => HEADERS_SNAPLEN,
    });
    observe::require()?;
    // Before signals are taken: a pipe that nobody opens for reading makes this wait.
    let out = open(args.write.as_deref(), output)?;
    observe::give_up_privileges(&args.find, &[])?;
    let options = options(args, snaplen);
    observe::runtime()?.block_on(trace(args, output, options, out))
}

fn check(args: &TraceArgs) -> anyhow::Result<()> {
    if args.port.is_some() {
        anyhow::ensure!(
            args.proto.is_none_or(|protocol| matches!(protocol, 6 | 17 | 132)),
            "--port is of TCP, UDP and SCTP; --proto asks for another protocol"
        );
    }
    Ok(())
}

fn options(args: &TraceArgs, snaplen: u32) -> TraceOptions {
    TraceOptions {
        max_interfaces: args.find.max_interfaces,
        mode: args.find.attach,
        filter: PacketFilter {
            ethertype: args.ethertype,
            protocol: args.proto,
            port: args.port,
            host: args.host.map(|host| (host.address, host.prefix)),
        },
        snaplen,
        rate: args.rate.unwrap_or(0),
        ring_bytes: args.buffer_size,
    }
}

/// Packets are nobody else's business: a new file is the user's alone.
fn open(path: Option<&Path>, output: TraceOutput) -> anyhow::Result<Box<dyn Write + Send>> {
    match path.filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            Ok(Box::new(file.with_context(|| format!("open {}", path.display()))?))
        }
        None => {
            anyhow::ensure!(
                output != TraceOutput::Pcapng || !io::stdout().is_terminal(),
                "pcapng is not for a terminal: use --write FILE, or a pipe"
            );
            Ok(Box::new(io::stdout()))
        }
    }
}

async fn trace(
    args: &TraceArgs,
    output: TraceOutput,
    options: TraceOptions,
    out: Box<dyn Write + Send>,
) -> anyhow::Result<ExitCode> {
    let mut ending = observe::Ending::new()?;
    let selection = Selection::of(args);
    let (tracer, ring) = Tracer::load(&options, selection.is_everything())?;
    let tracer = Arc::new(Mutex::new(tracer));
    let writer = match output {
        TraceOutput::Text => Writer::text(!args.numeric),
        TraceOutput::Json => Writer::json(!args.numeric),
        TraceOutput::Pcapng => Writer::pcapng(!args.numeric, options.snaplen),
    };
    let limits = Limits { packets: args.count, bytes: args.max_bytes, snaplen: options.snaplen };
    let names = Names::default();
    let (mut each, drops) = args.drops.then(|| load_drops(args, &options, &selection)).transpose()?.unzip();
    let reader = Reader::new((ring, drops), writer, BufWriter::new(out), names.clone(), limits)?;
    let mut agent = observe::follow(&args.find, Config::new(GRACE), tracer.clone())?;
    agent.settle(observe::SETTLE).await;
    // When it can be told whose they are.
    each.as_mut().map_or(Ok(()), EachDrop::attach).context(NO_DROPS)?;
    let host = each.is_some().then(|| agent.host_names());
    let mut session = Session { tracer, each, host, names, selection, seen: BTreeMap::new(), lost: [0; 2] };
    session.refresh(&agent);
    session.say_what_is_missing(&mut agent);
    let (thread, mut done) = ReaderThread::start(reader)?;
    let result = tokio::select! {
        () = session.follow(&mut agent, args.write.as_deref()) => Ok(()),
        () = ending.wished() => Ok(()),
        () = after(args.duration) => Ok(()),
        result = &mut done => result.unwrap_or_else(|_| Err(io::Error::other("the reading thread failed"))),
    };
    let total = session.end();
    let last = session.last(total);
    let dropped = args.drops.then_some(last.dropped);
    let (last, written) = thread.finish(last);
    let is_limited = args.count.is_some() || args.max_bytes.is_some();
    report(total, written.packets(), is_limited);
    if let Some(dropped) = dropped {
        report_drops(dropped, &written, is_limited);
    }
    result.and(last).context("write packets")?;
    Ok(ExitCode::SUCCESS)
}

const NO_DROPS: &str = "drops cannot be looked for";

/// The program for dropped packets, and what it will tell.
fn load_drops(
    args: &TraceArgs,
    options: &TraceOptions,
    selection: &Selection,
) -> anyhow::Result<(EachDrop, Drops)> {
    let each = EachOptions {
        all: args.all_drops,
        snaplen: options.snaplen.max(HEADERS_SNAPLEN),
        ring_bytes: options.ring_bytes,
        btf: args.btf.clone(),
    };
    let (each, ring, degraded) = EachDrop::load(&each).context(NO_DROPS)?;
    if let Some(why) = degraded {
        tracing::warn!("{why}");
    }
    let wanted = Wanted {
        filter: options.filter,
        containers: selection.containers.clone(),
        networks: selection.networks.clone(),
    };
    Ok((each, Drops { ring, wanted }))
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Which containers and networks are asked for.
struct Selection {
    containers: Vec<String>,
    networks: Vec<String>,
}

impl Selection {
    fn of(args: &TraceArgs) -> Self {
        Self { containers: args.containers.clone(), networks: args.network.clone() }
    }

    const fn is_everything(&self) -> bool {
        self.containers.is_empty() && self.networks.is_empty()
    }

    /// IDs of the containers at these places that are asked for by name.
    fn owners<'a>(&self, points: impl Iterator<Item = &'a Point>) -> BTreeSet<String> {
        let is = |point: &&Point| self.containers.iter().any(|name| point.is_of(name));
        points.filter(is).filter_map(|point| Some(point.owner.as_ref()?.id.clone())).collect()
    }

    fn has(&self, point: &Point) -> bool {
        let of_container = self.containers.is_empty() || self.containers.iter().any(|name| point.is_of(name));
        let on_network = self.networks.is_empty()
            || point.network.as_ref().is_some_and(|network| self.networks.contains(network));
        of_container && on_network
    }
}

/// What the main thread keeps while packets pass.
struct Session {
    tracer: Arc<Mutex<Tracer>>,
    /// None: dropped packets are not asked for. Then the host's names are not either.
    each: Option<EachDrop>,
    host: Option<HostNames>,
    names: Names,
    selection: Selection,
    /// Every place with a slot, or that had it last: as last told, and since when it is known.
    seen: BTreeMap<InterfaceKey, (Arc<Point>, Instant)>,
    /// Of packets that passed, and of those that were dropped.
    lost: [u64; 2],
}

impl Session {
    /// Takes in what is new until the output has no reader.
    async fn follow(&mut self, agent: &mut Agent, file: Option<&Path>) {
        let is_stdout = file.is_none_or(|path| path == Path::new("-"));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    // Finds out, for one, that a namespace has gone.
                    if ticks.is_multiple_of(4) {
                        agent.sample();
                        self.host = self.each.is_some().then(|| agent.host_names());
                        self.warn_of_losses();
                    }
                    if is_stdout && observe::reader_is_gone() {
                        return;
                    }
                }
                () = agent.changed() => {}
            }
            self.refresh(agent);
        }
    }

    /// Attaches to what is selected by now, and tells the reader whose the packets are.
    fn refresh(&mut self, agent: &Agent) {
        let points = agent.points();
        let wanted: BTreeSet<InterfaceKey> =
            points.iter().filter(|point| self.selection.has(point)).map(|point| point.key).collect();
        let mut tracer = self.tracer.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, error) in tracer.select(&wanted) {
            let interface =
                points.iter().find(|point| point.key == key).map(|point| point.interface.as_str());
            tracing::warn!(interface = interface.map(escape), %error, "cannot trace");
        }
        let by_address = Book::addresses(&points);
        let by_slot = tracer.by_slot();
        let now = Instant::now();
        for point in points {
            let since = self.seen.get(&point.key).map_or(now, |(_, since)| *since);
            self.seen.insert(point.key, (Arc::new(point), since));
        }
        let kept: BTreeSet<InterfaceKey> = by_slot.values().copied().collect();
        self.seen.retain(|key, _| kept.contains(key) || wanted.contains(key));
        let entry = |(slot, key): (&u32, &InterfaceKey)| {
            let (point, since) = self.seen.get(key)?;
            let is_settled = point.is_named || now.duration_since(*since) >= order::PATIENCE;
            Some((*slot, (Arc::clone(point), is_settled)))
        };
        let by_slot = by_slot.iter().filter_map(entry).collect();
        let chosen = self.selection.owners(self.seen.values().map(|(point, _)| point.as_ref()));
        self.names.put(Book { by_slot, by_address, directory: self.directory(agent, now), chosen });
    }

    /// Of those who are there, or were a moment ago.
    fn directory(&self, agent: &Agent, now: Instant) -> Directory {
        let Some(host) = &self.host else { return Directory::default() };
        agent.directory(host.clone(), now.checked_sub(order::PATIENCE).unwrap_or(now))
    }

    /// A name may be mistyped, or of something that is yet to come.
    fn say_what_is_missing(&self, agent: &mut Agent) {
        let points = agent.points();
        let snapshot = agent.sample();
        let hint = |name: &str| {
            filter::nearest(name, &snapshot)
                .map(|nearest| format!(" (did you mean {nearest}?)"))
                .unwrap_or_default()
        };
        for name in &self.selection.containers {
            if !points.iter().any(|point| point.is_of(name)) {
                eprintln!("netobs: waiting for container {}{}", escape(name), hint(name));
            }
        }
        for name in &self.selection.networks {
            if !points.iter().any(|point| point.network.as_ref() == Some(name)) {
                eprintln!("netobs: waiting for network {}{}", escape(name), hint(name));
            }
        }
    }

    fn warn_of_losses(&mut self) {
        let packets = self.tracer.lock().unwrap_or_else(PoisonError::into_inner).total().lost;
        let dropped = self.each.as_ref().map_or(0, |each| each.counts().lost);
        for ((what, lost), before) in
            [("packets", packets), ("drops", dropped)].into_iter().zip(&mut self.lost)
        {
            if lost > *before {
                tracing::warn!(
                    "{} {what} lost: --buffer-size, or fewer bytes of each by --snaplen",
                    lost - *before
                );
            }
            *before = lost;
        }
    }

    /// Detaches, and waits for the programs that are still at work on other CPUs.
    fn end(&mut self) -> TraceCounts {
        if let Some(each) = &mut self.each {
            each.detach();
        }
        let mut tracer = self.tracer.lock().unwrap_or_else(PoisonError::into_inner);
        tracer.detach_all();
        let end = Instant::now() + LAST_PACKETS;
        loop {
            let total = tracer.total();
            let is_settled = total.matched == total.delivered + total.lost + total.limited;
            if is_settled || Instant::now() > end {
                return total;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn last(&self, total: TraceCounts) -> Final {
        let counts = self.tracer.lock().unwrap_or_else(PoisonError::into_inner).counts();
        let dropped = self.each.as_ref().map(EachDrop::counts).unwrap_or_default();
        Final { delivered: total.delivered, counts, dropped }
    }
}

/// The thread that reads and writes, and how to end it.
struct ReaderThread {
    stop: UnixStream,
    last: mpsc::Sender<Final>,
    end: mpsc::Receiver<io::Result<()>>,
    written: Arc<Written>,
}

impl ReaderThread {
    /// The receiver hears when enough has been written, or nothing can be any more.
    fn start<W: Write + Send + 'static>(
        mut reader: Reader<W>,
    ) -> anyhow::Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let (stop, stopped) = UnixStream::pair()?;
        let written = reader.written();
        let (last_sender, last) = mpsc::channel::<Final>();
        let (end_sender, end) = mpsc::channel();
        let (done_sender, done) = oneshot::channel();
        std::thread::Builder::new()
            .name("netobs-trace".to_owned())
            .spawn(move || {
                let result = reader.run(&stopped);
                let is_writable = result.is_ok();
                // Nobody listens if the main thread is ending already.
                let _ = done_sender.send(result);
                let result = match last.recv() {
                    Ok(last) if is_writable => reader.finish(&last, LAST_PACKETS),
                    _ => Ok(()),
                };
                let _ = end_sender.send(result);
            })
            .context("start the reading thread")?;
        Ok((Self { stop, last: last_sender, end, written }, done))
    }

    /// How it ended, and what was written. Who does not take the output is not waited for
    /// forever.
    fn finish(self, last: Final) -> (io::Result<()>, Arc<Written>) {
        drop(self.stop);
        let _ = self.last.send(last);
        let written = || self.written.packets() + self.written.drops() + self.written.others();
        loop {
            let before = written();
            match self.end.recv_timeout(LAST_OUTPUT) {
                Ok(result) => return (result, self.written),
                Err(_) if written() > before => {}
                Err(_) => {
                    let error = "nobody takes the output; its end is missing";
                    return (Err(io::Error::other(error)), self.written);
                }
            }
        }
    }
}

/// On the standard error, as tcpdump has it.
fn report(total: TraceCounts, shown: u64, is_limited: bool) {
    let TraceCounts { matched, delivered, lost, limited, .. } = total;
    eprintln!("netobs: {} packets shown", shown);
    eprintln!(
        "netobs: {matched} matched = {delivered} delivered + {lost} lost (buffer full) + {limited} over the rate"
    );
    let unshown = delivered.saturating_sub(shown);
    if unshown > 0 {
        let why = if is_limited { "after the last one that was asked for" } else { "could not be written" };
        eprintln!("netobs: {unshown} delivered and not shown: {why}");
    }
}

/// Likewise of the packets that the kernel dropped, on the whole host.
fn report_drops(counts: DropCounts, written: &Written, is_limited: bool) {
    let DropCounts { events, delivered, lost, recursion } = counts;
    let (shown, others) = (written.drops(), written.others());
    eprintln!("netobs: {shown} drops shown");
    eprintln!("netobs: {events} drops = {delivered} delivered + {lost} lost (buffer full)");
    let unshown = delivered.saturating_sub(shown + others);
    let why = if is_limited { "after the last one that was asked for" } else { "could not be written" };
    for (drops, why) in [(others, "nobody's that was asked for"), (unshown, why)] {
        if drops > 0 {
            eprintln!("netobs: {drops} drops delivered and not shown: {why}");
        }
    }
    if recursion > 0 {
        eprintln!("netobs: {recursion} drops not seen: the kernel left the program out");
    }
}
