//! Generates `docs/configuration.md` and `config/rerankd.toml` from the settings.

use std::fmt::Write;

use super::{Kind, Setting};

/// Maximum length of a comment line in the example file.
const WIDTH: usize = 100;

const MARKDOWN: &str = "\
# Configuration

<!-- Generated from src/config.rs: `RERANKD_UPDATE=1 cargo test --test server configuration`. -->

Every setting can be set in three places: `max_documents` in a file, `RERANKD_MAX_DOCUMENTS` in the
environment and `--max-documents` on the command line. Flags take precedence over environment variables,
and those over the file.

- The configuration file is the one that `--config FILE` or `RERANKD_CONFIG` names.
  [config/rerankd.toml](../config/rerankd.toml) is a template with every setting and its default.
- A secret can also be in a file of its own, which the setting with the suffix `_file` names. There is no
  flag for a secret itself, and `rerankd config` does not show it.
- An empty environment variable counts as not set.
- Unknown settings and invalid values are errors. The program reports all of them, each with a hint, and
  exits with code 2 before it opens a port. Variables that Kubernetes sets for a service named
  `rerankd`, such as `RERANKD_SERVICE_HOST`, are ignored.
- `rerankd config` prints the resulting settings, and where each value comes from. It takes the same
  flags as `rerankd serve`.

- A file can also list several models, as tables `[[models]]`: see
  [operating.md](operating.md#several-models). Then `model`, `onnx_file`, `served_model_name`, `profile`,
  `max_length` and `instruction` are fields of each model, and not set beside the list.

Durations are written as `500ms`, `10s`, `2m`, `1h`, or plain seconds.
";

/// The contents of `docs/configuration.md`.
pub fn markdown() -> String {
    let mut text = MARKDOWN.to_owned();
    let mut section = "";
    for setting in Setting::all() {
        if setting.section.name != section {
            section = setting.section.name;
            let about = setting.section.about.trim_end_matches('.');
            writeln!(text, "\n## {about}").expect(INFALLIBLE);
        }
        let names: Vec<String> = setting.names().iter().map(|n| format!("`{n}`")).collect();
        write!(
            text,
            "\n### {}\n{}\n\n{}\n\n{}.\n",
            names.join(", "),
            spellings(setting),
            setting.help,
            facts(setting).join(". "),
        )
        .expect(INFALLIBLE);
    }
    text
}

/// The contents of `config/rerankd.toml`.
pub fn example() -> String {
    let mut text = String::from(
        "# Every setting of `rerankd`, with its default. Remove the `#` of a line to change its setting.\n\
         # `rerankd serve --config FILE` reads this file; environment variables and flags take precedence.\n\
         # `rerankd config --config FILE` prints the resulting settings.\n",
    );
    let mut section = "";
    for setting in Setting::all() {
        if setting.section.name != section {
            section = setting.section.name;
            let about = setting.section.about.trim_end_matches('.');
            write!(text, "\n\n#### {about}\n").expect(INFALLIBLE);
        }
        let about = format!("{} {}.", setting.help, facts(setting).join(". "));
        text.push('\n');
        for line in wrapped(&about) {
            writeln!(text, "# {line}").expect(INFALLIBLE);
        }
        let value = setting.default().map(|value| setting.toml(&value));
        let value = value.unwrap_or_else(|| format!("\"{}\"", setting.value_name));
        for (index, name) in setting.names().iter().enumerate() {
            let value = if index == 0 { &value } else { "\"FILE\"" };
            writeln!(text, "#{name} = {value}").expect(INFALLIBLE);
        }
    }
    text
}

const INFALLIBLE: &str = "writing to a string cannot fail";

/// Flag and environment variables of a setting. A secret has no flag of its own: every user of the
/// machine can see command lines.
fn spellings(setting: &Setting) -> String {
    let Setting {
        flag,
        variable,
        value_name,
        ..
    } = setting;
    match setting.kind {
        Kind::Secret => format!("`{variable}`, `--{flag} FILE`, `{variable}_FILE`"),
        _ => format!("`--{flag} {value_name}`, `{variable}`"),
    }
}

/// Short statements about a setting's values, for help texts and documentation.
pub fn facts(setting: &Setting) -> Vec<String> {
    let mut facts = Vec::new();
    if let Kind::Choice(names) = setting.kind {
        facts.push(format!("One of {}", super::value::listed(names)));
    }
    if let Some((first, last)) = &setting.range {
        facts.push(format!("From `{first}` to `{last}`"));
    }
    match (setting.otherwise, setting.default()) {
        (Some(otherwise), _) => facts.push(format!("Default: {otherwise}")),
        (None, Some(default)) => facts.push(format!("Default: `{default}`")),
        (None, None) => facts.push("Default: none".to_owned()),
    }
    facts
}

/// `text` in lines that fit after `# `.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("never empty");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= WIDTH - 2 {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
