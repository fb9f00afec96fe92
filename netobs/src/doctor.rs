//! `netobs doctor`: what this host has of what netobs needs, line by line, with what to do.

use std::{
    fmt, fs, io::Write as _, net::SocketAddr, os::unix::net::UnixStream, path::Path, process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    cli::{DoctorArgs, KubernetesArgs, LISTEN},
    ebpf::{AttachMode, EventOptions, Observer, Options, first_line},
    observe,
    output::format::escape,
    privileges, running,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    /// Works, with less.
    Less,
    /// netobs does not run here.
    Bad,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Less => "less",
            Self::Bad => "FAIL",
        })
    }
}

/// One line: what was looked at, what was found, what to do about it.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    subject: &'static str,
    found: String,
    advice: Option<String>,
}

/// Oldest kernel that the programs are for: array maps in user memory (5.5), `gso_size` (5.7), `CAP_BPF` (5.8).
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// First kernel with TCX.
const TCX_KERNEL: (u32, u32) = (6, 6);

/// # Errors
/// Only when the output cannot be written. The exit code tells whether netobs can run here.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut findings = vec![kernel(&args.proc_root), btf()];
    findings.extend(capabilities());
    findings.push(programs());
    findings.extend(engines(&args.engines, &args.runtimes)?);
    findings.extend(kubernetes(&args.kubernetes)?);
    findings.extend(agent(args.agent)?);
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{:4}  {:12}  {}", finding.verdict, finding.subject, finding.found)?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "{:20}→ {advice}", "")?;
        }
    }
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    Ok(if worst == Verdict::Bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn kernel(proc_root: &Path) -> Finding {
    let release = fs::read_to_string(proc_root.join("sys/kernel/osrelease")).unwrap_or_default();
    let release = release.trim();
    let version = version(release);
    let (verdict, attach, advice) = match version {
        Some(version) if version < OLDEST_KERNEL => {
            (Verdict::Bad, "too old", Some("needs Linux 5.10 or later".to_owned()))
        }
        Some(version) if version >= TCX_KERNEL => (Verdict::Ok, "clsact and TCX", None),
        Some(_) => (Verdict::Ok, "clsact; TCX needs 6.6", None),
        None => (Verdict::Less, "version not understood", None),
    };
    Finding { verdict, subject: "kernel", found: format!("{release} ({attach})"), advice }
}

/// # Errors
/// On a kernel that is too old, and says which is not.
pub fn require_kernel(proc_root: &Path) -> anyhow::Result<()> {
    let kernel = kernel(proc_root);
    if kernel.verdict == Verdict::Bad {
        anyhow::bail!("kernel {}: {}", kernel.found, kernel.advice.unwrap_or_default());
    }
    Ok(())
}

/// `6.18.44-fc` is (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf() -> Finding {
    let found = Path::new("/sys/kernel/btf/vmlinux").exists();
    Finding {
        verdict: if found { Verdict::Ok } else { Verdict::Less },
        subject: "BTF",
        found: if found { "/sys/kernel/btf/vmlinux" } else { "the kernel has no type information" }
            .to_owned(),
        advice: (!found).then(|| {
            "counting works without; drops, and how TCP connections fare, are not known. Kernels with CONFIG_DEBUG_INFO_BTF=y have it"
                .to_owned()
        }),
    }
}

fn capabilities() -> Vec<Finding> {
    let missing = privileges::missing();
    privileges::NEEDS
        .iter()
        .map(|need| {
            let is_missing = missing.contains(need);
            let name = match need.or {
                Some(or) => format!("{} or {or}", need.capability),
                None => need.capability.to_string(),
            };
            Finding {
                verdict: match (is_missing, need.required) {
                    (false, _) => Verdict::Ok,
                    (true, false) => Verdict::Less,
                    (true, true) => Verdict::Bad,
                },
                subject: "privilege",
                found: format!("{name}{}, to {}", if is_missing { " is missing" } else { "" }, need.purpose),
                advice: is_missing.then(privileges::how_to_grant),
            }
        })
        .collect()
}

