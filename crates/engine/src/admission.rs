//! Decides, before any work is done, whether a request may enter.
//!
//! A request enters whole or not at all, and what was admitted is never revoked. Two questions are asked:
//! when the request would be done ([`check_time`]), and whether there is memory for it ([`Memory`]). An
//! empty queue admits every request whose own deadline is long enough.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use smallvec::SmallVec;

use crate::cost::duration;
use rerankd_core::{RerankError, Tenant};

/// Longest time that a client is told to wait before it retries, in seconds.
const MAX_RETRY_SECONDS: f64 = 3600.0;
/// A request that holds its memory for more seconds is a long one.
const LONG_SECONDS: f64 = 1.0;

/// When a request would be done, in seconds from now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// Until it is done, counting what waits now and what is likely to arrive.
    pub completion: f64,
    /// Until it would be done if the machine were idle.
    pub alone: f64,
    /// Spent waiting for other requests. Much smaller ones that arrive later do not count: the request keeps its
    /// share of the machine beside them.
    pub wait: f64,
}

impl Expected {
    /// `completion` and `alone` in seconds; all other work counts as waiting.
    pub fn new(completion: f64, alone: f64) -> Self {
        Self {
            completion,
            alone,
            wait: (completion - alone).max(0.0),
        }
    }

    /// Whether it holds its memory for long.
    pub fn is_long(&self) -> bool {
        self.completion > LONG_SECONDS
    }
}

/// Why a request was refused before it cost anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It would not be done by its deadline.
    CannotFinishInTime {
        /// How long it would take.
        needed: Duration,
        /// When to retry.
        retry_after: Duration,
    },
    /// It would wait too long for others.
    QueueDelay {
        /// How long it would wait.
        wait: Duration,
        /// When to retry.
        retry_after: Duration,
    },
    /// The queue has no memory for it.
    Memory {
        /// When to retry.
        retry_after: Duration,
    },
}

impl Refusal {
    /// Every value of [`Refusal::reason`].
    pub const REASONS: &'static [&'static str] =
        &["cannot_finish_in_time", "queue_delay", "memory"];

    /// The label of its metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CannotFinishInTime { .. } => Self::REASONS[0],
            Self::QueueDelay { .. } => Self::REASONS[1],
            Self::Memory { .. } => Self::REASONS[2],
        }
    }
}

impl From<Refusal> for RerankError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::CannotFinishInTime {
                needed,
                retry_after,
            } => Self::too_late(needed, retry_after),
            Refusal::QueueDelay { wait, retry_after } => Self::queue_delay(wait, retry_after),
            Refusal::Memory { retry_after } => Self::overloaded(retry_after),
        }
    }
}

/// Whether a request with this expectation is done within the seconds that its deadline leaves, and
/// waits at most `max_wait` seconds for others.
///
/// # Errors
/// The [`Refusal`], with the time by which the request is too slow.
pub fn check_time(
    expected: Expected,
    deadline_seconds: Option<f64>,
    max_wait: f64,
) -> Result<(), Refusal> {
    let retry_after = |excess: f64| duration(excess.min(MAX_RETRY_SECONDS));
    if let Some(left) = deadline_seconds
        && expected.completion > left
    {
        return Err(Refusal::CannotFinishInTime {
            needed: duration(expected.completion),
            retry_after: retry_after(expected.completion - left.max(0.0)),
        });
    }
    let wait = expected.wait;
    if wait > max_wait {
        return Err(Refusal::QueueDelay {
            wait: duration(wait),
            retry_after: retry_after(wait - max_wait),
        });
    }
    Ok(())
}

/// What a request holds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Tokens to be scored.
    pub tokens: usize,
    /// Bytes of text.
    pub bytes: usize,
}

