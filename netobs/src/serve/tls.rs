//! TLS, as the web configuration file has it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use serde::Deserialize;

use super::web::{Either, either};
use crate::certificates::certificates;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
    client_auth_type: Option<String>,
    client_allowed_sans: Option<Vec<String>>,
    min_version: Option<String>,
    max_version: Option<String>,
    cipher_suites: Vec<String>,
    prefer_server_cipher_suites: Option<bool>,
    curve_preferences: Vec<String>,
}

/// What is a file's text, or why it cannot be had.
type Text = anyhow::Result<String>;

impl Tls {
    /// Relative paths are the configuration file's folder's.
    pub fn in_folder(&self, folder: &Path) -> Self {
        let join = |file: &Option<PathBuf>| file.as_ref().map(|file| folder.join(file));
        Self {
            cert_file: join(&self.cert_file),
            key_file: join(&self.key_file),
            client_ca_file: join(&self.client_ca_file),
            ..self.clone()
        }
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.cert_file, &self.key_file, &self.client_ca_file].into_iter().flatten().map(PathBuf::as_path)
    }

    /// # Errors
    /// For what is not offered, or certificates that are none.
    pub fn server(&self, read: impl Fn(&Path) -> Text) -> anyhow::Result<ServerConfig> {
        let pem = |name: &str, text, file| -> anyhow::Result<Option<String>> {
            Ok(match either(name, text, file)? {
                None => None,
                Some(Either::Text(text)) => Some(text.to_owned()),
                Some(Either::File(file)) => Some(read(file)?),
            })
        };
        let cert = pem("cert", self.cert.as_ref(), self.cert_file.as_ref())?
            .context("tls_server_config: no cert_file")?;
        let key = pem("key", self.key.as_ref(), self.key_file.as_ref())?
            .context("tls_server_config: no key_file")?;
        let client_ca = pem("client_ca", self.client_ca.as_ref(), self.client_ca_file.as_ref())?;
        let provider = Arc::new(self.provider()?);
        let verifier = self.verifier(client_ca.as_deref(), &provider)?;
        let certs = certificates(cert.as_bytes()).context("cert")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("key")?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions()?)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certs, key)
            .context("cert and key")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ignore_client_order = self.prefer_server_cipher_suites.unwrap_or(true);
        // Scrapers keep their connections: what sessions to resume would take of memory is saved.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn versions(&self) -> anyhow::Result<Vec<&'static SupportedProtocolVersion>> {
        let version = |name: &str| match name {
            "TLS12" => Ok(12),
            "TLS13" => Ok(13),
            "TLS10" | "TLS11" => bail!("{name} is not safe and not offered: TLS12 and TLS13 are"),
            _ => bail!("unknown TLS version {name:?}: TLS12 or TLS13"),
        };
        let least = self.min_version.as_deref().map_or(Ok(12), version).context("min_version")?;
        let most = self.max_version.as_deref().map_or(Ok(13), version).context("max_version")?;
        ensure!(least <= most, "min_version is above max_version");
        Ok([(12, &TLS12), (13, &TLS13)]
            .into_iter()
            .filter(|(number, _)| (least..=most).contains(number))
            .map(|(_, version)| version)
            .collect())
    }

    /// Cipher suites and key exchanges: those that are named, or all.
    fn provider(&self) -> anyhow::Result<CryptoProvider> {
        let mut provider = ring::default_provider();
        if !self.cipher_suites.is_empty() {
            // Names are for TLS 1.2; of TLS 1.3 the format leaves no choice. Go's names are the registry's.
            let all = std::mem::take(&mut provider.cipher_suites);
            let name = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
            for wanted in &self.cipher_suites {
                let found = all.iter().find(|suite| name(suite).replace("TLS13_", "TLS_") == *wanted);
                provider.cipher_suites.push(*found.with_context(|| {
                    format!(
                        "cipher suite {wanted:?} is not offered, but {}",
                        all.iter().map(name).collect::<Vec<_>>().join(", ")
                    )
                })?);
            }
            for suite in all.into_iter().filter(|suite| suite.tls13().is_some()) {
                if !provider.cipher_suites.contains(&suite) {
                    provider.cipher_suites.push(suite);
                }
            }
        }
        if !self.curve_preferences.is_empty() {
            provider.kx_groups = self
                .curve_preferences
                .iter()
                .map(|name| match name.as_str() {
                    "X25519" => Ok(ring::kx_group::X25519),
                    "CurveP256" => Ok(ring::kx_group::SECP256R1),
                    "CurveP384" => Ok(ring::kx_group::SECP384R1),
                    _ => bail!("curve {name:?} is not offered, but X25519, CurveP256 and CurveP384"),
                })
                .collect::<anyhow::Result<_>>()?;
        }
        Ok(provider)
    }

    fn verifier(
        &self,
        client_ca: Option<&str>,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
        ensure!(self.client_allowed_sans.is_none(), "client_allowed_sans is not offered");
        let everybody = match self.client_auth_type.as_deref() {
            None | Some("" | "NoClientCert") => {
                ensure!(client_ca.is_none(), "client_ca without client_auth_type: nobody would be asked");
                return Ok(WebPkiClientVerifier::no_client_auth());
            }
            Some("RequireAndVerifyClientCert") => false,
            Some("VerifyClientCertIfGiven") => true,
            Some(kind @ ("RequestClientCert" | "RequireAnyClientCert" | "RequireClientCert")) => {
                bail!(
                    "client_auth_type {kind} is not offered: a certificate that nobody verifies says nothing"
                )
            }
            Some(kind) => bail!("unknown client_auth_type {kind:?}"),
        };
        let mut roots = RootCertStore::empty();
        for certificate in
            certificates(client_ca.context("client_auth_type without client_ca_file")?.as_bytes())?
        {
            roots.add(certificate).context("client_ca")?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let verifier = if everybody { verifier.allow_unauthenticated() } else { verifier };
        Ok(verifier.build()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500`; of no use elsewhere.
    const CERT: &str = "-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUeSQvhV9r+WZ6miaj26RBk4bjog0wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTE3MzQ0MloYDzIxMjYxMDI4
MTczNDQyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQur1e22071r93Sm4G66k8w73UMkY8kMNwliZFWjDjovjEzlBxZ0QD5
zpRvWLDjumInEDza+PzMs1NGk6RcX9bgo28wbTAdBgNVHQ4EFgQUy8l712Jk+E2w
cdkrBqZCtu0aMlcwHwYDVR0jBBgwFoAUy8l712Jk+E2wcdkrBqZCtu0aMlcwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgJLIYkFVYlEL3XdLk/JNnFAnwSHGwFFhUR3JxD9RsINUCIQCR
Hrjb57PrMkLYtvdlWQO5Z9C9SC4iqNCvuuw7v5R3sA==
-----END CERTIFICATE-----
";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgR2iu0gDFawicAEZg
oGU21orVW3zsbPUk3xUdX94q97ChRANCAAQur1e22071r93Sm4G66k8w73UMkY8k
MNwliZFWjDjovjEzlBxZ0QD5zpRvWLDjumInEDza+PzMs1NGk6RcX9bg
-----END PRIVATE KEY-----
";

    fn server(yaml: &str) -> Result<ServerConfig, String> {
        let tls: Tls = serde_saphyr::from_str(yaml).map_err(|error| format!("{error:#}"))?;
        let tls = Tls { cert: Some(CERT.to_owned()), key: Some(KEY.to_owned()), ..tls };
        tls.server(|file| Ok(file.display().to_string())).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_is_offered() {
        for yaml in [
            "{}",
            "min_version: TLS12",
            "{min_version: TLS13, max_version: TLS13}",
            "{cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]}",
            "{curve_preferences: [CurveP256, X25519], prefer_server_cipher_suites: false}",
            "client_auth_type: NoClientCert",
        ] {
            server(yaml).expect(yaml);
        }
        let ca = CERT.lines().map(|line| format!("  {line}\n")).collect::<String>();
        server(&format!("client_auth_type: RequireAndVerifyClientCert\nclient_ca: |\n{ca}"))
            .expect("with a CA");
    }

    #[test]
    fn what_is_not() {
        for (yaml, word) in [
            ("min_version: TLS10", "TLS12"),
            ("max_version: SSL30", "SSL30"),
            ("{min_version: TLS13, max_version: TLS12}", "above"),
            ("cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]", "RC4"),
            ("curve_preferences: [CurveP521]", "CurveP521"),
            ("client_auth_type: RequireAnyClientCert", "verifies"),
            ("client_auth_type: Maybe", "Maybe"),
            ("client_auth_type: RequireAndVerifyClientCert", "client_ca_file"),
            ("client_ca: nothing", "client_auth_type"),
            ("{client_ca: nothing, client_auth_type: VerifyClientCertIfGiven}", "no certificate"),
            ("client_allowed_sans: [a]", "client_allowed_sans"),
            ("cert_file: a", "only one"),
            ("password: a", "password"),
        ] {
            let said = server(yaml).map(drop).expect_err(yaml);
            assert!(said.contains(word), "{yaml}: {said}");
        }
        let without = Tls { cert: Some(CERT.to_owned()), ..Tls::default() };
        assert!(without.server(|_| Ok(String::new())).is_err(), "without a key");
    }
}
