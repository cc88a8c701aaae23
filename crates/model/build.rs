//! Embeds the default model if its files exist, as they do in the repository. The package for the registry is built
//! without them, since a package may have 10 MiB there.

use std::env;
use std::path::Path;

const FILES: &str = "../../models/minilm-l6-rank";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_model)");
    println!("cargo::rerun-if-changed=build.rs");
    let wanted = env::var_os("CARGO_FEATURE_EMBEDDED_MODEL").is_some();
    if wanted && Path::new(FILES).is_dir() {
        println!("cargo::rustc-cfg=embedded_model");
        println!("cargo::rerun-if-changed={FILES}");
    }
}
