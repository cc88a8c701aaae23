//! Settings from a file, the environment and command line flags; later ones take precedence.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::builder::ArgAction;
use clap::{Arg, ArgMatches, Command};
use toml::de::{DeTable, DeValue};

use super::Exit;
use crate::config::models::{self, EntryValue};
use crate::config::{Config, Kind, ModelEntry, PREFIX, Setting, document};

/// The setting whose flag may be repeated.
const MODEL: &str = "model";
/// The key of the list of models in a file.
const MODELS: &str = "models";
const FILE_FLAG: &str = "config";
const FILE_VARIABLE: &str = "RERANKD_CONFIG";
/// Environment variables of other tools, and the settings that they set unless our own variables do. Of
/// several for one setting, the first counts.
const ADOPTED: [(&str, &str); 6] = [
    ("RUST_LOG", "log_level"),
    ("HF_ENDPOINT", "hub_endpoint"),
    ("HF_TOKEN", "hub_token"),
    ("HF_HUB_CACHE", "hub_cache"),
    ("HF_HUB_OFFLINE", "offline"),
    ("TRANSFORMERS_OFFLINE", "offline"),
];

/// The flags for the settings that `S` has. File and environment may set all settings.
#[derive(Debug, Clone, Default)]
pub struct Flags<S = All> {
    file: Option<PathBuf>,
    given: Vec<Given>,
    /// Names and sources of `--model NAME=SOURCE`.
    models: Vec<(String, String)>,
    scope: PhantomData<S>,
}

/// The flags of commands that load a model and start no server.
pub type EngineFlags = Flags<Engine>;

/// The flags of commands that download models.
pub type HubFlags = Flags<Hub>;

/// Which settings a command has flags for.
pub trait Scope {
    /// Whether `setting` is one of them.
    fn has(setting: &Setting) -> bool;

    /// Whether several models can be listed.
    fn lists_models() -> bool {
        false
    }
}

/// All settings.
#[derive(Debug, Clone, Default)]
pub struct All;

impl Scope for All {
    fn has(_: &Setting) -> bool {
        true
    }

    fn lists_models() -> bool {
        true
    }
}

/// Those for model downloads.
#[derive(Debug, Clone, Default)]
pub struct Hub;

impl Scope for Hub {
    fn has(setting: &Setting) -> bool {
        setting.section.name == "hub"
    }
}

/// Those for the model and how it runs. Each command has its own flag for the precision.
#[derive(Debug, Clone, Default)]
pub struct Engine;

impl Scope for Engine {
    fn has(setting: &Setting) -> bool {
        const NAMES: [&str; 10] = [
            "model",
            "onnx_file",
            "profile",
            "instruction",
            "max_length",
            "threads",
            "truncation",
            "device",
            "max_batch_tokens",
            "cuda_batch_tokens",
        ];
        NAMES.contains(&setting.name) || Hub::has(setting)
    }
}

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is not set.
    Default,
    /// A line of a configuration file.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(String),
    /// The command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, line) => write!(f, "`{}`, line {line}", path.display()),
            Self::Variable(name) => write!(f, "`{name}`"),
            Self::Flag(name) => write!(f, "`--{name}`"),
        }
    }
}

/// A setting in one of the layers.
#[derive(Debug, Clone)]
struct Given {
    setting: &'static Setting,
    text: String,
    /// Whether the text is the path of a file with the value.
    in_file: bool,
    origin: Origin,
}

/// The settings that result from all layers.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The values.
    pub config: Config,
    /// Where the value of each of `Setting::all` comes from, in that order.
    pub origins: Vec<Origin>,
    /// The models, if several are listed; empty where the settings describe the only one.
    pub models: Vec<ModelEntry>,
}

/// The fields of a table `[[models]]`.
type Fields = Vec<(String, EntryValue)>;

/// A table `[[models]]`.
struct Table {
    origin: Origin,
    fields: Fields,
}

