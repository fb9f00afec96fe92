//! The agent that runs on this host, asked for what it knows instead of observing a second time
//! (docs/adr/0022-watch-reads-from-the-agent.md).
//!
//! Over a stream socket with an abstract name, which all processes of the network namespace see and no other: a
//! [`Wish`] as one line of JSON, answered by a line with the agent's version and one of JSON with what was wished.

use std::{
    collections::BTreeSet,
    io,
    os::{linux::net::SocketAddrExt as _, unix::net},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use crate::model::{Snapshot, conversation::Conversations, drops::DropReport};

/// What is told has no form of its own: both ends must be of one version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const NAME: &[u8] = b"netobs/agent";

/// An agent that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// A version that is longer is none.
const MAX_VERSION_BYTES: u64 = 256;

/// Before it is asked again whether an agent that has gone is back.
const AGAIN: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Wish {
    /// With its drops, where the agent looks for them.
    Snapshot,
    Flows {
        /// IDs of the containers whose flows they are; none: of all.
        containers: Option<BTreeSet<String>>,
        limit: usize,
    },
}

/// The lines that answer [`Wish::Snapshot`].
///
/// # Errors
/// If it has no JSON form.
pub fn snapshot_answer(snapshot: &Snapshot) -> serde_json::Result<Vec<u8>> {
    // Drops are not part of a snapshot's own form.
    lines(&(snapshot, &snapshot.drops))
}

/// The lines that answer [`Wish::Flows`].
///
/// # Errors
/// If it has no JSON form.
pub fn flows_answer(flows: &Conversations) -> serde_json::Result<Vec<u8>> {
    lines(flows)
}

fn lines(told: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut lines = format!("{VERSION}\n").into_bytes();
    serde_json::to_writer(&mut lines, told)?;
    lines.push(b'\n');
    Ok(lines)
}

/// Where agents listen.
///
/// # Errors
/// Never, as long as the name is one.
pub fn address() -> io::Result<net::SocketAddr> {
    net::SocketAddr::from_abstract_name(NAME)
}

/// Whether what the other end says, or asks for, may be trusted: anybody may listen at an abstract name.
///
/// # Errors
/// When the kernel does not say who it is.
pub fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let uid = Uid::from_raw(stream.peer_cred()?.uid());
    Ok(uid.is_root() || uid == Uid::effective())
}

/// What the agent of this network namespace has now.
///
/// # Errors
/// When there is none, it is another user's or of another version, or does not answer.
pub async fn snapshot() -> anyhow::Result<Snapshot> {
    let (snapshot, drops): (Snapshot, Option<DropReport>) = ask(&Wish::Snapshot).await?;
    Ok(Snapshot { drops, ..snapshot })
}

/// An agent of this version has answered. It may have been replaced by another meanwhile.
#[derive(Debug)]
pub struct Running(());

impl Running {
    /// The agent of this network namespace, if there is one that can be asked.
    pub async fn find() -> Option<Self> {
        let running = Self(());
        match running.snapshot(Duration::ZERO).await {
            Ok(_) => Some(running),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "no agent to read from");
                None
            }
        }
    }

    /// An agent that has gone has so long to come back, as after an upgrade.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn snapshot(&self, patience: Duration) -> anyhow::Result<Snapshot> {
        let end = Instant::now() + patience;
        loop {
            match snapshot().await {
                Ok(snapshot) => return Ok(snapshot),
                Err(_) if Instant::now() < end => sleep(AGAIN).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Of containers by their IDs, or of all.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn flows(
        &self,
        containers: Option<BTreeSet<String>>,
        limit: usize,
    ) -> anyhow::Result<Conversations> {
        ask(&Wish::Flows { containers, limit }).await
    }
}

async fn ask<T: DeserializeOwned>(wish: &Wish) -> anyhow::Result<T> {
    match timeout(PATIENCE, converse(wish)).await {
        Ok(told) => told,
        Err(_) => bail!("the agent that runs does not answer"),
    }
}

async fn converse<T: DeserializeOwned>(wish: &Wish) -> anyhow::Result<T> {
    let stream = net::UnixStream::connect_addr(&address()?).context("connect to the agent that runs")?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    ensure!(is_trusted(&stream)?, "who listens in the place of an agent is another user");
    let mut line = serde_json::to_vec(wish)?;
    line.push(b'\n');
    stream.write_all(&line).await.context("ask the agent that runs")?;
    let mut stream = BufReader::new(stream);
    let mut version = String::new();
    (&mut stream).take(MAX_VERSION_BYTES).read_line(&mut version).await?;
    let version = version.trim_end();
    ensure!(!version.is_empty(), "the agent that runs has gone");
    ensure!(version == VERSION, "the agent that runs is netobs {version:?}, this is {VERSION}");
    let mut told = Vec::new();
    stream.read_to_end(&mut told).await?;
    serde_json::from_slice(&told).context("read what the agent tells")
}
