//! `cargo xtask vm`: the tests on kernels that are not this machine's.

mod guest;
mod kernel;
mod machine;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;

use self::{
    guest::{Guest, TestBinary},
    kernel::{KERNELS, Kernel},
    machine::End,
};
use crate::{
    apt,
    process::{output, root, run as run_command, target},
    rows,
};

/// Programs that are used, and the distribution's packages that have them.
const PROGRAMS: [(&str, &str); 11] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("strip", "binutils"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("pgrep", "procps"),
    ("sysctl", "procps"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("dpkg-deb", "dpkg"),
    ("setpriv", "util-linux"),
];

/// For `--kernel`: all that there are.
const ALL: &str = "all";

const USUAL_KERNEL: &str = "6.1";

/// Test binaries that are run if none is named: what this machine's kernel may not have, or may do otherwise, is in
/// these.
const TESTS: [&str; 6] = [MATRIX, "inside", "trace_filter", "drops", "trace_drops", "tcp"];

/// The one that is run on every kernel: a row of README's table.
const MATRIX: &str = "kernel";

/// The others, in halves that take about as long.
const HALVES: [&[&str]; 2] = [&["inside", "drops"], &["trace_filter", "trace_drops", "tcp"]];

/// Machines that run at a time, each in one thread.
const AT_ONCE: usize = 2;

/// What is not run here, and why.
const LEFT_OUT: [(&str, &str); 4] = [
    (
        "ten_gigabytes_of_tcp",
        "two minutes where every instruction is emulated; eight_streams_at_a_time is run",
    ),
    ("filters_are_the_same_as_of_packets", "nine traces at a time where every instruction is emulated"),
    ("pcapng_has_them_at_an_interface_of_their_own", "there is no tshark"),
    ("a_firewall_is_told_with_its_hook", "there is no iptables"),
];

/// Some times what all tests take where every instruction is emulated.
const LIMIT: Duration = Duration::from_secs(1200);

/// How much of the log is shown when a test fails.
const SHOWN_LINES: usize = 60;

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Options {
    /// Which kernels; got when first wanted, then kept below target/vm
    #[arg(long = "kernel", value_name = "VERSION", default_value = USUAL_KERNEL, value_parser = versions())]
    kernels: Vec<String>,
    /// Test binaries of the package netobs-tests
    #[arg(long = "test", value_name = "NAME", default_values = TESTS)]
    tests: Vec<String>,
    /// Passed on to the tests: a part of their names
    #[arg(last = true)]
    filter: Vec<String>,
}

/// What is run with all tests: the matrix, then all else on one kernel.
///
/// # Errors
/// If a test fails, or a machine does.
pub fn run_usual() -> anyhow::Result<()> {
    let of = |kernel: &str, tests: &[&str]| Options {
        kernels: vec![kernel.to_owned()],
        tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        filter: Vec::new(),
    };
    let matrix = run(&of(ALL, &[MATRIX]));
    let halves = HALVES.map(|tests| of(USUAL_KERNEL, tests));
    let halves = std::thread::scope(|scope| {
        let halves = halves.map(|options| scope.spawn(move || run(&options)));
        halves.map(|half| half.join().unwrap_or_else(|_| bail!("a thread has failed")))
    });
    std::iter::once(matrix).chain(halves).collect()
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let missing = apt::install_missing(&PROGRAMS);
    if !missing.is_empty() {
        bail!("not installed and not to be had: {}", missing.join(", "));
    }
    for (test, reason) in LEFT_OUT {
        println!("left out: {test}: {reason}");
    }
    let started = Instant::now();
    let folder = target().join("vm");
    let tests = build(&options.tests)?;
    // Two of these may run at the same time.
    let guest = folder.join(format!("guest-{}-{}", options.kernels.join("-"), options.tests.join("-")));
    let guest = Guest::build(&guest, &target().join("debug/netobs"), &tests, &arguments(&options.filter))?;
    let waiting = Mutex::new(chosen(&options.kernels));
    let failed = Mutex::new(BTreeMap::new());
    let next = || waiting.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((label, suite)) = next() {
                    if let Err(error) = run_on(label, suite, &guest, &options.tests, &folder) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).insert(label, error);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (tests, kernels) = (options.tests.join(", "), options.kernels.join(", "));
    println!("== {tests} on {kernels}: {} s", started.elapsed().as_secs());
    if !failed.is_empty() {
        let each = failed.iter().map(|(label, error)| format!("failed on {label}: {error:#}"));
        bail!("{}", each.collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

fn versions() -> PossibleValuesParser {
    PossibleValuesParser::new(KERNELS.iter().map(|(label, _)| *label).chain([ALL]))
}

fn chosen(wanted: &[String]) -> impl Iterator<Item = (&'static str, &'static str)> {
    KERNELS.into_iter().filter(|(label, _)| wanted.iter().any(|wanted| wanted == label || wanted == ALL))
}

/// As `cargo xtask test` builds them, so that neither builds again what the other has.
fn build(names: &[String]) -> anyhow::Result<Vec<TestBinary>> {
    run_command(
        Command::new("cargo").args(["build", "--locked", "--package", "netobs"]).current_dir(root()),
    )?;
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--locked", "--no-run", "--package", "netobs-tests", "--message-format=json"]);
    for name in names {
        cargo.args(["--test", name]);
    }
    let messages = output(cargo.current_dir(root()))?;
    let built = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let tests: Vec<_> = built
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let file = PathBuf::from(message["executable"].as_str()?);
            Some(TestBinary { name: message["target"]["name"].as_str()?.to_owned(), file })
        })
        .collect();
    Ok(tests)
}

/// What each test binary is called with.
fn arguments(filter: &[String]) -> Vec<String> {
    // One at a time: they tell containers of other tests from their own by nothing. With those that need
    // what this machine's kernel may not have.
    let mut arguments = vec!["--test-threads=1".to_owned(), "--include-ignored".to_owned()];
    arguments.extend(LEFT_OUT.iter().map(|(test, _)| format!("--skip={test}")));
    arguments.extend_from_slice(filter);
    arguments
}

fn run_on(
    label: &'static str,
    suite: &str,
    guest: &Guest,
    tests: &[String],
    folder: &Path,
) -> anyhow::Result<()> {
    let kernel = Kernel::get(label, suite)?;
    println!("{label}: booting {}", kernel.version);
    let initramfs = guest.initramfs(&kernel)?;
    let log = folder.join(format!("{label}-{}.log", tests.join("-")));
    let start = Instant::now();
    let end = machine::boot(&kernel.image, &initramfs, &log, LIMIT)?;
    let seconds = start.elapsed().as_secs();
    fs::remove_file(&initramfs)?;
    let lines = machine::read_log(&log)?;
    for line in lines.iter().filter(|line| line.starts_with("test result:") || line.starts_with(MARK)) {
        println!("{label}: {line}");
    }
    let rows: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(ROW)).collect();
    rows::add(&rows, &format!("Linux {}", kernel.version))?;
    let readme = fs::read_to_string(root().join("README.md"))?;
    let is_told =
        |()| if tests.iter().any(|test| test == MATRIX) { told(&readme, label, &rows) } else { Ok(()) };
    let verdict = judge(&lines, tests).and_then(is_told);
    if verdict.is_err() {
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            println!("    {line}");
        }
    }
    let ended = if end == End::TimeOver { format!("; ended after {LIMIT:?}") } else { String::new() };
    verdict.with_context(|| format!("after {seconds} s{ended}; the whole log is {}", log.display()))?;
    println!("{label}: passed on {} in {seconds} s", kernel.version);
    Ok(())
}