/// All errors in the settings; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    what: String,
    hint: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { what, hint }) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}error: {what}\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl<S> Flags<S> {
    /// The settings of this process. Prints errors in them to the standard error.
    ///
    /// # Errors
    /// The exit code for wrong settings.
    pub fn resolve(&self) -> Result<Effective, Exit> {
        self.layered(std::env::vars_os()).map_err(|problems| {
            eprintln!("{problems}");
            Exit::Usage
        })
    }

    /// The settings in an environment of `variables`.
    ///
    /// # Errors
    /// All errors in them.
    pub fn layered(
        &self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Effective, Problems> {
        let mut problems = Vec::new();
        let (file, variables) = environment(variables, &mut problems);
        let (mut given, mut tables) = (Vec::new(), Vec::new());
        if let Some(path) = self.file.as_ref().or(file.as_ref()) {
            match std::fs::read_to_string(path) {
                Ok(text) => (given, tables) = read_file(path, &text, &mut problems),
                Err(error) => problems.push(Problem {
                    what: format!("configuration file `{}`: {error}", path.display()),
                    hint: format!("`--{FILE_FLAG}` and `{FILE_VARIABLE}` name a TOML file"),
                }),
            }
        }
        refuse_twice(&given, &mut problems);
        refuse_twice(&variables, &mut problems);
        let mut later = variables;
        later.extend_from_slice(&self.given);

        let mut effective = Effective {
            config: Config::default(),
            origins: vec![Origin::Default; Setting::all().len()],
            models: Vec::new(),
        };
        for given in given.into_iter().chain(later.iter().cloned()) {
            effective.take(given, &mut problems);
        }
        effective.list(tables, later, &self.models, &mut problems);
        if problems.is_empty() {
            Ok(effective)
        } else {
            Err(Problems(problems))
        }
    }
}

impl Effective {
    /// The settings of a command that runs one model: of a list, the default one.
    pub fn one_model(self) -> Config {
        match self.models.get(models::default_of(&self.models)) {
            Some(entry) => entry.config(&self.config),
            None => self.config,
        }
    }

    /// Notes the models of the file, or those of the command line instead. `later` layers than the file were taken.
    fn list(
        &mut self,
        tables: Vec<Table>,
        later: Vec<Given>,
        flags: &[(String, String)],
        problems: &mut Vec<Problem>,
    ) {
        let flag = |(name, source): &(String, String)| {
            let one =
                |name: &str, value: &str| (name.to_owned(), EntryValue::One(value.to_owned()));
            Table {
                origin: Origin::Flag("model"),
                fields: vec![one("name", name), one("source", source)],
            }
        };
        let tables = match flags {
            [] => tables,
            flags => flags.iter().map(flag).collect(),
        };
        let named = Setting::all().iter().zip(&self.origins);
        let origin = named.clone().find(|(setting, _)| setting.name == MODEL);
        let overridden =
            |(_, origin): (_, &Origin)| matches!(origin, Origin::Flag(_) | Origin::Variable(_));
        if tables.is_empty() {
            return;
        }
        // A later layer that names the only model takes precedence over a list in the file: one of the list, or
        // another.
        if flags.is_empty() && origin.is_some_and(overridden) {
            let asked = self.config.model.dir.clone().unwrap_or_default();
            let entries = tables
                .iter()
                .map(|table| ModelEntry::of(&table.fields, &self.config));
            let mut entries = entries.filter_map(Result::ok);
            if let Some(entry) = entries.find(|entry| Path::new(&entry.name) == asked) {
                let shared = self.config.model.max_bytes;
                self.config.model = entry.model;
                self.config.model.max_bytes = entry.max_bytes.into_iter().chain(shared).min();
                // The entry is part of the file, which they take precedence over. Problems with them are known.
                for given in later
                    .into_iter()
                    .filter(|given| given.setting.name != MODEL)
                {
                    self.take(given, &mut Vec::new());
                }
            }
            return;
        }
        let set = named.filter(|(setting, origin)| {
            ModelEntry::replaces(setting.name) && **origin != Origin::Default
        });
        for (setting, origin) in set {
            problems.push(Problem {
                what: format!(
                    "`{}` ({origin}) is set beside a list of models",
                    setting.name
                ),
                hint: "each model of the list has its own".to_owned(),
            });
        }
        for Table { origin, fields } in tables {
            match ModelEntry::of(&fields, &self.config) {
                Ok(entry) => self.models.push(entry),
                Err((what, hint)) => problems.push(Problem {
                    what: format!("`models` ({origin}): {what}"),
                    hint: hint.to_owned(),
                }),
            }
        }
        if let Err((what, hint)) = models::check(&self.models) {
            problems.push(Problem {
                what,
                hint: hint.to_owned(),
            });
        }
    }

    fn take(&mut self, given: Given, problems: &mut Vec<Problem>) {
        let Given {
            setting,
            text,
            in_file,
            origin,
        } = given;
        let set = if in_file {
            setting.set_from_file(&mut self.config, &text)
        } else {
            setting.set(&mut self.config, &text)
        };
        if let Err(error) = set {
            let text = match (setting.kind, in_file) {
                (Kind::Secret, false) => "hidden".to_owned(),
                _ => format!("`{text}`"),
            };
            let default = match (setting.otherwise, setting.default()) {
                (Some(otherwise), _) => otherwise.to_owned(),
                (None, Some(default)) => format!("`{default}`"),
                (None, None) => "none".to_owned(),
            };
            problems.push(Problem {
                what: format!("`{}` is {text} ({origin}): it {error}", setting.name),
                hint: format!("the default is {default}"),
            });
            return;
        }
        let place = Setting::all()
            .iter()
            .position(|other| other.name == setting.name);
        self.origins[place.expect("every setting is in the list of all")] = origin;
    }
}

/// The configuration file that the environment names, and the settings in the environment.
fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> (Option<PathBuf>, Vec<Given>) {
    let (mut file, mut given) = (None, Vec::<Given>::new());
    let mut adopted: [Option<String>; ADOPTED.len()] = Default::default();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else {
            continue;
        };
        let place = ADOPTED.iter().position(|(theirs, _)| *theirs == name);
        if !(name.starts_with(PREFIX) || place.is_some())
            || value.is_empty()
            || made_by_kubernetes(&name)
        {
            continue;
        }
        if name == FILE_VARIABLE {
            file = Some(PathBuf::from(value));
            continue;
        }
        let Ok(text) = value.into_string() else {
            problems.push(Problem {
                what: format!("the value of `{name}` is not UTF-8"),
                hint: "encode it as UTF-8".to_owned(),
            });
            continue;
        };
        if let Some(place) = place {
            adopted[place] = Some(text);
        } else if let Some((setting, in_file)) = Setting::of_variable(&name) {
            given.push(Given {
                setting,
                text,
                in_file,
                origin: Origin::Variable(name),
            });
        } else {
            let known = Setting::all().iter().map(|s| s.variable.as_str());
            problems.push(unknown(&name, "environment", known));
        }
    }
    for ((theirs, ours), text) in ADOPTED.into_iter().zip(adopted) {
        let setting = Setting::all().iter().find(|s| s.name == ours);
        let known = given.iter().any(|given| given.setting.name == ours);
        if let (Some(text), Some(setting), false) = (text, setting, known) {
            given.push(Given {
                setting,
                text,
                in_file: false,
                origin: Origin::Variable(theirs.to_owned()),
            });
        }
    }
    (file, given)
}

