//! The hub as settings and environment configure it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::download::{Download, ProgressSink};
use crate::config::{Config, Secret, Value};
use rerankd_hub::{Cache, HubConfig, ModelId, Proxy, Retries};
use rerankd_model::{ModelError, ModelOptions, ProfileChoice};

/// The directory of a model, which is downloaded if it is not in the cache.
///
/// # Errors
/// When the hub has no such model, or it cannot be downloaded.
pub(super) fn fetch(
    id: &ModelId,
    config: &Config,
    sink: ProgressSink,
) -> Result<PathBuf, ModelError> {
    let download = Download::new(id.to_string(), sink);
    let onnx_file = config.model.onnx_file.as_deref();
    let directory = rerankd_hub::fetch(id, onnx_file, &hub_config(config)?, &|event| {
        download.report(event);
    })?;
    download.finish();
    Ok(directory)
}

/// The cache of downloaded models.
///
/// # Errors
/// When neither settings nor environment name a place for it.
pub(super) fn cache(config: &Config) -> Result<Cache, ModelError> {
    Ok(Cache::new(cache_dir(config)?))
}

fn cache_dir(config: &Config) -> Result<PathBuf, ModelError> {
    let default = || Some(home()?.join("hub"));
    config.hub.cache.clone().or_else(default).ok_or_else(|| {
        ModelError::new(
            "no place for downloaded models: neither `HF_HOME` nor `HOME` is set",
            "name a folder with `--hub-cache DIR`",
        )
    })
}

fn hub_config(config: &Config) -> Result<HubConfig, ModelError> {
    let configured = Some(config.hub.token.clone()).filter(|token| !token.text().is_empty());
    let token = configured.or_else(saved_token);
    Ok(HubConfig {
        endpoint: config.hub.endpoint.clone(),
        token: token.filter(|token| !token.text().is_empty()),
        cache: cache_dir(config)?,
        offline: config.hub.offline,
        ca_file: config.hub.ca_file.clone(),
        proxy: Proxy::try_from_env(),
        retries: Retries::default(),
        model: ModelOptions {
            profile: config.model.profile.as_deref().map(ProfileChoice::parse),
            max_length: config.model.max_length,
        },
    })
}

/// The folder in which Hugging Face libraries keep their files.
fn home() -> Option<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Some(home.into());
    }
    let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
    Some(caches?.join("huggingface"))
}

/// The token that `hf auth login` saved, if there is one.
fn saved_token() -> Option<Secret> {
    let path = variable("HF_TOKEN_PATH").map(PathBuf::from);
    let path = path.or_else(|| Some(home()?.join("token")))?;
    Secret::read(&path).ok()
}

/// An environment variable that is not empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
