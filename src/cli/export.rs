//! `rerankd export`: exports a model to an ONNX file.

use std::path::PathBuf;

use clap::ValueEnum;

use super::download::ProgressSink;
use super::loader::load_config;
use super::settings::EngineFlags;
use super::{Exit, output};
use crate::config::Config;
use rerankd_engine::load;
use rerankd_model::graph;
use rerankd_model::{AnyModel, Model, ModelError};
use rerankd_tools::export::{self, ExportError, Written};

/// Flags of `export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output: a file with the extension `.onnx`, or a directory for `onnx/model.onnx` with
    /// configuration and tokenizer, as other servers expect it. Nothing is overwritten.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Precision of the file. `int8` is a quarter as large and faster, and changes scores. They also
    /// depend slightly on the batch: standard operators quantize the rows of a batch together.
    #[arg(
        id = "arithmetic",
        long = "precision",
        value_name = "PRECISION",
        default_value = "fp32"
    )]
    precision: Arithmetic,

    /// Layout of batches. Only `padded` can be exported: a `packed` (unpadded) graph needs custom
    /// operators, which only this program has.
    #[arg(long, value_name = "LAYOUT", default_value = "padded")]
    layout: FileLayout,

    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arithmetic {
    Fp32,
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FileLayout {
    Padded,
    Packed,
}

/// Exports the model, and prints which files were written.
pub fn run(args: &Args) -> Exit {
    if args.layout == FileLayout::Packed {
        eprintln!(
            "rerankd: cannot export a packed graph: it needs custom operators, which only this program has\n\
             hint: leave `--layout` out; `rerankd serve` uses packed graphs for models with weights anyway"
        );
        return Exit::Usage;
    }
    let config = match args.engine.resolve() {
        Ok(effective) => effective.one_model(),
        Err(exit) => return exit,
    };
    match write(args, &config) {
        Ok(written) => {
            for file in &written.files {
                output::line(file.display());
            }
            eprintln!("{} bytes in {} files", written.bytes, written.files.len());
            Exit::Success
        }
        Err(error) => {
            eprintln!("rerankd: {error}");
            match error {
                ExportError::Model(_) | ExportError::Form(_) => Exit::Model,
                ExportError::Exists(_) => Exit::Usage,
                ExportError::Write { .. } => Exit::Failure,
            }
        }
    }
}

fn write(args: &Args, config: &Config) -> Result<Written, ExportError> {
    let load_config = load_config(config, ProgressSink::Stderr)?;
    let model = match load::open(&load_config)? {
        AnyModel::Built(model) => *model,
        AnyModel::Exported(model) => {
            return Err(ExportError::Model(ModelError::new(
                format!("`{}` is already an ONNX file", model.path.display()),
                "copy the file",
            )));
        }
    };
    let companions = Model::companions(load_config.model.as_deref())?;
    let precision = match args.precision {
        Arithmetic::Fp32 => graph::Precision::Fp32,
        Arithmetic::Int8 => graph::Precision::Int8,
    };
    export::export(&model, &companions, &args.out, precision)
}
