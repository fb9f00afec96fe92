//! Which engines there are to ask, and what they are called.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{EngineTask, cri};

const DOCKER_SOCKET: &str = "/var/run/docker.sock";
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";

/// What is spoken at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Docker's; Podman has it too.
    Docker,
    /// Kubernetes' Container Runtime Interface.
    Cri,
}

/// What an engine is, whatever it is called and wherever its socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
    Containerd,
    CriO,
    /// Another with the CRI.
    Runtime,
}

impl Kind {
    /// As it seems before it has answered.
    fn of_socket(socket: &Path, api: Api) -> Self {
        let contains = |word| socket.to_string_lossy().contains(word);
        match api {
            Api::Docker if contains("podman") => Self::Podman,
            Api::Docker => Self::Docker,
            Api::Cri if contains("crio") => Self::CriO,
            Api::Cri => Self::Containerd,
        }
    }

    /// By the name that a runtime gives itself.
    pub fn of_runtime(name: &str) -> Self {
        match name {
            "containerd" => Self::Containerd,
            "cri-o" => Self::CriO,
            _ => Self::Runtime,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Runtime => "cri",
        }
    }
}

/// Names of engines by their sockets, no two alike: `docker`, `podman`, `podman-2`.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<BTreeMap<PathBuf, (Kind, String)>>>);

impl Names {
    /// The name of the engine at a socket. It stays as long as the engine is of the same kind.
    pub fn of(&self, socket: &Path, kind: Kind) -> String {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, name)) = names.get(socket).filter(|(of, _)| *of == kind) {
            return name.clone();
        }
        let is_free = |wanted: &String| !names.values().any(|(_, name)| name == wanted);
        let first = kind.name().to_owned();
        let more = (2u32..).map(|number| format!("{first}-{number}"));
        let name = std::iter::once(first.clone()).chain(more).find(is_free).unwrap_or(first);
        names.insert(socket.to_path_buf(), (kind, name.clone()));
        name
    }
}

/// The engines at these sockets, which somebody has named.
pub fn tasks(sockets: impl IntoIterator<Item = (Api, PathBuf)>) -> Vec<EngineTask> {
    let names = Names::default();
    let mut tasks: Vec<EngineTask> = Vec::new();
    for (api, socket) in sockets {
        if tasks.iter().any(|task| task.api == api && same(&task.socket, &socket)) {
            continue;
        }
        let name = names.of(&socket, Kind::of_socket(&socket, api));
        tasks.push(EngineTask { name, socket, api, found: false, names: names.clone() });
    }
    tasks
}

/// `$DOCKER_HOST` if it is a local socket, else Docker's usual one; Podman's and those of runtimes, where there are
/// any. A host that has only these has no Docker to miss.
pub fn default_tasks() -> Vec<EngineTask> {
    let configured = std::env::var("DOCKER_HOST").unwrap_or_default();
    let named = configured.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let mut all = tasks(usual_sockets(named, Path::exists));
    for task in &mut all {
        task.found = task.api == Api::Cri;
    }
    all
}

fn usual_sockets(docker: Option<&str>, exists: impl Fn(&Path) -> bool) -> Vec<(Api, PathBuf)> {
    let of = |api, socket: &str| (api, PathBuf::from(socket));
    let others = [of(Api::Docker, PODMAN_SOCKET)].into_iter();
    let others = others.chain(cri::USUAL_SOCKETS.map(|socket| of(Api::Cri, socket)));
    let others: Vec<_> = others.filter(|(_, socket)| exists(socket)).collect();
    let is_missed = docker.is_some() || others.is_empty() || exists(Path::new(DOCKER_SOCKET));
    let docker = is_missed.then(|| of(Api::Docker, docker.unwrap_or(DOCKER_SOCKET)));
    docker.into_iter().chain(others).collect()
}

/// Whether two paths lead to one socket, as with Podman's stand-in for Docker's.
fn same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_engines_have_one_name() {
        let names = Names::default();
        let of = |socket: &str, kind| names.of(Path::new(socket), kind);
        assert_eq!(of("/a", Kind::Docker), "docker");
        assert_eq!(of("/b", Kind::Docker), "docker-2");
        assert_eq!(of("/b", Kind::Podman), "podman", "it has said what it is");
        assert_eq!(of("/c", Kind::Podman), "podman-2");
        assert_eq!(of("/b", Kind::Podman), "podman");
    }

    #[test]
    fn what_is_missed_where_it_is_not() {
        let asked = |docker, there: &[&str]| -> Vec<String> {
            let sockets = usual_sockets(docker, |socket| there.iter().any(|one| socket == Path::new(one)));
            sockets.into_iter().map(|(_, socket)| socket.display().to_string()).collect()
        };
        let [runtime, ..] = cri::USUAL_SOCKETS;
        assert_eq!(asked(None, &[]), [DOCKER_SOCKET], "nothing is there: that is to be told");
        assert_eq!(asked(None, &[PODMAN_SOCKET]), [PODMAN_SOCKET]);
        assert_eq!(asked(None, &[runtime]), [runtime]);
        assert_eq!(asked(None, &[DOCKER_SOCKET, PODMAN_SOCKET]), [DOCKER_SOCKET, PODMAN_SOCKET]);
        assert_eq!(asked(Some("/mine"), &[PODMAN_SOCKET, runtime]), ["/mine", PODMAN_SOCKET, runtime]);
    }

    #[test]
    fn two_paths_to_one_socket_are_one_engine() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (socket, link) = (folder.path().join("podman.sock"), folder.path().join("docker.sock"));
        std::fs::write(&socket, "")?;
        std::os::unix::fs::symlink(&socket, &link)?;
        let sockets = [link, socket, folder.path().join("other.sock")].map(|socket| (Api::Docker, socket));
        assert_eq!(tasks(sockets).len(), 2);
        Ok(())
    }
}
