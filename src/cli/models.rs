//! `rerankd models`: lists and removes models in the cache.

use std::fmt::Write;

use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::hub;
use super::settings::HubFlags;
use super::{Exit, output};
use rerankd_hub::{Cache, CachedModel, ModelId};
use rerankd_model::ModelError;

/// Length of abbreviated commit hashes.
const SHORT: usize = 12;

/// Flags of `models`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    hub: HubFlags,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Remove models from the cache, which other Hugging Face programs share.
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// `owner/name`, or `owner/name@revision` for a single commit.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,

    #[command(flatten)]
    hub: HubFlags,
}

/// Lists or removes models.
pub fn run(args: &Args) -> Exit {
    let (hub, remove) = match &args.command {
        Some(Command::Remove(remove)) => (&remove.hub, &remove.models[..]),
        None => (&args.hub, &[][..]),
    };
    let config = match hub.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    let done = hub::cache(&config).and_then(|cache| match remove {
        [] => list(&cache, args.json),
        models => models
            .iter()
            .try_for_each(|model| remove_one(&cache, model)),
    });
    match done {
        Ok(()) => Exit::Success,
        Err(error) => Exit::Failure.with_error(error),
    }
}

fn list(cache: &Cache, as_json: bool) -> Result<(), ModelError> {
    let models = cache.models()?;
    if as_json {
        let all: Vec<Value> = models.iter().map(json_of).collect();
        output::line(format_args!(
            "{:#}",
            json!({ "cache": cache.root(), "models": all })
        ));
        return Ok(());
    }
    if models.is_empty() {
        eprintln!("no models in `{}`", cache.root().display());
        return Ok(());
    }
    output::text(table(&models));
    let bytes = models.iter().map(|model| model.bytes).sum();
    eprintln!("{} in `{}`", BinaryBytes(bytes), cache.root().display());
    Ok(())
}

/// A table with a line for each snapshot.
fn table(models: &[CachedModel]) -> String {
    let mut rows = vec![["MODEL", "REVISION", "COMMIT", "FILES", "SIZE"].map(str::to_owned)];
    for model in models {
        for snapshot in &model.snapshots {
            rows.push([
                model.id.path(),
                if snapshot.revisions.is_empty() {
                    "-".to_owned()
                } else {
                    snapshot.revisions.join(", ")
                },
                snapshot.commit.chars().take(SHORT).collect(),
                snapshot.files.to_string(),
                BinaryBytes(snapshot.bytes).to_string(),
            ]);
        }
        if model.snapshots.is_empty() {
            let size = BinaryBytes(model.bytes).to_string();
            rows.push([model.id.path(), "-".into(), "-".into(), "0".into(), size]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..4).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row[4]);
    }
    text
}

fn json_of(model: &CachedModel) -> Value {
    let snapshots: Vec<Value> = model
        .snapshots
        .iter()
        .map(|snapshot| {
            json!({
                "commit": snapshot.commit,
                "revisions": snapshot.revisions,
                "files": snapshot.files,
                "bytes": snapshot.bytes,
            })
        })
        .collect();
    json!({ "model": model.id.path(), "bytes": model.bytes, "snapshots": snapshots })
}

fn remove_one(cache: &Cache, model: &str) -> Result<(), ModelError> {
    let id: ModelId = model.parse()?;
    let freed = cache.remove(&id)?;
    output::line(format_args!(
        "removed {id}, which freed {}",
        BinaryBytes(freed)
    ));
    Ok(())
}
