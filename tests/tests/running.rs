//! `netobs watch` where an agent runs: it shows what that one has counted, and attaches nothing.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    process::{Output, Stdio},
};

use netobs_tests::{
    bridged::Bridged,
    kernel,
    netns::Netns,
    program::{self, Agent, LIMIT, binary, container, netobs, number},
    terminal::Terminal,
    wait_for,
};
use serde_json::Value;

const FROM_THE_AGENT: &str = "reading from the agent that runs";

/// Two containers, and the agent that knows them.
fn observed(options: &[&str]) -> (Bridged, Agent) {
    let world = Bridged::new("br-running", "10.83.0", [10, 11]);
    let agent = Agent::start_in(Some(&world.host), &[&["--no-engine"], options].concat());
    wait_for("the containers' interfaces", LIMIT, || {
        let snapshot = agent.snapshot(&world.host)?;
        let has = |n: usize| {
            let now = container(&snapshot, world.name(n))?;
            (now["interfaces"].as_array()?.len() == 1).then_some(())
        };
        has(0).and(has(1)).ok_or_else(|| snapshot["containers"].to_string())
    });
    (world, agent)
}

fn ping(world: &Bridged, times: u32) {
    world.netns(0).sh(&format!("busybox ping -q -c {times} -i 0.01 10.83.0.11"));
}

/// Filters on the interface of the first container, whoever has them.
fn filters(host: &Netns) -> usize {
    host.sh("tc filter show dev veth0 ingress; tc filter show dev veth0 egress").matches(" id ").count()
}

fn once(host: &Netns, options: &[&str]) -> (Value, String) {
    let mut command = netobs(Some(host));
    command.args(["watch", "--once", "--output", "json"]).args(options).stdin(Stdio::null());
    read(&command.output().expect("run netobs watch"))
}

fn read(output: &Output) -> (Value, String) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    (serde_json::from_slice(&output.stdout).expect("JSON"), told)
}

fn sent(snapshot: &Value, world: &Bridged) -> u64 {
    let first = container(snapshot, world.name(0)).expect("the first container");
    number(&first, "tx.protocol.icmp.packets")
}

#[test]
fn what_the_agent_has_counted_is_shown_and_nothing_attached() {
    let (world, _agent) = observed(&[]);
    let attached = filters(&world.host);
    ping(&world, 10);
    let (snapshot, told) = once(&world.host, &[]);
    assert!(told.contains(FROM_THE_AGENT), "{told}");
    assert_eq!(sent(&snapshot, &world), 10, "passed before it was started");
    let interface = program::interface(&snapshot, "veth0").expect("an interface");
    assert_eq!(kernel::expected(&interface), kernel::link(&world.host, "veth0"), "{interface}");
    assert!(snapshot["agent"]["http"].is_object(), "the agent's own word: {}", snapshot["agent"]);

    let watch = world.watch(&[]);
    ping(&world, 5);
    watch.until("the other five", |snapshot| (sent(snapshot, &world) == 15).then_some(()));
    assert_eq!(filters(&world.host), attached, "nothing more is attached");
    drop(watch);

    // Who says how to observe observes.
    for options in [&["--standalone"][..], &["--max-flows", "1000"], &["--no-engine"]] {
        let watch = world.watch(options);
        assert!(filters(&world.host) > attached, "{options:?}");
        assert_eq!(sent(&watch.fresh(), &world), 0, "{options:?}: what passed before is no count of its own");
    }
    assert_eq!(filters(&world.host), attached);
}

#[test]
fn an_agent_that_is_replaced_is_read_on() {
    let (world, mut agent) = observed(&[]);
    let watch = world.watch(&[]);
    agent.terminate();
    let _successor = Agent::start_in(Some(&world.host), &["--no-engine"]);
    // As before it counted anew, and as it goes on.
    watch.until("the next agent", |snapshot| (container(snapshot, world.name(0)).is_some()).then_some(()));
    ping(&world, 7);
    watch.until("what that has counted", |snapshot| {
        container(snapshot, world.name(0))?;
        (sent(snapshot, &world) == 7).then_some(())
    });
}

