//! Who may import whom. The rules of `ARCHITECTURE.md`, held against the paths that `src/` names.
//!
//! Code of unit tests is free to import what it likes and is left out.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// The modules, highest first: each may import only what stands below it.
const LAYERS: &[&str] = &[
    // Edges.
    "main",
    "cli",
    "bench",
    "telemetry",
    "http",
    "shutdown",
    "eval",
    "job",
    "verify",
    "export",
    // From files to a service.
    "bulk",
    "load",
    "service",
    // Mechanism with tasks and threads.
    "batcher",
    "admission",
    "cache",
    // Mechanism without.
    "encoder",
    "scorer",
    "graph",
    "strips",
    "quantize",
    "model",
    "batch",
    // Domain.
    "rerank",
    "cores",
    // Leaves.
    "trace",
    "metrics",
    "config",
];
/// Domain and mechanism that know nothing of tasks.
const SYNC: [&str; 6] = ["encoder", "scorer", "graph", "model", "batch", "rerank"];
/// What runs tasks, or waits for them.
const ASYNC_CRATES: [&str; 4] = ["tokio", "futures", "hyper", "tower"];
/// Modules that import no other.
const LEAVES: [&str; 3] = ["trace", "metrics", "config"];
/// Files that the compiler cannot check whole; `ARCHITECTURE.md` has their reasons.
const UNSAFE: &[&str] = &[
    "scorer/assignment.rs",
    "scorer/driver.rs",
    "scorer/isa.rs",
    "scorer/isa/avx2.rs",
    "scorer/isa/avx512.rs",
    "scorer/isa/avx512_vnni.rs",
    "scorer/isa/avx_vnni.rs",
    "scorer/library.rs",
];
/// What of `std::env` reads or changes what a process was started with.
const ENVIRONMENT: [&str; 9] = [
    "var",
    "var_os",
    "vars",
    "vars_os",
    "args",
    "args_os",
    "current_dir",
    "set_var",
    "remove_var",
];

/// A file of `src/` as the rules see it.
struct Source {
    /// As messages name it, below `src/`.
    file: String,
    /// Where it stands in the crate, such as `["http", "app"]`.
    module: Vec<String>,
    words: Vec<Word>,
}

/// A name, or one character of anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Name(String),
    Sign(char),
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let path = file.strip_suffix(".rs").expect("a Rust file");
        let module = match path {
            "lib" => Vec::new(),
            _ => path.split('/').map(str::to_owned).collect(),
        };
        Self {
            file: file.to_owned(),
            module,
            words: without_tests(words(text)),
        }
    }

    /// The module below the crate's root that this file belongs to; `lib` for the root itself.
    fn top(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    /// Modules of this crate that are named here, below its root.
    fn imports(&self) -> BTreeSet<String> {
        let own = |path: &Vec<String>| -> Option<String> {
            let base = match path[0].as_str() {
                "crate" | "rerankd" => 0,
                "super" => {
                    let ups = path.iter().take_while(|name| *name == "super").count();
                    self.module.len().checked_sub(ups)?
                }
                _ => return None,
            };
            let keywords = ["crate", "rerankd", "super"];
            let rest = path
                .iter()
                .filter(|name| !keywords.contains(&name.as_str()));
            self.module[..base].iter().chain(rest).next().cloned()
        };
        paths(&self.words).iter().filter_map(own).collect()
    }

    /// Whether a path begins with `name`, or the name is used as a macro or an import.
    fn names_crate(&self, name: &str) -> bool {
        paths(&self.words).iter().any(|path| path[0] == name)
    }

    fn has_name(&self, name: &str) -> bool {
        self.words.contains(&Word::Name(name.to_owned()))
    }

    fn reads_environment(&self) -> bool {
        paths(&self.words).iter().any(|path| {
            path.windows(2).any(|pair| {
                pair[0] == "env" && (pair[1] == "*" || ENVIRONMENT.contains(&pair[1].as_str()))
            })
        })
    }

    /// Everything that breaks a rule, in words.
    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut broken = |what: String| found.push(format!("{}: {what}", self.file));
        let top = self.top();
        let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
        let outermost = matches!(top, "main" | "cli");

        match rank(top) {
            None if top == "lib" => {}
            None => broken(format!("`{top}` has no place in LAYERS; give it one")),
            Some(own) => {
                for import in self.imports() {
                    if import != top && rank(&import).is_some_and(|other| other <= own) {
                        broken(format!("imports upward: `{top}` names `{import}`"));
                    }
                    if import != top && LEAVES.contains(&top) && rank(&import).is_some() {
                        broken(format!("`{top}` is a leaf and names `{import}`"));
                    }
                }
            }
        }
        if SYNC.contains(&top) {
            for name in ["async", "await"] {
                if self.has_name(name) {
                    broken(format!("`{name}` in a synchronous module"));
                }
            }
            for name in ASYNC_CRATES {
                if self.names_crate(name) {
                    broken(format!("names `{name}` in a synchronous module"));
                }
            }
        }
        for (name, home) in [("ort", "scorer"), ("axum", "http")] {
            if top != home && self.names_crate(name) {
                broken(format!("only `{home}` names `{name}`"));
            }
        }
        if !outermost && self.names_crate("clap") {
            broken("only `cli` and `main` name `clap`".to_owned());
        }
        if !UNSAFE.contains(&&*self.file) && self.has_name("unsafe") {
            broken("`unsafe` outside of the files of UNSAFE".to_owned());
        }
        if !outermost && self.reads_environment() {
            broken("only `cli` and `main` read the environment".to_owned());
        }
        found
    }
}

