//! gRPC over one connection to a local socket.

use std::{
    future::Future,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use hyper::{
    Uri,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    http::uri::PathAndQuery,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::UnixStream, time::timeout};
use tonic::{Request, Response, Status, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

use super::messages::{
    ContainerEvent, ContainerStatusResponse, Everything, ListContainersResponse, ListPodSandboxResponse,
    PodSandboxStatusResponse, StatusOfRequest, StatusRequest, StatusResponse, VersionRequest,
    VersionResponse,
};

/// An answer that takes longer is none.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A longer answer is refused.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// A connection with a runtime.
#[derive(Clone)]
pub struct Client {
    grpc: Grpc<Connection>,
}

/// What tonic needs of a connection; its own brings much more.
#[derive(Clone)]
struct Connection(SendRequest<Body>);

impl tower::Service<hyper::Request<Body>> for Connection {
    type Response = hyper::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Client {
    /// # Errors
    /// What the system says of the socket, or that who listens there speaks no HTTP/2.
    pub async fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = timeout(REQUEST_TIMEOUT, handshake)
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
            .map_err(std::io::Error::other)?;
        // Ends with the last sender, or by the runtime, which the next request tells.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let grpc = Grpc::with_origin(Connection(sender), Uri::from_static("http://localhost"))
            .max_decoding_message_size(LONGEST_ANSWER);
        Ok(Self { grpc })
    }

    /// One request of the `RuntimeService`, by its path.
    ///
    /// # Errors
    /// The runtime's, or that there was no answer in time.
    pub async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        let answer = async {
            ready(&mut grpc).await?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await
        };
        match timeout(REQUEST_TIMEOUT, answer).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// What happens from now on. Ends with an error where the runtime does not tell: containerd before 1.7.
    pub fn events(&self) -> BoxStream<'static, Result<ContainerEvent, Status>> {
        let mut grpc = self.grpc.clone();
        // The headers of the answer may come with the first event, and not before.
        let answer = async move {
            ready(&mut grpc).await?;
            let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
            let codec = ProstCodec::<Everything, ContainerEvent>::default();
            grpc.server_streaming(Request::new(Everything {}), path, codec).await.map(Response::into_inner)
        };
        stream::once(answer).try_flatten().boxed()
    }

    pub async fn version(&self) -> Result<VersionResponse, Status> {
        let request = VersionRequest { version: "v1".to_owned() };
        self.ask("/runtime.v1.RuntimeService/Version", request).await
    }

    pub async fn sandboxes(&self) -> Result<ListPodSandboxResponse, Status> {
        self.ask("/runtime.v1.RuntimeService/ListPodSandbox", Everything {}).await
    }

    pub async fn containers(&self) -> Result<ListContainersResponse, Status> {
        self.ask("/runtime.v1.RuntimeService/ListContainers", Everything {}).await
    }

    pub async fn sandbox(&self, id: String) -> Result<PodSandboxStatusResponse, Status> {
        let request = StatusOfRequest { id, verbose: true };
        self.ask("/runtime.v1.RuntimeService/PodSandboxStatus", request).await
    }

    pub async fn container(&self, id: String) -> Result<ContainerStatusResponse, Status> {
        let request = StatusOfRequest { id, verbose: true };
        self.ask("/runtime.v1.RuntimeService/ContainerStatus", request).await
    }

    /// Of the runtime itself, with its configuration.
    pub async fn status(&self) -> Result<StatusResponse, Status> {
        self.ask("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: true }).await
    }
}

async fn ready(grpc: &mut Grpc<Connection>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))
}