/// The memory of admitted requests.
///
/// For each model, a tenant holds at most three times what is free, and its long requests at most what is free and an eighth
/// of the capacity, so that a large one is admitted beside small ones. So one tenant holds at most three
/// quarters and its long requests nine sixteenths, two tenants each three sevenths, and there is room for a
/// newcomer however many tenants there are. A request counts as at most half of the capacity: one that is
/// larger leaves room for others. The queue exceeds its capacity by at most the excess of that request.
#[derive(Debug)]
pub struct Memory {
    capacity: Size,
    held: Mutex<Held>,
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Held {
    requests: usize,
    total: Size,
    tokens: usize,
    tenants: HashMap<Holder, TenantHeld>,
}

/// A tenant, and the model that it asks: what it asks of one takes nothing from what it may ask of another.
pub type Holder = (Tenant, u64);

/// What one tenant holds, as it counts.
#[derive(Debug, Clone, Copy, Default)]
struct TenantHeld {
    requests: usize,
    all: Size,
    long: Size,
}

impl Memory {
    /// `gauge` shows the tokens held.
    pub fn new(capacity: Size, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            held: Mutex::default(),
            gauge,
        })
    }

    /// Takes `size` for a request of `holder`. `seconds_until_room` tells when what is missing will have been scored.
    ///
    /// # Errors
    /// [`Refusal::Memory`], with the time until there is room.
    pub fn take(
        self: &Arc<Self>,
        holder: Holder,
        is_long: bool,
        size: Size,
        seconds_until_room: impl FnOnce(&[Missing]) -> f64,
    ) -> Result<MemoryPermit, Refusal> {
        let mut held = self.lock();
        let counted = self.counted(size);
        let missing = held.missing(self.capacity, holder, is_long, counted);
        if held.requests > 0 && !missing.is_empty() {
            drop(held);
            let seconds = seconds_until_room(&missing);
            return Err(Refusal::Memory {
                retry_after: duration(seconds.min(MAX_RETRY_SECONDS)),
            });
        }
        let permit = MemoryPermit {
            memory: self.clone(),
            holder,
            is_long,
            size,
        };
        held.requests += 1;
        held.tenants.entry(holder).or_default().requests += 1;
        held.replace(&permit, Size::default(), counted);
        held.tokens += size.tokens;
        self.gauge.add(size.tokens as i64);
        Ok(permit)
    }

    /// What a request of `size` is counted as.
    fn counted(&self, size: Size) -> Size {
        Size {
            tokens: size.tokens.min(self.capacity.tokens.div_ceil(2)),
            bytes: size.bytes.min(self.capacity.bytes.div_ceil(2)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// What must be scored before `size` fits, in tokens.
    fn missing(
        &self,
        capacity: Size,
        holder: Holder,
        is_long: bool,
        size: Size,
    ) -> SmallVec<[Missing; 3]> {
        let theirs = self.tenants.get(&holder).copied().unwrap_or_default();
        let missing = |part: fn(Size) -> usize| {
            let long = is_long.then(|| part(theirs.long));
            missing(
                part(capacity),
                part(self.total),
                part(theirs.all),
                long,
                part(size),
            )
        };
        let tokens_per_byte = self.tokens as f64 / self.total.bytes.max(1) as f64;
        let bytes = missing(|size| size.bytes).map(|missing| Missing {
            amount: (missing.amount * tokens_per_byte).max(1.0),
            ..missing
        });
        missing(|size| size.tokens).chain(bytes).collect()
    }

    /// Changes what `permit` is counted as.
    fn replace(&mut self, permit: &MemoryPermit, old: Size, new: Size) {
        let replace = |sum: &mut Size| {
            sum.tokens = sum.tokens + new.tokens - old.tokens;
            sum.bytes = sum.bytes + new.bytes - old.bytes;
        };
        replace(&mut self.total);
        let tenant = self.tenants.entry(permit.holder).or_default();
        replace(&mut tenant.all);
        if permit.is_long {
            replace(&mut tenant.long);
        }
    }
}

/// What must be released before a request fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Missing {
    pub amount: f64,
    /// What a token of the request's model releases.
    pub of_own: f64,
    /// What a token of another model releases.
    pub of_other: f64,
}

/// What must be released before `own` fits. `total` is held by all, `tenant` by its own tenant, and `long` by that
/// tenant's long requests if it is one.
fn missing(
    capacity: usize,
    total: usize,
    tenant: usize,
    long: Option<usize>,
    own: usize,
) -> impl Iterator<Item = Missing> {
    let (total, tenant, own) = (total as f64, tenant as f64, own as f64);
    let free = capacity as f64 - total - own;
    let most = free + capacity as f64 / 8.0;
    let by_class = long.map_or(0.0, |long| long as f64 + own - most);
    // What a tenant releases is also free.
    let limits = [
        (-free, 1.0, 1.0),
        (tenant + own - 3.0 * free, 4.0, 3.0),
        (by_class, 2.0, 1.0),
    ];
    let limits = limits.into_iter().filter(|(amount, ..)| *amount > 0.0);
    limits.map(|(amount, of_own, of_other)| Missing {
        amount,
        of_own,
        of_other,
    })
}

/// The memory of one request. Dropping it gives back what is left.
#[derive(Debug)]
#[must_use = "dropping a permit gives its memory back"]
pub struct MemoryPermit {
    memory: Arc<Memory>,
    holder: Holder,
    is_long: bool,
    size: Size,
}

impl MemoryPermit {
    /// Replaces the estimate by the counted number of tokens.
    pub fn correct(&mut self, tokens: usize) {
        let memory = self.memory.clone();
        let size = Size {
            tokens,
            ..self.size
        };
        let mut held = memory.lock();
        held.replace(self, memory.counted(self.size), memory.counted(size));
        held.tokens = held.tokens + tokens - self.size.tokens;
        memory.gauge.add(tokens as i64 - self.size.tokens as i64);
        self.size = size;
    }

    /// Gives back `tokens` that have been scored.
    pub fn spend(&mut self, tokens: usize) {
        self.correct(self.size.tokens.saturating_sub(tokens));
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        let memory = &self.memory;
        let mut held = memory.lock();
        held.replace(self, memory.counted(self.size), Size::default());
        held.tokens -= self.size.tokens;
        held.requests -= 1;
        if let Some(tenant) = held.tenants.get_mut(&self.holder) {
            tenant.requests -= 1;
            if tenant.requests == 0 {
                held.tenants.remove(&self.holder);
            }
        }
        memory.gauge.sub(self.size.tokens as i64);
    }
}

#[cfg(test)]
mod tests;
