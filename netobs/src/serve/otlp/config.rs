//! Where what is sent goes, and how: by options, and by the environment as OpenTelemetry's specification has it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use hyper::{
    Uri,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, RootCertStore};

use crate::{certificates, cli::OtlpArgs, output::otlp::Source};

pub struct Config {
    pub interval: Duration,
    pub metrics: Target,
    /// None: flows are not sent.
    pub logs: Option<Target>,
    pub source: Source,
}

/// Where one signal goes.
#[derive(Clone, Debug)]
pub struct Target {
    pub uri: Uri,
    pub host: String,
    pub port: u16,
    pub headers: HeaderMap,
    /// Of a request, from connecting to the whole of the answer.
    pub timeout: Duration,
    pub gzip: bool,
    pub tls: Option<Arc<ClientConfig>>,
}

/// Variables of the environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

const INTERVAL: Duration = Duration::from_secs(60);
/// The specification's.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Config {
    /// None: nothing is to be sent.
    ///
    /// # Errors
    /// For what cannot be done, or makes no sense.
    pub fn of(args: &OtlpArgs, environment: Environment<'_>) -> anyhow::Result<Option<Self>> {
        // A variable that is empty is none.
        let environment = &|name: &str| environment(name).filter(|value| !value.trim().is_empty());
        let is_off = environment("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if args.otlp_endpoint.is_none() && is_off {
            return Ok(None);
        }
        let Some(metrics) = target(args, "METRICS", "v1/metrics", environment)? else {
            ensure!(!args.otlp_flows, "--otlp-flows without --otlp-endpoint: where should they go?");
            return Ok(None);
        };
        let logs = match args.otlp_flows {
            false => None,
            true => Some(
                target(args, "LOGS", "v1/logs", environment)?
                    .context("--otlp-flows: there is an endpoint for metrics, and none for logs")?,
            ),
        };
        let interval = match (args.otlp_interval, environment("OTEL_METRIC_EXPORT_INTERVAL")) {
            (Some(interval), _) => interval,
            (None, Some(text)) => millis(&text).context("OTEL_METRIC_EXPORT_INTERVAL")?,
            (None, None) => INTERVAL,
        };
        Ok(Some(Self { interval, metrics, logs, source: source(environment)? }))
    }

    /// With the node's name in Kubernetes, unless the environment has another.
    pub fn on_node(mut self, node: Option<String>) -> Self {
        if let Some(node) = node {
            self.source.add("k8s.node.name", node);
        }
        self
    }
}

/// None: there is no endpoint.
fn target(
    args: &OtlpArgs,
    signal: &str,
    path: &str,
    environment: Environment<'_>,
) -> anyhow::Result<Option<Target>> {
    let own = |name: &str| format!("OTEL_EXPORTER_OTLP_{signal}_{name}");
    let general = |name: &str| format!("OTEL_EXPORTER_OTLP_{name}");
    let setting = |name: &str| {
        let found = [own(name), general(name)].into_iter().find_map(|name| Some((environment(&name)?, name)));
        found.map(|(value, name)| (name, value.trim().to_owned()))
    };
    let below = |base: &str| format!("{}/{path}", base.trim().trim_end_matches('/'));
    let (name, url) = if let Some(base) = &args.otlp_endpoint {
        ("--otlp-endpoint".to_owned(), below(base))
    } else if let Some(url) = environment(&own("ENDPOINT")) {
        // Of one signal: as it is.
        (own("ENDPOINT"), url.trim().to_owned())
    } else if let Some(base) = environment(&general("ENDPOINT")) {
        (general("ENDPOINT"), below(&base))
    } else {
        return Ok(None);
    };
    if let Some((name, protocol)) = setting("PROTOCOL") {
        ensure!(protocol == "http/protobuf", "{name}={protocol}: only http/protobuf is spoken");
    }
    let gzip = match setting("COMPRESSION") {
        None => false,
        Some((_, how)) if how == "none" => false,
        Some((_, how)) if how == "gzip" => true,
        Some((name, how)) => bail!("{name}={how}: gzip or none"),
    };
    let timeout = match setting("TIMEOUT") {
        None => TIMEOUT,
        Some((name, text)) => millis(&text).context(name)?,
    };
    let headers = match setting("HEADERS") {
        None => HeaderMap::new(),
        Some((name, text)) => headers(&text).context(name)?,
    };
    let (uri, host, port, is_https) = endpoint(&url).with_context(|| format!("{name} {url}"))?;
    let file = |name: &str| setting(name).map(|(name, path)| read(&path).context(name)).transpose();
    let tls = match is_https {
        false => None,
        true => Some(tls(file("CERTIFICATE")?, file("CLIENT_CERTIFICATE")?, file("CLIENT_KEY")?)?),
    };
    Ok(Some(Target { uri, host, port, headers, timeout, gzip, tls }))
}

