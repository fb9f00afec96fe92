//! What one object is attached to: interfaces of the host, those inside containers, cgroups.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    time::{Duration, Instant},
};

use netobs_common::Counters;

use super::{
    attach::{self, AttachMode, Attached, Standing, Way},
    clsact::{self, Lasting},
    hooks::Hooks,
    pins::{self, Pins, Record},
    slots::Slots,
    survey::Survey,
};
use crate::{
    model::{Baseline, FlowRecord, InterfaceKey, Judged, KernelStats, Removal, Sample, Senders},
    netlink::{Entrance, Netlink},
};

/// Who has been put behind others goes before them again, then not before so long has passed, and longer each
/// time: another may want to be first as well.
const MOVE_PAUSE_FIRST: Duration = Duration::from_secs(30);
const MOVE_PAUSE_LAST: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface went away meanwhile. Nothing is attached; not worth a word.
    #[error("the interface is gone")]
    Gone,
    #[error("all {0} counter slots are in use; raise --max-interfaces")]
    Full(u32),
    #[error("attach {direction} program: {source}")]
    Attach { direction: &'static str, source: io::Error },
    #[error("directory of interfaces: {0}")]
    Directory(#[from] aya::maps::MapError),
    #[error("tell the programs of the cgroup: {0}")]
    Cgroup(io::Error),
}

/// What was counted at one place, all CPUs together.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub ingress: Counters,
    pub egress: Counters,
    /// None where source MAC addresses are not compared.
    pub senders: Option<Senders>,
}

impl Counted {
    pub const ZERO: Self = Self { ingress: Counters::ZERO, egress: Counters::ZERO, senders: None };

    /// With what the kernel's own counters say; None if the interface was gone when it was asked.
    pub fn sample(self, key: InterfaceKey, kernel: Option<KernelStats>) -> Sample {
        let Self { ingress, egress, senders } = self;
        Sample { key, ingress, egress, senders, kernel }
    }
}

/// Who attaches to the places that are found. What it does not count, it has no counters of, nor flows.
pub trait Attach: Send {
    fn attachments(&self) -> &Attachments;

    fn attachments_mut(&mut self) -> &mut Attachments;

    fn mode(&self) -> AttachMode {
        self.attachments().mode()
    }

    /// Places that are attached to.
    fn attached(&self) -> usize {
        self.attachments().attached()
    }

    /// Looks at what others have on the interfaces of the host, and where packets pass, before a number of them are
    /// attached: packets a second of those with traffic, by ifindex, if that makes a difference.
    ///
    /// # Errors
    /// What netlink says.
    fn survey(&mut self) -> io::Result<BTreeMap<u32, f64>> {
        self.attachments_mut().survey()
    }

