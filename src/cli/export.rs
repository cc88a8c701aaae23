//! `rerankd export`: a model as an ONNX file.

use std::path::PathBuf;

use clap::ValueEnum;

use super::hub::{Told, placed};
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
    /// Where to write: a file whose name ends in `.onnx`, or a directory for `onnx/model.onnx` with
    /// configuration and tokenizer beside it, as other servers want it. Nothing is overwritten.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Arithmetic of the file. `int8` makes it a quarter as large and faster, moves scores, and lets what
    /// shares a batch move them a little more: it measures rows together, as standard operators do.
    #[arg(
        id = "arithmetic",
        long = "precision",
        value_name = "PRECISION",
        default_value = "fp32"
    )]
    precision: Arithmetic,

    /// How batches are laid out. Only `padded` can be written: a packed graph needs operators that are in
    /// this program and nowhere else, and it builds such a graph from the weights by itself.
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

/// Writes the file, and says what was written.
pub fn run(args: &Args) -> Exit {
    if args.layout == FileLayout::Packed {
        eprintln!(
            "rerankd: a packed graph cannot be written: its operators are in this program and nowhere else, so \
             that nothing could load the file\nhint: leave `--layout` out; `rerankd serve --model` packs by \
             itself whatever it builds from weights"
        );
        return Exit::Usage;
    }
    let config = match args.engine.resolve() {
        Ok(effective) => effective.config,
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
    let load_config = placed(config, Told::ToPeople)?;
    let model = match load::open(&load_config)? {
        AnyModel::Built(model) => *model,
        AnyModel::Exported(model) => {
            return Err(ExportError::Model(ModelError::new(
                format!("`{}` is an ONNX file already", model.path.display()),
                "copy it",
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