/// What is in the first line of a panic, of a test's or of the kernel's.
const PANICS: [&str; 3] = ["panicked at", "Oops: ", "Kernel panic"];

/// Lines of a panic: where, and what.
const PANIC_LINES: usize = 4;

/// How the guest begins what it tells us.
const MARK: &str = "netobs-vm:";

/// How it passes on a line of the table of network drivers, see `tests/src/lib.rs`.
const ROW: &str = "netobs-vm: row: ";

/// Only what the guest itself has said counts: every test binary ran to its end and passed.
fn judge(log: &[String], tests: &[String]) -> anyhow::Result<()> {
    for test in tests {
        let result = format!("{MARK} {test}: exit ");
        let code = log.iter().find_map(|line| line.strip_prefix(&result));
        match code {
            Some("0") => {}
            Some(code) => bail!("{test}: exit code {code}{}", panics(log)),
            None => bail!("{test}: no result{}", panics(log)),
        }
    }
    Ok(())
}

/// What a test, or the kernel, said when it gave up.
fn panics(log: &[String]) -> String {
    let begins = |line: &str| PANICS.iter().any(|begin| line.contains(begin));
    let begun = (0..log.len()).filter(|at| begins(&log[*at]));
    begun.flat_map(|at| log.iter().skip(at).take(PANIC_LINES)).map(|line| format!("\n    {line}")).collect()
}

