//! The programs of a loaded object for every place that can be attached to, and the maps by which they find
//! their slots there.

use std::os::fd::AsFd as _;

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

/// Names of an object's programs, ingress then egress.
pub struct Names {
    pub filter: [&'static str; 2],
    pub tcx: [&'static str; 2],
    pub cgroup: [&'static str; 2],
}

pub struct Hooks {
    ingress: Direction,
    egress: Direction,
    pub directory: Directory,
    #[expect(deprecated, reason = "as above")]
    cgroups: CgroupStorage<MapData, u64>,
}

struct Direction {
    filter: ProgramFd,
    tcx: ProgramFd,
    cgroup: ProgramFd,
}

impl Hooks {
    /// Has the kernel verify an object's programs.
    pub fn load(ebpf: &mut Ebpf, names: &Names, directory: Directory) -> Result<Self, LoadError> {
        let mut direction = |at: usize| -> Result<Direction, LoadError> {
            Ok(Direction {
                filter: classifier(ebpf, names.filter[at])?,
                tcx: classifier(ebpf, names.tcx[at])?,
                cgroup: cgroup_skb(ebpf, names.cgroup[at])?,
            })
        };
        let (ingress, egress) = (direction(0)?, direction(1)?);
        #[expect(deprecated, reason = "as above")]
        let cgroups = CgroupStorage::try_from(take(ebpf, "CGROUPS")?)?;
        Ok(Self { ingress, egress, directory, cgroups })
    }

    pub fn programs(&self, ingress: bool) -> Programs<'_> {
        let Direction { filter, tcx, cgroup } = if ingress { &self.ingress } else { &self.egress };
        Programs { filter: filter.as_fd(), tcx: tcx.as_fd(), cgroup: cgroup.as_fd() }
    }

    /// Tells the programs attached to a cgroup their slot.
    pub fn enter_cgroup(&mut self, id: u64, slot: u32) -> Result<(), aya::maps::MapError> {
        for ingress in [true, false] {
            self.cgroups.insert(CgroupStorageKey::new(id, cgroup_hook(ingress)), u64::from(slot) + 1, 0)?;
        }
        Ok(())
    }
}

fn classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
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
