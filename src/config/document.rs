//! The settings as papers: `docs/configuration.md` and `config/rerankd.toml`.

use std::fmt::Write;

use super::setting::{Kind, Setting};

/// Columns of a line of comment in the example file.
const WIDTH: usize = 100;

const MARKDOWN: &str = "\
# Configuration

<!-- Made of the declarations in src/config.rs: `RERANKD_UPDATE=1 cargo test --test server configuration`. -->

A setting has one name in three spellings: `max_documents` is `max_documents` in a file,
`RERANKD_MAX_DOCUMENTS` in the environment and `--max-documents` on the command line. Later ones come
before earlier ones: file, environment, flag.

- The file is the one that `--config FILE` or `RERANKD_CONFIG` names; without either there is none.
  [config/rerankd.toml](../config/rerankd.toml) lists every setting with its default, as a start.
- A secret can also be in a file of its own, which the setting with `_file` behind its name names. It is
  never a flag, and `rerankd config` does not show it.
- A variable that is set to nothing counts as not set.
- Settings that do not exist and values that are out of range are errors: the program says all of them,
  each with a hint, and ends with code 2 before it has opened a port. Variables that Kubernetes makes
  for a service named `rerankd`, such as `RERANKD_SERVICE_HOST`, are left alone.
- `rerankd config` prints what all of them together come to, and where each value is from. It takes the
  same flags as `rerankd serve`.

Times are `500ms`, `10s`, `2m`, `1h`, or plain seconds.
";

/// What `docs/configuration.md` has to say.
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

/// What `config/rerankd.toml` has to say.
pub fn example() -> String {
    let mut text = String::from(
        "# Every setting of `rerankd`, with its default. A line that is commented out changes nothing; take\n\
         # the `#` away to set it. `rerankd serve --config FILE` reads the file, environment variables and\n\
         # flags come before it, and `rerankd config --config FILE` shows what they come to together.\n",
    );
    let mut section = "";
    for setting in Setting::all() {
        if setting.section.name != section {
            section = setting.section.name;
            write!(text, "\n\n#### {}\n", setting.section.about).expect(INFALLIBLE);
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

const INFALLIBLE: &str = "a string takes any text";

/// Flag and variables of a setting. A secret on a command line would be seen by everybody on the
/// machine.
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

/// Short statements about a setting's values, for help texts and documents.
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

/// `text` in lines that fit behind a comment sign.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
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