/// Cuts Rust into names and signs, without comments, strings, characters and numbers.
fn words(text: &str) -> Vec<Word> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => depth += 1,
                    ('*', '/') => depth -= 1,
                    _ => {
                        i += 1;
                        continue;
                    }
                }
                i += 2;
                if depth == 0 {
                    break;
                }
            }
        } else if let Some(end) = string_end(&chars, i) {
            i = end;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
        } else if is_name(c) {
            let start = i;
            while is_name(at(i)) {
                i += 1;
            }
            let name: String = chars[start..i].iter().collect();
            // A raw name is the name.
            if name == "r" && at(i) == '#' {
                i += 1;
            } else if !c.is_ascii_digit() {
                words.push(Word::Name(name));
            }
        } else {
            if !c.is_whitespace() {
                words.push(Word::Sign(c));
            }
            i += 1;
        }
    }
    words
}

/// Where the string that starts at `start` ends; `None` when none starts there.
fn string_end(chars: &[char], start: usize) -> Option<usize> {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = start;
    if matches!(at(i), 'b' | 'c') {
        i += 1;
    }
    let raw = at(i) == 'r';
    i += usize::from(raw);
    let hashes = (i..).take_while(|&i| raw && at(i) == '#').count();
    i += hashes;
    if at(i) != '"' {
        return None;
    }
    i += 1;
    while i < chars.len() {
        if !raw && chars[i] == '\\' {
            i += 2;
        } else if chars[i] == '"' && (i + 1..=i + hashes).all(|i| at(i) == '#') {
            return Some(i + 1 + hashes);
        } else {
            i += 1;
        }
    }
    Some(i)
}

/// Leaves out every item under `#[cfg(test)]`.
fn without_tests(words: Vec<Word>) -> Vec<Word> {
    let attribute: Vec<Word> = self::words("#[cfg(test)]");
    let mut kept = Vec::new();
    let mut rest = &words[..];
    while let Some(first) = rest.first() {
        if !rest.starts_with(&attribute) {
            kept.push(first.clone());
            rest = &rest[1..];
            continue;
        }
        // An item ends with its block, or with a semicolon outside of any.
        let mut depth = 0;
        let end = rest.iter().position(|word| match word {
            Word::Sign('{') => {
                depth += 1;
                false
            }
            Word::Sign('}') => {
                depth -= 1;
                depth == 0
            }
            Word::Sign(';') => depth == 0,
            _ => false,
        });
        rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
    }
    kept
}

