//! `rerankd config`: prints all settings, and the source of each.

use std::fmt::Write;

use super::settings::{Effective, Flags};
use super::{Exit, output};
use crate::config::{Kind, Setting};

/// Prints every setting.
pub fn run(flags: &Flags) -> Exit {
    match flags.resolve() {
        Ok(effective) => {
            output::text(shown(&effective));
            Exit::Success
        }
        Err(exit) => exit,
    }
}

/// All settings with their values and origins, in TOML.
pub fn shown(effective: &Effective) -> String {
    let lines: Vec<String> = Setting::all()
        .iter()
        .map(|setting| match setting.value(&effective.config) {
            Some(value) if setting.kind == Kind::Secret => {
                format!("# {} is set: {value}", setting.name)
            }
            Some(value) => format!("{} = {}", setting.name, setting.toml(&value)),
            None => format!("# {} is not set", setting.name),
        })
        .collect();
    let width = lines.iter().map(|line| line.chars().count()).max();
    let width = width.unwrap_or_default().min(60);
    let mut text = String::new();
    for (line, origin) in lines.iter().zip(&effective.origins) {
        writeln!(text, "{line:width$} # {origin}").expect("writing to a string cannot fail");
    }
    for entry in &effective.models {
        let source = entry
            .model
            .dir
            .as_ref()
            .map(|dir| dir.display().to_string());
        let source = source.as_deref().unwrap_or("the built-in model");
        writeln!(text, "# model `{}`: {source}", entry.name)
            .expect("writing to a string cannot fail");
    }
    text
}
