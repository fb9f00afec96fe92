//! Namespaces, bridges and veths of the demo, and what a container engine would tell of them.

use std::{collections::BTreeMap, io, net::Ipv4Addr, sync::mpsc, thread};

use anyhow::Context as _;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

use super::roles::{self, Role};
use crate::{
    model::{Compose, ContainerInfo, ContainerState, Endpoint, NetworkInfo, Subnet},
    netlink::Netlink,
};

/// Engine name under which the demo's containers are shown.
const ENGINE: &str = "demo";
const PREFIX_LEN: u8 = 24;

struct Net {
    name: &'static str,
    bridge: &'static str,
    gateway: Ipv4Addr,
}

struct Member {
    name: &'static str,
    network: &'static Net,
    address: Ipv4Addr,
    role: Role,
}

static SHOP: Net = Net { name: "shop", bridge: "br-shop", gateway: Ipv4Addr::new(10, 88, 1, 1) };
static OTHER: Net = Net { name: "other", bridge: "br-other", gateway: Ipv4Addr::new(10, 88, 2, 1) };

const WEB: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 10);
const DATABASE: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 20);

/// One pair may not talk: the host lets nothing pass from `other` to `shop`.
static MEMBERS: [Member; 4] = [
    Member { name: "web", network: &SHOP, address: WEB, role: Role::Web { database: DATABASE } },
    Member { name: "database", network: &SHOP, address: DATABASE, role: Role::Database },
    Member {
        name: "client",
        network: &SHOP,
        address: Ipv4Addr::new(10, 88, 1, 30),
        role: Role::Client { web: WEB, metrics: DATABASE },
    },
    Member {
        name: "outsider",
        network: &OTHER,
        address: Ipv4Addr::new(10, 88, 2, 10),
        role: Role::Outsider { database: DATABASE },
    },
];

/// What the model is told of the demo, as an engine would.
#[derive(Debug, Default)]
pub struct World {
    pub containers: Vec<ContainerInfo>,
    pub networks: Vec<NetworkInfo>,
}

/// Makes the world and lets its traffic flow. The calling thread and all that it starts from now on are
/// in the demo's host namespace; there is no way back.
///
/// # Errors
/// Without `CAP_SYS_ADMIN` and `CAP_NET_ADMIN`, or on kernels without veth or bridges.
pub fn build() -> anyhow::Result<World> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("make a network namespace for the demo (needs CAP_SYS_ADMIN: run it as root)")?;
    let mut netlink = Netlink::connect()?;
    set_up(&mut netlink, "lo").context("bring up the demo's lo")?;
    for net in [&SHOP, &OTHER] {
        add_bridge(&mut netlink, net).with_context(|| format!("add bridge {}", net.bridge))?;
    }
    keep_apart(&mut netlink, &OTHER, &SHOP).context("keep the demo's networks apart")?;
    let mut world = World { containers: Vec::new(), networks: vec![describe(&SHOP), describe(&OTHER)] };
    for member in &MEMBERS {
        let tid = start(&mut netlink, member)
            .with_context(|| format!("start the demo's container {}", member.name))?;
        world.containers.push(container(member, tid));
    }
    Ok(world)
}

/// Lets nothing pass from one network to another: a namespace may have been born forwarding.
fn keep_apart(netlink: &mut Netlink, from: &Net, to: &Net) -> io::Result<()> {
    let [a, b, c, _] = to.gateway.octets();
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.dst_len = PREFIX_LEN;
    rule.header.action = RuleAction::Blackhole;
    rule.attributes.push(RuleAttribute::Destination(Ipv4Addr::new(a, b, c, 0).into()));
    rule.attributes.push(RuleAttribute::Iifname(from.bridge.to_owned()));
    netlink.change(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)
}

/// A thread in a namespace of its own, connected and at work; its thread ID, which stands for the first
/// process of a container.
fn start(netlink: &mut Netlink, member: &'static Member) -> anyhow::Result<u32> {
    let (tell, told) = mpsc::channel::<nix::Result<u32>>();
    let (connect, connected) = mpsc::channel::<()>();
    let (ready, wait) = mpsc::channel::<io::Result<()>>();
    thread::Builder::new().name(format!("demo-{}", member.name)).spawn(move || {
        let entered = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw().cast_unsigned());
        if tell.send(entered).is_err() || entered.is_err() || connected.recv().is_err() {
            return;
        }
        let configured = configure(member);
        let failed = configured.is_err();
        if ready.send(configured).is_err() || failed {
            return;
        }
        roles::run(&member.role, member.address);
    })?;
    let tid = told.recv()??;
    let host_end = format!("veth-{}", member.name);
    add_veth(netlink, &host_end, tid, member.network.bridge)?;
    connect.send(())?;
    wait.recv()??;
    Ok(tid)
}

/// Inside the container's namespace.
fn configure(member: &Member) -> io::Result<()> {
    let mut netlink = Netlink::connect()?;
    set_up(&mut netlink, "lo")?;
    add_address(&mut netlink, "eth0", member.address)?;
    set_up(&mut netlink, "eth0")?;
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = 254;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(member.network.gateway)));
    netlink.change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE)
}

fn add_bridge(netlink: &mut Netlink, net: &Net) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(net.bridge.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    netlink.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    add_address(netlink, net.bridge, net.gateway)?;
    set_up(netlink, net.bridge)
}

fn add_veth(netlink: &mut Netlink, host_end: &str, tid: u32, bridge: &str) -> io::Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName("eth0".to_owned()));
    peer.attributes.push(LinkAttribute::NetNsPid(tid));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(host_end.to_owned()));
    message.attributes.push(LinkAttribute::Controller(if_nametoindex(bridge)?));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    netlink.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    set_up(netlink, host_end)
}

fn add_address(netlink: &mut Netlink, name: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = PREFIX_LEN;
    message.header.index = if_nametoindex(name)?;
    message.attributes.push(AddressAttribute::Local(address.into()));
    message.attributes.push(AddressAttribute::Address(address.into()));
    netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn set_up(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = if_nametoindex(name)?;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

fn subnet(net: &Net) -> String {
    let [a, b, c, _] = net.gateway.octets();
    format!("{a}.{b}.{c}.0/{PREFIX_LEN}")
}

fn describe(net: &Net) -> NetworkInfo {
    NetworkInfo {
        id: format!("demo-{}", net.name),
        name: net.name.to_owned(),
        driver: "bridge".to_owned(),
        engine: ENGINE.to_owned(),
        bridge: Some(net.bridge.to_owned()),
        internal: false,
        subnets: vec![Subnet { subnet: subnet(net), gateway: Some(net.gateway.to_string()) }],
        options: BTreeMap::new(),
    }
}

fn container(member: &Member, tid: u32) -> ContainerInfo {
    ContainerInfo {
        id: format!("demo-{}", member.name),
        name: member.name.to_owned(),
        image: "netobs-demo".to_owned(),
        state: ContainerState::Running,
        engine: ENGINE.to_owned(),
        pid: Some(tid),
        compose: Some(Compose { project: "demo".to_owned(), service: member.name.to_owned() }),
        network_mode: member.network.name.to_owned(),
        endpoints: vec![Endpoint {
            network: member.network.name.to_owned(),
            network_id: format!("demo-{}", member.network.name),
            addresses: vec![member.address.into()],
            mac: None,
        }],
        pod: None,
        published: Vec::new(),
    }
}