/// Loads the programs, attaches nothing.
fn programs() -> Finding {
    match Observer::load(Options {
        max_interfaces: 1,
        mode: AttachMode::Auto,
        max_flows: 1,
        events: EventOptions { dns: true, arp: true, ..EventOptions::default() },
        log: false,
    }) {
        Ok(_) => Finding {
            verdict: Verdict::Ok,
            subject: "programs",
            found: "the kernel accepts them".to_owned(),
            advice: None,
        },
        Err(error) => Finding {
            verdict: Verdict::Bad,
            subject: "programs",
            found: first_line(&error),
            advice: Some(if privileges::missing().iter().any(|need| need.required) {
                "see the privileges above".to_owned()
            } else {
                "a kernel that refuses them is a bug: please report it with this output".to_owned()
            }),
        },
    }
}

fn engines(named: &[String], runtimes: &[String]) -> anyhow::Result<Vec<Finding>> {
    let tasks = observe::engines(named, runtimes)?;
    let mut findings: Vec<Finding> = tasks
        .iter()
        .map(|task| {
            let socket = task.socket.display();
            match UnixStream::connect(&task.socket) {
                Ok(_) => Finding {
                    verdict: Verdict::Ok,
                    subject: "engine",
                    found: format!("{} at {socket}", task.name),
                    advice: None,
                },
                Err(error) => Finding {
                    verdict: Verdict::Less,
                    subject: "engine",
                    found: format!("{} at {socket}: {error}", task.name),
                    advice: Some(match error.kind() {
                        std::io::ErrorKind::PermissionDenied => {
                            "run as root, or as a member of the group that owns the socket".to_owned()
                        }
                        _ => "without an engine, containers are found by /proc and have no names".to_owned(),
                    }),
                },
            }
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding {
            verdict: Verdict::Less,
            subject: "engine",
            found: "none found".to_owned(),
            advice: Some("name one with --engine unix:///path/to.sock".to_owned()),
        });
    }
    Ok(findings)
}

/// Whether its API tells what netobs asks. Nothing where we are in no pod.
fn kubernetes(args: &KubernetesArgs) -> anyhow::Result<Vec<Finding>> {
    let Some(api) = observe::kubernetes(args)? else { return Ok(Vec::new()) };
    let found = observe::runtime()?.block_on(api.check());
    let finding = |(feature, result): (&str, Result<(), String>)| {
        let what = feature.trim_start_matches("kubernetes ");
        Finding {
            verdict: if result.is_ok() { Verdict::Ok } else { Verdict::Less },
            subject: "kubernetes",
            found: match &result {
                Ok(()) => format!("the API tells of {what}"),
                Err(why) => format!("the API does not tell of {what}: {}", escape(why)),
            },
            advice: result.is_err().then(|| {
                "counting works without, and workloads are known by their labels; docs/deploy.md has the role that it \
                 takes"
                    .to_owned()
            }),
        }
    };
    Ok(found.into_iter().map(finding).collect())
}