    /// Removes filters that a killed netobs left on an interface of the host. Others' stay.
    ///
    /// # Errors
    /// What netlink says.
    fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        self.attachments_mut().remove_leftovers(ifindex)
    }

    /// An interface of the host, under a key that was not used before. Of a `bridge` there are no flows: its
    /// packets are in those of the containers.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing stays attached then.
    fn attach(&mut self, key: InterfaceKey, ifindex: u32, bridge: bool) -> Result<(), AttachError>;

    /// Goes on with what an earlier process had pinned at an interface of the host, if it had: what it knew of it.
    /// Where a program is missing, [`Self::look_after`] attaches one.
    fn adopt(&mut self, _key: InterfaceKey, _ifindex: u32, _mac: &[u8]) -> Option<Record> {
        None
    }

    /// Keeps for a later process what is known of an attachment, if that is to be.
    fn remember(&mut self, _key: InterfaceKey, _mac: &[u8], _baseline: Baseline, _kernel: &KernelStats) {}

    /// What a later process would be told of a baseline.
    fn remember_baseline(&mut self, _key: InterfaceKey, _baseline: Baseline) {}

    /// The interface of the host has another address: a later process is to know it by that.
    fn remember_mac(&mut self, _key: InterfaceKey, _mac: &[u8]) {}

    /// Lets go what is pinned and was not gone on with.
    fn forget_others(&mut self) {}

    /// An interface of another namespace, which `netlink` is a client of and `entrance` leads to.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError>;

    /// What the sockets of a cgroup (its directory in a cgroup2 tree) receive and send.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError>;

    /// Attaches anew what others have removed or put behind theirs. None: all is in its place, or the place is
    /// gone. Of an interface of the host that is not in `touched`, nobody has touched the filters since this was last
    /// called; without it, anybody may have.
    ///
    /// # Errors
    /// As [`Self::attach`]; it is tried again when this is called again.
    fn look_after(
        &mut self,
        key: InterfaceKey,
        touched: Option<&BTreeSet<u32>>,
    ) -> Result<Option<Repaired>, AttachError> {
        self.attachments_mut().look_after(key, touched)
    }

    /// Name servers inside containers that are observed.
    fn resolvers(&self) -> Vec<InterfaceKey> {
        Vec::new()
    }

    /// As [`Self::look_after`], for one of these: why it was attached anew, if it was.
    fn look_after_resolver(&mut self, _key: InterfaceKey) -> Option<Removal> {
        None
    }

    /// Lets a place go: its counters, as they were at the end. Its flows are told of
    /// when they are next read. None if the key is not known.
    fn detach(&mut self, key: InterfaceKey) -> Option<Counted>;

    /// Counters of one attachment.
    fn read(&self, key: InterfaceKey) -> Option<Counted>;

    /// Counters of all attachments.
    fn read_all(&self) -> Vec<(InterfaceKey, Counted)>;

    /// The source MAC address of frames that a container sends here is known from now on; what was judged before stays.
    fn correct_sender(&mut self, _key: InterfaceKey, _mac: [u8; 6], _judged: Judged) {}

    /// Begins to read flows. Then [`super::wait_for_programs`], for which the observer need not be held, and
    /// then [`Self::finish_flows`].
    fn begin_flows(&mut self) {}

    /// Some of what flows have counted since they were last read; to be called until there is none. What one flow has
    /// counted on several CPUs is together.
    fn finish_flows(&mut self) -> Option<Vec<FlowRecord>> {
        None
    }

    /// The same as far as it can be told without any waiting.
    fn peek_flows(&mut self) -> Option<Vec<FlowRecord>> {
        None
    }

    /// Whether name servers inside containers are observed.
    fn observes_resolvers(&self) -> bool {
        false
    }

    /// The name server inside the namespace that `netlink` is a client of and `entrance` leads to.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_resolver(
        &mut self,
        _key: InterfaceKey,
        _entrance: Entrance,
        _netlink: &mut Netlink,
    ) -> Result<(), AttachError> {
        Err(AttachError::Gone)
    }

    fn detach_resolver(&mut self, _key: InterfaceKey) {}

    /// Who had the slot of an event at a time, by its [`netobs_common::events::kind`]; and whether that is an
    /// interface of the host.
    fn holder(&self, _kind: u8, _slot: u32, _time_ns: u64) -> Option<(InterfaceKey, bool)> {
        None
    }
}

/// What was attached anew.
#[derive(Debug)]
pub struct Repaired {
    pub why: Removal,
    /// The interface, and the way to it if it is not one of the host's. None: a cgroup.
    pub interface: Option<(u32, Option<Entrance>)>,
}

#[derive(Debug)]
struct Attachment {
    place: Place,
    slot: u32,
    /// Ingress, egress. None: could not be attached again.
    hooks: [Option<Attached>; 2],
    /// When it may be put before others again, and the pause after that.
    next_move: Option<(Instant, Duration)>,
}

#[derive(Debug)]
enum Place {
    /// An interface of the namespace that the attachments are made in.
    Host {
        ifindex: u32,
        bridge: bool,
    },
    /// An interface of a container's namespace, and the way in.
    Inside {
        ifindex: u32,
        entrance: Entrance,
    },
    Cgroup(File),
}

/// Owner of all attachments of one object. Dropping it detaches all. It works in the network namespace of
/// the thread that made it.
pub struct Attachments {
    hooks: Hooks,
    netlink: Netlink,
    survey: Survey,
    slots: Slots,
    held: BTreeMap<InterfaceKey, Attachment>,
    /// Where what is attached to interfaces of the host outlives this process. None: it does not.
    pins: Option<Pins>,
    /// Slots of records that were there at start and have not been gone on with.
    reserved: BTreeSet<u32>,
}

