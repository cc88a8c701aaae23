//! What the log says of a server when it starts.

use crate::cli::healthcheck::reachable;
use crate::cli::loader::cores;
use crate::config::{Config, Device, Listen};
use rerankd_engine::load::LoadConfig;
use rerankd_engine::service::Reranker;

/// Warns of a server that answers the network without API keys.
pub(super) fn warn_if_open(config: &Config, address: &Listen) {
    if let Listen::Tcp(address) = address
        && !address.ip().is_loopback()
        && config.http.api_keys.keys().is_empty()
    {
        tracing::warn!(
            hint = "`--api-keys-file FILE` requires an API key",
            "serving the network without authentication"
        );
    }
}

/// Logs how many threads compute, and why so many.
pub(super) fn threads(config: &Config, load: &LoadConfig) {
    let (threads, cores) = (load.threads, cores());
    let reason = if config.model.threads.is_some() {
        "the setting `threads`"
    } else {
        "the affinity mask and the cgroup quota of this process"
    };
    tracing::info!(threads, cores, reason, device = %config.model.device, "compute threads");
    if config.model.device == Device::Cpu && threads > cores {
        tracing::warn!(
            threads,
            cores,
            hint = "leave `--threads` out, or give this process more cores",
            "more threads than cores, which slows down every request"
        );
    }
}

/// Logs which model is served by default, and a request to try. `are_listed` says that the settings list several.
pub(super) fn ready(config: &Config, are_listed: bool, reranker: &Reranker, address: &Listen) {
    let model = reranker.info();
    tracing::info!(
        model = model.id,
        architecture = model.architecture,
        parameters = model.parameters,
        weight_bytes = model.weight_bytes,
        precision = model.precision,
        device = model.device,
        device_because = model.device_because,
        providers = ?model.providers,
        instructions = model.instructions,
        max_length_tokens = model.max_length,
        threads = model.threads,
        sessions = model.sessions,
        runtime_version = model.runtime_version,
        "ready"
    );
    if config.model.dir.is_none() && !are_listed {
        tracing::info!(
            hint = "`--model` serves a larger one, which ranks better",
            "using the built-in model (English only)"
        );
    }
    let command = example(config, model.labels.len(), address);
    tracing::info!(%command, "try it");
}

/// A request that the server can answer, as a shell command.
fn example(config: &Config, labels: usize, address: &Listen) -> String {
    let (options, scheme) = if config.http.tls_cert.is_some() {
        ("-k ", "https")
    } else {
        ("", "http")
    };
    let server = match reachable(address) {
        Listen::Unix(path) => format!("--unix-socket {} {scheme}://localhost", path.display()),
        address => format!("{scheme}://{address}"),
    };
    let key = if config.http.api_keys.keys().is_empty() {
        ""
    } else {
        "-H 'authorization: Bearer KEY' "
    };
    // A model of several labels scores pairs, and does not rank.
    let (path, body) = if labels <= 1 {
        (
            "rerank",
            r#"{"query":"A man is eating food.","documents":["A monkey plays the drums.","Somebody eats a meal."]}"#,
        )
    } else {
        (
            "predict",
            r#"{"pairs":[["A man is eating food.","Somebody eats a meal."]]}"#,
        )
    };
    let prefix = config.http.path_prefix.as_str();
    format!("curl -s {options}{key}{server}{prefix}/{path} -d '{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_one_that_the_model_can_answer() {
        let address = Listen::Tcp(([0, 0, 0, 0], 80).into());
        let of = |labels| example(&Config::default(), labels, &address);
        let start = "curl -s http://127.0.0.1:80/";
        assert!(of(1).starts_with(&format!(r#"{start}rerank -d '{{"query""#)));
        assert!(of(3).starts_with(&format!(r#"{start}predict -d '{{"pairs""#)));
    }
}