fn endpoint(url: &str) -> anyhow::Result<(Uri, String, u16, bool)> {
    let is_https = url.starts_with("https://");
    ensure!(is_https || url.starts_with("http://"), "it begins with http:// or https://");
    let uri: Uri = url.parse()?;
    let authority = uri.authority().context("there is no host in it")?;
    // It would be seen in messages.
    ensure!(!authority.as_str().contains('@'), "user and password belong into OTEL_EXPORTER_OTLP_HEADERS");
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    ensure!(!host.is_empty(), "there is no host in it");
    let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    Ok((uri, host, port, is_https))
}

fn millis(text: &str) -> anyhow::Result<Duration> {
    let millis: u64 =
        text.trim().parse().with_context(|| format!("{text:?} is no number of milliseconds"))?;
    ensure!(millis >= 50, "{millis} ms is less than 50");
    Ok(Duration::from_millis(millis))
}

/// `key=value,key=value`, values percent-encoded.
fn pairs(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    let pairs = pairs.map(|pair| {
        // What it is may be a secret.
        let (key, value) = pair.split_once('=').context("it is of the form key=value,key=value")?;
        let value = percent_decode_str(value.trim()).decode_utf8().context("a value is no UTF-8")?;
        Ok((key.trim().to_owned(), value.into_owned()))
    });
    pairs.collect()
}

fn headers(text: &str) -> anyhow::Result<HeaderMap> {
    let header = |(key, value): (String, String)| {
        let mut value = HeaderValue::from_str(&value).with_context(|| format!("value of {key}"))?;
        value.set_sensitive(true);
        Ok((HeaderName::from_bytes(key.as_bytes()).context("a name")?, value))
    };
    pairs(text)?.into_iter().map(header).collect()
}

