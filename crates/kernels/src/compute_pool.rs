//! The cores that batches run on.
//!
//! Each session has one core, and most of the time the thread that owns it. A batch that starts alone runs in a
//! thread pool instead, and its layers borrow the idle cores of the other sessions, one layer at a time. So a
//! lone request uses the whole machine, and a batch that arrives meanwhile starts at once and has its core to
//! itself from the next layer on. Parts of a layer are stolen, not assigned: where other programs occupy the
//! cores, the batch's own thread does the parts that no thread came for.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::isa::InstructionSet;

/// Fewest rows that a core is borrowed for: with fewer, waking it costs more than it saves.
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

/// The cores for the batches of all models, and the instruction set they run. Clones share the cores.
#[derive(Debug, Clone)]
pub struct ComputePool {
    /// The instruction set.
    pub instruction_set: InstructionSet,
    cores: Arc<Cores>,
    /// Whether batches borrow cores.
    borrows: bool,
}

#[derive(Debug)]
struct Cores {
    /// Those that neither run a batch nor are borrowed. Below zero where a batch began on a core that
    /// was borrowed: then two share it until the layer is done.
    idle: AtomicIsize,
    /// Threads of batches that have the machine to themselves; none where there is one core.
    pool: Option<ThreadPool>,
}

impl ComputePool {
    /// One core for each batch.
    pub fn one_core(instruction_set: InstructionSet) -> Self {
        let cores = Cores {
            idle: AtomicIsize::new(0),
            pool: None,
        };
        Self {
            instruction_set,
            cores: Arc::new(cores),
            borrows: false,
        }
    }

    /// A pool of `cores` for all batches together, with the fastest instruction set.
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
            instruction_set: InstructionSet::best(),
            cores: Arc::new(cores),
            borrows: true,
        })
    }

    /// The same cores, for a model whose batches borrow none: each takes its own core.
    #[must_use]
    pub fn without_borrowing(self) -> Self {
        Self {
            borrows: false,
            ..self
        }
    }

    /// The same cores with another instruction set.
    #[must_use]
    pub fn with_instruction_set(self, instruction_set: InstructionSet) -> Self {
        Self {
            instruction_set,
            ..self
        }
    }

    /// Runs a batch on the caller's thread.
    pub fn run<T>(&self, batch: impl FnOnce() -> T) -> T {
        self.cores.idle.fetch_sub(1, Ordering::Relaxed);
        let _own = BorrowedCores {
            cores: &self.cores,
            count: 1,
        };
        batch()
    }

    /// Runs a batch of so many rows in the pool, where its layers may borrow cores.
    pub fn run_alone<T: Send>(&self, rows: usize, batch: impl FnOnce() -> T + Send) -> T {
        self.run(|| match &self.cores.pool {
            Some(pool) if self.borrows && rows >= 2 * LEAST_ROWS && self.no_other(pool) => {
                pool.install(batch)
            }
            _ => batch(),
        })
    }

    /// Whether the caller's batch is the only one. A thread of the pool that waits for a part would
    /// begin another batch meanwhile, and answer neither in time.
    fn no_other(&self, pool: &ThreadPool) -> bool {
        self.cores.idle.load(Ordering::Relaxed) == pool.current_num_threads() as isize - 1
    }

    /// Borrows cores that are idle for work on so many rows, maybe none.
    pub fn borrow(&self, rows: usize) -> BorrowedCores<'_> {
        let pool = self.cores.pool.as_ref();
        let pooled = pool.and_then(ThreadPool::current_thread_index).is_some();
        let wanted = if pooled && self.borrows {
            (rows / LEAST_ROWS).saturating_sub(1)
        } else {
            0
        } as isize;
        let spare = |idle: isize| (idle > 0 && wanted > 0).then(|| idle - idle.min(wanted));
        let idle = &self.cores.idle;
        let before = idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spare);
        let count = before.map_or(0, |before| before.min(wanted)) as usize;
        BorrowedCores {
            cores: &self.cores,
            count,
        }
    }
}

/// One core for each batch, with the fastest instruction set.
impl Default for ComputePool {
    fn default() -> Self {
        Self::one_core(InstructionSet::best())
    }
}

/// Cores, until it is dropped.
pub struct BorrowedCores<'a> {
    cores: &'a Cores,
    count: usize,
}

impl Drop for BorrowedCores<'_> {
    fn drop(&mut self) {
        let count = self.count as isize;
        self.cores.idle.fetch_add(count, Ordering::Relaxed);
    }
}

