//! Renders chat templates with the settings of transformers.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use serde_json::{Map, Value as Json};

use super::python;

/// Work of one rendering: an instruction, or 64 bytes of text. Bounds time to about a second.
const FUEL: u64 = 4_000_000;
const NAME: &str = "chat_template";

/// Why a layout cannot carry a pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A template is wrong.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The prompt is the same whatever the message with this role says.
    #[error("it does not print the message with the role `{0}`")]
    RoleNotPrinted(&'static str),
    /// A piece depends on query and document.
    #[error("a piece has both texts")]
    BothTexts,
    /// No piece depends on the query.
    #[error("no piece has the query")]
    NoQuery,
    /// No piece depends on the document, or several do.
    #[error("not exactly one piece has the document")]
    NotOneDocument,
    /// A piece that depends on a text does not count toward the length.
    #[error("a piece with a text must be `counted`")]
    TextNotCounted,
}

/// Why a template gave no prompt. Neither form contains text of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The source is not a template.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line of the source, from 1.
        line: usize,
        /// What the engine expected.
        message: String,
    },
    /// It failed on these messages, for example by calling `raise_exception`.
    #[error("line {line}: {kind}")]
    Render {
        /// Line of the source, from 1.
        line: usize,
        /// Kind of failure.
        kind: &'static str,
    },
}

/// The content of a message, in the form that a template expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MessageFormat {
    /// A string.
    #[default]
    Flat,
    /// A list with one item `{"type": "text", "text": …}`.
    Structured,
}

/// A message of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `system`, `query` or `document`.
    pub role: &'static str,
    /// The text.
    pub content: &'a str,
}

/// A compiled template and its variables.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    variables: Value,
    format: MessageFormat,
}

