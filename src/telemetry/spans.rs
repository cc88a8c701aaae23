//! Sends spans to an OpenTelemetry collector, by OTLP over HTTP.

mod client;

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use ureq::tls::Certificate;

use self::client::Client;
use crate::config::TraceConfig;
use rerankd_engine::trace;

/// Longest that one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that the last export may take when the server stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Why spans cannot be sent, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// The collector's address has another scheme.
    #[error(
        "`otlp_endpoint` is `{0}`, which is not an HTTP address\n  hint: write it as \
         `http://HOST:PORT` or `https://HOST:PORT`"
    )]
    Scheme(String),
    /// The collector's address or the headers are not those of an HTTP request.
    #[error("`otlp_endpoint`: {0}\n  hint: write it as `http://127.0.0.1:4318`")]
    Exporter(#[from] ExporterBuildError),
    /// A header is not `NAME=VALUE`.
    #[error(
        "`otlp_headers` has an entry without `=`\n  hint: write headers as `NAME=VALUE`, separated \
         by commas"
    )]
    Header,
    /// An `https://` collector, and no certificate to check it with.
    #[error(
        "`otlp_endpoint` is an `https://` address, and this system has no CA certificates\n  hint: \
         install them, or name a file of them in `SSL_CERT_FILE`"
    )]
    NoRoots,
}

/// The span exporter. Dropping it sends the last spans.
pub struct Spans(SdkTracerProvider);

impl Spans {
    /// Sends the spans of this process from now on. `None` if no collector is configured.
    ///
    /// # Errors
    /// When the settings are wrong.
    pub fn start(config: &TraceConfig) -> Result<Option<Self>, SpansError> {
        let Some(endpoint) = &config.endpoint else {
            return Ok(None);
        };
        let roots = match endpoint.split_once("://") {
            Some(("http", _)) => Vec::new(),
            Some(("https", _)) => system_roots()?,
            _ => return Err(SpansError::Scheme(endpoint.clone())),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new(EXPORT_TIMEOUT, &roots))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_headers(headers(config.headers.text())?)
            .build()?;
        #[expect(clippy::cast_precision_loss)]
        let ratio = config.sample_percent as f64 / 100.0;
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
        let resource = Resource::builder()
            .with_service_name("rerankd")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        let scope = InstrumentationScope::builder("rerankd")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        trace::send_with(BoxedTracer::new(Box::new(
            provider.tracer_with_scope(scope),
        )));
        Ok(Some(Self(provider)))
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "last spans lost");
        }
    }
}

/// The CA certificates of this system.
fn system_roots() -> Result<Vec<Certificate<'static>>, SpansError> {
    let roots = rustls_native_certs::load_native_certs().certs;
    if roots.is_empty() {
        return Err(SpansError::NoRoots);
    }
    let roots = roots
        .iter()
        .map(|root| Certificate::from_der(root.as_ref()).to_owned());
    Ok(roots.collect())
}

/// Parses `NAME=VALUE`, separated by commas.
fn headers(text: &str) -> Result<HashMap<String, String>, SpansError> {
    let entries = text.split(',').map(str::trim);
    let entries = entries.filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, value) = entry.split_once('=').ok_or(SpansError::Header)?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}