/// Every path that is written with `::`, or imported; groups are taken apart.
fn paths(words: &[Word]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut i = 0;
    while i < words.len() {
        let import = words[i] == Word::Name("use".to_owned());
        let mut start = i + usize::from(import);
        while words.get(start) == Some(&Word::Sign(':')) {
            start += 1;
        }
        let mut found = Vec::new();
        let end = tree(words, start, &[], &mut found);
        found.retain(|path| import || path.len() > 1);
        paths.extend(found);
        i = end.max(i + 1);
    }
    paths
}

/// Reads one path with all its branches; returns where it ends.
fn tree(words: &[Word], mut i: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match words.get(i) {
            Some(Word::Name(name)) => {
                path.push(name.clone());
                i += 1;
            }
            Some(Word::Sign('*')) if !path.is_empty() => {
                path.push("*".to_owned());
                i += 1;
                break;
            }
            Some(Word::Sign('{')) if !path.is_empty() => {
                i += 1;
                while !matches!(words.get(i), None | Some(Word::Sign('}'))) {
                    let next = tree(words, i, &path, found);
                    i = next.max(i + 1);
                }
                return i + 1;
            }
            _ => break,
        }
        let separated =
            words.get(i) == Some(&Word::Sign(':')) && words.get(i + 1) == Some(&Word::Sign(':'));
        if !separated {
            break;
        }
        i += 2;
    }
    if path.len() > before.len() {
        found.push(path);
    }
    i
}

/// All files of `src/`, but for those that hold unit tests.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
                sources.push(Source::new(file, &text));
            }
        }
    }
    sources
}

