//! Sums over waiting requests, from which a completion time is forecast without looking at each request.
//!
//! Requests of one tenant are grouped by weight and size, and tenants by size. Within a group, weights
//! differ by less than a factor of two and sizes by a fifth, so that a sum over groups stands for the sum
//! over requests. The number of groups does not grow with the number of requests.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::cost::{Cost, Work};
use crate::fair::{FULL_SHARE, HashMap};
use rerankd_core::{SchedulingHints, Tenant};

/// Seconds over which the rate of new requests is averaged.
const ARRIVAL_WINDOW: f64 = 8.0;
/// Largest share of the machine that new requests are expected to take from a waiting one.
const MAX_NEWCOMERS: f64 = 0.75;
/// Iterations over a wait that new requests lengthen, during which more of them arrive.
const ROUNDS: usize = 8;

/// Recent requests needed for a rate; one alone predicts nothing.
const MIN_REQUESTS: f64 = 1.5;
/// A request is much smaller than another that has at least this many times its work.
const MUCH_SMALLER: f64 = 8.0;

/// Requests of about the same weight and size.
type Class = (u32, u32);

/// The members of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    members: usize,
    /// Sum of their weights; one full share is [`FULL_SHARE`].
    weight: u64,
    work: Work,
}

impl Group {
    fn add(&mut self, weight: u64, work: Work) {
        self.members += 1;
        self.weight += weight;
        self.work += work;
    }

    fn remove(&mut self, weight: u64, work: Work) {
        self.members -= 1;
        self.weight -= weight;
        self.work -= work;
    }

    fn without(mut self, weight: u64, work: Work) -> Self {
        self.remove(weight, work);
        self
    }
}

/// The waiting requests of one tenant.
#[derive(Debug, Default)]
struct Backlogged {
    total: Work,
    classes: BTreeMap<Class, Group>,
}

/// Recent requests of one class, each weighted by how recent it is.
#[derive(Debug, Clone, Copy)]
struct Arrivals {
    requests: f64,
    seconds: f64,
    latest: Instant,
}

impl Arrivals {
    fn at(self, now: Instant) -> Self {
        let age = now.saturating_duration_since(self.latest).as_secs_f64();
        let kept = (-age / ARRIVAL_WINDOW).exp();
        Self {
            requests: self.requests * kept,
            seconds: self.seconds * kept,
            latest: now.max(self.latest),
        }
    }
}

/// Which later requests a forecast counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newcomers {
    All,
    /// All except much smaller ones.
    Comparable,
}

/// How the completion of a request is forecast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forecast {
    pub hints: SchedulingHints,
    /// The work of the request.
    pub work: Work,
    /// Whether the request is in the backlog itself.
    pub waits: bool,
    pub cost: Cost,
    /// Seconds of work that all workers together complete in a second.
    pub speed: f64,
}

/// The waiting work of all requests.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    tenants: HashMap<Tenant, Backlogged>,
    /// Tenants by the size of what they have waiting.
    sizes: BTreeMap<u32, Group>,
    /// Recent requests of each tenant, whether they still wait or not.
    arrivals: HashMap<Tenant, BTreeMap<Class, Arrivals>>,
    /// Those of all tenants.
    all_arrivals: Option<Arrivals>,
    /// All that waits.
    total: Work,
    /// Groups that forecasts have read.
    #[cfg(test)]
    pub steps: std::cell::Cell<usize>,
}

/// The weight of a request among those of its tenant.
pub(crate) fn weight(hints: SchedulingHints) -> u64 {
    FULL_SHARE / hints.priority.parts()
}

/// Logarithm of a size, in quarters of an octave.
fn size(work: Work) -> u32 {
    let tokens = work.tokens.max(1) as u64;
    let octave = tokens.ilog2();
    let quarter = ((tokens << 2) >> octave) & 3;
    4 * octave + quarter as u32
}

fn class(hints: SchedulingHints, work: Work) -> Class {
    (weight(hints).max(1).ilog2(), size(work))
}

/// The share of a new request of `theirs` seconds that is done before one of `own` seconds ends. Both are served at
/// the same rate, and the new one arrives at a random point of the other's work.
fn done_before(theirs: f64, own: f64) -> f64 {
    if theirs <= own {
        1.0 - theirs / (2.0 * own)
    } else {
        own / (2.0 * theirs)
    }
}

/// Moves a member of this `weight` whose work was `old` to the group of `new`. Empty groups are removed.
fn replace<K: Ord>(
    groups: &mut BTreeMap<K, Group>,
    key: impl Fn(Work) -> K,
    weight: u64,
    old: Work,
    new: Work,
) {
    let (from, to) = (key(old), key(new));
    if old.sequences > 0
        && let Some(group) = groups.get_mut(&from)
    {
        group.remove(weight, old);
        if group.members == 0 && (new.sequences == 0 || from != to) {
            groups.remove(&from);
        }
    }
    if new.sequences > 0 {
        groups.entry(to).or_default().add(weight, new);
    }
}

impl Backlog {
    /// Adds a request with these `hints` and `work`.
    pub fn add(&mut self, hints: SchedulingHints, work: Work) {
        self.replace(hints, Work::default(), work);
    }

    /// Removes a request with these `hints` and `work`.
    pub fn remove(&mut self, hints: SchedulingHints, work: Work) {
        self.replace(hints, work, Work::default());
    }

    /// Changes the work of a request with these `hints` from `old` to `new`. A request without sequences is not
    /// waiting.
    pub fn replace(&mut self, hints: SchedulingHints, old: Work, new: Work) {
        self.total = self.total + new - old;
        let tenant = self.tenants.entry(hints.tenant).or_default();
        let before = tenant.total;
        tenant.total = before + new - old;
        let after = tenant.total;
        let class = |work| class(hints, work);
        replace(&mut tenant.classes, class, weight(hints), old, new);
        replace(&mut self.sizes, size, FULL_SHARE, before, after);
        if after.sequences == 0 {
            self.tenants.remove(&hints.tenant);
        }
    }