/// Who we are, for all that we send.
fn source(environment: Environment<'_>) -> anyhow::Result<Source> {
    let uname = nix::sys::utsname::uname();
    let hostname = uname.map(|uname| uname.nodename().to_string_lossy().into_owned()).unwrap_or_default();
    let mut attributes = vec![
        ("service.name".to_owned(), "netobs".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id".to_owned(), hostname.clone()),
        ("host.name".to_owned(), hostname),
    ];
    let given = environment("OTEL_RESOURCE_ATTRIBUTES").map_or(Ok(Vec::new()), |text| pairs(&text));
    let given = given.context("OTEL_RESOURCE_ATTRIBUTES")?;
    let name = environment("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
    for (key, value) in given.into_iter().chain(name) {
        attributes.retain(|(known, _)| *known != key);
        attributes.push((key, value));
    }
    Ok(Source::new(attributes))
}

fn read(path: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(Path::new(path)).with_context(|| path.to_owned())
}

fn tls(
    ca: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let roots = match ca {
        Some(pem) => certificates::authorities(&pem)?,
        // The host's; SSL_CERT_FILE and SSL_CERT_DIR name others.
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    ensure!(
        !roots.is_empty(),
        "no CA certificates on this host; OTEL_EXPORTER_OTLP_CERTIFICATE names a file of them"
    );
    match (&certificate, &key) {
        (None, None) => certificates::client(roots, None),
        (Some(certificate), Some(key)) => certificates::client(roots, Some((certificate, key))),
        _ => bail!("a client's certificate and its key: one of them is missing"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn args(endpoint: Option<&str>, flows: bool) -> OtlpArgs {
        OtlpArgs { otlp_endpoint: endpoint.map(str::to_owned), otlp_flows: flows, otlp_interval: None }
    }

    fn config(args: &OtlpArgs, variables: &[(&str, &str)]) -> anyhow::Result<Option<Config>> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Config::of(args, &|name| variables.get(name).map(|&value| value.to_owned()))
    }

    fn some(args: &OtlpArgs, variables: &[(&str, &str)]) -> Config {
        config(args, variables).expect("a configuration").expect("it is on")
    }

    #[test]
    fn off_unless_asked_for() {
        assert!(config(&args(None, false), &[]).expect("nothing wrong").is_none());
        assert!(
            config(&args(None, false), &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).expect("empty").is_none()
        );
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a"), ("OTEL_SDK_DISABLED", "true")];
        assert!(config(&args(None, false), &variables).expect("nothing wrong").is_none());
        assert!(config(&args(None, true), &[]).is_err());
    }

    #[test]
    fn where_to() {
        let to = |endpoint, variables: &[(&str, &str)]| {
            let config = some(&args(endpoint, true), variables);
            (config.metrics.uri.to_string(), config.logs.expect("logs").uri.to_string())
        };
        let both = |base: &str| (format!("{base}/v1/metrics"), format!("{base}/v1/logs"));
        assert_eq!(to(Some("http://c:4318/"), &[]), both("http://c:4318"));
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:4318/base");
        assert_eq!(to(None, &[general]), both("http://env:4318/base"));
        assert_eq!(to(Some("http://c"), &[general]), both("http://c"));
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m/as/it/is");
        assert_eq!(
            to(None, &[general, own]),
            ("http://m/as/it/is".to_owned(), both("http://env:4318/base").1)
        );
        let config = some(&args(Some("http://[::1]"), false), &[]);
        assert_eq!(
            (config.metrics.host.as_str(), config.metrics.port, config.logs.is_none()),
            ("::1", 80, true)
        );
    }

    #[test]
    fn how() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20YTpi, x-scope=a"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-scope=b"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "15000"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1,service.name=other"),
            ("OTEL_SERVICE_NAME", "mine"),
        ];
        let config = some(&args(Some("http://c"), true), &variables);
        let logs = config.logs.expect("logs");
        assert_eq!(config.metrics.headers["authorization"], "Basic YTpi");
        assert_eq!(
            (&config.metrics.headers["x-scope"], &logs.headers["x-scope"]),
            (&"a".parse().expect("a"), &"b".parse().expect("b"))
        );
        assert_eq!(
            (config.metrics.timeout, config.metrics.gzip, logs.gzip),
            (Duration::from_millis(2500), true, false)
        );
        assert_eq!(config.interval, Duration::from_secs(15));
        let source = format!("{:?}", config.source);
        for wanted in ["\"k8s.node.name\"", "\"n1\"", "\"mine\"", "\"host.name\""] {
            assert!(source.contains(wanted), "{wanted}: {source}");
        }
        assert!(!source.contains("\"other\"") && !source.contains("\"netobs\""), "{source}");
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (endpoint, variable, word) in [
            ("c:4318", None, "http://"),
            ("grpc://c", None, "http://"),
            ("http://", None, ""),
            ("http://a:b@c", None, "HEADERS"),
            ("http://c", Some(("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")), "http/protobuf"),
            ("http://c", Some(("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd")), "gzip"),
            ("http://c", Some(("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")), "milliseconds"),
            ("http://c", Some(("OTEL_EXPORTER_OTLP_HEADERS", "secret")), "key=value"),
            ("https://c", Some(("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere")), "/nowhere"),
        ] {
            let variables: Vec<_> = variable.into_iter().collect();
            let said = config(&args(Some(endpoint), false), &variables).map(drop).expect_err(endpoint);
            let said = format!("{said:#}");
            assert!(said.contains(word) && !said.contains("secret"), "{endpoint}: {said}");
        }
    }
}
