//! The documentation of settings matches their declarations.

use std::path::Path;

use rerankd::config::{Setting, document};

/// `RERANKD_UPDATE=1` regenerates the file.
#[track_caller]
fn check(file: &str, said: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("RERANKD_UPDATE").is_some() {
        std::fs::write(&path, said).unwrap();
    }
    let held = std::fs::read_to_string(&path).unwrap();
    assert!(
        held == said,
        "{file} is old; run `RERANKD_UPDATE=1 cargo test --test server configuration`"
    );
}

#[test]
fn the_page_is_what_the_declarations_say() {
    check("docs/configuration.md", &document::markdown());
}

#[test]
fn the_example_is_what_the_declarations_say() {
    check("config/rerankd.toml", &document::example());
}

/// Every commented-out line sets the default, so that uncommenting it changes nothing.
#[test]
fn the_example_is_a_file_that_can_be_read() {
    let example = document::example();
    let mut seen = 0;
    for setting in Setting::all() {
        let line = example
            .lines()
            .find(|line| line.starts_with(&format!("#{} = ", setting.name)));
        let line = line.unwrap_or_else(|| panic!("no {} in the example", setting.name));
        let table: toml::de::DeTable<'_> =
            toml::de::DeTable::parse(&line[1..]).unwrap().into_inner();
        assert_eq!(table.len(), 1);
        seen += 1;
    }
    assert_eq!(seen, Setting::all().len());
}
