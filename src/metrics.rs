//! What the server measures beside its engine, and the text of `/metrics`.

use std::sync::Arc;

use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use rerankd_engine::metrics::{Closed, Labels, Metrics, SECONDS, resident_bytes};

const LISTENERS: Closed = ("listener", &["requests", "admin"]);

rerankd_engine::metrics! {
    /// What the HTTP edge counts.
    pub struct EdgeMetrics {
        /// Requests answered, by route and status.
        requests: IntCounterVec = "rerankd_requests_total", Labels::Open(&["route", "status"]);
        /// Seconds from the end of a request's head to its answer, by route.
        request_seconds: HistogramVec = "rerankd_request_seconds", (&["route"], SECONDS);
        /// Open connections, by listener: that of `requests`, and `admin`. Each has its own limit.
        connections: IntGaugeVec = "rerankd_connections", LISTENERS;
        /// Connections refused because the limit was reached, by listener.
        refused_connections: IntCounterVec = "rerankd_refused_connections_total",
            Labels::Closed(LISTENERS);
        /// Resident memory of the process, in bytes.
        resident_bytes: IntGauge = "rerankd_resident_memory_bytes", ();
    }
}

/// Every metric of the server, in one registry.
pub struct ServerMetrics {
    registry: Registry,
    /// Those of the HTTP edge.
    pub edge: Arc<EdgeMetrics>,
    /// Those of the engine.
    pub engine: Arc<Metrics>,
}

impl ServerMetrics {
    /// Every metric, in a registry of its own, so that tests do not share counts.
    pub fn new() -> Arc<Self> {
        let (registry, edge, engine) = (Registry::new(), EdgeMetrics::new(), Metrics::new());
        for registered in [edge.register(&registry), engine.register(&registry)] {
            registered.expect("metric names are unique");
        }
        Arc::new(Self {
            registry,
            edge,
            engine,
        })
    }

    /// Every metric in the Prometheus text format.
    pub fn render(&self) -> String {
        if let Some(bytes) = resident_bytes() {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.edge.resident_bytes.set(bytes);
        }
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("encoding to memory cannot fail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_metrics_of_edge_and_engine() {
        let text = ServerMetrics::new().render();
        for line in [
            "rerankd_resident_memory_bytes ",
            "rerankd_pairs_total 0",
            r#"rerankd_connections{listener="admin"} 0"#,
            r#"rerankd_refused_connections_total{listener="requests"} 0"#,
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
