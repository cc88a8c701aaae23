//! What a model is computed with: instructions, and the cores that a batch may use beside its own.
//!
//! Every session has a core, and most of the time the thread that owns it. A batch that begins alone runs in
//! a pool instead, and borrows the cores of the other sessions for the length of a layer, while they have
//! nothing to do. So a lone pair uses the whole machine; a batch that comes meanwhile begins at once, and
//! has its core to itself from the next layer on. The parts of a layer are stolen, not dealt out: where
//! other programs have the cores, the batch's own thread does what nobody came for.

use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, OnceLock};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::isa::Path;

/// Fewest rows that a core is borrowed for: with fewer, waking it costs more than it takes off.
const LEAST_ROWS: usize = 32;
/// Rows of a part are a multiple of this, so that few blocks of rows are left half full.
const ROUND: usize = 8;

/// The system refused the threads of a pool.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start {cores} threads: {source}; hint: raise the process's thread limit, or lower `threads`"
)]
pub struct ThreadsError {
    cores: usize,
    source: ThreadPoolBuildError,
}

/// Instructions and cores. Clones share the cores.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// The instructions.
    pub path: Path,
    cores: Arc<Cores>,
}

#[derive(Debug)]
struct Cores {
    /// Those that neither run a batch nor are borrowed. Below zero where a batch began on a core that
    /// was borrowed: then two share it until the layer is done.
    idle: AtomicIsize,
    /// Threads of batches that have the machine to themselves; none where there is one core.
    pool: Option<ThreadPool>,
}

impl Hardware {
    /// Every batch on one core, with the instructions of `path`.
    pub fn one_core(path: Path) -> Self {
        let cores = Cores {
            idle: AtomicIsize::new(0),
            pool: None,
        };
        Self {
            path,
            cores: Arc::new(cores),
        }
    }

    /// So many cores for all batches together, with the fastest instructions.
    ///
    /// # Errors
    /// [`ThreadsError`] when the system refuses a thread.
    pub fn new(cores: usize) -> Result<Self, ThreadsError> {
        if cores < 2 {
            return Ok(Self::default());
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(cores)
            .thread_name(|number| format!("lone-{number}"))
            .build()
            .map_err(|source| ThreadsError { cores, source })?;
        let cores = Cores {
            idle: AtomicIsize::new(cores as isize),
            pool: Some(pool),
        };
        Ok(Self {
            path: Path::best(),
            cores: Arc::new(cores),
        })
    }

    /// The same cores with other instructions.
    #[must_use]
    pub fn with_path(self, path: Path) -> Self {
        Self { path, ..self }
    }

    /// Runs a batch on the caller's thread.
    pub fn run<T>(&self, batch: impl FnOnce() -> T) -> T {
        self.cores.idle.fetch_sub(1, Ordering::Relaxed);
        let _own = Held {
            cores: &self.cores,
            count: 1,
        };
        batch()
    }

    /// Runs a batch of so many rows in the pool, where its layers may borrow cores.
    pub fn run_alone<T: Send>(&self, rows: usize, batch: impl FnOnce() -> T + Send) -> T {
        self.run(|| match &self.cores.pool {
            Some(pool) if rows >= 2 * LEAST_ROWS && self.no_other(pool) => pool.install(batch),
            _ => batch(),
        })
    }

    /// Whether the caller's batch is the only one. A thread of the pool that waits for a part would
    /// begin another batch meanwhile, and answer neither in time.
    fn no_other(&self, pool: &ThreadPool) -> bool {
        self.cores.idle.load(Ordering::Relaxed) == pool.current_num_threads() as isize - 1
    }

    /// Borrows cores that are idle for work on so many rows, maybe none.
    pub fn borrow(&self, rows: usize) -> Held<'_> {
        let pool = self.cores.pool.as_ref();
        let pooled = pool.and_then(ThreadPool::current_thread_index).is_some();
        let wanted = if pooled {
            (rows / LEAST_ROWS).saturating_sub(1)
        } else {
            0
        } as isize;
        let spare = |idle: isize| (idle > 0 && wanted > 0).then(|| idle - idle.min(wanted));
        let idle = &self.cores.idle;
        let before = idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spare);
        let count = before.map_or(0, |before| before.min(wanted)) as usize;
        Held {
            cores: &self.cores,
            count,
        }
    }
}

/// Every batch on one core, with the fastest instructions.
impl Default for Hardware {
    fn default() -> Self {
        Self::one_core(Path::best())
    }
}

/// Cores, until it is dropped.
pub struct Held<'a> {
    cores: &'a Cores,
    count: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let count = self.count as isize;
        self.cores.idle.fetch_add(count, Ordering::Relaxed);
    }
}

