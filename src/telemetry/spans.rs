//! Spans on their way to a collector: OTLP, as protobuf over HTTP.

mod client;

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use self::client::Client;
use crate::config::TraceConfig;
use rerankd_engine::trace;

/// Longest that the last spans may take on their way when the server stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// What sends spans; dropped, it has sent the last of them.
pub struct Spans(SdkTracerProvider);

impl Spans {
    /// Sends the spans of this process from here on. `None` where no collector is named.
    ///
    /// # Errors
    /// A message for the operator when the collector cannot be sent to.
    pub fn start(config: &TraceConfig) -> Result<Option<Self>, String> {
        let Some(endpoint) = &config.endpoint else {
            return Ok(None);
        };
        if !endpoint.starts_with("http://") {
            return Err(format!(
                "`otlp_endpoint` is `{endpoint}`, which is not spoken\n  hint: name a collector that \
                 is reached with `http://`, such as one on this machine that sends them on"
            ));
        }
        let headers = headers(config.headers.text())?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_headers(headers)
            .build()
            .map_err(|error| {
                format!("`otlp_endpoint`: {error}\n  hint: such as `http://127.0.0.1:4318`")
            })?;
        #[expect(clippy::cast_precision_loss)]
        let part = config.sample_percent as f64 / 100.0;
        let resource = Resource::builder()
            .with_service_name("rerankd")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                part,
            ))))
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
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Reads `NAME=VALUE`, divided by commas.
fn headers(text: &str) -> Result<HashMap<String, String>, String> {
    let entries = text.split(',').map(str::trim);
    let entries = entries.filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, value) = entry.split_once('=').ok_or(
                "`otlp_headers` has an entry without `=`\n  hint: write it as `NAME=VALUE`, divided by commas",
            )?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}