#[test]
fn the_crate_keeps_its_layers() {
    let mut report = String::new();
    for source in sources() {
        for violation in source.violations() {
            writeln!(report, "  src/{violation}").unwrap();
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// Guards the rules against seeing nothing.
#[test]
fn the_scanner_sees_what_the_crate_imports() {
    let sources = sources();
    let imports = |file: &str| -> Vec<String> {
        let source = sources.iter().find(|source| source.file == file);
        let source = source.unwrap_or_else(|| panic!("no src/{file}"));
        source.imports().into_iter().collect()
    };
    assert!(imports("service.rs").contains(&"batcher".to_owned()));
    assert!(imports("batcher/queue.rs").contains(&"admission".to_owned()));
    assert!(imports("main.rs").contains(&"cli".to_owned()));
    assert!(imports("cli/serve.rs").contains(&"http".to_owned()));
    assert_eq!(imports("metrics.rs"), [""; 0]);
    for (name, home) in [("ort", "scorer"), ("axum", "http"), ("clap", "cli")] {
        let seen = |s: &&Source| s.top() == home && s.names_crate(name);
        assert!(sources.iter().any(|s| seen(&s)), "{name} in {home}");
    }
    let serve = sources.iter().find(|s| s.file == "cli/serve.rs").unwrap();
    assert!(serve.reads_environment());
    for layer in LAYERS {
        assert!(sources.iter().any(|s| s.top() == *layer), "no src/{layer}");
    }
}

#[track_caller]
fn check(file: &str, text: &str, expected: &[&str]) {
    let violations = Source::new(file, text).violations();
    let expected: Vec<String> = expected.iter().map(|e| format!("{file}: {e}")).collect();
    assert_eq!(violations, expected, "of\n{text}");
}

#[test]
fn an_import_that_points_upward_is_found() {
    let up = ["imports upward: `model` names `graph`"];
    check("model.rs", "use crate::graph::Rows;", &up);
    check(
        "model/json.rs",
        "use crate::{batch, graph::{self, io}};",
        &["imports upward: `model` names `graph`"][..],
    );
    check("model/json.rs", "use super::super::graph::io;", &up);
    check("model.rs", "fn f() { crate::graph::build() }", &up);
    check("model.rs", "pub(crate) use crate::graph as g;", &up);
    check("model.rs", "use ::rerankd::graph;", &up);
    check(
        "graph.rs",
        "use crate::model::Model; use crate::graph::io;",
        &[],
    );
    check("rerank/error.rs", "use super::score;", &[]);
    check("encoder.rs", "use crate::scorer::Scorer;", &[]);
    check(
        "scorer.rs",
        "use crate::encoder::PairEncoder;",
        &["imports upward: `scorer` names `encoder`"],
    );
    check(
        "extra.rs",
        "",
        &["`extra` has no place in LAYERS; give it one"],
    );
}

#[test]
fn a_leaf_that_imports_is_found() {
    check(
        "metrics.rs",
        "use crate::config::Config;",
        &["`metrics` is a leaf and names `config`"],
    );
    check(
        "config.rs",
        "#[derive(clap::Args)] struct A;",
        &["only `cli` and `main` name `clap`"],
    );
}

#[test]
fn code_that_is_not_checked_is_found_where_it_should_not_be() {
    let found = ["`unsafe` outside of the files of UNSAFE"];
    check("http.rs", "fn f() { unsafe { g() } }", &found);
    check("http.rs", "// unsafe\nconst A: &str = \"unsafe\";", &[]);
    check("scorer/library.rs", "unsafe fn f() {}", &[]);
    let sources = sources();
    for &file in UNSAFE {
        let source = sources.iter().find(|source| source.file == file);
        assert!(source.unwrap().has_name("unsafe"), "{file} has none");
    }
}

#[test]
fn tasks_in_synchronous_code_are_found() {
    check(
        "rerank.rs",
        "async fn f() { g().await }",
        &[
            "`async` in a synchronous module",
            "`await` in a synchronous module",
        ],
    );
    check(
        "batch/plan.rs",
        "use tokio::sync::oneshot;",
        &["names `tokio` in a synchronous module"],
    );
    check(
        "encoder/side.rs",
        "tokio::spawn(f)",
        &["names `tokio` in a synchronous module"],
    );
    check("batcher.rs", "use tokio::sync::watch; async fn f() {}", &[]);
}

#[test]
fn crates_outside_their_home_are_found() {
    check(
        "graph/builder.rs",
        "fn f(e: ort::Error) {}",
        &["only `scorer` names `ort`"],
    );
    check("load.rs", "use ort;", &["only `scorer` names `ort`"]);
    check("scorer/onnx.rs", "use ort::session::Session;", &[]);
    check(
        "service.rs",
        "use axum::Router;",
        &["only `http` names `axum`"],
    );
    check(
        "shutdown.rs",
        "use ::axum::Router;",
        &["only `http` names `axum`"],
    );
    check("http/app.rs", "use axum::Router;", &[]);
    check(
        "load.rs",
        "use clap::Parser;",
        &["only `cli` and `main` name `clap`"],
    );
    check("cli/serve.rs", "use clap::Parser;", &[]);
}

#[test]
fn reading_the_environment_is_found() {
    let found = ["only `cli` and `main` read the environment"];
    for text in [
        "std::env::var(\"X\")",
        "use std::env; fn f() { env::var_os(\"X\"); }",
        "use std::{env::vars, fs};",
        "use std::env::*;",
        "std::env::args()",
    ] {
        check("telemetry.rs", text, &found);
        check("cli.rs", text, &[]);
    }
    check("scorer/library.rs", "std::env::current_exe()", &[]);
    check("http.rs", "env!(\"CARGO_PKG_VERSION\")", &[]);
}

#[test]
fn what_is_no_code_is_not_seen() {
    for text in [
        "// use crate::graph;",
        "/// [`crate::graph::build`]\n/* async /* crate::graph */ await */ fn f() {}",
        "const S: &str = \"crate::graph::x async\";",
        "const S: &str = r#\"a \" crate::graph::x\"#;",
        "const C: char = '\"'; const D: char = '\\''; fn f<'a>(x: &'a str) {}",
        "#[cfg(test)]\nmod tests { use crate::graph::x; fn f() { async {}; } }\nfn g() {}",
        "#[cfg(test)]\nmod tests;",
        "#[cfg(test)] use crate::graph::x;",
    ] {
        check("model.rs", text, &[]);
    }
    check(
        "model.rs",
        "#[cfg(test)] mod tests { use crate::graph::x; } fn f() { crate::graph::y() }",
        &["imports upward: `model` names `graph`"],
    );
    check(
        "model.rs",
        "const S: &str = \"\\\"\"; use crate::graph;",
        &["imports upward: `model` names `graph`"],
    );
}
