//! A setting without its value: its names, its help text, and how its value is parsed and shown.

use super::value::{Kind, ValueError};

/// A section of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Its name, such as `http`.
    pub name: &'static str,
    /// Its heading, with a full stop.
    pub about: &'static str,
}

/// The prefix of the environment variables of all settings.
pub const PREFIX: &str = "RERANKD_";

/// Parses a value, and returns what stores it in a configuration of type `C`.
type Parse<C> = fn(&str) -> Result<Box<dyn FnOnce(&mut C)>, ValueError>;

/// The suffix of a secret's name for the path of a file with the secret.
const IN_FILE: &str = "_file";

/// A setting of a configuration of type `C`.
pub struct Setting<C> {
    /// Its section.
    pub section: Section,
    /// Its key in a file, such as `max_documents`.
    pub name: &'static str,
    /// Its flag without leading dashes, such as `max-documents`. Every user of the machine can see
    /// command lines: the flag of a secret names a file.
    pub flag: String,
    /// Its environment variable, such as `RERANKD_MAX_DOCUMENTS`.
    pub variable: String,
    /// The placeholder of its value in help texts, such as `N`.
    pub value_name: &'static str,
    /// What it is and what it costs, as one paragraph.
    pub help: String,
    /// How its value is written.
    pub kind: Kind,
    /// The smallest and the largest value, if its values have a range.
    pub range: Option<(String, String)>,
    /// What applies if it is not set and has no default value.
    pub otherwise: Option<&'static str>,
    pub(super) parse: Parse<C>,
    pub(super) read: Parse<C>,
    pub(super) show: fn(&C) -> Option<String>,
}

impl<C> std::fmt::Debug for Setting<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Setting").field(&self.name).finish()
    }
}

impl<C: Default> Setting<C> {
    /// Parses `text`, and stores the value in `config`.
    ///
    /// # Errors
    /// [`ValueError`] if it is not a value of this setting.
    pub fn set(&self, config: &mut C, text: &str) -> Result<(), ValueError> {
        (self.parse)(text).map(|set| set(config))
    }

    /// Of `all` settings, the one with this key in a configuration file, and whether the key names a
    /// file with the value.
    pub fn find_in<'a>(all: &'a [Self], name: &str) -> Option<(&'a Self, bool)> {
        let named = |name: &str| all.iter().find(|setting| setting.name == name);
        named(name).map(|setting| (setting, false)).or_else(|| {
            let setting = named(name.strip_suffix(IN_FILE)?)?;
            (setting.kind == Kind::Secret).then_some((setting, true))
        })
    }

    /// Its keys in a configuration file.
    pub fn names(&self) -> Vec<String> {
        let in_file = format!("{}{IN_FILE}", self.name);
        let in_file = (self.kind == Kind::Secret).then_some(in_file);
        std::iter::once(self.name.to_owned())
            .chain(in_file)
            .collect()
    }

    /// Reads a secret from the file at `path`, and stores it in `config`.
    ///
    /// # Errors
    /// As [`Setting::set`], or why the file cannot be read.
    pub fn set_from_file(&self, config: &mut C, path: &str) -> Result<(), ValueError> {
        (self.read)(path).map(|set| set(config))
    }

    /// The value in `config` as [`Setting::set`] would parse it; `None` if there is none.
    pub fn value(&self, config: &C) -> Option<String> {
        (self.show)(config)
    }

    /// The default as [`Setting::set`] would parse it; `None` if there is none.
    pub fn default(&self) -> Option<String> {
        self.value(&C::default())
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

/// The lines of a doc comment as one paragraph.
pub(super) fn paragraph(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// Declares the settings; `config.rs` documents the syntax.
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
        /// The values of all settings.
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

        fn declared() -> Vec<Setting> {
            vec![$($({
                type Kind = $kind;
                let name = setting::name!($field $($name)?);
                Setting {
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

/// The name of a setting: the given one, or that of the field.
macro_rules! name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:ident) => {
        stringify!($name)
    };
}

/// An optional part of a declaration.
macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

pub(super) use {name, optional, settings};