/// What a kernel was found to have is what README's table says of it.
fn told(readme: &str, label: &str, rows: &[&str]) -> anyhow::Result<()> {
    let found = rows.iter().find_map(|row| row.strip_prefix(MATRIX)?.strip_prefix('\t'));
    let found = found.context("nothing was found of the kernel")?;
    let says =
        readme.lines().filter_map(|line| line.strip_prefix("| ")?.strip_prefix(label)?.split_once(" | "));
    let mut says = says.map(|(_, cells)| cells.trim_end_matches(" |"));
    match says.next() {
        Some(cells) if cells == found => Ok(()),
        other => bail!("README's table has of {label}: {other:?}; it should be {found:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tests_are_run() {
        let mut run = HALVES.concat();
        run.push(MATRIX);
        run.sort_unstable();
        let mut all = TESTS;
        all.sort_unstable();
        assert_eq!(run, all);
    }

    #[test]
    fn readme_tells_what_was_found() {
        let readme = "| kernel | attached by |\n|---|---|\n| 6.1, Debian 12 | clsact | yes |\n";
        let told = |label, row: &str| told(readme, label, &[row]).is_ok();
        assert!(told("6.1", "kernel\tclsact | yes") && !told("6.1", "macvlan\tpings"));
        assert!(!told("6.1", "kernel\tclsact | no") && !told("5.10", "kernel\tclsact | yes"));
    }

    #[test]
    fn readme_tells_of_the_kernels_that_are_booted() {
        let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
        let table = readme.lines().skip_while(|line| !line.starts_with("| kernel | attached by |")).skip(2);
        let told: Vec<&str> = table.map_while(|line| line.strip_prefix("| ")?.split(',').next()).collect();
        assert_eq!(told, KERNELS.map(|(label, _)| label));
    }

    fn verdict(log: &str) -> Result<(), String> {
        let log: Vec<_> = log.lines().map(str::to_owned).collect();
        judge(&log, &["netns".to_owned(), "inside".to_owned()]).map_err(|error| error.to_string())
    }

    #[test]
    fn passed_is_what_the_guest_calls_passed() {
        assert_eq!(verdict("netobs-vm: inside: exit 0\nnetobs-vm: netns: exit 0\n"), Ok(()));
    }

    #[test]
    fn anything_else_is_not() {
        let failed = "netobs-vm: inside: exit 0\nnetobs-vm: netns: exit 101\n";
        assert_eq!(verdict(failed), Err("netns: exit code 101".to_owned()));
        let panicked = "netobs-vm: netns: exit 0\nKernel panic - not syncing\n";
        assert_eq!(verdict(panicked), Err("inside: no result\n    Kernel panic - not syncing".to_owned()));
        let failed = "it panicked at tests/netns.rs:7:5:\nleft: 1\nnetobs-vm: netns: exit 101\n";
        let told = verdict(failed).expect_err("it failed");
        let begins = "netns: exit code 101\n    it panicked at tests/netns.rs:7:5:\n    left: 1\n";
        assert!(told.starts_with(begins), "{told}");
        assert!(verdict("test said netobs-vm: netns: exit 0").is_err());
    }
}
