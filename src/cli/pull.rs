//! `rerankd pull`: a model of a hub into the cache.

use super::Exit;
use super::hub::{Told, fetched};
use super::settings::HubFlags;
use crate::model::Model;
use crate::model::hub::ModelId;

/// Flags of `pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `owner/name`, or `owner/name@revision` with a branch, a tag or a commit.
    #[arg(value_name = "MODEL")]
    model: String,

    #[command(flatten)]
    hub: HubFlags,
}

/// Downloads, checks that the model can be served, and says where it is.
pub fn run(args: &Args) -> Exit {
    let config = match args.hub.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    let id = args.model.parse::<ModelId>();
    let pulled = id.and_then(|id| {
        let directory = fetched(&id, &config, Told::ToPeople)?;
        Model::open(&directory)?;
        Ok(directory)
    });
    match pulled {
        Ok(directory) => {
            println!("{}", directory.display());
            Exit::Success
        }
        Err(error) => {
            eprintln!("rerankd: {error}");
            Exit::Model
        }
    }
}
