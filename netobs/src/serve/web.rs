//! The web configuration file, in the form that Prometheus's exporters share (exporter-toolkit,
//! `docs/web-configuration.md`): TLS, users, headers, a rate limit. What it knows and netobs does not offer is refused.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;

use super::{auth::Users, tls};

/// A configuration is some lines; a chain of certificates some KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    pub tls_server_config: Option<tls::Tls>,
    http_server_config: HttpServer,
    basic_auth_users: BTreeMap<String, String>,
    rate_limit: Option<RateLimit>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HttpServer {
    /// Allowed, not demanded: a client of netobs settles for HTTP/1.1, in the handshake.
    http2: Option<bool>,
    headers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimit {
    interval: String,
    #[serde(default)]
    burst: u32,
}

/// Headers that may be set, and the only values that some may have.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
    ("Content-Security-Policy", &[]),
];

impl File {
    /// # Errors
    /// For what is no YAML, unknown, or makes no sense; the certificates are not looked at.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        // An empty document is no configuration, which is one.
        let file: Option<Self> = serde_saphyr::from_str(text)?;
        let file = file.unwrap_or_default();
        file.headers()?;
        file.rate()?;
        Users::new(&file.basic_auth_users)?;
        Ok(file)
    }

    fn headers(&self) -> anyhow::Result<HeaderMap> {
        let header = |(name, value): (&String, &String)| {
            let (_, allowed) = HEADERS
                .iter()
                .find(|(known, _)| known == name)
                .with_context(|| format!("header {name:?} cannot be configured"))?;
            ensure!(
                allowed.is_empty() || allowed.contains(&value.as_str()),
                "header {name} can be {}, not {value:?}",
                allowed.join(" or ")
            );
            let value = HeaderValue::from_str(value).with_context(|| format!("value of header {name}"))?;
            Ok((HeaderName::from_bytes(name.as_bytes())?, value))
        };
        // Blank is unset.
        self.http_server_config.headers.iter().filter(|(_, value)| !value.is_empty()).map(header).collect()
    }

    fn rate(&self) -> anyhow::Result<Option<Rate>> {
        let Some(RateLimit { interval, burst }) = &self.rate_limit else { return Ok(None) };
        let interval = match interval.as_str() {
            "0" => Duration::ZERO,
            text => {
                humantime::parse_duration(text).with_context(|| format!("rate_limit: interval {text:?}"))?
            }
        };
        if interval.is_zero() {
            return Ok(None);
        }
        ensure!(*burst > 0, "rate_limit: with a burst of 0 no request would be answered");
        Ok(Some(Rate { interval, burst: *burst }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    interval: Duration,
    burst: u32,
}

/// What holds now.
#[derive(Default)]
pub struct Settings {
    pub tls: Option<TlsAcceptor>,
    /// None: everybody is let in.
    pub users: Option<Users>,
    pub headers: HeaderMap,
    rate: Option<Rate>,
}

/// The file, read again when it or a file that it names has changed.
pub struct Web {
    path: Option<PathBuf>,
    now: Mutex<Now>,
    bucket: Mutex<Bucket>,
}

struct Now {
    settings: Arc<Settings>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// What changes when a file does: device, inode, size, time of change with nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Web {
    /// # Errors
    /// For a file that cannot be used.
    pub fn load(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut now = Now { settings: Arc::default(), files: Vec::new() };
        if let Some(path) = &path {
            let (settings, files) = read(path);
            now.settings =
                Arc::new(settings.with_context(|| format!("web configuration {}", path.display()))?);
            now.files = files;
        }
        Ok(Self { path, now: Mutex::new(now), bucket: Mutex::default() })
    }

    /// The file and those that it names.
    pub fn files(&self) -> Vec<PathBuf> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.files.iter().map(|(file, _)| file.clone()).collect()
    }

    /// What holds now. A changed file that cannot be used is said, and what held before goes on to hold.
    pub fn settings(&self) -> Arc<Settings> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.path else { return Arc::clone(&now.settings) };
        if now.files.iter().any(|(file, then)| stamp(file) != *then) {
            let (settings, files) = read(path);
            now.files = files;
            match settings.and_then(|new| replaces(&now.settings, &new).map(|()| new)) {
                Ok(settings) => {
                    now.settings = Arc::new(settings);
                    tracing::info!(path = %path.display(), "web configuration read again");
                }
                Err(error) => tracing::warn!(
                    path = %path.display(),
                    error = format!("{error:#}"),
                    "the changed web configuration cannot be used: what held before still does"
                ),
            }
        }
        Arc::clone(&now.settings)
    }

    /// Whether a request is within the rate limit.
    pub fn within_rate(&self, settings: &Settings, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        settings.rate.is_none_or(|rate| bucket.take(rate, now))
    }
}

/// What protects is not dropped by an edit, perhaps one that is only half written.
fn replaces(old: &Settings, new: &Settings) -> anyhow::Result<()> {
    ensure!(old.tls.is_some() == new.tls.is_some(), "TLS goes on or off with a restart only");
    ensure!(old.users.is_none() || new.users.is_some(), "basic authentication goes off with a restart only");
    Ok(())
}