/// Reports secrets that one layer sets both as text and as a file: neither takes precedence.
fn refuse_twice(layer: &[Given], problems: &mut Vec<Problem>) {
    for text in layer.iter().filter(|given| !given.in_file) {
        let in_file = |given: &&Given| given.in_file && given.setting.name == text.setting.name;
        if let Some(file) = layer.iter().find(in_file) {
            let (text, file) = (&text.origin, &file.origin);
            problems.push(Problem {
                what: format!("{text} and {file} both set the same secret"),
                hint: "remove one of them".to_owned(),
            });
        }
    }
}

/// Whether Kubernetes sets this variable for a service whose name starts with ours.
fn made_by_kubernetes(name: &str) -> bool {
    let port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|n| n.parse::<u16>().is_ok());
        number
            && parts
                .next()
                .is_some_and(|p| matches!(p, "TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split("_PORT_").skip(1).any(port)
}

/// The settings in `text`, the contents of the file at `path`.
fn read_file(path: &Path, text: &str, problems: &mut Vec<Problem>) -> (Vec<Given>, Vec<Table>) {
    let line = |start: usize| text[..start].matches('\n').count() + 1;
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let at = error.span().map_or(1, |span| line(span.start));
            problems.push(Problem {
                what: format!("`{}`, line {at}: {}", path.display(), error.message()),
                hint: "`config/rerankd.toml` in the source code is an example".to_owned(),
            });
            return Default::default();
        }
    };
    let (mut given, mut tables) = (Vec::new(), Vec::new());
    for (key, value) in table {
        let origin = Origin::File(path.to_owned(), line(key.span().start));
        let name = key.into_inner();
        if name == MODELS {
            match read_tables(value.get_ref()) {
                Some(read) => tables.extend(read.into_iter().map(|(start, fields)| Table {
                    origin: Origin::File(path.to_owned(), line(start)),
                    fields,
                })),
                None => problems.push(Problem {
                    what: format!(
                        "`{MODELS}` ({origin}) must be tables of texts, numbers and flags"
                    ),
                    hint: "write each model as a table `[[models]]`".to_owned(),
                }),
            }
            continue;
        }
        let Some((setting, in_file)) = Setting::find(&name) else {
            let mut problem = unknown(
                &name,
                &origin.to_string(),
                Setting::all().iter().map(|s| s.name),
            );
            if value.get_ref().is_table() {
                problem.hint = "write settings at the top level of the file, not in a table".into();
            }
            problems.push(problem);
            continue;
        };
        let kind = if in_file { Kind::Text } else { setting.kind };
        match as_text(kind, value.get_ref()) {
            Ok(text) => given.push(Given {
                setting,
                text,
                in_file,
                origin,
            }),
            Err(wanted) => problems.push(Problem {
                what: format!("`{name}` ({origin}) must be {wanted}"),
                hint: format!("write `{} = {}`", setting.name, example_of(setting)),
            }),
        }
    }
    (given, tables)
}

