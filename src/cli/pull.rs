//! `rerankd pull`: downloads a model from the hub into the cache.

use std::path::PathBuf;

use super::download::ProgressSink;
use super::hub;
use super::settings::HubFlags;
use super::{Exit, output};
use rerankd_hub::ModelId;
use rerankd_model::AnyModel;

/// Flags of `pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `owner/name`, or `owner/name@revision` with a branch, a tag or a commit.
    #[arg(value_name = "MODEL")]
    model: String,

    /// Download this ONNX file of the model, such as `onnx/model_quantized.onnx`, instead of the weights.
    #[arg(long, value_name = "FILE")]
    onnx_file: Option<PathBuf>,

    #[command(flatten)]
    hub: HubFlags,
}

/// Downloads the model, checks that it can be served, and prints its directory.
pub fn run(args: &Args) -> Exit {
    let mut config = match args.hub.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    if args.onnx_file.is_some() {
        config.model.onnx_file.clone_from(&args.onnx_file);
    }
    let id = args.model.parse::<ModelId>();
    let pulled = id.and_then(|id| {
        let directory = hub::fetch(&id, &config, ProgressSink::Stderr)?;
        AnyModel::open(&directory, config.model.onnx_file.as_deref())?;
        Ok(directory)
    });
    match pulled {
        Ok(directory) => {
            output::line(directory.display());
            Exit::Success
        }
        Err(error) => Exit::Model.with_error(error),
    }
}
