//! A settings file.
#![no_main]

use std::ffi::OsString;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rerankd::cli::settings::Flags;
use rerankd_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.write("rerankd.toml", data);
    let variables = [(OsString::from("RERANKD_CONFIG"), path.into_os_string())];
    match <Flags>::default().layered(variables) {
        Ok(settings) => assert!(!settings.origins.is_empty()),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
