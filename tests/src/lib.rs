//! What the tests share: namespaces to play in, the program as a user runs it, real containers, and exact
//! comparison with the kernel's counters.
//!
//! Everything made here ends with its value, and with the test process at the latest.

pub mod background;
pub mod booted;
pub mod bpf;
pub mod bpffs;
pub mod bridged;
pub mod collector;
pub mod containerd;
pub mod dns;
pub mod docker;
pub mod dockerd;
pub mod drops;
pub mod filters;
pub mod frames;
pub mod http;
pub mod kernel;
pub mod kubernetes;
pub mod netns;
pub mod node;
pub mod podman;
pub mod pretend;
pub mod program;
pub mod prometheus;
pub mod proxy;
pub mod random_frames;
pub mod reference;
pub mod relay;
pub mod runtime;
pub mod terminal;
pub mod test_run;
pub mod trace;
pub mod traces;
pub mod traffic;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Asks again until the answer is there; the last answer's reason if it is not by then. `NETOBS_TEST_PATIENCE`
/// says how many times as long as that it may take, for machines where every instruction is emulated.
///
/// # Panics
/// When the time is over.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let patience = std::env::var("NETOBS_TEST_PATIENCE").map_or(1, |times| times.parse().expect("a number"));
    let limit = limit * patience;
    let end = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(reason) if Instant::now() > end => panic!("{what}: not within {limit:?}: {reason}"),
            Err(_) => sleep(Duration::from_millis(20)),
        }
    }
}

/// A name that two runs at the same time do not share.
pub fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("nbt{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Notes that a test could not run here; the test command counts these.
pub fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    eprintln!("SKIP {test}: {why}");
    if let Some(file) = std::env::var_os("NETOBS_TEST_SKIPS") {
        let line = format!("SKIP {test}: {why}\n");
        let written = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(written.is_ok(), "note a skipped test: {written:?}");
    }
}

/// Notes a row of the table of network drivers, after all of it was seen; the test command prints them.
///
/// # Panics
/// If it cannot be noted.
pub fn row(driver: &str, seen: &str) {
    use std::io::Write as _;
    println!("ROW {driver}: {seen}");
    if let Some(file) = std::env::var_os("NETOBS_TEST_ROWS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).expect("open");
        writeln!(file, "{driver}\t{seen}").expect("note a row");
    }
}