#[test]
fn flows_and_drops_on_the_screen_are_the_agents() {
    let (world, mut agent) = observed(&[]);
    ping(&world, 3);
    let terminal = Terminal::new();
    let command = netobs(Some(&world.host));
    let arguments: Vec<_> = command.get_args().map(|one| one.to_string_lossy().into_owned()).collect();
    let program = command.get_program().to_string_lossy().into_owned();
    let watch = format!("{program} {} watch {}; echo code=$?", arguments.join(" "), world.name(0));
    terminal.keys(&[&watch, "Enter"]);
    terminal.shows(world.name(0).get(..12).expect("a long name"));
    terminal.keys(&["3"]);
    let flows = terminal.shows("icmp");
    assert!(flows.contains(&world.name(1)[..12]), "{flows}");
    terminal.keys(&["4"]);
    // There may be some elsewhere on this machine.
    wait_for("the agent's drops", LIMIT, || {
        let screen = terminal.screen();
        let is_told =
            screen.contains("nothing was dropped since netobs began to look") || screen.contains("REASON");
        if is_told { Ok(()) } else { Err(screen) }
    });
    agent.kill();
    terminal.shows("OLD: ");
    terminal.keys(&["q"]);
    terminal.shows("code=0");
}

#[test]
fn drops_that_nobody_looks_for_are_said_to_be_so() {
    let (world, _agent) = observed(&["--no-drops"]);
    let terminal = Terminal::new();
    let program = format!("nsenter --net -t {} {}", world.host.pid(), binary().display());
    terminal.keys(&[&format!("{program} watch"), "Enter"]);
    terminal.shows(world.name(0).get(..12).expect("a long name"));
    terminal.keys(&["4"]);
    terminal.shows("the agent that runs does not look for them");
    terminal.keys(&["q"]);
}

#[test]
fn other_users_are_neither_believed_nor_told() {
    const NOBODY: &str = "65534";
    let world = Bridged::new("br-running", "10.83.0", [10, 11]);
    // Who listens in the place of an agent: root asks, is told whatever, and does not read it.
    let address = SocketAddr::from_abstract_name("netobs/agent").expect("a name");
    let listener = world.host.run(move || {
        // The other end is told who listened. Of this thread alone, and to its end.
        // SAFETY: the call takes numbers, and changes nothing but the thread's user.
        let changed = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 65534, -1) };
        assert_eq!(changed, 0, "be somebody else");
        UnixListener::bind_addr(&address).expect("listen")
    });
    let watch = world.watch(&[]);
    assert!(filters(&world.host) > 0, "it observes");
    drop((watch, listener));

    let agent = Agent::start_in(Some(&world.host), &[]);
    wait_for("the agent", LIMIT, || agent.snapshot(&world.host).map(drop));
    let mut command = world.host.command("setpriv");
    command.args(["--reuid", NOBODY, "--clear-groups", "--"]).arg(binary());
    command.args(["watch", "--once", "--output", "json"]).stdin(Stdio::null());
    let output = command.env("NETOBS_LOG", "debug").output().expect("run setpriv");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{told}");
    assert!(told.contains("no agent to read from") && !told.contains(FROM_THE_AGENT), "{told}");
    // Root is.
    assert!(once(&world.host, &[]).1.contains(FROM_THE_AGENT));
}

/// Who is asked something else, or too much, or by many at a time, goes on.
#[test]
fn who_asks_in_odd_ways_does_no_harm() {
    let (world, agent) = observed(&[]);
    let odd = world.host.run(|| {
        use std::{io::Write as _, os::unix::net::UnixStream};
        let address = SocketAddr::from_abstract_name("netobs/agent").expect("a name");
        let connect = || UnixStream::connect_addr(&address).expect("connect");
        let mut all: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
        for (n, stream) in all.iter_mut().enumerate() {
            let words: &[u8] = [b"\n".as_slice(), b"{}\n", b"\"Nothing\"\n", &[0xff; 4096], b"[[[[[["][n % 5];
            let _ = stream.write_all(words);
        }
        let mut long = connect();
        for _ in 0..100 {
            if long.write_all(&[b'x'; 1 << 16]).is_err() {
                break;
            }
        }
        all.push(long);
        all
    });
    assert!(agent.snapshot(&world.host).is_ok());
    drop(odd);
    wait_for("it answers", LIMIT, || {
        let told = once(&world.host, &[]).1;
        if told.contains(FROM_THE_AGENT) { Ok(()) } else { Err(told) }
    });
}