impl Held<'_> {
    /// Rows of each part, when `rows` are shared by the caller's core and those that it borrowed.
    pub fn share(&self, rows: usize) -> usize {
        match self.count {
            0 => rows.max(1),
            count => rows.div_ceil(count + 1).next_multiple_of(ROUND),
        }
    }

    /// Does `work` on all `parts`, the first of them on the caller's thread.
    ///
    /// # Errors
    /// That of one of the parts.
    pub fn each<T: Send, E: Send + Sync>(
        &self,
        parts: impl IntoIterator<Item = T>,
        work: impl Fn(T) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let mut parts = parts.into_iter();
        if self.count == 0 {
            return parts.try_for_each(work);
        }
        let first = parts.next();
        let failure = OnceLock::new();
        let note = |part| {
            if let Err(error) = work(part) {
                // Another part has failed already: one reason is enough.
                let _ = failure.set(error);
            }
        };
        // Threads of the pool steal parts. What they are too late for is done by this one.
        rayon::in_place_scope(|scope| {
            for part in parts {
                scope.spawn(|_| note(part));
            }
            first.map(note);
        });
        failure.into_inner().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const MANY: usize = 100 * LEAST_ROWS;

    /// Cores that a layer of so many rows is lent.
    fn lent(hardware: &Hardware, rows: usize) -> usize {
        hardware.borrow(rows).count
    }

    #[test]
    fn cores_without_a_batch_are_lent_and_given_back() {
        let hardware = Hardware::new(4).unwrap();
        hardware.run_alone(MANY, || {
            let layer = hardware.borrow(MANY);
            assert_eq!(layer.count, 3);
            assert_eq!(lent(&hardware, MANY), 0);
            // A batch does not wait for the core that is lent, and the next layer does without.
            hardware.run(|| {
                drop(layer);
                assert_eq!(lent(&hardware, MANY), 2);
            });
            assert_eq!(lent(&hardware, MANY), 3);
            assert_eq!(lent(&hardware, 2 * LEAST_ROWS), 1);
            assert_eq!(lent(&hardware, 2 * LEAST_ROWS - 1), 0);
        });
    }

    #[test]
    fn a_batch_that_is_not_alone_borrows_none() {
        let hardware = Hardware::new(4).unwrap();
        hardware.run(|| {
            assert_eq!(lent(&hardware, MANY), 0);
            // Whatever it is told.
            hardware.run_alone(MANY, || assert_eq!(lent(&hardware, MANY), 0));
        });
        let one = Hardware::default();
        one.run_alone(MANY, || assert_eq!(lent(&one, MANY), 0));
    }

    #[test]
    fn a_part_that_panics_gives_its_cores_back() {
        let hardware = Hardware::new(2).unwrap();
        let panics = AssertUnwindSafe(|| {
            hardware.run_alone(MANY, || {
                let layer = hardware.borrow(MANY);
                layer.each(0..2, |part| -> Result<(), ()> { panic!("part {part}") })
            })
        });
        assert!(catch_unwind(panics).is_err());
        hardware.run_alone(MANY, || assert_eq!(lent(&hardware, MANY), 1));
    }

    #[test]
    fn parts_take_all_rows_and_no_core_is_left_without() {
        for cores in 1..6 {
            let hardware = Hardware::new(cores).unwrap();
            hardware.run_alone(MANY, || {
                for rows in (cores * LEAST_ROWS..1000).chain([1]) {
                    let layer = hardware.borrow(rows);
                    let parts = rows.div_ceil(layer.share(rows));
                    assert!(parts <= layer.count + 1, "{rows} rows, {cores} cores");
                    assert!(2 * parts > layer.count + 1, "{rows} rows, {cores} cores");
                }
            });
        }
    }

    #[test]
    fn every_part_is_done_and_a_failure_is_told() {
        for hardware in [Hardware::default(), Hardware::new(3).unwrap()] {
            hardware.run_alone(MANY, || {
                let mut rows = [0_usize; 100];
                let layer = hardware.borrow(100);
                let parts = rows.chunks_mut(7).enumerate();
                let done: Result<(), usize> = layer.each(parts, |(number, rows)| {
                    rows.fill(number);
                    Ok(())
                });
                assert_eq!(done, Ok(()));
                assert!(rows.iter().enumerate().all(|(row, part)| row / 7 == *part));
                let fail = |number: usize| if number == 5 { Err(number) } else { Ok(()) };
                assert_eq!(layer.each(0..9, fail), Err(5));
            });
        }
    }
}