/// The tables of an array, each with where it starts.
fn read_tables(value: &DeValue<'_>) -> Option<Vec<(usize, Fields)>> {
    let text = |value: &DeValue<'_>| {
        let kinds = [Kind::Text, Kind::Number, Kind::Switch];
        kinds.into_iter().find_map(|kind| as_text(kind, value).ok())
    };
    let field = |value: &DeValue<'_>| match value.as_array() {
        Some(array) => {
            let texts = array.iter().map(|item| text(item.get_ref()));
            Some(EntryValue::Many(texts.collect::<Option<_>>()?))
        }
        None => text(value).map(EntryValue::One),
    };
    let tables = value.as_array()?.iter().map(|table| {
        let fields = table.get_ref().as_table()?.iter();
        let fields =
            fields.map(|(key, value)| Some((key.get_ref().to_string(), field(value.get_ref())?)));
        Some((table.span().start, fields.collect::<Option<_>>()?))
    });
    tables.collect()
}

/// A valid value in TOML.
fn example_of(setting: &Setting) -> String {
    let default = setting.default();
    default.map_or_else(
        || setting.value_name.to_owned(),
        |default| setting.toml(&default),
    )
}

/// A TOML value as the text that an environment variable would hold, or the type that it should have.
fn as_text(kind: Kind, value: &DeValue<'_>) -> Result<String, &'static str> {
    let integer = || {
        let integer = value.as_integer()?;
        i128::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
    };
    let string = || value.as_str().map(str::to_owned);
    let array = || {
        let texts = value.as_array()?.iter();
        let texts = texts.map(|text| text.get_ref().as_str());
        Some(texts.collect::<Option<Vec<&str>>>()?.join(","))
    };
    match kind {
        Kind::Number => integer().map(|n| n.to_string()).ok_or("a whole number"),
        Kind::Switch => value
            .as_bool()
            .map(|is| is.to_string())
            .ok_or("`true` or `false`"),
        Kind::Time => string()
            .or_else(|| integer().map(|n| n.to_string()))
            .ok_or("a string or a whole number of seconds"),
        Kind::Text | Kind::Choice(_) | Kind::Secret => string().ok_or("a string"),
        Kind::List => string()
            .or_else(array)
            .ok_or("a string or an array of strings"),
    }
}

fn unknown<'a>(name: &str, place: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    // The common prefix would make all names look alike.
    let own = |name: &'_ str| name.trim_start_matches(PREFIX).to_owned();
    let closest = known
        .map(|known| (strsim::jaro_winkler(&own(name), &own(known)), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.8);
    Problem {
        what: format!("`{name}` ({place}) is not a setting"),
        hint: match closest {
            Some((_, closest)) => format!("did you mean `{closest}`?"),
            None => "`rerankd config` lists every setting".to_owned(),
        },
    }
}

/// The help text of a flag: all of it, or its first sentence.
fn help(setting: &Setting, long: bool) -> String {
    let help = match setting.help.split_once(". ") {
        Some((first, _)) if !long => first,
        _ => setting.help.trim_end_matches('.'),
    };
    let facts = document::facts(setting).join(". ");
    match setting.kind {
        Kind::Secret => format!("{help}. {facts}. [env: {0}_FILE, {0}]", setting.variable),
        _ => format!("{help}. {facts}. [env: {}]", setting.variable),
    }
}

impl<S: Scope> clap::Args for Flags<S> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE_FLAG)
            .long(FILE_FLAG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!(
                "Configuration file in TOML; environment variables and flags take precedence [env: {FILE_VARIABLE}]"
            ));
        let settings = Setting::all().iter().filter(|setting| S::has(setting));
        let flags = settings.map(|setting| match S::lists_models() && setting.name == MODEL {
            true => flag(setting).action(ArgAction::Append),
            false => flag(setting),
        });
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The flag of `setting`.
fn flag(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.name)
        .long(setting.flag.as_str())
        .value_name(match setting.kind {
            Kind::Secret => "FILE",
            _ => setting.value_name,
        })
        .help(help(setting, false))
        .long_help(help(setting, true))
        .help_heading(setting.section.about.trim_end_matches('.'))
        .action(ArgAction::Set);
    match setting.kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg.allow_hyphen_values(true),
    }
}

