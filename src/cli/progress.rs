//! Progress of long-running commands, on the standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is written if the standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A progress bar with rate and remaining time on a terminal, else a line of text now and then.
pub struct Progress {
    /// Counts pairs, or bytes if the number of pairs is not known.
    bar: ProgressBar,
    /// `None` on a terminal.
    next_line: Option<Instant>,
    what: String,
    started: Instant,
    /// Number of rows at the start and now.
    rows: Option<(u64, u64)>,
}

impl Progress {
    /// The progress of `total` pairs; `what` names the work.
    pub fn new(what: impl Into<String>, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        Self::with(
            bar,
            "{msg} {bar:30} {human_pos}/{human_len}, {per_sec:.0}, {eta} left",
            what.into(),
        )
    }

    /// The progress of an unknown number of rows, in an input of `bytes` bytes if that is known.
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
        bar.set_style(style.expect("a valid template"));
        bar.set_draw_target(if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        });
        bar.set_message(what.clone());
        let started = Instant::now();
        Self {
            bar,
            next_line: (!terminal).then(|| started + LINE_INTERVAL),
            what,
            started,
            rows: None,
        }
    }

    /// Adds `pairs` completed pairs.
    pub fn add(&mut self, pairs: u64) {
        self.bar.inc(pairs);
        self.line(|bar, what| {
            let (done, rate, left) = (bar.position(), bar.per_sec(), bar.eta().as_secs());
            let total = bar.length().unwrap_or(done);
            format!("{what}: {done}/{total}, {rate:.0} per second, {left} s left")
        });
    }

    /// Reports `rows` completed rows, which end at `bytes` of the input. The first call reports what an
    /// earlier run completed, and does not count for the rate.
    pub fn at(&mut self, rows: u64, bytes: u64) {
        let Some((first, _)) = self.rows else {
            self.rows = Some((rows, rows));
            self.started = Instant::now();
            return;
        };
        self.rows = Some((first, rows));
        self.bar.set_position(bytes);
        let rate = (rows - first) as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let message = format!("{} rows, {rate:.0} per second", HumanCount(rows));
        self.bar.set_message(message.clone());
        self.line(|bar, _| match bar.length() {
            Some(_) => format!("{message}, {} s left", bar.eta().as_secs()),
            None => message.clone(),
        });
    }

    /// Removes the bar.
    pub fn end(self) {
        self.bar.finish_and_clear();
    }

    fn line(&mut self, text: impl FnOnce(&ProgressBar, &str) -> String) {
        if let Some(next) = self.next_line.filter(|next| *next <= Instant::now()) {
            eprintln!("{}", text(&self.bar, &self.what));
            self.next_line = Some(next + LINE_INTERVAL);
        }
    }
}
