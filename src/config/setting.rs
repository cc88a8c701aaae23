//! One setting as flags, files, help texts and documents see it.

use std::sync::LazyLock;

use super::Config;

/// What spells a value of a setting, in a file and in documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// `500ms`, `10s`, `2m`, `1h`, or plain seconds.
    Time,
    /// `true` or `false`; a flag may leave the value out.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Texts, divided by commas; in a file also an array.
    List,
    /// What must not be seen. It is never a flag; `<name>_file` names a file that holds it.
    Secret,
}

/// A part of the configuration, as a heading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Its name, such as `http`.
    pub name: &'static str,
    /// What its settings are about, as a sentence.
    pub about: &'static str,
}

/// What the environment variable of every setting begins with.
pub const PREFIX: &str = "RERANKD_";

type Parse = fn(&str) -> Result<Box<dyn FnOnce(&mut Config)>, String>;

/// What the name of a secret ends in where its value is the path of a file that holds it.
const IN_FILE: &str = "_file";

/// A setting: everything about it but its value.
pub struct Setting {
    /// Where it belongs.
    pub section: Section,
    /// Its key in a file, such as `max_documents`.
    pub name: &'static str,
    /// Its flag without dashes in front, such as `max-documents`. Everybody on a machine sees command
    /// lines, so that the flag of a secret names its file.
    pub flag: String,
    /// Its environment variable, such as `RERANKD_MAX_DOCUMENTS`.
    pub variable: String,
    /// What stands for its value in help texts, such as `N`.
    pub value_name: &'static str,
    /// What it is and what it costs, in one paragraph.
    pub help: String,
    /// What spells its value.
    pub kind: Kind,
    /// The smallest and the largest value, where there are such.
    pub range: Option<(String, String)>,
    /// What is the case where it is not set and has no default value.
    pub otherwise: Option<&'static str>,
    pub(super) parse: Parse,
    pub(super) read: Parse,
    pub(super) show: fn(&Config) -> Option<String>,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Setting").field(&self.name).finish()
    }
}

impl Setting {
    /// Every setting, in the order of its declaration.
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Setting>> = LazyLock::new(super::declared);
        &ALL
    }

    /// Gives the setting the value that `text` spells.
    ///
    /// # Errors
    /// What the text would have to be, to be put behind the name of the setting.
    pub fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        (self.parse)(text).map(|set| set(config))
    }

    /// The setting of this name in a file, and whether the name is that of a file which holds it.
    pub fn find(name: &str) -> Option<(&'static Self, bool)> {
        let called = |name: &str| Self::all().iter().find(|setting| setting.name == name);
        called(name).map(|setting| (setting, false)).or_else(|| {
            let setting = called(name.strip_suffix(IN_FILE)?)?;
            (setting.kind == Kind::Secret).then_some((setting, true))
        })
    }

    /// The setting of this environment variable, as [`Setting::find`].
    pub fn of_variable(variable: &str) -> Option<(&'static Self, bool)> {
        let name = variable.strip_prefix(PREFIX)?;
        if name.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return None;
        }
        Self::find(&name.to_ascii_lowercase())
    }

    /// The names that a file can have for it.
    pub fn names(&self) -> Vec<String> {
        let in_file = format!("{}{IN_FILE}", self.name);
        let in_file = (self.kind == Kind::Secret).then_some(in_file);
        std::iter::once(self.name.to_owned())
            .chain(in_file)
            .collect()
    }

    /// Gives a secret the value that the file at `path` holds.
    ///
    /// # Errors
    /// As [`Setting::set`], or that there is no such file.
    pub fn set_from_file(&self, config: &mut Config, path: &str) -> Result<(), String> {
        (self.read)(path).map(|set| set(config))
    }

    /// The value in `config` as [`Setting::set`] would read it; `None` where there is none.
    pub fn value(&self, config: &Config) -> Option<String> {
        (self.show)(config)
    }

    /// The default as [`Setting::set`] would read it; `None` where there is none.
    pub fn default(&self) -> Option<String> {
        self.value(&Config::default())
    }

    /// `text` as a value in a TOML file.
    pub fn toml(&self, text: &str) -> String {
        match self.kind {
            Kind::Number | Kind::Switch => text.to_owned(),
            Kind::Text | Kind::Time | Kind::Choice(_) | Kind::Secret => quoted(text),
            Kind::List => {
                let texts: Vec<String> = text.split(',').map(|text| quoted(text.trim())).collect();
                format!("[{}]", texts.join(", "))
            }
        }
    }
}

/// `text` as a TOML string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other if other.is_control() => quoted.push_str(&format!("\\u{:04x}", other as u32)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The flag of the setting `name`.
pub(super) fn flag(name: &str, kind: Kind) -> String {
    let in_file = if kind == Kind::Secret { IN_FILE } else { "" };
    format!("{name}{in_file}").replace('_', "-")
}

/// One paragraph of the lines of a doc comment.
pub(super) fn paragraph(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// Declares the settings; [`super`] says how to read a declaration.
macro_rules! settings {
    ($(
        #[doc = $about:literal]
        $section:ident: $type:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident $(as $name:ident)? $value_name:literal: $kind:ty = $default:expr
                $(, in $range:expr)? $(, or $otherwise:literal)?;
            )+
        }
    )+) => {
        /// Everything the server can be told.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct Config {
            $(#[doc = $about] pub $section: $type,)+
        }

        $(
            #[doc = $about]
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $type {
                $($(#[doc = $help])+ pub $field: $kind,)+
            }

            impl Default for $type {
                fn default() -> Self {
                    Self { $($field: $default,)+ }
                }
            }
        )+

        fn declared() -> Vec<setting::Setting> {
            vec![$($({
                type Kind = $kind;
                let name = setting::name!($field $($name)?);
                setting::Setting {
                    section: setting::Section {
                        name: stringify!($section),
                        about: $about.trim_ascii(),
                    },
                    name,
                    flag: setting::flag(name, <Kind as Value>::KIND),
                    variable: format!("{}{}", setting::PREFIX, name.to_ascii_uppercase()),
                    value_name: $value_name,
                    help: setting::paragraph(&[$($help),+]),
                    kind: <Kind as Value>::KIND,
                    range: setting::optional!($(value::ends::<Kind>(&$range))?),
                    otherwise: setting::optional!($($otherwise)?),
                    parse: |text| {
                        let value = <Kind as Value>::parse(text)?;
                        $(value::within(&value, &$range)?;)?
                        Ok(Box::new(move |config| config.$section.$field = value))
                    },
                    read: |path| {
                        let value = <Kind as Value>::read(path.as_ref())?;
                        Ok(Box::new(move |config| config.$section.$field = value))
                    },
                    show: |config| Value::show(&config.$section.$field),
                }
            },)+)+]
        }
    };
}

/// The name of a setting: its own, or that of its field.
macro_rules! name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:ident) => {
        stringify!($name)
    };
}

/// What may have been left out.
macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

pub(super) use {name, optional, settings};