    /// Notes that a request of `work` was admitted.
    pub fn arrive(&mut self, hints: SchedulingHints, work: Work, cost: Cost, now: Instant) {
        let classes = self.arrivals.entry(hints.tenant).or_default();
        let of_class = classes.entry(class(hints, work));
        let none = Arrivals {
            requests: 0.0,
            seconds: 0.0,
            latest: now,
        };
        for arrivals in [
            of_class.or_insert(none),
            self.all_arrivals.get_or_insert(none),
        ] {
            *arrivals = arrivals.at(now);
            arrivals.requests += 1.0;
            arrivals.seconds += cost.marginal(work);
        }
    }

    /// All that waits.
    pub fn total(&self) -> Work {
        self.total
    }

    /// Seconds of work that are done for all requests until this one is complete, if no other arrives.
    pub fn seconds_until_served(&self, forecast: &Forecast) -> f64 {
        let within = self.within_tenant(forecast);
        within + self.other_tenants(forecast, within)
    }

    /// As [`Backlog::seconds_until_served`], if requests keep coming as they recently did.
    pub fn expected_seconds(&self, forecast: &Forecast, newcomers: Newcomers, now: Instant) -> f64 {
        let waiting = self.within_tenant(forecast);
        let load = self.newcomers(forecast, newcomers, now).min(MAX_NEWCOMERS);
        let tenants = self
            .sizes
            .values()
            .map(|group| group.members)
            .sum::<usize>();
        let own_waits = self.tenants.get(&forecast.hints.tenant);
        let own_waits = own_waits.is_some_and(|tenant| tenant.total.sequences > 0);
        let other_tenants = tenants - usize::from(own_waits);
        let other_load = self.other_load(forecast, now);
        let (mut within, mut total) = (waiting, 0.0);
        for _ in 0..ROUNDS {
            let others = self.other_tenants(forecast, within) + other_load * total;
            total = within + others.min(within * other_tenants as f64);
            // Requests that arrive during the wait lengthen it, so more of them arrive.
            within = (waiting + load * total).min(waiting / (1.0 - MAX_NEWCOMERS));
        }
        total
    }

    /// Its own seconds of work, and those of other requests of its tenant meanwhile.
    fn within_tenant(&self, forecast: &Forecast) -> f64 {
        let Forecast {
            hints, work, cost, ..
        } = *forecast;
        let own = cost.marginal(work);
        let mut total = own;
        let tenant = self.tenants.get(&hints.tenant);
        for (key, group) in tenant.iter().flat_map(|tenant| &tenant.classes) {
            self.step();
            let mut group = *group;
            if forecast.waits && *key == class(hints, work) {
                group = group.without(weight(hints), work);
            }
            let shares = group.weight as f64 / FULL_SHARE as f64 * hints.priority.parts() as f64;
            total += cost.marginal(group.work).min(own * shares);
        }
        total
    }

    /// Seconds of work done for other tenants while its own gets `within`.
    fn other_tenants(&self, forecast: &Forecast, within: f64) -> f64 {
        let tenant = self.tenants.get(&forecast.hints.tenant);
        let mut total = 0.0;
        for (key, group) in &self.sizes {
            self.step();
            let mut group = *group;
            if let Some(tenant) = tenant
                && *key == size(tenant.total)
                && tenant.total.sequences > 0
            {
                group = group.without(FULL_SHARE, tenant.total);
            }
            let seconds = forecast.cost.marginal(group.work);
            total += seconds.min(within * group.members as f64);
        }
        total
    }

    /// The part of the machine that newcomers of its tenant take before the request is done.
    fn newcomers(&self, forecast: &Forecast, which: Newcomers, now: Instant) -> f64 {
        let own = forecast.cost.marginal(forecast.work);
        let weight = weight(forecast.hints) as f64;
        // Of all newcomers, and of what is done of them before the request is.
        let (mut all, mut before) = (0.0, 0.0);
        let classes = self.arrivals.get(&forecast.hints.tenant);
        for ((octave, _), arrivals) in classes.iter().flat_map(|classes| classes.iter()) {
            self.step();
            let recent = arrivals.at(now);
            let theirs = recent.seconds / recent.requests;
            let rate = if recent.requests >= MIN_REQUESTS {
                recent.seconds / ARRIVAL_WINDOW
            } else {
                0.0
            };
            let own_share = own * f64::from(1_u32 << octave) / weight;
            if rate > 0.0 && own_share > 0.0 {
                all += rate;
                if which == Newcomers::All || theirs * MUCH_SMALLER >= own_share {
                    before += rate * done_before(theirs, own_share);
                }
            }
        }
        // A burst does not last: over time, no more arrives than the machine can do.
        before / forecast.speed.max(all)
    }

    /// The part of the machine that other tenants have recently asked for.
    fn other_load(&self, forecast: &Forecast, now: Instant) -> f64 {
        let recent = |arrivals: &Arrivals| arrivals.at(now).seconds / ARRIVAL_WINDOW;
        let own = self.arrivals.get(&forecast.hints.tenant);
        let own: f64 = own
            .iter()
            .flat_map(|classes| classes.values())
            .map(recent)
            .sum();
        let all = self.all_arrivals.as_ref().map_or(0.0, recent);
        ((all - own) / forecast.speed).clamp(0.0, 1.0)
    }

    fn step(&self) {
        #[cfg(test)]
        self.steps.set(self.steps.get() + 1);
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.sizes.is_empty() && self.total == Work::default()
    }
}
