//! One connection with the API: a request at a time, and answers of bounded size, whole or line by line.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{
    setsockopt,
    sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval},
};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::access::Access;

/// Until there is a connection, and until an answer begins.
const PATIENCE: Duration = Duration::from_secs(10);

/// A list takes no longer, from its first byte to the last.
const LIST_PATIENCE: Duration = Duration::from_secs(30);

/// A list has no more: some 16,000 services.
const LONGEST_LIST: usize = 32 << 20;

/// An event has no more; etcd keeps no object of more than 1.5 MiB.
const LONGEST_LINE: usize = 4 << 20;

/// Of an error's text.
const LONGEST_ERROR: usize = 64 << 10;

/// Of a watch in which nothing happens, the kernel asks whether the other end is there: after so many seconds.
const KEEPALIVE_SECONDS: u32 = 30;

pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// 410: what was asked for is too old.
    Gone,
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// What the API says of a request that came to nothing.
#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
}

impl Connection {
    pub async fn open(access: &Access) -> anyhow::Result<Self> {
        match timeout(PATIENCE, connect(access)).await {
            Ok(connection) => connection.with_context(|| access.authority()),
            Err(_) => bail!("{}: no connection within {PATIENCE:?}", access.authority()),
        }
    }

    async fn get(
        &mut self,
        access: &Access,
        path: &str,
        accept: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::get(format!("{}{path}", access.prefix))
            .header(header::HOST, access.authority())
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("netobs/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = access.authorization()? {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).context("a request")?;
        let answer = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let answer = timeout(PATIENCE, answer).await;
        let answer = answer.map_err(|_| anyhow::anyhow!("no answer within {PATIENCE:?}"))?;
        let answer = answer.context("ask the API")?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::GONE => Err(Failure::Gone),
            status => {
                let body = Limited::new(answer.into_body(), LONGEST_ERROR).collect();
                let body = timeout(PATIENCE, body).await.ok().and_then(Result::ok);
                let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                let said: Status = serde_json::from_slice(&body).unwrap_or_default();
                let colon = if said.message.is_empty() { "" } else { ": " };
                Err(Failure::Other(anyhow::anyhow!("{status}{colon}{}", said.message)))
            }
        }
    }

    /// The whole of an answer.
    pub async fn whole(&mut self, access: &Access, path: &str, accept: &str) -> Result<Bytes, Failure> {
        let answer = self.get(access, path, accept).await?;
        let body = Limited::new(answer.into_body(), LONGEST_LIST).collect();
        let body = timeout(LIST_PATIENCE, body).await;
        let body = body.map_err(|_| anyhow::anyhow!("not all of an answer within {LIST_PATIENCE:?}"))?;
        Ok(body
            .map_err(|error| anyhow::anyhow!("an answer of up to {LONGEST_LIST} bytes: {error}"))?
            .to_bytes())
    }

    /// An answer that goes on.
    pub async fn lines(&mut self, access: &Access, path: &str, accept: &str) -> Result<Lines, Failure> {
        let answer = self.get(access, path, accept).await?;
        Ok(Lines { body: answer.into_body(), rest: BytesMut::new(), looked_at: 0 })
    }
}

/// The lines of an answer as they come.
pub struct Lines {
    body: Incoming,
    rest: BytesMut,
    /// There is no line's end in so much of the rest.
    looked_at: usize,
}

impl Lines {
    /// None: the answer has ended. Not cancel-safe where it fails; a line is not lost.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(at) = self.rest[self.looked_at..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.looked_at + at + 1).freeze();
                self.looked_at = 0;
                return Ok(Some(line));
            }
            self.looked_at = self.rest.len();
            ensure!(self.rest.len() <= LONGEST_LINE, "an event of more than {LONGEST_LINE} bytes");
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.context("read events")?.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

async fn connect(access: &Access) -> anyhow::Result<Connection> {
    let socket = TcpStream::connect((access.host.as_str(), access.port)).await.context("connect")?;
    let _ = socket.set_nodelay(true);
    // A kernel that refuses these has its own times.
    let _ = setsockopt(&socket, KeepAlive, &true);
    let _ = setsockopt(&socket, TcpKeepIdle, &KEEPALIVE_SECONDS);
    let _ = setsockopt(&socket, TcpKeepInterval, &(KEEPALIVE_SECONDS / 3));
    let _ = setsockopt(&socket, TcpKeepCount, &3);
    match &access.tls {
        None => handshake(socket).await,
        Some(tls) => {
            let name = tls.server_name.clone().unwrap_or_else(|| access.host.clone());
            let name = ServerName::try_from(name).context("a name for TLS")?;
            let connector = TlsConnector::from(tls.config()?);
            handshake(connector.connect(name, socket).await.context("TLS")?).await
        }
    }
}

async fn handshake(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<Connection> {
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // It ends with the sender and the answer.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection with the API of Kubernetes");
        }
    });
    Ok(Connection { sender })
}
