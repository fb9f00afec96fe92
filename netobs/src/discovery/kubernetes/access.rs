//! Where the API is, and who we are there: as a pod is told, or by a kubeconfig.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use hyper::header::HeaderValue;
use rustls::ClientConfig;

use super::kubeconfig;
use crate::certificates;

/// Where a pod has its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Files are read anew for each connection, the token for each request: they are replaced while we run.
#[derive(Clone, Debug)]
pub struct Access {
    pub host: String,
    pub port: u16,
    /// Before all paths; mostly empty.
    pub prefix: String,
    /// None: no TLS.
    pub tls: Option<Tls>,
    pub token: Option<Source>,
}

#[derive(Clone, Debug)]
pub struct Tls {
    /// In the server's certificate, if not the host.
    pub server_name: Option<String>,
    pub ca: Source,
    /// Certificate and key.
    pub client: Option<(Source, Source)>,
}

/// A file, or what would be in it.
#[derive(Clone)]
pub enum Source {
    File(PathBuf),
    Content(Vec<u8>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            // It may be a secret.
            Self::Content(_) => f.write_str("(in the configuration)"),
        }
    }
}

impl Source {
    pub fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => fs::read(path).with_context(|| path.display().to_string()),
            Self::Content(content) => Ok(content.clone()),
        }
    }
}

impl Access {
    /// By a kubeconfig if one is given, else as a pod has it. None: we are in no pod.
    ///
    /// # Errors
    /// For a kubeconfig that cannot be used.
    pub fn of(
        kubeconfig: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<Self>> {
        match kubeconfig {
            Some(file) => kubeconfig::read(file).map(Some),
            None => Ok(Self::of_pod(Path::new(SERVICE_ACCOUNT), environment)),
        }
    }

    fn of_pod(folder: &Path, environment: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let host = environment("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
        let port = environment("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok()).unwrap_or(443);
        let file = |name: &str| Source::File(folder.join(name));
        Some(Self {
            host,
            port,
            prefix: String::new(),
            tls: Some(Tls { server_name: None, ca: file("ca.crt"), client: None }),
            token: Some(file("token")),
        })
    }

    /// Those that are read while we run.
    pub fn files(&self) -> Vec<PathBuf> {
        let tls = self.tls.iter();
        let tls = tls.flat_map(|tls| {
            [Some(&tls.ca), tls.client.as_ref().map(|one| &one.0), tls.client.as_ref().map(|one| &one.1)]
        });
        let all = tls.flatten().chain(&self.token);
        let file = |source: &Source| match source {
            Source::File(path) => Some(path.clone()),
            Source::Content(_) => None,
        };
        all.filter_map(file).collect()
    }

    /// `host:port`
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn authorization(&self) -> anyhow::Result<Option<HeaderValue>> {
        let Some(token) = &self.token else { return Ok(None) };
        let token = token.read().context("the service account's token")?;
        let token = [b"Bearer ", token.trim_ascii()].concat();
        let mut value = HeaderValue::from_bytes(&token).context("the token is none")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Tls {
    pub fn config(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let roots = certificates::authorities(&self.ca.read()?).context("CA certificate")?;
        let own =
            self.client.as_ref().map(|(certificate, key)| anyhow::Ok((certificate.read()?, key.read()?)));
        let own = own.transpose()?;
        certificates::client(roots, own.as_ref().map(|(certificate, key)| (&certificate[..], &key[..])))
    }
}

/// Whether a node may be called so: in a field selector anything else could mean more than one node.
pub fn valid_node(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    !name.is_empty() && name.len() <= 253 && name.bytes().all(is_fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_in_pods() {
        let of = |variables: &'static [(&str, &str)]| {
            Access::of_pod(Path::new("/account"), move |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(of(&[]).is_none());
        assert!(of(&[("KUBERNETES_SERVICE_HOST", "")]).is_none());
        let access = of(&[("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "6443")]);
        let access = access.expect("access");
        assert_eq!(access.authority(), "10.96.0.1:6443");
        assert_eq!(access.files(), ["/account/ca.crt", "/account/token"].map(PathBuf::from));
        let access = of(&[("KUBERNETES_SERVICE_HOST", "fd00::1")]).expect("access");
        assert_eq!(access.authority(), "[fd00::1]:443");
    }

    #[test]
    fn a_node_is_one_node() {
        for name in ["node-1", "ip-10-0-0-1.eu-central-1.compute.internal"] {
            assert!(valid_node(name), "{name}");
        }
        for name in ["", "a,spec.nodeName!=b", "a b", "a=b", "a\\", "a\n", &"x".repeat(254)] {
            assert!(!valid_node(name), "{name}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Source::Content(b"secret".to_vec());
        assert!(!format!("{secret:?}").contains("secret"));
    }
}
