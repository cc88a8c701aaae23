//! How far long work has come, on the standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is written where nobody watches a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A bar with rate and time left on a terminal, a line now and then elsewhere.
pub struct Progress {
    /// Counts pairs, or bytes where only they are known.
    bar: ProgressBar,
    /// `None` on a terminal.
    next_line: Option<Instant>,
    what: String,
    started: Instant,
    /// Rows that were there at the start, and rows now.
    rows: Option<(u64, u64)>,
}

impl Progress {
    /// Of `total` pairs; `what` names the work.
    pub fn new(what: impl Into<String>, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        Self::with(
            bar,
            "{msg} {bar:30} {human_pos}/{human_len}, {per_sec:.0}, {eta} left",
            what.into(),
        )
    }

    /// Of rows whose number nobody knows, in an input of so many `bytes`, if that is known.
    pub fn of_rows(bytes: Option<u64>) -> Self {
        let (bar, template) = match bytes {
            Some(bytes) => (
                ProgressBar::new(bytes),
                "{bar:30} {percent} %, {msg}, {eta} left",
            ),
            None => (ProgressBar::no_length(), "{spinner} {msg}"),
        };
        Self::with(bar, template, String::new())
    }

    fn with(bar: ProgressBar, template: &str, what: String) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.expect("the template is one of three, and right"));
        bar.set_draw_target(match terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        });
        bar.set_message(what.clone());
        let started = Instant::now();
        Self {
            bar,
            next_line: (!terminal).then(|| started + LINE_EVERY),
            what,
            started,
            rows: None,
        }
    }

    /// Counts `pairs` that are done.
    pub fn add(&mut self, pairs: u64) {
        self.bar.inc(pairs);
        self.line(|bar, what| {
            let (done, rate, left) = (bar.position(), bar.per_sec(), bar.eta().as_secs());
            let total = bar.length().unwrap_or(done);
            format!("{what}: {done}/{total}, {rate:.0} a second, {left} s left")
        });
    }

    /// So many `rows` are done, up to so many `bytes` of the input. The first time says what an
    /// earlier run had done, which tells no rate.
    pub fn at(&mut self, rows: u64, bytes: u64) {
        let Some((first, _)) = self.rows else {
            self.rows = Some((rows, rows));
            self.started = Instant::now();
            return;
        };
        self.rows = Some((first, rows));
        self.bar.set_position(bytes);
        let rate = (rows - first) as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let message = format!("{} rows, {rate:.0} a second", HumanCount(rows));
        self.bar.set_message(message.clone());
        self.line(|bar, _| match bar.length() {
            Some(_) => format!("{message}, {} s left", bar.eta().as_secs()),
            None => message.clone(),
        });
    }

    /// Takes the bar away.
    pub fn end(self) {
        self.bar.finish_and_clear();
    }

    fn line(&mut self, text: impl FnOnce(&ProgressBar, &str) -> String) {
        if let Some(next) = self.next_line.filter(|next| *next <= Instant::now()) {
            eprintln!("{}", text(&self.bar, &self.what));
            self.next_line = Some(next + LINE_EVERY);
        }
    }
}
