//! A Docker engine for the tests: the one that runs, or one of our own for as long as they last.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::process::{find, is_root, output, run};

const START_LIMIT: Duration = Duration::from_secs(60);

/// An engine that answers. One that was started here ends with the value.
pub struct Engine {
    /// For `$DOCKER_HOST`.
    pub host: String,
    own: Option<Own>,
}

struct Own {
    daemon: Child,
    folder: PathBuf,
}

impl Engine {
    /// # Errors
    /// Says why there is none and none could be started.
    pub fn get() -> anyhow::Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        if answers(&host) && find("docker").is_some() {
            return Ok(Self { host, own: None });
        }
        if find("dockerd").is_none() || find("docker").is_none() {
            if !is_root() || find("apt-get").is_none() {
                bail!("no engine answers at {host}, and none can be installed");
            }
            run(Command::new("apt-get").args([
                "install",
                "-y",
                "-qq",
                "--no-install-recommends",
                "docker.io",
                "iptables",
            ]))?;
        }
        Self::start()
    }

    fn start() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("netobs-engine-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let socket = folder.join("docker.sock");
        let log = fs::File::create(folder.join("log"))?;
        fs::write(folder.join("daemon.json"), "{}")?;
        let daemon = Command::new("dockerd")
            .arg(format!("--host=unix://{}", socket.display()))
            // The machine's own /etc/docker/daemon.json is for its own engine, and conflicts with these.
            .arg(format!("--config-file={}", folder.join("daemon.json").display()))
            .arg(format!("--data-root={}", folder.join("data").display()))
            .arg(format!("--exec-root={}", folder.join("exec").display()))
            .arg(format!("--pidfile={}", folder.join("pid").display()))
            .arg("--storage-driver=vfs")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let mut engine =
            Self { host: format!("unix://{}", socket.display()), own: Some(Own { daemon, folder }) };
        let end = Instant::now() + START_LIMIT;
        while !answers(&engine.host) {
            let ended = engine.own.as_mut().is_some_and(|own| matches!(own.daemon.try_wait(), Ok(Some(_))));
            if ended || Instant::now() > end {
                let log = engine.own.as_ref().map(|own| own.log()).unwrap_or_default();
                bail!("dockerd did not start:\n{log}");
            }
            sleep(Duration::from_millis(100));
        }
        println!("started an engine of our own at {}", engine.host);
        Ok(engine)
    }
}

impl Own {
    /// The log's last lines.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let pid = self.daemon.id().to_string();
        // It ends its containers and its containerd.
        if run(Command::new("kill").args(["-TERM", &pid])).is_ok() {
            let end = Instant::now() + Duration::from_secs(20);
            while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < end {
                sleep(Duration::from_millis(100));
            }
        }
        // Has ended, as a rule; if not, it is ours to end.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn answers(host: &str) -> bool {
    let Some(path) = host.strip_prefix("unix://") else { return false };
    UnixStream::connect(Path::new(path)).is_ok()
        && output(
            Command::new("docker")
                .args(["version", "--format", "{{.Server.Version}}"])
                .env("DOCKER_HOST", host),
        )
        .is_ok()
}
