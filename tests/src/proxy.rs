//! What stands between netobs and an engine, hears what is said, and can be taken away or hang.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A socket before an engine's own.
pub struct Proxy {
    path: PathBuf,
    engine: PathBuf,
    up: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
    /// Answers in the engine's place when asked for a single container.
    refuses: Arc<AtomicBool>,
    /// All that netobs has said to the engine.
    said: Arc<Mutex<Vec<u8>>>,
    _folder: tempfile::TempDir,
}

impl Proxy {
    /// # Panics
    /// If it cannot listen.
    pub fn start(engine: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine.sock");
        let up = Arc::new(AtomicBool::new(true));
        let hangs = Arc::default();
        let engine = engine.to_path_buf();
        let (said, refuses) = (Arc::default(), Arc::default());
        let proxy = Self { path, engine, up, hangs, refuses, said, _folder: folder };
        proxy.listen();
        proxy
    }

    /// Whether who asks for a single container is answered that the engine could not.
    pub fn refuse_inspections(&self, refuse: bool) {
        self.refuses.store(refuse, Ordering::SeqCst);
    }

    /// As `--engine` has it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    fn listen(&self) {
        let listener = UnixListener::bind(&self.path).expect("listen");
        listener.set_nonblocking(true).expect("non-blocking");
        let engine = self.engine.clone();
        let (up, hangs, said) = (Arc::clone(&self.up), Arc::clone(&self.hangs), Arc::clone(&self.said));
        let refuses = Arc::clone(&self.refuses);
        std::thread::spawn(move || {
            while up.load(Ordering::SeqCst) {
                if let Ok((client, _)) = listener.accept() {
                    client.set_nonblocking(false).expect("blocking");
                    let engine = UnixStream::connect(&engine).expect("the engine");
                    relay(client, engine, &up, &hangs, &refuses, &said);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    }

    /// # Panics
    /// If it is stopped.
    pub fn stop(&self) {
        self.up.store(false, Ordering::SeqCst);
        std::fs::remove_file(&self.path).expect("remove the socket");
        std::thread::sleep(Duration::from_millis(100));
    }

    pub fn start_again(&self) {
        self.up.store(true, Ordering::SeqCst);
        self.listen();
    }

    /// Another socket at the same path. Who is connected with the old one stays so, and hears nothing.
    ///
    /// # Panics
    /// If it is stopped.
    pub fn replace(&mut self) {
        self.hangs.store(true, Ordering::SeqCst);
        self.hangs = Arc::default();
        // Kept under another name, so that the new one cannot have the same inode.
        std::fs::rename(&self.path, self.path.with_extension("old")).expect("move the socket away");
        self.listen();
    }

    /// An engine is asked, and never told to do anything.
    ///
    /// # Panics
    /// If it was.
    pub fn assert_only_asked(&self) {
        let said = self.said.lock().expect("no panic elsewhere");
        let said = String::from_utf8_lossy(&said);
        let requests: Vec<&str> = said.lines().filter(|line| line.contains(" HTTP/1.")).collect();
        assert!(requests.len() > 3, "{requests:?}");
        assert!(requests.iter().all(|request| request.starts_with("GET ")), "{requests:?}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.up.store(false, Ordering::SeqCst);
    }
}

const REFUSAL: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\n\
                       content-length: 22\r\n\r\n{\"message\":\"too busy\"}";

/// `GET /v1.41/containers/{id}/json`, with 64 digits.
fn is_inspection(request: &[u8]) -> bool {
    let line = String::from_utf8_lossy(request);
    let path = line.strip_prefix("GET ").and_then(|rest| rest.split([' ', '?']).next());
    let id = path.and_then(|path| path.strip_suffix("/json")?.split("/containers/").nth(1));
    id.is_some_and(|id| id.len() == 64)
}

fn relay(
    client: UnixStream,
    engine: UnixStream,
    up: &Arc<AtomicBool>,
    hangs: &Arc<AtomicBool>,
    refuses: &Arc<AtomicBool>,
    said: &Arc<Mutex<Vec<u8>>>,
) {
    let asks = (client.try_clone().expect("clone"), engine.try_clone().expect("clone"), Arc::clone(said));
    for (mut from, mut to, heard) in [asks, (engine, client, Arc::default())] {
        let (up, hangs, refuses) = (Arc::clone(up), Arc::clone(hangs), Arc::clone(refuses));
        from.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while up.load(Ordering::SeqCst) {
                if hangs.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
                match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => {
                        heard.lock().expect("no panic elsewhere").extend(&buffer[..length]);
                        if refuses.load(Ordering::SeqCst) && is_inspection(&buffer[..length]) {
                            if from.write_all(REFUSAL.as_bytes()).is_err() {
                                break;
                            }
                            continue;
                        }
                        if to.write_all(&buffer[..length]).is_err() {
                            break;
                        }
                    }
                    Err(error)
                        if matches!(
                            error.kind(),
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                        ) => {}
                    Err(_) => break,
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
            let _ = from.shutdown(std::net::Shutdown::Both);
        });
    }
}
