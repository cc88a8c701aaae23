//! Which workers run, and how long they are still busy. Sums over all workers are kept; only a model that runs on a
//! few, and the division of the last work, scan them.

use std::time::Duration;

use tokio::time::Instant;

/// The workers of a batcher, by number.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Worker>,
    /// Times are counted from here.
    start: Instant,
    alive: usize,
    busy: usize,
    /// Sum of the times, in seconds, at which the busy ones are expected to be free again.
    ends: f64,
}

/// The first workers, which some models run on.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerSet {
    /// How many, whether their threads run or not.
    pub count: usize,
    /// Those whose threads run; at least one, so that times stay finite.
    pub alive: usize,
    /// Sum of the seconds that each is still busy.
    pub busy: f64,
}

#[derive(Debug, Clone, Copy)]
struct Worker {
    alive: bool,
    /// When it is expected to be free again; `None` when it is.
    busy_until: Option<Instant>,
}

impl Worker {
    /// Seconds for which it is still busy.
    fn left(&self, now: Instant) -> f64 {
        let left = |at: Instant| at.saturating_duration_since(now).as_secs_f64();
        self.busy_until.map_or(0.0, left)
    }
}

impl Workers {
    /// None yet.
    pub fn new(start: Instant) -> Self {
        Self {
            workers: Vec::new(),
            start,
            alive: 0,
            busy: 0,
            ends: 0.0,
        }
    }

    /// Adds a free one.
    pub fn add(&mut self) {
        self.workers.push(Worker {
            alive: true,
            busy_until: None,
        });
        self.alive += 1;
    }

    /// All, whether their threads run or not.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Those whose threads run.
    pub fn alive(&self) -> usize {
        self.alive
    }

    /// Whether the thread of `number` runs.
    pub fn is_alive(&self, number: usize) -> bool {
        self.workers[number].alive
    }

    /// Of the first `count`, those whose threads run.
    pub fn alive_of(&self, count: usize) -> usize {
        if count >= self.workers.len() {
            return self.alive;
        }
        let first = self.workers[..count].iter();
        first.filter(|worker| worker.alive).count()
    }

    /// Those that score a batch.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Those that wait for work.
    pub fn idle(&self) -> usize {
        self.alive - self.busy
    }

    /// Of the first `count`, those that score a batch.
    pub fn busy_of(&self, count: usize) -> usize {
        if count >= self.workers.len() {
            return self.busy;
        }
        let first = self.workers[..count].iter();
        first.filter(|worker| worker.busy_until.is_some()).count()
    }

    /// The first `count`.
    pub fn set(&self, count: usize, now: Instant) -> WorkerSet {
        let busy = if count >= self.workers.len() {
            (self.ends - self.busy as f64 * self.seconds(now)).max(0.0)
        } else {
            self.workers[..count].iter().map(|w| w.left(now)).sum()
        };
        WorkerSet {
            count,
            alive: self.alive_of(count).max(1),
            busy,
        }
    }

    /// Seconds that each of the others of `number` among the first `count` is still busy.
    pub fn others(&self, number: usize, count: usize, now: Instant) -> Vec<f64> {
        let others = self.workers.iter().take(count).enumerate();
        others
            .filter(|(other, worker)| *other != number && worker.alive)
            .map(|(_, worker)| worker.left(now))
            .collect()
    }

    /// `number` scores a batch until about this time.
    pub fn start(&mut self, number: usize, until: Instant) {
        self.finish(number);
        self.workers[number].busy_until = Some(until);
        self.busy += 1;
        self.ends += self.seconds(until);
    }

    /// The batch of `number` is interrupted for so long.
    pub fn extend(&mut self, number: usize, by: Duration) {
        if let Some(until) = &mut self.workers[number].busy_until {
            *until += by;
            self.ends += by.as_secs_f64();
        }
    }

    /// `number` is free.
    pub fn finish(&mut self, number: usize) {
        if let Some(until) = self.workers[number].busy_until.take() {
            self.busy -= 1;
            self.ends -= self.seconds(until);
        }
        if self.busy == 0 {
            // Rounding does not add up.
            self.ends = 0.0;
        }
    }

    /// The thread of `number` ends.
    pub fn retire(&mut self, number: usize) {
        self.finish(number);
        if std::mem::replace(&mut self.workers[number].alive, false) {
            self.alive -= 1;
        }
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start).as_secs_f64()
    }
}
