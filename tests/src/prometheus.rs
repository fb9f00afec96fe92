//! A real Prometheus server, and its own checks of what it scrapes.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{
    http,
    netns::die_with_parent,
    program::{LIMIT, free_port},
    wait_for,
};

/// What promtool has to say against an exposition.
///
/// # Panics
/// If it has anything to say.
pub fn promtool_check(exposition: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    promtool.stdin.take().expect("a pipe").write_all(exposition.as_bytes()).expect("write to promtool");
    let output = promtool.wait_with_output().expect("wait for promtool");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
}

/// The value of the first sample of a metric whose labels have all of these parts.
pub fn sample(exposition: &str, metric: &str, labels: &[&str]) -> Option<f64> {
    exposition.lines().find_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let (found, value) = rest.strip_prefix('{')?.rsplit_once("} ")?;
        labels.iter().all(|label| found.contains(label)).then(|| value.parse().ok()).flatten()
    })
}

/// A server of its own.
pub struct Server {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

/// A rule of `deploy/prometheus/fewer-series.yml`.
#[derive(Clone, Debug)]
pub struct Fewer {
    /// What it drops, by the comment before it.
    pub what: String,
    /// YAML, in one line.
    pub rule: String,
}

/// That file.
///
/// # Panics
/// Outside of the repository.
pub fn fewer_series_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/fewer-series.yml")
}

/// The rules that make fewer series, in their order.
///
/// # Panics
/// If the file is not there, or a rule has no comment.
pub fn fewer_series() -> Vec<Fewer> {
    let text = std::fs::read_to_string(fewer_series_file()).expect("the rules");
    let (_, rules) = text.split_once("metric_relabel_configs:\n").expect("rules");
    let lines: Vec<&str> = rules.lines().map(str::trim).collect();
    lines
        .chunks(2)
        .map(|pair| Fewer {
            what: pair[0].strip_prefix("# ").expect("what it drops").to_owned(),
            rule: pair[1].strip_prefix("- ").expect("a rule").to_owned(),
        })
        .collect()
}

impl Server {
    /// Scrapes each second; `jobs` are items of a list in YAML.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(jobs: &str) -> Self {
        Self::start_with_rules(jobs, "")
    }

    /// As [`Self::start`], and evaluates the rules of these files (a list in YAML) each second.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with_rules(jobs: &str, files: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{files}]\nscrape_configs:\n{jobs}"
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, configuration).expect("write the configuration");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--web.enable-admin-api")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = die_with_parent(&mut command).spawn().expect("start prometheus");
        Self { child, port, folder }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps what it has scraped.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metrics(&self) -> Result<String, String> {
        http::get(self.port, "/metrics").map(|(_, body)| body).map_err(|error| error.to_string())
    }

    /// Makes a block of all that it has scraped so far; its folder.
    ///
    /// # Panics
    /// If it does not.
    pub fn block(&self) -> PathBuf {
        let (_, body) = http::ask(self.port, "POST", "/api/v1/admin/tsdb/snapshot", "").expect("an answer");
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        let name = answer["data"]["name"].as_str().unwrap_or_else(|| panic!("no snapshot: {answer}"));
        let folder = self.data().join("snapshots").join(name);
        let mut blocks = std::fs::read_dir(folder).expect("a snapshot");
        blocks.next().expect("a block").expect("a folder").path()
    }

    /// Its rules, once all of them have been evaluated.
    ///
    /// # Panics
    /// If that is not so in time.
    pub fn rules(&self) -> Vec<Value> {
        wait_for("rules", LIMIT, || {
            let (_, body) = http::get(self.port, "/api/v1/rules").map_err(|error| error.to_string())?;
            let answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
            let rules: Vec<Value> =
                groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect();
            if rules.iter().all(|rule| rule["health"] == "ok") { Ok(rules) } else { Err(body) }
        })
    }

    /// The values that a query gives now.
    ///
    /// # Errors
    /// If it gives none.
    pub fn query(&self, query: &str) -> Result<Vec<f64>, String> {
        let encoded: String = query
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            })
            .collect();
        let (status, body) = http::get(self.port, &format!("/api/v1/query?query={encoded}"))
            .map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(body);
        }
        let answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(results.iter().filter_map(|result| result["value"][1].as_str()?.parse().ok()).collect())
    }

    /// Waits until a query gives exactly one value that is as wanted.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn until(&self, query: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        wait_for(query, LIMIT, || match self.query(query)?.as_slice() {
            [value] if wanted(*value) => Ok(*value),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
