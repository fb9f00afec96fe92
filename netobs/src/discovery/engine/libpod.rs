//! Podman's own API, for what its Docker-compatible one does not tell: names of bridges, and options.
//!
//! Networks are never asked for in Docker's form: Podman 4 takes the option `isolate` out of its own memory
//! for that answer (`pkg/api/handlers/compat/networks.go`), and containers that the service starts later are
//! not isolated any more.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::ClientVersion;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{HeaderMap, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, time::timeout};

use super::{convert, task::REQUEST_TIMEOUT_SECONDS};
use crate::model::NetworkInfo;

/// First version of Podman with this form of networks; all later ones have it.
const FIRST_VERSION: u32 = 4;

/// Of the headers of `GET /_ping`. Docker has the second only.
const LIBPOD_VERSION: &str = "Libpod-API-Version";
const API_VERSION: &str = "API-Version";

/// A longer answer is none.
const LONGEST_ANSWER: usize = 16 << 20;

#[derive(Clone, Debug)]
pub struct Libpod {
    socket: PathBuf,
    pub version: String,
    /// Of Docker's API, that Podman has.
    pub docker_api: Option<ClientVersion>,
    /// Its bridges are interfaces of the host. Those of a user's Podman are in a namespace of that.
    on_host: bool,
}

/// `GET /libpod/networks/json`
#[derive(Deserialize)]
pub struct Network {
    pub name: String,
    pub id: String,
    pub driver: String,
    /// The bridge, or the parent of a macvlan or ipvlan.
    #[serde(default)]
    pub network_interface: String,
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub struct Subnet {
    pub subnet: String,
    pub gateway: Option<String>,
}

impl Libpod {
    /// None if the engine is not Podman. (`GET /version` says more, and Podman takes a third of a second.)
    pub async fn find(socket: &Path) -> Result<Option<Self>, String> {
        let answer = get(socket, "/_ping").await?;
        let header = |name: &str| answer.headers.get(name)?.to_str().ok();
        Ok(header(LIBPOD_VERSION).map(|version| Self {
            socket: socket.to_path_buf(),
            version: version.to_owned(),
            docker_api: header(API_VERSION).and_then(client_version),
            on_host: answer.server == Some(ROOT),
        }))
    }

    /// Whether [`Self::networks`] has an answer; if not, Docker's form does no harm.
    pub fn has_networks(&self) -> bool {
        let major = self.version.split('.').next().and_then(|major| major.parse().ok());
        major.is_some_and(|major: u32| major >= FIRST_VERSION)
    }

    pub async fn networks(&self, engine: &str) -> Result<Vec<NetworkInfo>, String> {
        let path = format!("/v{FIRST_VERSION}.0.0/libpod/networks/json");
        let body = get(&self.socket, &path).await?.body;
        let answer: Vec<Network> =
            serde_json::from_slice(&body).map_err(|error| format!("{path}: {error}"))?;
        let networks = answer.into_iter();
        Ok(networks.filter_map(|network| convert::of_podman(engine, network, self.on_host)).collect())
    }
}

/// `1.41`
fn client_version(text: &str) -> Option<ClientVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ClientVersion { major_version: major.parse().ok()?, minor_version: minor.parse().ok()? })
}

const ROOT: u32 = 0;

struct Answer {
    headers: HeaderMap,
    body: Bytes,
    /// The user that the engine runs as.
    server: Option<u32>,
}

async fn get(socket: &Path, path: &str) -> Result<Answer, String> {
    let answer = timeout(Duration::from_secs(REQUEST_TIMEOUT_SECONDS), request(socket, path)).await;
    let answer = answer.map_err(|_| format!("{path}: no answer in {REQUEST_TIMEOUT_SECONDS} s"))?;
    answer.map_err(|error| format!("{path}: {error}"))
}

async fn request(socket: &Path, path: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    let server = stream.peer_cred().ok().map(|credentials| credentials.uid());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    if !status.is_success() {
        return Err(status.to_string().into());
    }
    let headers = response.headers().clone();
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await?.to_bytes();
    Ok(Answer { headers, body, server })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_networks_in_this_form() {
        for (version, yes) in [("4.3.1", true), ("5.0.0-rc1", true), ("3.4.4", false), ("", false)] {
            let podman = Libpod {
                socket: PathBuf::new(),
                version: version.to_owned(),
                docker_api: client_version("1.41"),
                on_host: true,
            };
            assert_eq!(podman.has_networks(), yes, "{version}");
            assert_eq!(podman.docker_api.map(|api| (api.major_version, api.minor_version)), Some((1, 41)));
        }
    }
}