impl ChatTemplate {
    /// Compiles `source`. Every rendering sees `variables`, such as the special tokens.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(
        source: &str,
        variables: Map<String, Json>,
        format: MessageFormat,
    ) -> Result<Self, TemplateError> {
        Self::compile(source, variables, format, false)
    }

    /// A template for [`ChatTemplate::render_with`], which keeps a newline at its end.
    pub(super) fn of_piece(
        source: &str,
        variables: Map<String, Json>,
    ) -> Result<Self, TemplateError> {
        Self::compile(source, variables, MessageFormat::Flat, true)
    }

    fn compile(
        source: &str,
        mut variables: Map<String, Json>,
        format: MessageFormat,
        keep_trailing_newline: bool,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .keep_trailing_newline(keep_trailing_newline)
                .build()
                .expect("the default delimiters differ"),
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        python::install(&mut environment);
        environment.set_fuel(Some(FUEL));
        environment.set_debug(false);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        // Jinja2 reads every kind of line end as `\n`.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = without_generation(&source);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| TemplateError::Syntax {
                line: error.line().unwrap_or(1),
                message: error
                    .detail()
                    .map_or_else(|| error.to_string(), str::to_owned),
            })?;
        for (name, default) in [
            ("add_generation_prompt", Json::Bool(false)),
            ("documents", Json::Null),
            ("tools", Json::Null),
        ] {
            variables.entry(name).or_insert(default);
        }
        Ok(Self {
            environment,
            variables: Value::from(Serde(variables)),
            format,
        })
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Render`].
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let messages: Vec<Value> = messages.iter().map(|m| self.message(m)).collect();
        self.render_with(context! { messages })
    }

    /// Renders with variables of the caller, in addition to those of the template.
    ///
    /// # Errors
    /// [`TemplateError::Render`].
    pub(super) fn render_with(&self, context: Value) -> Result<String, TemplateError> {
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context! { ..context, ..self.variables.clone() }))
            .map_err(|error| TemplateError::Render {
                line: error.line().unwrap_or(1),
                kind: kind(&error),
            })
    }

    fn message(&self, message: &Message) -> Value {
        let Message { role, content } = *message;
        match self.format {
            MessageFormat::Flat => context! { role, content },
            MessageFormat::Structured => {
                let item = context! { type => "text", text => content };
                context! { role, content => [item] }
            }
        }
    }
}

/// The source with transformers' `generation` blocks, which print their body, as plain blocks.
fn without_generation(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        let Some((inside, after)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        let name = inside.trim_matches(['-', '+']).trim();
        match name {
            "generation" => text.push_str(&inside.replace(name, "if true")),
            "endgeneration" => text.push_str(&inside.replace(name, "endif")),
            _ => text.push_str(inside),
        }
        text.push_str("%}");
        rest = after;
    }
    text + rest
}

/// A name without the engine's details, which may quote a message.
fn kind(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::OutOfFuel => "it does not end",
        ErrorKind::UndefinedError => "a variable is undefined",
        ErrorKind::BadSerialization => {
            "a list or an object is printed; print its items, or use `tojson`"
        }
        ErrorKind::UnknownFilter => "a filter is unknown, or may differ from Jinja2's",
        ErrorKind::UnknownTest => "a test is unknown",
        ErrorKind::UnknownFunction => "a function is unknown",
        ErrorKind::UnknownMethod => "a method is unknown, or may differ from Python's",
        _ => "it rejects these messages",
    }
}

fn raise_exception(_message: Value) -> Result<Value, Error> {
    Err(Error::from(ErrorKind::InvalidOperation))
}

/// `json.dumps` without escapes for HTML.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "not JSON").with_source(error)
    };
    let mut text = Vec::new();
    let write = match indent {
        None => value_to(&mut text, &value, PythonSpacing),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value_to(&mut text, &value, formatter)
        }
    };
    write.map_err(failed)?;
    Ok(Value::from(String::from_utf8_lossy(&text).into_owned()))
}

fn value_to(
    text: &mut Vec<u8>,
    value: &Value,
    formatter: impl serde_json::ser::Formatter,
) -> serde_json::Result<()> {
    use serde::Serialize;
    value.serialize(&mut serde_json::Serializer::with_formatter(text, formatter))
}

/// `, ` and `: ` as separators.
struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PAIR: [Message; 2] = [
        Message {
            role: "query",
            content: "<q & 1>",
        },
        Message {
            role: "document",
            content: " d ",
        },
    ];

    fn render(source: &str) -> Result<String, TemplateError> {
        let variables = json!({"bos_token": "<s>", "flag": true});
        let variables = variables.as_object().unwrap().clone();
        ChatTemplate::new(source, variables, MessageFormat::Flat)?.render(&PAIR)
    }

    #[test]
    fn structured_content_is_a_list() {
        let source = "{{ messages[0].content[0].text }}{{ messages[1].content[0].type }}";
        let template = ChatTemplate::new(source, Map::new(), MessageFormat::Structured).unwrap();
        assert_eq!(template.render(&PAIR).unwrap(), "<q & 1>text");
    }

    #[test]
    fn failures_name_the_line_and_no_text() {
        let error = render("a\n{% if %}").unwrap_err();
        assert!(
            matches!(error, TemplateError::Syntax { line: 2, .. }),
            "{error}"
        );
        let error = render("a\nb {{ raise_exception(messages[0].content) }}").unwrap_err();
        assert_eq!(error.to_string(), "line 2: it rejects these messages");
        let error = render("{{ missing.field }}").unwrap_err();
        assert_eq!(error.to_string(), "line 1: a variable is undefined");
    }

    /// The expected values are those of Jinja2 3.1.6.
    #[test]
    fn strings_and_numbers_are_those_of_python() {
        let cases = [
            ("{{ '\u{1c} a \u{1f}' | trim }}|", "a|"),
            ("{{ 'xax' | trim('x') }}", "a"),
            ("{{ '\u{1d}\t a\u{85}'.strip() }}|", "a|"),
            ("{{ '\u{1e}a\u{1e}'.lstrip() }}|", "a\u{1e}|"),
            ("{{ '\u{1e}a\u{1e}'.rstrip() }}|", "\u{1e}a|"),
            ("{{ 'xyaxy'.strip('yx') }}", "a"),
            ("{{ ' a\u{1c}b  c\u{1f}'.split() | join(',') }}|", "a,b,c|"),
            ("{{ ' a b  c '.split(none, 1) | join(',') }}|", "a,b  c |"),
            ("{{ 'a b'.split() | length }}", "2"),
            ("{{ 'a-b-c'.split('-', 1) | join(',') }}", "a,b-c"),
            (
                "{{ 'a\u{1c}b\u{b}c\r\nd\u{85}e\u{2028}f\u{1f}g\n'.splitlines() | join(',') }}|",
                "a,b,c,d,e,f\u{1f}g|",
            ),
            (
                "{{ 'a\r\nb\n\nc'.splitlines(true) | join(',') }}|",
                "a\n,b\n,\n,c|",
            ),
            ("{{ ''.splitlines() | length }}", "0"),
            ("{{ '\u{1f} '.isspace() }}{{ ''.isspace() }}", "TrueFalse"),
            (
                "{{ 1e20 }} {{ 1e16 }} {{ 1.5e300 }} {{ 1e15 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1.25e-7 }} {{ 2.0 }} {{ -0.5 }} {{ 3 }} {{ 1 / 3 }} {{ 123456789012345678 }}",
                "1e+20 1e+16 1.5e+300 1000000000000000.0 0.0001 1e-05 1.25e-07 2.0 -0.5 3 0.3333333333333333 123456789012345678",
            ),
            ("{{ \"they're a1b X-RAY\".title() }}", "They'Re A1B X-Ray"),
            (
                "{{ none }} {{ true }} {{ false }} {{ missing }}|",
                "None True False |",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source:?}");
        }
    }

    /// Each of them would print something else than Jinja2.
    #[test]
    fn what_would_differ_from_jinja2_is_refused() {
        for source in [
            "{{ 'été'.title() }}",
            "{{ 'a.b' | title }}",
            "{{ 'a\n\nb' | indent(2) }}",
            "{{ '<' | e }}",
            "{{ '<' | escape }}",
            "{{ ['b', 'A', true] | sort }}",
            "{{ ['a', \"it's\"] }}",
            "{{ {'a': 1} }}",
            "{{ messages[0] }}",
        ] {
            let refused = matches!(render(source), Err(TemplateError::Render { .. }));
            assert!(refused, "{source:?}");
        }
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert_eq!(
            render(endless).unwrap_err().to_string(),
            "line 1: it does not end"
        );
        let large = "{% set x = 'aaaaaaaa' * 100000000 %}{{ x }}";
        assert!(render(large).is_err());
    }
}
