//! The outputs over the fixture, and names that try to break out of each of them.

use super::*;
use crate::{
    model::{ContainerState, Place, Snapshot},
    output::{
        fixture::{self, hostile_names, named},
        format::is_hostile,
        schema,
    },
};

const SCHEMA: &str = include_str!("../../../../docs/topology.schema.json");

/// The fixture without the one whose endpoint is on another network than its interface.
fn tidy() -> Snapshot {
    let mut snapshot = fixture::snapshot();
    snapshot.containers.retain(|container| container.name != fixture::HOSTILE);
    snapshot
}

fn of(snapshot: &Snapshot) -> Topology {
    Topology::of(snapshot)
}

fn outputs(topology: &Topology) -> [String; 3] {
    [tree(topology), dot(topology), mermaid(topology)]
}

#[test]
fn the_tree() {
    let mut snapshot = tidy();
    snapshot.containers.retain(|container| container.name != "db");
    let web = snapshot.containers.iter_mut().find(|one| one.name == "web-1").expect("web-1");
    web.namespace = Some("net:[4026532310]".into());
    web.interfaces[0].observed = Some(Place::Host);
    let mut side = fixture::container('7', "side", "shop_default", 1);
    side.network_mode = Some(format!("container:{}", fixture::id('a')));
    side.interfaces.clear();
    side.endpoints.clear();
    snapshot.containers.insert(0, side);
    let expected = "\
docker 27.1.1 (unix:///var/run/docker.sock)
├── network bridge (bridge)
│   ├── reaches out through the host
│   ├── isolated from: shop_default (by the engine's rule)
│   └── bridge docker0, not observed
├── network shop_default (bridge): 172.18.0.0/16 gateway 172.18.0.1
│   ├── internal: no way out of the host
│   ├── isolated from: bridge (by the engine's rule)
│   ├── options: com.docker.network.driver.mtu=1400
│   └── bridge br-eeeeeeeeeeee (ifindex 4)
│       ├── veth vetha (ifindex 17) → web-1 eth0 172.18.0.2 fd00::2
│       └── veth vethlost (ifindex 23): of no known container
├── namespace net:[4026532310]
│   ├── container web-1 (nginx:1.27, running, shop/web)
│   │   ├── eth0 172.18.0.2 fd00::2 (veth, 02:42:ac:12:00:02) on shop_default, observed at the host's vetha
│   │   └── port 80/tcp published on 0.0.0.0:8080, [::]:8080
│   └── container side (nginx:1.27, running, shop/web)
│       └── shares the network of web-1
└── namespace not known, the host's
    └── container host-net (unknown)
podman (unix:///run/podman/podman.sock): not connected: permission denied: add the user to its group
";
    assert_eq!(tree(&of(&snapshot)), expected);
}

#[test]
fn json_is_as_its_schema_says() {
    for snapshot in [fixture::snapshot(), named("x"), Snapshot::empty(std::time::SystemTime::UNIX_EPOCH)] {
        let text = json(&of(&snapshot)).expect("JSON");
        assert!(!text.contains(['\n', '\x1b']));
        schema::check_document(&text, SCHEMA);
    }
    schema::check_descriptions(SCHEMA);
}

#[test]
fn no_name_moves_a_cursor_or_makes_a_line() {
    let plain = outputs(&of(&named("plain"))).map(|text| text.lines().count());
    for name in hostile_names() {
        let texts = outputs(&of(&named(&name)));
        for text in &texts {
            assert!(text.chars().all(|c| c == '\n' || !is_hostile(c)), "{name:?}: {text}");
        }
        assert_eq!(texts.each_ref().map(|text| text.lines().count()), plain, "{name:?}");
        assert!(texts.iter().all(|text| text.len() < 100_000), "{name:?} is cut");
    }
}

/// What is left of a line of DOT without its strings.
fn without_strings(line: &str) -> String {
    let (mut rest, mut inside, mut escaped) = (String::new(), false, false);
    for character in line.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if inside => escaped = true,
            '"' => inside = !inside,
            _ if inside => {}
            c => rest.push(c),
        }
    }
    assert!(!inside, "a string is left open: {line}");
    rest
}

#[test]
fn no_name_gets_out_of_a_string_of_dot() {
    let structure = |name: &str| dot(&of(&named(name))).lines().map(without_strings).collect::<Vec<_>>();
    let plain = structure("plain");
    for name in hostile_names() {
        assert_eq!(structure(&name), plain, "{name:?}");
    }
}

#[test]
fn no_name_gets_out_of_a_string_of_mermaid() {
    // Without escapes in the language's strings, every second piece between quotes is outside.
    let outside = |name: &str| {
        let text = mermaid(&of(&named(name)));
        let lines = text.lines().map(|line| line.split('"').step_by(2).collect::<Vec<_>>().join("\""));
        lines.collect::<Vec<_>>()
    };
    let plain = outside("plain");
    for name in hostile_names() {
        assert_eq!(outside(&name), plain, "{name:?}");
        let text = mermaid(&of(&named(&name)));
        assert!(!text.replace("<br/>", "").contains(['<', '&', '`', '\\', '%']), "{name:?}: {text}");
    }
}

#[test]
fn a_picture_has_all_and_the_way_between() {
    let text = dot(&of(&tidy()));
    for part in [
        "docker 27.1.1",
        "network shop_default",
        "bridge br-eeeeeeeeeeee",
        "veth vetha",
        "container web-1",
        "port 80/tcp",
        "isolated from: bridge",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let node = |what: &str| {
        let line = text.lines().find(|line| line.contains(what)).expect(what);
        line.split_whitespace().next().expect("a name").to_owned()
    };
    for (from, to) in [
        ("network shop_default", "bridge br-e"),
        ("bridge br-e", "veth vetha"),
        ("veth vetha", "container web-1"),
        ("container web-1", "port 80"),
    ] {
        let from = node(&format!("label=\"{from}"));
        let to = node(&format!("label=\"{to}"));
        assert!(text.contains(&format!("{from} -> {to} ")), "{from} -> {to}: {text}");
    }
}

#[test]
fn nothing_changes_by_itself() {
    assert_eq!(changes(&of(&fixture::snapshot()), &of(&fixture::snapshot())), [""; 0]);
}

#[test]
fn what_comes_and_goes() {
    let with = of(&fixture::snapshot());
    let mut snapshot = fixture::snapshot();
    snapshot.containers.iter_mut().for_each(|container| {
        if container.name == "web-1" {
            container.state = ContainerState::Removed;
        }
    });
    snapshot.interfaces.retain(|interface| interface.name != "vetha");
    let without = of(&snapshot);
    let come = changes(&without, &with);
    for line in [
        "+ veth vetha (port of br-eeeeeeeeeeee)",
        "+ container web-1 (nginx:1.27, running, docker, namespace not known)",
        "+ container web-1 on network shop_default (eth0 172.18.0.2 fd00::2, vetha)",
        "+ port 80/tcp of web-1 (0.0.0.0:8080, [::]:8080)",
    ] {
        assert!(come.iter().any(|one| one == line), "{line}: {come:#?}");
    }
    assert_eq!(come.len(), 4, "{come:#?}");
    let gone = changes(&with, &without);
    assert_eq!(gone.len(), 4);
    assert!(gone.iter().all(|line| line.starts_with("- ")), "{gone:#?}");
}

#[test]
fn what_is_renamed_paused_or_connected() {
    let old = of(&tidy());
    let mut snapshot = tidy();
    let web = snapshot.containers.iter_mut().find(|one| one.name == "web-1").expect("web-1");
    web.name = "front".into();
    web.state = ContainerState::Paused;
    let mut second = web.interfaces[0].clone();
    second.name = Some("eth1".into());
    second.network = Some("bridge".into());
    second.host_interface = Some("vethz".into());
    web.interfaces.push(second);
    let lines = changes(&old, &of(&snapshot));
    for line in [
        "+ container front on network bridge (eth1 172.18.0.2 fd00::2, vethz)",
        "~ container front: was web-1, state paused (was running)",
        "~ network bridge: shares container front with: shop_default",
    ] {
        assert!(lines.iter().any(|one| one == line), "{line}: {lines:#?}");
    }
    assert_eq!(lines.len(), 3, "a new name is told once: {lines:#?}");
}

#[test]
fn changes_are_lines_whatever_the_names() {
    let nothing = of(&Snapshot::empty(std::time::SystemTime::UNIX_EPOCH));
    let plain = changes(&nothing, &of(&named("plain"))).len();
    for name in hostile_names() {
        let lines = changes(&nothing, &of(&named(&name)));
        assert_eq!(lines.len(), plain);
        assert!(lines.iter().all(|line| !line.contains(is_hostile)), "{lines:#?}");
    }
}
