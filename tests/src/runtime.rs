//! A stand-in for a container runtime: the CRI as far as netobs asks for it, telling of the pods that it was given.
//! What a pod is made of is somebody else's (`pretend`).

use std::{
    collections::HashMap,
    convert::Infallible,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    thread::JoinHandle,
};

use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Bytes, Frame, Incoming},
    header::HeaderValue,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use netobs::discovery::engine::cri::messages::{
    Container, ContainerEvent, ContainerMetadata, ContainerStatus, ContainerStatusResponse, ImageSpec,
    ListContainersResponse, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, PodSandboxNetworkStatus,
    PodSandboxStatus, PodSandboxStatusResponse, StatusOfRequest, VersionResponse,
};
use prost::Message;
use tokio::{net::UnixListener, sync::oneshot};

/// A pod with one container, which has no process of its own.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The sandbox's ID, 64 hex digits.
    pub id: String,
    /// The sandbox's first process.
    pub pid: u32,
    pub namespace: String,
    pub name: String,
    pub address: String,
    /// The container's ID.
    pub container_id: String,
    /// The container's name in the pod.
    pub container: String,
}

/// The runtime, as long as the value.
pub struct Runtime {
    pub socket: PathBuf,
    pods: Arc<Mutex<Vec<Pod>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    /// Listens at a socket in this folder.
    ///
    /// # Panics
    /// If it cannot.
    pub fn start(folder: &Path) -> Self {
        let socket = folder.join("cri.sock");
        let pods = Arc::<Mutex<Vec<Pod>>>::default();
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("listen");
        listener.set_nonblocking(true).expect("non-blocking");
        let (stop, stopped) = oneshot::channel();
        let told = Arc::clone(&pods);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(async {
                let listener = UnixListener::from_std(listener).expect("a socket");
                tokio::select! {
                    () = serve(&listener, &told) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { socket, pods, stop: Some(stop), thread: Some(thread) }
    }

    /// These and no others are there from now on.
    ///
    /// # Panics
    /// If the thread that answers has panicked.
    pub fn tell(&self, pods: Vec<Pod>) {
        *self.pods.lock().expect("no panic elsewhere") = pods;
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: &UnixListener, pods: &Arc<Mutex<Vec<Pod>>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let pods = Arc::clone(pods);
        let service = service_fn(move |request: Request<Incoming>| {
            let pods = Arc::clone(&pods);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.map(|body| body.to_bytes());
                let asked = body.unwrap_or_default();
                let pods = pods.lock().map(|pods| pods.clone()).unwrap_or_default();
                let mut response = Response::new(answer(&path, &asked, &pods));
                let kind = HeaderValue::from_static("application/grpc");
                response.headers_mut().insert("content-type", kind);
                Ok::<_, Infallible>(response)
            }
        });
        tokio::spawn(async move {
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(path: &str, asked: &Bytes, pods: &[Pod]) -> Answer {
    // Before the message are a byte of flags and its length.
    let id = StatusOfRequest::decode(asked.get(5..).unwrap_or_default()).map(|request| request.id);
    let id = id.unwrap_or_default();
    match path.rsplit('/').next().unwrap_or_default() {
        "Version" => Answer::one(&VersionResponse {
            runtime_name: "containerd".to_owned(),
            runtime_version: "1.7.0".to_owned(),
        }),
        "ListPodSandbox" => {
            Answer::one(&ListPodSandboxResponse { items: pods.iter().map(sandbox).collect() })
        }
        "ListContainers" => {
            Answer::one(&ListContainersResponse { containers: pods.iter().map(container).collect() })
        }
        "PodSandboxStatus" => match pods.iter().find(|pod| pod.id == id) {
            Some(pod) => Answer::one(&sandbox_status(pod)),
            None => Answer::Status(NOT_FOUND),
        },
        "ContainerStatus" => match pods.iter().find(|pod| pod.container_id == id) {
            Some(pod) => Answer::one(&container_status(pod)),
            None => Answer::Status(NOT_FOUND),
        },
        // One, so that netobs knows that there are events and asks less often.
        "GetContainerEvents" => Answer::Events(Some(framed(&ContainerEvent { container_id: String::new() }))),
        _ => Answer::Status(UNIMPLEMENTED),
    }
}

fn sandbox(pod: &Pod) -> PodSandbox {
    PodSandbox {
        id: pod.id.clone(),
        metadata: Some(PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.id[..32].to_owned(),
            namespace: pod.namespace.clone(),
            attempt: 0,
        }),
        state: 0,
        labels: HashMap::new(),
    }
}

fn container(pod: &Pod) -> Container {
    Container {
        id: pod.container_id.clone(),
        pod_sandbox_id: pod.id.clone(),
        metadata: Some(ContainerMetadata { name: pod.container.clone(), attempt: 0 }),
        image: Some(image(pod)),
        state: 1,
        labels: HashMap::new(),
    }
}

fn image(pod: &Pod) -> ImageSpec {
    ImageSpec { image: format!("registry.example.com/{}/{}:1.0", pod.namespace, pod.container) }
}

fn sandbox_status(pod: &Pod) -> PodSandboxStatusResponse {
    PodSandboxStatusResponse {
        status: Some(PodSandboxStatus {
            network: Some(PodSandboxNetworkStatus { ip: pod.address.clone(), additional_ips: Vec::new() }),
            linux: None,
        }),
        info: HashMap::from([("info".to_owned(), format!("{{\"pid\":{}}}", pod.pid))]),
    }
}

fn container_status(pod: &Pod) -> ContainerStatusResponse {
    ContainerStatusResponse {
        status: Some(ContainerStatus { image: Some(image(pod)) }),
        info: HashMap::new(),
    }
}

/// Codes of gRPC.
const OK: &str = "0";
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";

/// The body of an answer, by what is still to be sent.
enum Answer {
    Message(Bytes),
    Status(&'static str),
    /// One now, and no end.
    Events(Option<Bytes>),
    Nothing,
}

impl Answer {
    fn one(message: &impl Message) -> Self {
        Self::Message(framed(message))
    }
}

/// With a byte of flags and its length before it.
fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("less than 4 GiB");
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (frame, rest) = match std::mem::replace(&mut *self, Self::Nothing) {
            Self::Message(message) => (Frame::data(message), Self::Status(OK)),
            Self::Status(code) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(code));
                (Frame::trailers(trailers), Self::Nothing)
            }
            Self::Events(Some(event)) => (Frame::data(event), Self::Events(None)),
            Self::Events(None) => {
                *self = Self::Events(None);
                // Nobody has to wake it: the connection ends with who asks.
                return Poll::Pending;
            }
            Self::Nothing => return Poll::Ready(None),
        };
        *self = rest;
        Poll::Ready(Some(Ok(frame)))
    }
}