/// How the agent that runs here fares: whether all is attached, and its counters are the kernel's.
/// Without an address, that which can be asked locally.
fn agent(address: Option<SocketAddr>) -> anyhow::Result<Vec<Finding>> {
    let finding = |verdict, found: String, advice: Option<&str>| Finding {
        verdict,
        subject: "agent",
        found,
        advice: advice.map(str::to_owned),
    };
    let runtime = observe::runtime()?;
    let local = address.is_none().then(|| runtime.block_on(ask_locally()));
    let address = address.unwrap_or(LISTEN);
    let told = match local {
        Some(Ok(snapshot)) => Ok(snapshot),
        // One that is there and does not answer, as one of another version, may do so there.
        Some(Err(error)) if !is_nobody(&error) => runtime.block_on(ask(address)).map_err(|_| error),
        _ => runtime.block_on(ask(address)),
    };
    let snapshot = match told {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let is_none = is_nobody(&error);
            let found = if is_none { "none runs".to_owned() } else { format!("{error:#}") };
            let verdict = if is_none { Verdict::Ok } else { Verdict::Less };
            let advice = (!is_none).then_some("--agent ADDRESS asks another");
            return Ok(vec![finding(verdict, format!("{found} at {address}"), advice)]);
        }
    };
    let mut findings = Vec::new();
    let health = &snapshot["agent"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let unattached = health["unattached"].as_array().map_or(0, Vec::len);
    let again: u64 =
        health["reattached"].as_object().into_iter().flat_map(|all| all.values()).map(count).sum();
    let attached = count(&health["attached_interfaces"]);
    let found = format!("attached {attached} times, not {unattached}, again {again} after others' doing");
    let verdict = if unattached == 0 { Verdict::Ok } else { Verdict::Less };
    let advice = (unattached > 0).then_some("`netobs watch --once` says which are not, and why");
    findings.push(finding(verdict, found, advice));
    for pair in health["degraded"].as_array().into_iter().flatten() {
        let [feature, why] = [0, 1].map(|at| escape(pair[at].as_str().unwrap_or("?")));
        let found = format!("degraded: {feature}: {why}");
        findings.push(finding(Verdict::Less, found, None));
    }
    let differences = differences(&snapshot);
    let differing: Vec<&str> =
        differences.iter().filter(|(_, packets)| *packets != 0).map(|(name, _)| name.as_str()).collect();
    let packets: u64 = differences.iter().map(|(_, packets)| packets).sum();
    findings.push(match differing.as_slice() {
        [] => finding(
            Verdict::Ok,
            format!("counters of {} interfaces held against the kernel's: they agree", differences.len()),
            None,
        ),
        names => finding(
            Verdict::Less,
            format!("counters differ from the kernel's by {packets} packets: {}", names.join(", ")),
            Some("packets passed that were not counted, or twice: please report it with this output"),
        ),
    });
    Ok(findings)
}

/// Interfaces that were compared, and by how many packets they differ.
fn differences(snapshot: &Value) -> Vec<(String, u64)> {
    let inside = snapshot["containers"].as_array().into_iter().flatten();
    let inside = inside.flat_map(|container| container["interfaces"].as_array().into_iter().flatten());
    let all = snapshot["interfaces"].as_array().into_iter().flatten().chain(inside);
    all.filter(|one| one["difference"].is_object())
        .map(|one| {
            let of = |field: &str| one["difference"][field].as_i64().unwrap_or(0).unsigned_abs();
            let name = one["name"].as_str().unwrap_or("?");
            (escape(name), of("rx_packets") + of("tx_packets"))
        })
        .collect()
}

/// Whether there was nobody to ask.
fn is_nobody(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|error| error.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// A snapshot of the agent of this network namespace, if it is of this version and user.
async fn ask_locally() -> anyhow::Result<Value> {
    Ok(serde_json::to_value(running::snapshot().await?)?)
}

/// A snapshot of a running agent, by HTTP.
async fn ask(address: SocketAddr) -> anyhow::Result<Value> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender.
        tokio::spawn(connection);
        let request = Request::get("/api/v1/snapshot").header(HOST, address.to_string());
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        anyhow::ensure!(response.status().is_success(), "it answers {}", response.status());
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    });
    answer.await.map_err(|_| anyhow::anyhow!("no answer in {} s", ANSWER_LIMIT.as_secs()))?
}

/// How long a running agent may take to answer, and how much it may say.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
const LONGEST_ANSWER: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_refused_by_name() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir_all(root.path().join("sys/kernel"))?;
        fs::write(root.path().join("sys/kernel/osrelease"), "4.19.0-27-amd64\n")?;
        let message = require_kernel(root.path()).map_err(|error| error.to_string());
        assert_eq!(message, Err("kernel 4.19.0-27-amd64 (too old): needs Linux 5.10 or later".to_owned()));
        fs::write(root.path().join("sys/kernel/osrelease"), "5.10.0\n")?;
        assert!(require_kernel(root.path()).is_ok());
        Ok(())
    }

    #[test]
    fn kernel_releases() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert_eq!(version("strange"), None);
    }
}