impl BorrowedCores<'_> {
    /// Rows of each part, when `rows` are shared by the caller's core and those that it borrowed.
    pub fn share(&self, rows: usize) -> usize {
        match self.count {
            0 => rows.max(1),
            count => rows.div_ceil(count + 1).next_multiple_of(ROUND),
        }
    }

    /// Does `work` on all `parts`, the first of them on the caller's thread.
    pub fn each<T: Send>(&self, parts: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
        let mut parts = parts.into_iter();
        if self.count == 0 {
            return parts.for_each(work);
        }
        let first = parts.next();
        let work = &work;
        // Threads of the pool steal parts. The caller's thread does those that none of them took.
        rayon::in_place_scope(|scope| {
            for part in parts {
                scope.spawn(move |_| work(part));
            }
            first.map(work);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const MANY: usize = 100 * LEAST_ROWS;

    /// Cores that a layer of so many rows is lent.
    fn lent(pool: &ComputePool, rows: usize) -> usize {
        pool.borrow(rows).count
    }

    #[test]
    fn cores_without_a_batch_are_lent_and_given_back() {
        let pool = ComputePool::new(4).unwrap();
        pool.run_alone(MANY, || {
            let layer = pool.borrow(MANY);
            assert_eq!(layer.count, 3);
            assert_eq!(lent(&pool, MANY), 0);
            // A batch does not wait for the core that is lent, and the next layer does without.
            pool.run(|| {
                drop(layer);
                assert_eq!(lent(&pool, MANY), 2);
            });
            assert_eq!(lent(&pool, MANY), 3);
            assert_eq!(lent(&pool, 2 * LEAST_ROWS), 1);
            assert_eq!(lent(&pool, 2 * LEAST_ROWS - 1), 0);
        });
    }

    #[test]
    fn a_batch_that_is_not_alone_borrows_none() {
        let pool = ComputePool::new(4).unwrap();
        pool.run(|| {
            assert_eq!(lent(&pool, MANY), 0);
            // Even where the caller says that it is.
            pool.run_alone(MANY, || assert_eq!(lent(&pool, MANY), 0));
        });
        let one = ComputePool::default();
        one.run_alone(MANY, || assert_eq!(lent(&one, MANY), 0));
    }

    #[test]
    fn a_core_that_runs_a_batch_of_another_model_is_not_lent() {
        let pool = ComputePool::new(4).unwrap();
        let other = pool.clone().without_borrowing();
        pool.run_alone(MANY, || {
            assert_eq!(lent(&pool, MANY), 3);
            other.run_alone(MANY, || {
                assert_eq!(lent(&other, MANY), 0);
                assert_eq!(lent(&pool, MANY), 2);
            });
        });
        other.run(|| pool.run_alone(MANY, || assert_eq!(lent(&pool, MANY), 0)));
    }

    #[test]
    fn a_part_that_panics_gives_its_cores_back() {
        let pool = ComputePool::new(2).unwrap();
        let panics = AssertUnwindSafe(|| {
            pool.run_alone(MANY, || {
                let layer = pool.borrow(MANY);
                layer.each(0..2, |part| panic!("part {part}"))
            })
        });
        assert!(catch_unwind(panics).is_err());
        pool.run_alone(MANY, || assert_eq!(lent(&pool, MANY), 1));
    }

    #[test]
    fn parts_take_all_rows_and_no_core_is_left_without() {
        for cores in 1..6 {
            let pool = ComputePool::new(cores).unwrap();
            pool.run_alone(MANY, || {
                for rows in (cores * LEAST_ROWS..1000).chain([1]) {
                    let layer = pool.borrow(rows);
                    let parts = rows.div_ceil(layer.share(rows));
                    assert!(parts <= layer.count + 1, "{rows} rows, {cores} cores");
                    assert!(2 * parts > layer.count + 1, "{rows} rows, {cores} cores");
                }
            });
        }
    }

    #[test]
    fn every_part_is_done() {
        for pool in [ComputePool::default(), ComputePool::new(3).unwrap()] {
            pool.run_alone(MANY, || {
                let mut rows = [0_usize; 100];
                let layer = pool.borrow(100);
                layer.each(rows.chunks_mut(7).enumerate(), |(number, rows)| {
                    rows.fill(number)
                });
                assert!(rows.iter().enumerate().all(|(row, part)| row / 7 == *part));
            });
        }
    }
}