impl Attachments {
    pub fn new(hooks: Hooks, survey: Survey, mut slots: Slots, pins: Option<Pins>) -> io::Result<Self> {
        let records = pins.as_ref().map(Pins::records).unwrap_or_default();
        let reserved = records.into_iter().map(|(slot, _)| slot).filter(|slot| slots.take_exactly(*slot));
        let reserved = reserved.collect();
        let (netlink, held) = (Netlink::connect()?, BTreeMap::new());
        Ok(Self { hooks, netlink, survey, slots, held, pins, reserved })
    }

    /// Slots of records that were there at start and have not been gone on with.
    pub const fn reserved(&self) -> &BTreeSet<u32> {
        &self.reserved
    }

    /// The same, which are nobody's from now on.
    pub fn take_reserved(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.reserved)
    }

    pub const fn pins(&self) -> Option<&Pins> {
        self.pins.as_ref()
    }

    /// Whether it is counted in maps of an earlier process, in which what that has left may count, too.
    pub fn goes_on(&self) -> bool {
        self.pins.as_ref().is_some_and(Pins::goes_on)
    }

    const fn lasting(&self) -> Lasting {
        if self.pins.is_some() { Lasting::Pinned } else { Lasting::Process }
    }

    /// Puts our programs in the places of those that an earlier process has pinned at an interface of the host, by
    /// the record of a reserved slot; nothing passes uncounted meanwhile.
    pub fn adopt(&mut self, key: InterfaceKey, slot: u32, record: &Record) -> Result<(), AttachError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let Record { ifindex, bridge, .. } = *record;
        self.hooks.directory.enter(ifindex, slot)?;
        let hooks = [true, false].map(|ingress| {
            let programs = self.hooks.programs(bridge, ingress);
            let path = pins.link_path(ifindex, ingress);
            let link = pins::get(&path).and_then(|link| attach::adopt_link(link, programs, ifindex));
            if let Ok(link) = link {
                return Some(link);
            }
            pins::remove_link(&path);
            let filter = clsact::Filter::adopt(&mut self.netlink, programs.filter, ifindex, ingress, slot);
            filter.ok().map(Attached::Clsact)
        });
        let place = Place::Host { ifindex, bridge };
        self.held.insert(key, Attachment { place, slot, hooks, next_move: None });
        self.reserved.remove(&slot);
        Ok(())
    }

    /// Removes what is pinned at an interface of the host and of which there is no record.
    fn remove_pinned(&mut self, ifindex: u32) {
        let Some(pins) = &self.pins else { return };
        for ingress in [true, false] {
            pins::remove_link(&pins.link_path(ifindex, ingress));
            if let Err(error) = clsact::Filter::pinned(ifindex, ingress).remove(&mut self.netlink) {
                tracing::warn!(%error, ifindex, "remove a pinned filter");
            }
        }
    }

    pub const fn mode(&self) -> AttachMode {
        self.survey.mode()
    }

    pub const fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub fn capacity(&self) -> u32 {
        self.slots.capacity()
    }

    pub fn attached(&self) -> usize {
        self.held.len()
    }

    pub fn keys(&self) -> Vec<InterfaceKey> {
        self.held.keys().copied().collect()
    }

    /// Each attachment and its slot.
    pub fn slots(&self) -> impl Iterator<Item = (InterfaceKey, u32)> + '_ {
        self.held.iter().map(|(key, attachment)| (*key, attachment.slot))
    }

    /// Whether it is an interface of the host that is attached to.
    pub fn is_of_host(&self, key: InterfaceKey) -> bool {
        self.held.get(&key).is_some_and(|attachment| matches!(attachment.place, Place::Host { .. }))
    }

    /// The interface of the host, and whether it is a bridge.
    pub fn on_host(&self, key: InterfaceKey) -> Option<(u32, bool)> {
        match self.held.get(&key)?.place {
            Place::Host { ifindex, bridge } => Some((ifindex, bridge)),
            _ => None,
        }
    }

    /// Has the programs at TCX know only of what is attached to.
    pub fn retain_in_directory(&mut self) {
        let held: BTreeSet<u32> = self.held.keys().filter_map(|key| Some(self.on_host(*key)?.0)).collect();
        self.hooks.directory.retain(|ifindex| held.contains(&ifindex));
    }

    pub fn slot(&self, key: InterfaceKey) -> Option<u32> {
        self.held.get(&key).map(|attachment| attachment.slot)
    }

    /// A slot to attach with. Who could not has to release it.
    pub fn take(&mut self) -> Result<u32, AttachError> {
        self.slots.take().ok_or_else(|| AttachError::Full(self.slots.capacity()))
    }

    pub fn release(&mut self, slot: u32) {
        self.slots.release(slot);
    }

    /// Slots that nobody has.
    pub fn free(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.free()
    }

    /// See [`Attach::survey`].
    pub fn survey(&mut self) -> io::Result<BTreeMap<u32, f64>> {
        self.survey.look(&mut self.netlink)?;
        Ok(self.survey.busy().clone())
    }

    pub fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        if let Some(pins) = &self.pins {
            let mut records = self.reserved.iter().filter_map(|slot| pins.record(*slot));
            // Without a record it counts for nobody, in a slot that another gets.
            if !records.any(|record| record.ifindex == ifindex) {
                self.remove_pinned(ifindex);
            }
        }
        clsact::remove_leftovers(&mut self.netlink, ifindex, None)
    }

    /// Attaches to an interface of the host.
    pub fn attach(
        &mut self,
        key: InterfaceKey,
        slot: u32,
        ifindex: u32,
        bridge: bool,
    ) -> Result<(), AttachError> {
        self.remove_pinned(ifindex);
        let (started, spared) = (Instant::now(), self.survey.spares(ifindex));
        let (way, lasting) = (self.survey.way(ifindex, spared), self.lasting());
        self.hooks.directory.enter(ifindex, slot)?;
        let Self { netlink, hooks, pins, .. } = self;
        let attached = both(
            netlink,
            |netlink, ingress| {
                let programs = hooks.programs(bridge, ingress);
                let attached = attach::attach(netlink, programs, way, ifindex, ingress, slot, lasting)?;
                pin(pins.as_ref(), &attached, ifindex, ingress)?;
                Ok(attached)
            },
            attach::detach,
        );
        if way == Way::LinkOrFilter {
            self.survey.spend(started.elapsed());
        }
        if attached.is_err() {
            self.remove_pinned(ifindex);
            self.hooks.directory.leave(ifindex);
        }
        self.hold(key, slot, Place::Host { ifindex, bridge }, attached?);
        Ok(())
    }

    /// Always by filters: TCX links are made in the caller's own namespace.
    pub fn attach_inside(
        &mut self,
        key: InterfaceKey,
        slot: u32,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        let attached = both(
            netlink,
            |netlink, ingress| {
                attach::add_filter(netlink, self.hooks.programs(false, ingress), ifindex, ingress, slot)
            },
            attach::detach,
        )?;
        self.hold(key, slot, Place::Inside { ifindex, entrance }, attached);
        Ok(())
    }

    pub fn attach_cgroup(&mut self, key: InterfaceKey, slot: u32, cgroup: &File) -> Result<(), AttachError> {
        let Self { netlink, hooks, .. } = self;
        let attached = both(
            netlink,
            |_, ingress| attach::cgroup_link(hooks.cgroup_program(ingress), cgroup.as_fd(), ingress),
            |_, attached| drop(attached),
        )?;
        // On 64-bit systems the inode number is the cgroup's ID.
        let id = cgroup.metadata().map_err(AttachError::Cgroup)?.ino();
        self.hooks.enter_cgroup(id, slot)?;
        let cgroup = cgroup.try_clone().map_err(AttachError::Cgroup)?;
        self.hold(key, slot, Place::Cgroup(cgroup), attached);
        Ok(())
    }

    fn hold(&mut self, key: InterfaceKey, slot: u32, place: Place, hooks: [Attached; 2]) {
        self.held.insert(key, Attachment { place, slot, hooks: hooks.map(Some), next_move: None });
    }

    /// See [`Attach::look_after`].
    pub fn look_after(
        &mut self,
        key: InterfaceKey,
        touched: Option<&BTreeSet<u32>>,
    ) -> Result<Option<Repaired>, AttachError> {
        let Some(mut attachment) = self.held.remove(&key) else { return Ok(None) };
        let repaired = self.repair(&mut attachment, touched);
        self.held.insert(key, attachment);
        match repaired {
            Err(AttachError::Gone) => Ok(None),
            repaired => repaired,
        }
    }

    fn repair(
        &mut self,
        attachment: &mut Attachment,
        touched: Option<&BTreeSet<u32>>,
    ) -> Result<Option<Repaired>, AttachError> {
        let Attachment { place, slot, hooks, next_move } = attachment;
        let may_move = next_move.is_none_or(|(at, _)| at <= Instant::now());
        let (ifindex, entrance) = match place {
            Place::Host { ifindex, .. } => (*ifindex, None),
            Place::Inside { ifindex, entrance } => (*ifindex, Some(entrance.clone())),
            Place::Cgroup(cgroup) => {
                let relinked = relink(&self.hooks, cgroup, hooks)?;
                if relinked {
                    // Before 5.9 what the programs were told went with the links.
                    let id = cgroup.metadata().map_err(AttachError::Cgroup)?.ino();
                    self.hooks.enter_cgroup(id, *slot)?;
                }
                return Ok(relinked.then_some(Repaired { why: Removal::LinkDetached, interface: None }));
            }
        };
        let mut inside = match &entrance {
            Some(entrance) => Some(entrance.connect().map_err(|_| AttachError::Gone)?),
            None => None,
        };
        // Of other namespaces nobody tells. Who is behind others waits for the time to go before them.
        let touched = entrance.is_some()
            || next_move.is_some()
            || touched.is_none_or(|touched| touched.contains(&ifindex));
        let mut reason: Option<Removal> = None;
        for (at, ingress) in [(0, true), (1, false)] {
            let netlink = inside.as_mut().unwrap_or(&mut self.netlink);
            // In another namespace there are filters only.
            let mode = if entrance.is_some() { AttachMode::Clsact } else { self.survey.mode() };
            let standing = match &hooks[at] {
                Some(attached) => attach::standing(netlink, attached, mode, (ifindex, ingress), touched)
                    .map_err(|error| failed(ingress, error))?,
                None => Standing::Gone,
            };
            let why = match (standing, &hooks[at]) {
                (Standing::First, _) => continue,
                (Standing::Behind, _) if !may_move => continue,
                (Standing::Behind, _) => Removal::Displaced,
                (Standing::Gone, Some(Attached::Link(_))) => Removal::LinkDetached,
                (Standing::Gone, _) => Removal::FilterRemoved,
            };
            reason = reason.or(Some(why));
            // A link is for the sake of traffic, perhaps; and what has been missing for a while may have some.
            let spared = !matches!(hooks[at], Some(Attached::Clsact(_)));
            // First what is there: two of ours at a time would count each packet twice.
            if let Some(attached) = hooks[at].take() {
                if let (Some(pins), None) = (&self.pins, &entrance) {
                    pins::remove_link(&pins.link_path(ifindex, ingress));
                }
                attach::detach(netlink, attached);
            }
            let bridge = matches!(place, Place::Host { bridge: true, .. });
            let attached = if entrance.is_some() {
                attach::add_filter(netlink, self.hooks.programs(false, ingress), ifindex, ingress, *slot)
            } else {
                // The room that others leave may be another by now.
                self.survey.look_at_qdiscs(&mut self.netlink).map_err(|error| failed(ingress, error))?;
                let (way, programs) =
                    (self.survey.way(ifindex, spared), self.hooks.programs(bridge, ingress));
                let lasting = self.lasting();
                let attached =
                    attach::attach(&mut self.netlink, programs, way, ifindex, ingress, *slot, lasting);
                attached.and_then(|attached| {
                    pin(self.pins.as_ref(), &attached, ifindex, ingress)?;
                    Ok(attached)
                })
            };
            let attached = attached.map_err(|error| failed(ingress, error))?;
            if why == Removal::FilterRemoved
                && matches!(&attached, Attached::Clsact(filter) if filter.made_qdisc)
            {
                reason = Some(Removal::QdiscRemoved);
            }
            hooks[at] = Some(attached);
        }
        if reason == Some(Removal::Displaced) {
            let pause = next_move.map_or(MOVE_PAUSE_FIRST, |(_, pause)| (pause * 2).min(MOVE_PAUSE_LAST));
            *next_move = Some((Instant::now() + pause, pause));
        }
        Ok(reason.map(|why| Repaired { why, interface: Some((ifindex, entrance)) }))
    }

    /// Detaches. The slot is not released: what it has counted may be read first.
    pub fn detach(&mut self, key: InterfaceKey) -> Option<u32> {
        let Attachment { place, slot, hooks, .. } = self.held.remove(&key)?;
        if let (Some(pins), Place::Host { ifindex, .. }) = (&self.pins, &place) {
            pins.clear(slot);
            for ingress in [true, false] {
                pins::remove_link(&pins.link_path(*ifindex, ingress));
            }
        }
        let attached = hooks.into_iter().flatten();
        match place {
            Place::Host { ifindex, .. } => {
                attached.for_each(|attached| attach::detach(&mut self.netlink, attached));
                self.hooks.directory.leave(ifindex);
            }
            // If there is no way in any more, nothing keeps the namespace: it is gone, with all that was in it.
            Place::Inside { entrance, .. } => {
                if let Ok(mut netlink) = entrance.connect() {
                    attached.for_each(|attached| attach::detach(&mut netlink, attached));
                }
            }
            Place::Cgroup(_) => attached.for_each(drop),
        }
        Some(slot)
    }
}

