//! Containers and networks on a real engine, removed with their values.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use crate::unique;

/// Image of the tests: busybox and nothing else, made once and kept.
pub const IMAGE: &str = "netobs-test:1";

/// Whether an engine answers; if not, the test is noted as skipped.
pub fn available(test: &str) -> bool {
    let there = Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success());
    if !there {
        crate::skip(test, "no container engine answers");
    }
    there
}

/// Where the engine listens.
pub fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    PathBuf::from(host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock"))
}

/// Runs `docker` and returns what it prints.
///
/// # Panics
/// If it fails.
pub fn docker(arguments: &[&str]) -> String {
    let output = try_docker(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "docker {arguments:?}: {}\n{out}{err}", output.status);
    out.trim().to_owned()
}

/// # Panics
/// If there is no `docker`.
pub fn try_docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().expect("run docker")
}

/// Makes the image if it is not there.
///
/// # Panics
/// If it cannot be made.
pub fn image() {
    if try_docker(&["image", "inspect", IMAGE]).status.success() {
        return;
    }
    import_image(Command::new("docker"));
}

/// Makes the image by an engine's command line, up to where `import` comes.
///
/// # Panics
/// If it cannot be made.
pub(crate) fn import_image(engine: Command) {
    let script = "set -e; root=$(mktemp -d); trap 'rm -rf $root' EXIT; \
         mkdir $root/bin $root/tmp $root/etc $root/proc $root/www; \
         cp $(command -v busybox) $root/bin/busybox; \
         for applet in sh ping sleep httpd wget nc true cat dd; do ln -s busybox $root/bin/$applet; done; \
         tar -C $root -c . | \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(engine.get_program()).args(engine.get_args());
    command.args(["import", "-", IMAGE]);
    for (name, value) in engine.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().expect("run sh");
    assert!(output.status.success(), "make the image: {}", String::from_utf8_lossy(&output.stderr));
}

/// A container, removed with its value.
pub struct Container {
    pub name: String,
    pub id: String,
}

impl Container {
    /// `docker run -d` with these options, then `sleep`.
    pub fn run(name: &str, options: &[&str]) -> Self {
        Self::run_command(name, options, &["sleep", "1000"])
    }

    pub fn run_command(name: &str, options: &[&str], command: &[&str]) -> Self {
        image();
        let name = unique(name);
        let mut arguments = vec!["run", "-d", "--name", name.as_str()];
        arguments.extend(options);
        arguments.push(IMAGE);
        arguments.extend(command);
        // The value first: a container that cannot be started is there all the same.
        let mut container = Self { name: name.clone(), id: String::new() };
        container.id = docker(&arguments);
        container
    }

    /// Runs a command inside; what it prints.
    pub fn exec(&self, command: &[&str]) -> String {
        let mut arguments = vec!["exec", self.name.as_str()];
        arguments.extend(command);
        docker(&arguments)
    }

    pub fn inspect(&self, format: &str) -> String {
        docker(&["inspect", "--format", format, &self.name])
    }

    /// Its address on a network.
    pub fn address(&self, network: &str) -> String {
        self.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        try_docker(&["rm", "-f", &self.name]);
    }
}

/// A user-defined network, removed with its value.
pub struct Network {
    pub name: String,
    pub id: String,
}

impl Network {
    pub fn new(name: &str, options: &[&str]) -> Self {
        let name = unique(name);
        let mut arguments = vec!["network", "create"];
        arguments.extend(options);
        arguments.push(&name);
        let id = docker(&arguments);
        Self { name, id }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Not every name gets through the engine's URL.
        try_docker(&["network", "rm", &self.id]);
    }
}
