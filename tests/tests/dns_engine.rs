//! Docker's own name server inside containers, on a real engine.

use netobs_tests::{
    dns::{latency, messages},
    docker::{self, Container, Network},
    program::{Watch, container, number},
};
use serde_json::Value;

/// Busybox has no `nslookup` in the image; it is an applet all the same.
fn lookup(from: &Container, name: &str) -> bool {
    docker::try_docker(&["exec", &from.name, "busybox", "nslookup", name]).status.success()
}

fn embedded(snapshot: &Value, name: &str) -> Option<Value> {
    messages(&container(snapshot, name)?, "client", "embedded")
}

fn count(messages: &Value, code: &str) -> u64 {
    messages["responses"][code].as_u64().unwrap_or(0)
}

#[test]
fn names_that_dockers_own_server_knows() {
    if !docker::available("Docker's own name server") {
        return;
    }
    let network = Network::new("named", &[]);
    let asks = Container::run("asks", &["--network", &network.name]);
    let web = Container::run("web", &["--network", &network.name]);
    let plain = Container::run("plain", &[]);
    let watch = Watch::start(None, &["--grace=60s", "--dns-names"]);
    for name in [&asks.name, &web.name, &plain.name] {
        watch.until("its interface", |snapshot| {
            (container(snapshot, name)?["interfaces"].as_array()?.len() == 1).then_some(())
        });
    }
    let filters = |container: &Container| {
        let pid = container.inspect("{{.State.Pid}}");
        let arguments = ["--net", "-t", &pid, "tc", "filter", "show", "dev", "lo", "egress"];
        let output = std::process::Command::new("nsenter").args(arguments).output().expect("run nsenter");
        String::from_utf8_lossy(&output.stdout).matches(" netobs ").count()
    };
    watch.until("the filter", |_| (filters(&asks) == 1).then_some(()));
    assert_eq!(filters(&plain), 0, "the default bridge has no such server");
    for _ in 0..3 {
        assert!(lookup(&asks, &web.name));
    }
    // Twice the same, so that nothing is on its way.
    let mut last = 0;
    let seen = watch.until("the answers", |snapshot| {
        let seen = embedded(snapshot, &asks.name)?;
        let queries = number(&seen, "queries");
        let is_quiet = std::mem::replace(&mut last, queries) == queries;
        (is_quiet && queries >= 3 && number(&seen, "pending") == 0).then_some(seen)
    });
    // Busybox asks for IPv4 and IPv6, some of its versions at once: each is answered.
    let queries = number(&seen, "queries");
    assert!(queries == 3 || queries == 6, "{seen}");
    let responses: u64 =
        seen["responses"].as_object().expect("by code").values().filter_map(Value::as_u64).sum();
    assert_eq!((responses, latency(&seen).0), (queries, queries), "{seen}");
    assert!(count(&seen, "NOERROR") >= 3, "{seen}");
    let now = watch.container(&asks.name);
    let names = now["dns"]["names"].to_string();
    assert!(names.contains(&format!("{{\"name\":\"{}\",\"queries\":{queries}}}", web.name)), "{names}");
    assert!(messages(&now, "client", "wire").is_none(), "the engine knew it by itself: {now}");
    let other = watch.container(&web.name);
    assert_eq!(other["dns"]["messages"].as_array().map(Vec::len), Some(0), "{other}");

    // On the default bridge a container asks the host's server itself, over the wire.
    let server = "192.0.2.53";
    let unheard = docker::try_docker(&[
        "exec",
        &plain.name,
        "busybox",
        "timeout",
        "3",
        "busybox",
        "nslookup",
        "web",
        server,
    ]);
    assert!(!unheard.status.success());
    let seen = watch.until("queries to nobody", |snapshot| {
        messages(&container(snapshot, &plain.name)?, "client", "wire")
    });
    assert!(
        number(&seen, "queries") >= 1 && seen["responses"] == Value::Object(Default::default()),
        "{seen}"
    );

    drop(watch);
    assert_eq!(filters(&asks), 0, "nothing is left");
}

/// A container that is connected with a network of its own while it runs gets the server then.
#[test]
fn connected_while_it_runs() {
    if !docker::available("Docker's own name server, later") {
        return;
    }
    let network = Network::new("later", &[]);
    let web = Container::run("web", &["--network", &network.name]);
    let watch = Watch::start(None, &["--grace=60s"]);
    let asks = Container::run("asks", &["--network", &network.name]);
    watch.until("its interface", |snapshot| {
        (container(snapshot, &asks.name)?["interfaces"].as_array()?.len() == 1).then_some(())
    });
    watch.until("an answer", |snapshot| {
        lookup(&asks, &web.name);
        (count(&embedded(snapshot, &asks.name)?, "NOERROR") >= 1).then_some(())
    });
    // A restart is another namespace; what was counted stays.
    let before = number(&embedded(&watch.fresh(), &asks.name).expect("its messages"), "queries");
    docker::docker(&["restart", "-t", "0", &asks.name]);
    watch.until("an answer after the restart", |snapshot| {
        lookup(&asks, &web.name);
        (number(&embedded(snapshot, &asks.name)?, "queries") >= before + 2).then_some(())
    });
}