/// Attaches ingress, then egress; if the second cannot be, the first is taken back.
fn both(
    netlink: &mut Netlink,
    mut attach: impl FnMut(&mut Netlink, bool) -> io::Result<Attached>,
    detach: impl FnOnce(&mut Netlink, Attached),
) -> Result<[Attached; 2], AttachError> {
    let ingress = attach(netlink, true).map_err(|error| failed(true, error))?;
    match attach(netlink, false) {
        Ok(egress) => Ok([ingress, egress]),
        Err(error) => {
            detach(netlink, ingress);
            Err(failed(false, error))
        }
    }
}

fn failed(ingress: bool, source: io::Error) -> AttachError {
    let direction = if ingress { "ingress" } else { "egress" };
    match source.raw_os_error() {
        Some(libc::ENODEV) => AttachError::Gone,
        _ => AttachError::Attach { direction, source },
    }
}

/// Links a cgroup anew whose links others have detached; whether there was any. One that is removed loses its
/// links as well, and takes none.
fn relink(programs: &Hooks, cgroup: &File, hooks: &mut [Option<Attached>; 2]) -> Result<bool, AttachError> {
    let mut relinked = false;
    for (hook, ingress) in hooks.iter_mut().zip([true, false]) {
        if hook.as_ref().is_some_and(attach::is_linked) {
            continue;
        }
        *hook = None;
        let link = attach::cgroup_link(programs.cgroup_program(ingress), cgroup.as_fd(), ingress);
        *hook = Some(link.map_err(|_| AttachError::Gone)?);
        relinked = true;
    }
    Ok(relinked)
}

/// Has a link outlive its process; a filter does anyway.
fn pin(pins: Option<&Pins>, attached: &Attached, ifindex: u32, ingress: bool) -> io::Result<()> {
    match (pins, attached) {
        (Some(pins), Attached::Link(link)) => pins::pin(link.as_fd(), &pins.link_path(ifindex, ingress)),
        _ => Ok(()),
    }
}

impl Drop for Attachments {
    fn drop(&mut self) {
        for key in self.keys() {
            // What is pinned is for who comes next.
            if self.pins.is_none() || !self.is_of_host(key) {
                self.detach(key);
            }
        }
    }
}
