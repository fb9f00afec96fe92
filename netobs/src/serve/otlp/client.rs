//! One request at a time to a collector.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::config::Target;

/// An answer says little.
const MOST_ANSWER_BYTES: usize = 64 << 10;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// But for so many of its items.
    Taken {
        rejected: u64,
        why: String,
    },
    Refused(String),
    /// It may do better later; not sooner than this.
    Failed {
        why: String,
        after: Option<Duration>,
    },
}

/// A connection, when there is one.
#[derive(Default)]
pub struct Client {
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Ends the connection: there is nothing to send for some time.
    pub fn rest(&mut self) {
        self.connection = None;
    }

    pub async fn post(&mut self, target: &Target, body: Bytes) -> Outcome {
        let outcome = match tokio::time::timeout(target.timeout, self.exchange(target, body)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Failed { why: format!("{error:#}"), after: None },
            Err(_) => Outcome::Failed { why: format!("no answer within {:?}", target.timeout), after: None },
        };
        if !matches!(outcome, Outcome::Taken { .. }) {
            self.rest();
        }
        outcome
    }

    async fn exchange(&mut self, target: &Target, body: Bytes) -> anyhow::Result<Outcome> {
        let mut request = Request::post(target.uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, target.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("netobs/", env!("CARGO_PKG_VERSION")));
        if target.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        let mut request = request.body(Full::new(body))?;
        request.headers_mut().extend(target.headers.clone());
        let mut open = self.connection.take();
        if let Some(connection) = &mut open
            && connection.ready().await.is_err()
        {
            // The other end has had enough of it.
            open = None;
        }
        let mut connection = match open {
            Some(connection) => connection,
            None => connect(target).await?,
        };
        let response = connection.send_request(request).await.context("send")?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MOST_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("answer: {error}"))?.to_bytes();
        self.connection = Some(connection);
        let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(outcome(head.status, after.map(Duration::from_secs), &body))
    }
}

/// As the OTLP specification has it.
fn outcome(status: StatusCode, after: Option<Duration>, body: &[u8]) -> Outcome {
    const AGAIN: [StatusCode; 4] = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    if status.is_success() {
        // That of logs has the same fields. What cannot be read says nothing of anything rejected.
        let partial = ExportMetricsServiceResponse::decode(body).unwrap_or_default().partial_success;
        let (rejected, why) =
            partial.map_or((0, String::new()), |one| (one.rejected_data_points, one.error_message));
        return Outcome::Taken { rejected: u64::try_from(rejected).unwrap_or_default(), why };
    }
    let why = status.to_string();
    if AGAIN.contains(&status) { Outcome::Failed { why, after } } else { Outcome::Refused(why) }
}

async fn connect(target: &Target) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect((target.host.as_str(), target.port)).await.context("connect")?;
    // A request is written at once.
    let _ = socket.set_nodelay(true);
    match &target.tls {
        None => handshake(socket).await,
        Some(tls) => {
            let name = ServerName::try_from(target.host.clone()).context("a name for TLS")?;
            let connector = TlsConnector::from(std::sync::Arc::clone(tls));
            handshake(connector.connect(name, socket).await.context("TLS")?).await
        }
    }
}

async fn handshake(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // It ends with the sender.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the collector");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceResponse,
    };

    use super::*;

    #[test]
    fn what_an_answer_means() {
        let taken = |rejected, why: &str| Outcome::Taken { rejected, why: why.to_owned() };
        assert_eq!(outcome(StatusCode::OK, None, b""), taken(0, ""));
        assert_eq!(outcome(StatusCode::OK, None, b"{}"), taken(0, ""));
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message: "old".to_owned() };
        let body = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        assert_eq!(outcome(StatusCode::OK, None, &body), taken(3, "old"));
        for status in [429, 502, 503, 504] {
            let after = Some(Duration::from_secs(7));
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(outcome(status, after, b""), Outcome::Failed { why: status.to_string(), after });
        }
        for status in [301, 400, 401, 404, 413, 500] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(outcome(status, None, b""), Outcome::Refused(status.to_string()));
        }
    }
}
