//! The image, by the real engine: alone, and beside Prometheus as the Compose file has it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use netobs_tests::{
    bpffs::Bpffs,
    docker::{self, Container, docker},
    http,
    program::{LIMIT, LOADED, free_port},
    prometheus::sample,
    unique, wait_for,
};

/// What runs netobs needs to be no larger.
const MAX_BYTES: u64 = 15_000_000;

/// The image that the test command has built; if there is none, the test is noted as skipped.
fn image(test: &str) -> Option<String> {
    let tag = std::env::var("NETOBS_IMAGE").ok();
    if tag.is_none() {
        netobs_tests::skip(test, "no image: `cargo xtask image` builds it, NETOBS_IMAGE names it");
    }
    tag.filter(|_| docker::available(test))
}

/// A container of netobs, removed with the value.
struct Netobs(String);

impl Netobs {
    /// As docs/deploy.md has it.
    fn run(image: &str, port: u16, bpffs: &Bpffs) -> Self {
        let name = unique("netobs");
        let listen = format!("127.0.0.1:{port}");
        let command = ["agent", "--pin", "--listen", &listen];
        let netobs = Self(name);
        let output = Self::docker(&["run", "-d", "--name", &netobs.0], image, bpffs, &command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        netobs
    }

    fn docker(run: &[&str], image: &str, bpffs: &Bpffs, command: &[&str]) -> Output {
        let volumes = [
            format!("--volume={}:/sys/fs/bpf", bpffs.path().display()),
            format!("--volume={}:/var/run/docker.sock:ro", docker::socket().display()),
        ];
        let options = [
            "--network=host",
            "--pid=host",
            "--read-only",
            "--cap-drop=ALL",
            "--cap-add=SYS_ADMIN",
            "--cap-add=NET_ADMIN",
            "--cap-add=SYS_PTRACE",
            "--cap-add=SYSLOG",
            "--security-opt=no-new-privileges",
            "--security-opt=apparmor=unconfined",
            &volumes[0],
            &volumes[1],
            image,
        ];
        docker::try_docker(&[run, &options, command].concat())
    }
}

/// What netobs pins on the host, its filters too; given up with the value.
struct Pins<'a> {
    image: &'a str,
    bpffs: &'a Bpffs,
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        Netobs::docker(&["run", "--rm"], self.image, self.bpffs, &["cleanup"]);
    }
}

impl Drop for Netobs {
    fn drop(&mut self) {
        docker::try_docker(&["rm", "-f", &self.0]);
    }
}

fn metrics(port: u16) -> Result<String, String> {
    match http::get(port, "/metrics") {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{other:?}")),
    }
}

fn pings(port: u16, container: &str) -> Result<f64, String> {
    let labels = [&*format!("container=\"{container}\""), "protocol=\"icmp\""].map(str::to_owned);
    sample(
        &metrics(port)?,
        "netobs_container_protocol_transmit_packets_total",
        &labels.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .ok_or_else(|| "no such series".to_owned())
}

#[test]
fn counts_what_a_container_sends() {
    let Some(image) = image("image") else { return };
    let size: u64 = docker(&["image", "inspect", "--format", "{{.Size}}", &image]).parse().expect("a size");
    assert!(size < MAX_BYTES, "{size} bytes");
    let bpffs = Bpffs::new();
    let pinned = Pins { image: &image, bpffs: &bpffs };
    let b = Container::run("sends", &[]);
    let gateway = b.inspect("{{.NetworkSettings.Gateway}}");
    let port = free_port();
    let netobs = Netobs::run(&image, port, &bpffs);
    wait_for("readiness", LOADED, || match http::get(port, "/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?} {}", docker(&["logs", "--tail", "5", &netobs.0]))),
    });
    let ping = || b.exec(&["ping", "-q", "-c", "7", "-i", "0.05", &gateway]);
    ping();
    wait_for("7 pings, by the container's name", LIMIT, || match pings(port, &b.name)? {
        7.0 => Ok(()),
        other => Err(format!("{other}")),
    });
    let logs = docker::try_docker(&["logs", &netobs.0]);
    let logs = String::from_utf8_lossy(&logs.stderr).into_owned();
    assert!(!logs.contains("WARN") && !logs.contains("ERROR"), "{logs}");

    // Killed and another in its place: counting went on.
    docker(&["kill", "--signal", "KILL", &netobs.0]);
    ping();
    drop(netobs);
    let again = Netobs::run(&image, port, &bpffs);
    wait_for("14 pings", LOADED, || match pings(port, &b.name)? {
        14.0 => Ok(()),
        other => Err(format!("{other}")),
    });
    drop(again);
    let pins = bpffs.folder();
    assert!(pins.exists());
    drop(pinned);
    assert!(!pins.exists());
}

