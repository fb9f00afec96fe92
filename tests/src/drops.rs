//! Looking for dropped packets, and what the program under test says of them.

use std::{
    io::Read as _,
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::{
    http,
    netns::{Netns, die_with_parent},
    program::{Agent, LIMIT, LOADED, netobs},
    wait_for,
};

/// Whether the running kernel gives reasons (5.17).
pub fn has_reasons() -> bool {
    crate::kernel::release() >= (5, 17)
}

/// What a drop for this reason is called on the running kernel.
pub fn reason(name: &str) -> &str {
    if has_reasons() { name } else { "not told by this kernel" }
}

/// What the agent knows of drops now.
///
/// # Panics
/// If it does not say.
pub fn report(agent: &Agent) -> Value {
    let (status, body) = http::get(agent.port, "/api/v1/drops").expect("an answer");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Rows for which this holds.
pub fn rows(report: &Value, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
    report["rows"].as_array().expect("rows").iter().filter(|row| holds(row)).cloned().collect()
}

/// Packets of all these rows.
pub fn packets(rows: &[Value]) -> u64 {
    rows.iter().map(|row| row["packets"].as_u64().expect("packets")).sum()
}

/// An agent that looks for drops already, and knows its engines' containers.
pub struct Looking {
    pub agent: Agent,
}

impl Looking {
    /// # Panics
    /// If it does not come up.
    pub fn start(arguments: &[&str]) -> Self {
        let agent = Agent::start(arguments);
        wait_for("the agent to be ready", LIMIT, || match http::get(agent.port, "/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(report(&agent)["problem"], Value::Null);
        Self { agent }
    }

    /// Waits until a report has what is looked for.
    pub fn until<T>(&self, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        wait_for(what, LIMIT, || {
            let report = report(&self.agent);
            look(&report).ok_or_else(|| report.to_string())
        })
    }
}

/// Waits until a process looks for drops.
///
/// # Panics
/// If it is not in time.
pub fn looking(pid: u32) {
    wait_for("to look for drops", LOADED, || if looks(pid) { Ok(()) } else { Err("not yet".to_owned()) });
}

fn looks(pid: u32) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    // Of a link to a raw tracepoint.
    files.flatten().any(|file| {
        std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains("tp_name:\tkfree_skb"))
    })
}

/// `netobs drops` with its latest document (`--output json`), or all lines of another output.
pub struct Drops {
    child: Child,
}

impl Drops {
    /// Starts it; what it prints is given when it ends.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(host: Option<&Netns>, arguments: &[&str]) -> Self {
        let mut command = netobs(host);
        command.arg("drops").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: die_with_parent(&mut command).spawn().expect("start netobs drops") }
    }

    /// Waits until its program is in the kernel.
    ///
    /// # Panics
    /// If it ends before, or is not in time.
    pub fn looking(&mut self) {
        wait_for("netobs drops to look", LOADED, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                let mut said = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = stderr.read_to_string(&mut said);
                }
                panic!("{status}: {said}");
            }
            if looks(self.pid()) { Ok(()) } else { Err("not yet".to_owned()) }
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed, when it has ended by itself.
    ///
    /// # Panics
    /// If it fails.
    pub fn output(self) -> String {
        let output = self.child.wait_with_output().expect("wait for netobs drops");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}
