//! Docker's name server inside containers' namespaces: a filter at `lo` there, which tells of its messages and
//! counts nothing.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::programs::ProgramFd;

use super::{
    attach::Standing,
    attachments::AttachError,
    clsact::{self, Lasting},
    events::{Holders, monotonic_ns},
    slots::Slots,
};
use crate::{
    model::{InterfaceKey, Removal},
    netlink::{Entrance, Netlink},
};

/// `lo` has it in every namespace.
pub const LOOPBACK: u32 = 1;

/// Owner of all these filters. Dropping it detaches all.
pub struct Resolvers {
    program: ProgramFd,
    /// Numbered apart from those of counters.
    slots: Slots,
    holders: Holders,
    held: BTreeMap<InterfaceKey, (u32, Entrance, clsact::Filter)>,
}

impl Resolvers {
    pub fn new(program: ProgramFd, max: u32) -> Self {
        // In turn, so that one is not used again soon.
        let slots = Slots::in_turn(max);
        Self { program, slots, holders: Holders::default(), held: BTreeMap::new() }
    }

    /// Attaches in the namespace that `netlink` is a client of and `entrance` leads to.
    pub fn attach(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
    ) -> Result<(), AttachError> {
        let slot = self.slots.take().ok_or_else(|| AttachError::Full(self.slots.capacity()))?;
        self.holders.enter(slot, key, false, monotonic_ns());
        let program: BorrowedFd<'_> = self.program.as_fd();
        match clsact::Filter::add(netlink, program, LOOPBACK, false, slot, Lasting::Process) {
            Ok(filter) => {
                self.held.insert(key, (slot, entrance, filter));
                Ok(())
            }
            Err(source) => {
                self.slots.release(slot);
                Err(AttachError::Attach { direction: "egress", source })
            }
        }
    }

    pub fn detach(&mut self, key: InterfaceKey) {
        let Some((slot, entrance, filter)) = self.held.remove(&key) else { return };
        self.slots.release(slot);
        // If there is no way in any more, the namespace is gone with all that was in it.
        if let Ok(mut netlink) = entrance.connect()
            && let Err(error) = filter.remove(&mut netlink)
        {
            tracing::warn!(%error, ?filter, "remove a clsact filter");
        }
    }

    pub fn keys(&self) -> Vec<InterfaceKey> {
        self.held.keys().copied().collect()
    }

    /// Attaches anew where others have removed the filter: why, if they have.
    pub fn look_after(&mut self, key: InterfaceKey) -> Option<Removal> {
        let program: BorrowedFd<'_> = self.program.as_fd();
        let (slot, entrance, filter) = self.held.get_mut(&key)?;
        let mut netlink = entrance.connect().ok()?;
        match filter.standing(&mut netlink) {
            Ok(Standing::Gone) => {}
            // It only tells of messages: whoever is before it is left there.
            Ok(Standing::First | Standing::Behind) | Err(_) => return None,
        }
        match clsact::Filter::add(&mut netlink, program, LOOPBACK, false, *slot, Lasting::Process) {
            Ok(again) => {
                let why = if again.made_qdisc { Removal::QdiscRemoved } else { Removal::FilterRemoved };
                *filter = again;
                Some(why)
            }
            Err(error) => {
                tracing::warn!(%error, "attach again to a name server inside a container");
                None
            }
        }
    }

    /// Who had a slot at a time.
    pub fn holder(&self, slot: u32, time_ns: u64) -> Option<InterfaceKey> {
        self.holders.at(slot, time_ns).map(|(key, _)| key)
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        let keys: Vec<_> = self.held.keys().copied().collect();
        for key in keys {
            self.detach(key);
        }
    }
}