/// The Compose file with ports, folders and images of the test's own, taken down with the value.
struct Project {
    name: String,
    folder: tempfile::TempDir,
    images: [(&'static str, String); 2],
}

impl Project {
    fn up(netobs: &str, prometheus: &str, ports: [u16; 2], bpffs: &Bpffs) -> Self {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let folder = tempfile::tempdir().expect("a folder");
        for file in ["compose/docker-compose.yml", "compose/prometheus.yml", "prometheus/netobs.rules.yml"] {
            let to = folder.path().join(file);
            fs::create_dir_all(to.parent().expect("a folder")).expect("make a folder");
            let text = fs::read_to_string(deploy.join(file)).expect(file);
            let text = text
                .replace("9810", &ports[0].to_string())
                .replace("9090", &ports[1].to_string())
                .replace("- /sys/fs/bpf:", &format!("- {}:", bpffs.path().display()))
                .replace("scrape_interval: 15s", "scrape_interval: 1s");
            fs::write(to, text).expect("write");
        }
        let images = [("NETOBS_IMAGE", netobs.to_owned()), ("PROMETHEUS_IMAGE", prometheus.to_owned())];
        let project = Self { name: unique("compose"), folder, images };
        let output = project.compose(&["up", "-d"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        project
    }

    fn compose(&self, arguments: &[&str]) -> Output {
        Command::new("docker-compose")
            .args(["--project-name", &self.name])
            .args(arguments)
            .envs(self.images.iter().cloned())
            .current_dir(self.folder.path().join("compose"))
            .output()
            .expect("run docker-compose")
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.compose(&["down", "--volumes"]);
    }
}

/// The distribution's Prometheus and the libraries that it needs.
struct PrometheusImage(String);

impl PrometheusImage {
    fn new(program: &Path) -> Self {
        let tag = format!("{}:1", unique("prometheus"));
        let script = "set -e; root=$(mktemp -d); trap 'rm -rf $root' EXIT; \
             mkdir -p $root/bin $root/tmp $root/etc $root/prometheus; cp $1 $root/bin/prometheus; \
             for library in $(ldd $1 | grep -o '/[^ ]*'); do cp -L --parents $library $root; done; \
             tar -C $root -c . | docker import --change 'ENTRYPOINT [\"/bin/prometheus\"]' - $2";
        let output =
            Command::new("sh").args(["-c", script, "sh"]).arg(program).arg(&tag).output().expect("run sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(tag)
    }
}

impl Drop for PrometheusImage {
    fn drop(&mut self) {
        docker::try_docker(&["rmi", "-f", &self.0]);
    }
}

#[test]
fn the_compose_file_brings_both_up() {
    let Some(image) = image("compose") else { return };
    let prometheus = PathBuf::from("/usr/bin/prometheus");
    let has_compose = Command::new("docker-compose").arg("version").output().is_ok();
    if !has_compose || !prometheus.exists() {
        netobs_tests::skip("compose", "no docker-compose or no prometheus");
        return;
    }
    let prometheus = PrometheusImage::new(&prometheus);
    let bpffs = Bpffs::new();
    let _pinned = Pins { image: &image, bpffs: &bpffs };
    let ports = [free_port(), free_port()];
    let project = Project::up(&image, &prometheus.0, ports, &bpffs);
    wait_for("Prometheus has scraped netobs", LOADED, || {
        let answer = http::get(ports[1], "/api/v1/query?query=up");
        match answer {
            Ok((200, body)) if body.contains("\"netobs\"") && body.contains(",\"1\"]") => Ok(()),
            other => Err(format!(
                "{other:?}\n{}",
                String::from_utf8_lossy(&project.compose(&["logs", "--tail", "20"]).stdout)
            )),
        }
    });
    let (_, rules) = http::get(ports[1], "/api/v1/rules").expect("rules");
    assert!(rules.contains("NetobsDown"), "{rules}");
}
