//! A host with a bridge and containers on it that `/proc` tells of: no engine is needed, nor any other kernel.

use crate::{
    netns::Netns,
    pretend::Pretend,
    program::{Watch, container},
};

/// The n-th container's interface is `eth0` inside, and `vethN` on the host.
pub struct Bridged {
    bridge: String,
    pub host: Netns,
    pub containers: Vec<Pretend>,
}

impl Bridged {
    /// `subnet` is the first three parts of an IPv4 address, `last` the fourth of each container's.
    ///
    /// # Panics
    /// Without root.
    pub fn new(bridge: &str, subnet: &str, last: impl IntoIterator<Item = u8>) -> Self {
        let host = Netns::new();
        host.sh(&format!("ip link add {bridge} type bridge mcast_snooping 0; ip link set {bridge} up"));
        let mut world = Self { bridge: bridge.to_owned(), host, containers: Vec::new() };
        for last in last {
            let container = Pretend::new();
            world.put(container, &format!("ip addr add {subnet}.{last}/24 dev eth0; ip link set eth0 up"));
        }
        world
    }

    /// Puts one more on the bridge, which then does this.
    pub fn put(&mut self, container: Pretend, script: &str) {
        self.host.sh(&format!(
            "ip link add veth{n} type veth peer name eth0 netns {}; ip link set veth{n} master {} up",
            container.netns().pid(),
            self.bridge,
            n = self.containers.len(),
        ));
        container.netns().sh(script);
        self.containers.push(container);
    }

    pub fn netns(&self, n: usize) -> &Netns {
        self.containers[n].netns()
    }

    pub fn name(&self, n: usize) -> &str {
        self.containers[n].name()
    }

    /// `netobs watch` that knows all containers and their interfaces.
    ///
    /// # Panics
    /// If it does not find them.
    pub fn watch(&self, options: &[&str]) -> Watch {
        let watch = Watch::start(Some(&self.host), options);
        (0..self.containers.len()).for_each(|n| self.until_known(&watch, n));
        watch
    }

    /// Waits until an interface is known to be this container's.
    ///
    /// # Panics
    /// If it is not found.
    pub fn until_known(&self, watch: &Watch, n: usize) {
        watch.until("its interface", |snapshot| {
            let now = container(snapshot, self.name(n))?;
            (now["interfaces"].as_array()?.len() == 1).then_some(())
        });
    }
}
