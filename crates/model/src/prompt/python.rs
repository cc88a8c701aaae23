//! Strings and numbers as Python has them, where the template engine differs.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Filters that the engine has, and whose results may differ from those of Jinja2.
const DIFFERENT: [&str; 5] = ["e", "escape", "indent", "sort", "title"];

/// Makes strings and numbers behave as in Python, and removes what would quietly differ.
pub(super) fn install(environment: &mut Environment) {
    environment.set_formatter(write);
    environment.set_unknown_method_callback(method);
    environment.add_filter("trim", trim);
    for filter in DIFFERENT {
        environment.remove_filter(filter);
    }
}

/// Writes a value as `str` does. Refuses lists, dictionaries and other objects, which `str` would quote.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool if value.is_true() => "True".to_owned(),
        ValueKind::Bool => "False".to_owned(),
        ValueKind::Number if !value.is_integer() => float(f64::try_from(value.clone())?),
        ValueKind::Undefined | ValueKind::String | ValueKind::Number => {
            return minijinja::escape_formatter(out, state, value);
        }
        _ => return Err(Error::from(ErrorKind::BadSerialization)),
    };
    out.write_str(&text).map_err(Error::from)
}

/// `repr` of a float.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("it has an exponent");
    let exponent: i32 = exponent.parse().expect("it is a number");
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return match plain.contains('.') {
            true => plain,
            false => plain + ".0",
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Whether `str.strip` drops a character.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn trim(value: &Value, chars: Option<&str>) -> Result<String, Error> {
    match (value.as_str(), value.is_undefined()) {
        (Some(text), _) => Ok(strip(text, chars, true, true).to_owned()),
        (None, true) => Ok(String::new()),
        (None, false) => Err(Error::from(ErrorKind::InvalidOperation)),
    }
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let drops = |c| match chars {
        Some(chars) => chars.contains(c),
        None => is_space(c),
    };
    let text = if start {
        text.trim_start_matches(drops)
    } else {
        text
    };
    if end {
        text.trim_end_matches(drops)
    } else {
        text
    }
}

/// Methods of strings whose idea of whitespace differs. The others are the engine's.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Ok(strip(text, chars, name != "rstrip", name != "lstrip").into())
        }
        "split" if args.first().is_none_or(Value::is_none) => {
            let (_, most): (Option<Value>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok());
            Ok(words(text, most).into_iter().map(Value::from).collect())
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            let lines = lines(text, keep.unwrap_or(false));
            Ok(lines.into_iter().map(Value::from).collect())
        }
        "isspace" => {
            let () = from_args(args)?;
            Ok((!text.is_empty() && text.chars().all(is_space)).into())
        }
        // Other scripts have letters whose title case takes Python's tables.
        "title" if text.is_ascii() => {
            let () = from_args(args)?;
            Ok(title(text).into())
        }
        "title" => Err(Error::from(ErrorKind::UnknownMethod)),
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// A capital after every character that is no letter.
fn title(text: &str) -> String {
    let mut inside = false;
    let letter = |c: char| {
        let after = std::mem::replace(&mut inside, c.is_ascii_alphabetic());
        match after {
            true => c.to_ascii_lowercase(),
            false => c.to_ascii_uppercase(),
        }
    };
    text.chars().map(letter).collect()
}

/// Words between runs of whitespace. After `most` of them, the rest is one.
fn words(text: &str, most: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = match most {
            Some(most) if words.len() >= most => rest.len(),
            _ => rest.find(is_space).unwrap_or(rest.len()),
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    words
}

fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends =
        |c| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends).unwrap_or(rest.len());
        let after = &rest[end..];
        let width = match after.starts_with("\r\n") {
            true => 2,
            false => after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    lines
}
