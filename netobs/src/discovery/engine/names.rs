//! Which engines there are to ask, and what they are called.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::EngineTask;

const DOCKER_SOCKET: &str = "/var/run/docker.sock";
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";

/// What an engine is, whatever it is called and wherever its socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
}

impl Kind {
    /// As it seems before it has answered.
    fn of_socket(socket: &Path) -> Self {
        if socket.to_string_lossy().contains("podman") { Self::Podman } else { Self::Docker }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
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

/// The engines at these sockets.
pub fn tasks(sockets: impl IntoIterator<Item = PathBuf>) -> Vec<EngineTask> {
    let names = Names::default();
    let mut tasks: Vec<EngineTask> = Vec::new();
    for socket in sockets {
        if tasks.iter().any(|task| same(&task.socket, &socket)) {
            continue;
        }
        let name = names.of(&socket, Kind::of_socket(&socket));
        tasks.push(EngineTask { name, socket, names: names.clone() });
    }
    tasks
}

/// `$DOCKER_HOST` if it is a local socket, else Docker's usual one; and Podman's, where there is one.
pub fn default_tasks() -> Vec<EngineTask> {
    let configured = std::env::var("DOCKER_HOST").unwrap_or_default();
    let docker = configured.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let podman = Some(PathBuf::from(PODMAN_SOCKET)).filter(|socket| socket.exists());
    tasks([PathBuf::from(docker.unwrap_or(DOCKER_SOCKET))].into_iter().chain(podman))
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
    fn two_paths_to_one_socket_are_one_engine() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (socket, link) = (folder.path().join("podman.sock"), folder.path().join("docker.sock"));
        std::fs::write(&socket, "")?;
        std::os::unix::fs::symlink(&socket, &link)?;
        assert_eq!(tasks([link, socket, folder.path().join("other.sock")]).len(), 2);
        Ok(())
    }
}