impl<S: Scope> clap::FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let listed = matches.try_get_many::<String>(MODEL).ok().flatten();
        let listed: Vec<&String> = listed.into_iter().flatten().collect();
        // Parsed once: whether a text is a name and a source depends on the files that are there.
        let named = listed.iter().map(|text| {
            let (name, source) = ModelEntry::named(text)?;
            Some((name.to_owned(), source.to_owned()))
        });
        let named: Option<Vec<(String, String)>> = named.collect();
        if listed.len() > 1 && named.is_none() {
            let text = "several models need names: repeat `--model NAME=MODEL`";
            return Err(clap::Error::raw(
                clap::error::ErrorKind::ValueValidation,
                text,
            ));
        }
        let models = named.filter(|_| S::lists_models()).unwrap_or_default();
        let settings = Setting::all().iter().filter(|setting| S::has(setting));
        let settings = settings.filter(|setting| setting.name != MODEL || models.is_empty());
        let given = settings.filter_map(|setting| {
            Some(Given {
                setting,
                text: matches.get_one::<String>(setting.name)?.clone(),
                in_file: setting.kind == Kind::Secret,
                origin: Origin::Flag(&setting.flag),
            })
        });
        Ok(Self {
            given: given.collect(),
            models,
            file: matches.get_one::<PathBuf>(FILE_FLAG).cloned(),
            scope: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(line: &str) -> Flags {
        Line::try_parse_from(format!("rerankd {line}").split_whitespace())
            .unwrap_or_else(|error| panic!("{error}"))
            .flags
    }

    fn variables<'a>(
        of: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (OsString, OsString)> + 'a {
        of.iter().map(|(name, value)| (name.into(), value.into()))
    }

    /// What one line of a file, one variable and one line of flags come to.
    fn layered(
        file: Option<&str>,
        environment: &[(&str, &str)],
        line: &str,
    ) -> Result<Effective, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.toml");
        let mut flags = flags(line);
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
            flags.file = Some(path);
        }
        flags.layered(variables(environment)).map_err(|problems| {
            problems
                .to_string()
                .replace(dir.path().to_str().unwrap(), "DIR")
        })
    }

    fn origin(effective: &Effective, name: &str) -> String {
        let place = Setting::all().iter().position(|s| s.name == name).unwrap();
        effective.origins[place].to_string()
    }

    #[track_caller]
    fn check_refused(file: &str, environment: &[(&str, &str)], line: &str, expected: &str) {
        let problems = layered(Some(file), environment, line).unwrap_err();
        assert_eq!(problems, expected);
    }

    #[test]
    fn nothing_given_is_the_default() {
        let effective = layered(None, &[("PATH", "/bin")], "").unwrap();
        assert_eq!(effective.config, Config::default());
        assert!(effective.origins.iter().all(|o| *o == Origin::Default));
    }

    /// For every setting: a file can set it, a variable comes before the file, a flag before both.
    #[test]
    fn every_setting_can_be_set_in_every_layer() {
        for setting in Setting::all() {
            let values: [&str; 3] = match setting.kind {
                Kind::Number => ["7", "8", "9"],
                Kind::Time => ["7s", "8s", "9s"],
                Kind::Switch => ["true", "false", "true"],
                Kind::Choice(names) => [names[0], names[1], names[0]],
                Kind::List => ["https://a.example", "https://b.example", "*"],
                Kind::Text if setting.name == "device" => ["cpu", "auto", "cuda:1"],
                Kind::Text if setting.name == "path_prefix" => ["/a", "/b", "/c"],
                Kind::Text => ["127.0.0.1:7", "127.0.0.1:8", "127.0.0.1:9"],
                // No flag, and not shown: below.
                Kind::Secret => continue,
            };
            let file = format!("{} = {}", setting.name, setting.toml(values[0]));
            let variable = [(setting.variable.as_str(), values[1])];
            let flag = format!("--{}={}", setting.flag, values[2]);
            for (variables, flag, value, from) in [
                (&[][..], "", values[0], "`DIR/f.toml`, line 1".to_owned()),
                (&variable, "", values[1], format!("`{}`", setting.variable)),
                (
                    &variable,
                    &*flag,
                    values[2],
                    format!("`--{}`", setting.flag),
                ),
            ] {
                let effective = layered(Some(&file), variables, flag);
                let effective = effective.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(setting.value(&effective.config).unwrap(), value);
                let said = origin(&effective, setting.name);
                assert!(said.ends_with(from.trim_start_matches("`DIR")), "{said}");
            }
        }
    }

    #[test]
    fn a_later_layer_takes_one_of_the_models_or_another() {
        let file = "threads = 3\n[[models]]\nname = 'a'\nsource = 'x'\n[[models]]\nname = 'b'\nsource = 'y'\n\
                    precision = 'int8'\ndefault = true\n";
        let source = |line: &str| {
            let effective = layered(Some(file), &[], line).unwrap();
            let listed = effective.models.len();
            let model = effective.one_model().model;
            let dir = model.dir.unwrap().display().to_string();
            (listed, dir, model.precision, model.threads)
        };
        let (fp32, int8) = (
            crate::config::Precision::Fp32,
            crate::config::Precision::Int8,
        );
        assert_eq!(source(""), (2, "y".to_owned(), int8, Some(3)));
        assert_eq!(source("--model a"), (0, "x".to_owned(), fp32, Some(3)));
        assert_eq!(source("--model b"), (0, "y".to_owned(), int8, Some(3)));
        assert_eq!(source("--model z"), (0, "z".to_owned(), fp32, Some(3)));
        // An entry is part of the file, so that variables and flags come before it.
        assert_eq!(
            source("--model b --precision fp32 --threads 4"),
            (0, "y".to_owned(), fp32, Some(4))
        );
        let variables = [("RERANKD_MODEL", "b"), ("RERANKD_PRECISION", "fp32")];
        let effective = layered(Some(file), &variables, "--max-length 7").unwrap();
        let model = effective.one_model().model;
        assert_eq!((model.precision, model.max_length), (fp32, Some(7)));
        // A list on the command line replaces that of the file.
        assert_eq!(source("--model c=z"), (1, "z".to_owned(), fp32, Some(3)));
    }

    #[test]
    fn unknown_settings_are_refused_with_the_closest_name() {
        check_refused(
            "max_document = 7\n[http]\nlisten = 'x'\n",
            &[("RERANKD_TREADS", "7"), ("RERANKD_XYZ", "1")],
            "",
            "error: `RERANKD_TREADS` (environment) is not a setting\n  hint: did you mean `RERANKD_THREADS`?\n\
             error: `RERANKD_XYZ` (environment) is not a setting\n  hint: `rerankd config` lists every setting\n\
             error: `http` (`DIR/f.toml`, line 2) is not a setting\n  hint: write settings at the top level of the file, not in a table\n\
             error: `max_document` (`DIR/f.toml`, line 1) is not a setting\n  hint: did you mean `max_documents`?",
        );
    }

    #[test]
    fn values_out_of_range_are_refused_in_every_layer() {
        check_refused(
            "max_documents = 0",
            &[("RERANKD_THREADS", "many")],
            "--header-timeout 0",
            "error: `max_documents` is `0` (`DIR/f.toml`, line 1): it must be from `1` to `1000000`\n  hint: the default is `1000`\n\
             error: `threads` is `many` (`RERANKD_THREADS`): it must be a whole number\n  hint: the default is the cores available by affinity mask and cgroup quota\n\
             error: `header_timeout` is `0` (`--header-timeout`): it must be from `1ms` to `8760h`\n  hint: the default is `100s`",
        );
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused() {
        check_refused(
            "a = 1\nmax_documents =\n",
            &[],
            "",
            "error: `DIR/f.toml`, line 2: string values must be quoted, expected literal string\n  hint: `config/rerankd.toml` in the source code is an example",
        );
        check_refused(
            "max_documents = '7'",
            &[],
            "",
            "error: `max_documents` (`DIR/f.toml`, line 1) must be a whole number\n  hint: write `max_documents = 1000`",
        );
        let missing = flags("--config /nowhere.toml").layered([]).unwrap_err();
        assert!(
            missing
                .to_string()
                .starts_with("error: configuration file `/nowhere.toml`: ")
        );
    }

    #[test]
    fn a_secret_comes_from_text_or_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "search: first-secret-key\n").unwrap();
        let path = path.to_str().unwrap();
        let key = |file: &str, environment: &[(&str, &str)], line: &str| {
            let effective = layered(Some(file), environment, line).unwrap();
            let shown = super::super::config::shown(&effective);
            assert!(!shown.contains("secret-key"), "{shown}");
            effective.config.http.api_keys.keys()[0].key.clone()
        };
        let text = [("RERANKD_API_KEYS", "second-secret-key")];
        let in_file = [("RERANKD_API_KEYS_FILE", path)];
        assert_eq!(
            key("api_keys = 'third-secret-key'", &[], ""),
            "third-secret-key"
        );
        assert_eq!(
            key(&format!("api_keys_file = '{path}'"), &[], ""),
            "first-secret-key"
        );
        assert_eq!(key("", &text, ""), "second-secret-key");
        assert_eq!(key("", &in_file, ""), "first-secret-key");
        assert_eq!(
            key("", &text, &format!("--api-keys-file {path}")),
            "first-secret-key"
        );

        let both = [text[0], in_file[0]];
        for both in [both, [both[1], both[0]]] {
            check_refused(
                "",
                &both,
                "",
                "error: `RERANKD_API_KEYS` and `RERANKD_API_KEYS_FILE` both set the same secret\n  \
                 hint: remove one of them",
            );
        }
        let both = format!("api_keys_file = '{path}'\napi_keys = 'third-secret-key'");
        check_refused(
            &both,
            &[],
            "",
            "error: `DIR/f.toml`, line 2 and `DIR/f.toml`, line 1 both set the same secret\n  \
             hint: remove one of them",
        );

        let wrong = layered(None, &[("RERANKD_API_KEYS", "secret")], "").unwrap_err();
        assert!(
            wrong.starts_with("error: `api_keys` is hidden (`RERANKD_API_KEYS`): it "),
            "{wrong}"
        );
        assert!(Line::try_parse_from(["rerankd", "--api-keys", "secret-of-mine"]).is_err());
    }

    #[test]
    fn the_environment_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.toml");
        std::fs::write(&path, "max_documents = 7").unwrap();
        let variable = [(FILE_VARIABLE.into(), path.into())];
        let effective = <Flags>::default().layered(variable).unwrap();
        assert_eq!(effective.config.http.max_documents, 7);
    }

    #[test]
    fn variables_that_are_empty_or_not_ours_are_left_alone() {
        let effective = layered(
            None,
            &[
                ("RERANKD_MODEL", ""),
                ("RERANKD_SERVICE_HOST", "10.0.0.1"),
                ("RERANKD_SERVICE_PORT_HTTP", "80"),
                ("RERANKD_PORT", "tcp://10.0.0.1:80"),
                ("RERANKD_PORT_80_TCP_ADDR", "10.0.0.1"),
                ("RERANKD_CPU_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ],
            "",
        );
        assert_eq!(effective.unwrap().config, Config::default());
    }

    #[test]
    fn our_own_variables_take_precedence_over_those_of_other_tools() {
        for (theirs, ours) in ADOPTED {
            let setting = Setting::find(ours).unwrap().0;
            let [first, second, third] = match setting.kind {
                Kind::Switch => ["0", "1", "0"],
                _ => ["warn", "debug", "error"],
            };
            let value = |file: &str, environment: &[(&str, &str)]| {
                let effective = layered(Some(file), environment, "").unwrap();
                let secret = effective.config.hub.token.text().to_owned();
                let shown = setting.value(&effective.config).unwrap();
                let value = if setting.kind == Kind::Secret {
                    secret
                } else {
                    shown
                };
                (value, origin(&effective, ours))
            };
            let same = |text: &str| match (setting.kind, text) {
                (Kind::Switch, text) => (text == "1").to_string(),
                (_, text) => text.to_owned(),
            };
            let file = format!("{ours} = {}", setting.toml(&same(first)));
            let adopted = (same(second), format!("`{theirs}`"));
            assert_eq!(value(&file, &[(theirs, second)]), adopted);
            let both = [(theirs, second), (&*setting.variable, third)];
            let own = (same(third), format!("`{}`", setting.variable));
            assert_eq!(value(&file, &both), own);
        }
    }

    #[test]
    fn a_switch_can_be_turned_off_again() {
        let strict = |line| {
            let environment = [("RERANKD_STRICT_MODEL_NAME", "true")];
            layered(None, &environment, line)
                .unwrap()
                .config
                .http
                .strict_model_name
        };
        assert!(strict(""));
        assert!(strict("--strict-model-name"));
        assert!(!strict("--strict-model-name=false"));
    }
}
