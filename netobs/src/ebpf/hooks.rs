//! The programs of a loaded object for every place that can be attached to, and the maps by which they find
//! their slots there.

use std::os::fd::{AsFd as _, BorrowedFd};

#[expect(deprecated, reason = "the newer map needs the task's cgroup, and kernel 6.2")]
use aya::maps::{CgroupStorage, CgroupStorageKey};
use aya::{
    Ebpf,
    maps::MapData,
    programs::{CgroupSkb, ProgramFd, SchedClassifier},
};

use super::{
    attach::{Programs, cgroup_hook},
    directory::Directory,
    object::{LoadError, take},
};

/// Names of an object's programs; of a pair the first is for ingress.
pub struct Names {
    pub interface: InterfaceNames,
    /// None: as of any other interface.
    pub bridge: Option<InterfaceNames>,
    pub cgroup: [&'static str; 2],
}

pub struct InterfaceNames {
    /// For both directions.
    pub filter: &'static str,
    pub tcx: [&'static str; 2],
}

pub struct Hooks {
    interface: Interface,
    bridge: Option<Interface>,
    cgroup: [ProgramFd; 2],
    pub directory: Directory,
    #[expect(deprecated, reason = "as above")]
    cgroups: CgroupStorage<MapData, u64>,
}

struct Interface {
    filter: ProgramFd,
    tcx: [ProgramFd; 2],
}

impl Hooks {
    /// Has the kernel verify an object's programs.
    pub fn load(ebpf: &mut Ebpf, names: &Names, directory: Directory) -> Result<Self, LoadError> {
        let interface = Interface::load(ebpf, &names.interface)?;
        let bridge = names.bridge.as_ref().map(|names| Interface::load(ebpf, names)).transpose()?;
        let [ingress, egress] = names.cgroup;
        let cgroup = [cgroup_skb(ebpf, ingress)?, cgroup_skb(ebpf, egress)?];
        #[expect(deprecated, reason = "as above")]
        let cgroups = CgroupStorage::try_from(take(ebpf, "CGROUPS")?)?;
        Ok(Self { interface, bridge, cgroup, directory, cgroups })
    }

    /// For a bridge, or for any other interface.
    pub fn programs(&self, bridge: bool, ingress: bool) -> Programs<'_> {
        let Interface { filter, tcx } = self.bridge.as_ref().filter(|_| bridge).unwrap_or(&self.interface);
        Programs { filter: filter.as_fd(), tcx: tcx[usize::from(!ingress)].as_fd() }
    }

    pub fn cgroup_program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.cgroup[usize::from(!ingress)].as_fd()
    }

    /// Tells the programs attached to a cgroup their slot.
    pub fn enter_cgroup(&mut self, id: u64, slot: u32) -> Result<(), aya::maps::MapError> {
        for ingress in [true, false] {
            self.cgroups.insert(CgroupStorageKey::new(id, cgroup_hook(ingress)), u64::from(slot) + 1, 0)?;
        }
        Ok(())
    }
}

impl Interface {
    fn load(ebpf: &mut Ebpf, names: &InterfaceNames) -> Result<Self, LoadError> {
        let [ingress, egress] = names.tcx;
        let filter = classifier(ebpf, names.filter)?;
        Ok(Self { filter, tcx: [classifier(ebpf, ingress)?, classifier(ebpf, egress)?] })
    }
}

pub fn classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let fail = |source| LoadError::Program { name, source };
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into().map_err(fail)?;
    program.load().map_err(fail)?;
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(fail)
}

fn cgroup_skb(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let fail = |source| LoadError::Program { name, source };
    let program: &mut CgroupSkb =
        ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into().map_err(fail)?;
    program.load().map_err(fail)?;
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(fail)
}
