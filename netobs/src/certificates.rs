//! Certificates in PEM, and TLS of who connects to somebody by them.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// # Errors
/// If there is none, or one that cannot be read.
pub fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    ensure!(!certificates.is_empty(), "there is no certificate in it");
    Ok(certificates)
}

/// Authorities whose certificates are these.
///
/// # Errors
/// As [`certificates`].
pub fn authorities(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).context("CA certificate")?;
    }
    Ok(roots)
}

/// For HTTP/1.1 with a server that one of these authorities vouches for; `own` are the PEM of a certificate and its
/// key, if the client shows one.
///
/// # Errors
/// If these are no certificate with its key.
pub fn client(roots: RootCertStore, own: Option<(&[u8], &[u8])>) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).context("client's key")?;
            let certificates = certificates(certificate).context("client's certificate")?;
            builder.with_client_auth_cert(certificates, key).context("client's certificate")?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
