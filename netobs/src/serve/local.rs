//! Answers `netobs watch` on the same host: the other end is `running.rs`.

use std::{io, os::unix::net, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::{ACCEPT_AGAIN, Asker, FlowsRequest, Request, Whose};
use crate::running::{self, Wish};

/// Who comes while so many are answered is turned away.
const MOST: usize = 16;
/// From the connection to the end of the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// A wish names containers, at most all that there are.
const MAX_WISH_BYTES: u64 = 4 << 20;

/// # Errors
/// `AddrInUse` where another agent of this network namespace answers.
pub fn listen() -> io::Result<UnixListener> {
    let listener = net::UnixListener::bind_addr(&running::address()?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers until it is dropped.
pub async fn serve(listener: UnixListener, asker: Asker) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept a connection of this host");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let trusted = running::is_trusted(&stream).unwrap_or(false);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        if trusted {
            let asker = asker.clone();
            tokio::spawn(async move {
                match timeout(LIMIT, converse(stream, &asker)).await {
                    Ok(Ok(())) => {}
                    other => tracing::debug!(?other, "answer a process of this host"),
                }
                drop(place);
            });
        }
    }
}

async fn converse(stream: UnixStream, asker: &Asker) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    BufReader::new(read.take(MAX_WISH_BYTES)).read_until(b'\n', &mut line).await?;
    let wish: Wish = serde_json::from_slice(&line)?;
    let lines = match wish {
        Wish::Snapshot => {
            let (answer, answered) = oneshot::channel();
            asker.0.try_send(Request::Snapshot(answer))?;
            running::snapshot_answer(&answered.await?.snapshot)?
        }
        Wish::Flows { containers, limit } => {
            let (answer, answered) = oneshot::channel();
            let whose = containers.map_or(Whose::All, Whose::Ids);
            asker.0.try_send(Request::Flows(FlowsRequest { whose, limit, answer }))?;
            running::flows_answer(&answered.await?)?
        }
    };
    write.write_all(&lines).await?;
    Ok(())
}
