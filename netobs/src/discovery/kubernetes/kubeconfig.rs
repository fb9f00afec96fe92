//! A kubeconfig's current context, as far as it needs no other program.

use std::{fs, path::Path};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::Uri;
use serde::Deserialize;

use super::access::{Access, Source, Tls};

#[derive(Debug, Deserialize)]
struct Kubeconfig {
    #[serde(default, rename = "current-context")]
    current: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Debug, Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
}

impl std::fmt::Debug for NamedUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.name.fmt(f)
    }
}

/// # Errors
/// For one that is none, and for what netobs does not do: programs that make tokens, servers without a certificate
/// that holds.
pub fn read(file: &Path) -> anyhow::Result<Access> {
    let text = fs::read_to_string(file).with_context(|| format!("kubeconfig {}", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    parse(&text, folder).with_context(|| format!("kubeconfig {}", file.display()))
}

fn parse(text: &str, folder: &Path) -> anyhow::Result<Access> {
    let config: Kubeconfig = serde_saphyr::from_str(text)?;
    let of = |kind: &str, name: &str| format!("there is no {kind} {name:?}");
    let context = config.contexts.into_iter().find(|one| one.name == config.current);
    let context = context.with_context(|| of("context", &config.current))?.context;
    let cluster = config.clusters.into_iter().find(|one| one.name == context.cluster);
    let cluster = cluster.with_context(|| of("cluster", &context.cluster))?.cluster;
    let user = config.users.into_iter().find(|one| one.name == context.user).map(|one| one.user);
    let user = user.unwrap_or_default();
    let source = |data: Option<String>, file: Option<String>| -> anyhow::Result<Option<Source>> {
        Ok(match (data, file) {
            (Some(data), _) => Some(Source::Content(BASE64_STANDARD.decode(data.trim())?)),
            (None, file) => file.map(|file| Source::File(folder.join(file))),
        })
    };
    let uri: Uri = cluster.server.parse().context("server")?;
    let authority = uri.authority().context("server: there is no host in it")?;
    ensure!(!cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify: netobs does not do that");
    let token = match (user.token, user.token_file) {
        (_, Some(file)) => Some(Source::File(folder.join(file))),
        (Some(token), None) => Some(Source::Content(token.into_bytes())),
        (None, None) => None,
    };
    let client = source(user.client_certificate_data, user.client_certificate)?
        .zip(source(user.client_key_data, user.client_key)?);
    let tls = match uri.scheme_str() {
        Some("http") => None,
        Some("https") => {
            let ca = source(cluster.certificate_authority_data, cluster.certificate_authority)?;
            let ca = ca.context("there is no certificate-authority in it")?;
            ensure!(
                token.is_some() || client.is_some(),
                "the user has neither a token nor a certificate (programs that make them are not run)"
            );
            Some(Tls { server_name: cluster.tls_server_name, ca, client })
        }
        _ => bail!("server: it begins with https:// or http://"),
    };
    Ok(Access {
        host: authority.host().trim_matches(['[', ']']).to_owned(),
        port: authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 }),
        prefix: uri.path().trim_end_matches('/').to_owned(),
        tls,
        token,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const ADMIN: &str = "
apiVersion: v1
kind: Config
current-context: there
contexts:
  - {name: here, context: {cluster: none}}
  - {name: there, context: {cluster: one, user: admin, namespace: shop}}
clusters:
  - name: one
    cluster: {server: 'https://[fd00::1]:6443/k8s/', certificate-authority: pki/ca.crt}
users:
  - name: admin
    user: {client-certificate-data: YQ==, client-key: /pki/key, tokenFile: token}
";

    #[test]
    fn the_current_context() -> anyhow::Result<()> {
        let access = parse(ADMIN, Path::new("/etc/k8s"))?;
        assert_eq!(access.authority(), "[fd00::1]:6443");
        assert_eq!(access.prefix, "/k8s");
        let files = ["/etc/k8s/pki/ca.crt", "/pki/key", "/etc/k8s/token"].map(PathBuf::from);
        assert_eq!(access.files(), files);
        let plain = parse(
            "{current-context: a, contexts: [{name: a, context: {cluster: a}}], clusters: [{name: a, cluster: {server: 'http://localhost:8001'}}]}",
            Path::new("/"),
        )?;
        assert!(plain.tls.is_none() && plain.token.is_none());
        assert_eq!(plain.authority(), "localhost:8001");
        Ok(())
    }

    #[test]
    fn what_it_cannot_do_is_said() {
        for (from, to, why) in [
            ("current-context: there", "current-context: nowhere", "no context \"nowhere\""),
            ("cluster: one, user", "cluster: two, user", "no cluster \"two\""),
            ("user: admin", "user: other", "neither a token nor a certificate"),
            ("certificate-authority: pki/ca.crt", "insecure-skip-tls-verify: true", "does not do that"),
            (", certificate-authority: pki/ca.crt", "", "no certificate-authority"),
            ("https://", "ftp://", "https://"),
        ] {
            let text = ADMIN.replace(from, to);
            let error = parse(&text, Path::new("/")).map(drop).map_err(|error| format!("{error:#}"));
            assert!(error.as_ref().is_err_and(|error| error.contains(why)), "{why}: {error:?}");
        }
        assert!(parse("]", Path::new("/")).is_err());
    }
}