/// The settings, and the files that they came from as they were before they were read.
fn read(path: &Path) -> (anyhow::Result<Settings>, Vec<(PathBuf, Option<Stamp>)>) {
    let mut files = vec![(path.to_owned(), stamp(path))];
    let settings = (|| {
        let file = File::parse(&text(path)?)?;
        let tls = match &file.tls_server_config {
            None => None,
            Some(tls) => {
                let tls = tls.in_folder(path.parent().unwrap_or(Path::new(".")));
                files.extend(tls.files().map(|file| (file.to_owned(), stamp(file))));
                Some(TlsAcceptor::from(Arc::new(tls.server(text)?)))
            }
        };
        let users = Users::new(&file.basic_auth_users)?;
        Ok(Settings { tls, users, headers: file.headers()?, rate: file.rate()? })
    })();
    (settings, files)
}

fn text(path: &Path) -> anyhow::Result<String> {
    let read = || -> anyhow::Result<String> {
        ensure!(fs::metadata(path)?.len() <= MAX_FILE_BYTES, "larger than {MAX_FILE_BYTES} bytes");
        Ok(fs::read_to_string(path)?)
    };
    read().with_context(|| format!("read {}", path.display()))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))
}

/// Tokens: one more each interval, up to the burst.
#[derive(Default)]
struct Bucket {
    /// When it would have been empty. None: full.
    empty: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full = rate.interval.saturating_mul(rate.burst);
        let earliest = now.checked_sub(full).unwrap_or(now);
        let empty = self.empty.map_or(earliest, |empty| empty.max(earliest));
        if now.saturating_duration_since(empty) < rate.interval {
            return false;
        }
        self.empty = Some(empty + rate.interval);
        true
    }
}

/// Text or a file, not both.
///
/// # Errors
/// If it is both.
pub fn either<'a>(
    name: &str,
    text: Option<&'a String>,
    file: Option<&'a PathBuf>,
) -> anyhow::Result<Option<Either<'a>>> {
    match (text, file) {
        (Some(_), Some(_)) => bail!("{name} and {name}_file: only one of them"),
        (Some(text), None) => Ok(Some(Either::Text(text))),
        (None, Some(file)) => Ok(Some(Either::File(file))),
        (None, None) => Ok(None),
    }
}

pub enum Either<'a> {
    Text(&'a str),
    File(&'a Path),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        format!("{:#}", File::parse(text).expect_err(text))
    }

    #[test]
    fn what_exporters_take() {
        let file = File::parse(
            "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  min_version: TLS13\n\
             http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n    X-XSS-Protection: \"\"\n\
             basic_auth_users:\n  alice: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n\
             rate_limit:\n  interval: 1s\n  burst: 20\n",
        )
        .expect("valid");
        assert_eq!(file.headers().expect("headers").len(), 1, "blank is unset");
        assert_eq!(file.rate().expect("rate"), Some(Rate { interval: Duration::from_secs(1), burst: 20 }));
        for nothing in ["", "# nothing\n", "---\n", "basic_auth_users: {}\n", "rate_limit: {interval: 0}\n"] {
            let file = File::parse(nothing).expect(nothing);
            assert!(file.tls_server_config.is_none() && file.rate().expect("rate").is_none(), "{nothing}");
        }
    }

    #[test]
    fn what_is_refused() {
        assert!(refused("basic_auth_user: {}").contains("basic_auth_user"));
        assert!(refused("tls_server_config: {certfile: a}").contains("certfile"));
        assert!(refused("http_server_config: {headers: {X-Frame-Options: maybe}}").contains("sameorigin"));
        assert!(refused("http_server_config: {headers: {Server: netobs}}").contains("Server"));
        assert!(refused("http_server_config: {headers: {X-XSS-Protection: \"a\\nb\"}}").contains("X-XSS"));
        assert!(refused("basic_auth_users: {alice: secret}").contains("alice"));
        assert!(refused("basic_auth_users: {alice: a, alice: b}").contains("alice"));
        assert!(refused("rate_limit: {interval: soon, burst: 1}").contains("soon"));
        assert!(refused("rate_limit: {interval: 1s}").contains("burst"));
        for broken in ["[", "{", "a: b: c", "- 1", "\u{0}", "&a [*a]"] {
            refused(broken);
        }
    }

    #[test]
    fn an_empty_file_does_not_let_everybody_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("web.yml");
        let users = |name: &str| {
            format!(
                "basic_auth_users: {{{name}: $2y$04$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi}}\n"
            )
        };
        fs::write(&path, users("alice")).expect("write");
        let web = Web::load(Some(path.clone())).expect("valid");
        let names = || web.settings().users.as_ref().map(Users::names);
        assert_eq!(names(), Some(vec!["alice".to_owned()]));
        for broken in ["", "basic_auth_users: [", "tls_server_config: {cert_file: a, key_file: b}"] {
            fs::write(&path, broken).expect("write");
            assert_eq!(names(), Some(vec!["alice".to_owned()]), "{broken}");
        }
        fs::write(&path, users("bob")).expect("write");
        assert_eq!(names(), Some(vec!["bob".to_owned()]));
        fs::remove_file(&path).expect("remove");
        assert_eq!(names(), Some(vec!["bob".to_owned()]));
    }

    #[test]
    fn a_burst_and_then_one_each_interval() {
        let rate = Rate { interval: Duration::from_secs(1), burst: 3 };
        let (mut bucket, start) = (Bucket::default(), Instant::now() + Duration::from_secs(100));
        let mut taken = |seconds: f64| {
            let now = start + Duration::from_secs_f64(seconds);
            (0..10).filter(|_| bucket.take(rate, now)).count()
        };
        assert_eq!([0.0, 0.5, 1.0, 1.5, 3.2, 100.0].map(&mut taken), [3, 0, 1, 0, 2, 3]);
    }
}
