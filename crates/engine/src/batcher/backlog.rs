//! Sums over waiting requests, from which a completion time is forecast without looking at each request.
//!
//! Requests of one tenant are grouped by weight and size, and tenants by size. Within a group, weights
//! differ by less than a factor of two and sizes by a fifth, so that a sum over groups stands for the sum
//! over requests. The number of groups does not grow with the number of requests.

use std::collections::{BTreeMap, HashMap};

use super::fair::FULL_SHARE;
use super::queue::Speed;
use crate::cost::Work;
use rerankd_core::{SchedulingHints, Tenant};

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

/// The waiting work of all requests.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    tenants: HashMap<Tenant, Backlogged>,
    /// Tenants by the size of what they have waiting.
    sizes: BTreeMap<u32, Group>,
    /// Groups that forecasts have looked at.
    #[cfg(test)]
    pub(super) steps: std::cell::Cell<usize>,
}

/// The weight of a request among those of its tenant.
pub(super) fn weight(hints: SchedulingHints) -> u64 {
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

impl Backlog {
    /// A request of `hints` has `work` waiting from now on.
    pub(super) fn add(&mut self, hints: SchedulingHints, work: Work) {
        let tenant = self.tenants.entry(hints.tenant).or_default();
        let old = tenant.total;
        tenant.total += work;
        let group = tenant.classes.entry(class(hints, work)).or_default();
        group.add(weight(hints), work);
        let new = tenant.total;
        self.resize(old, new);
    }

    /// A request of `hints` no longer has `work` waiting.
    pub(super) fn remove(&mut self, hints: SchedulingHints, work: Work) {
        let Some(tenant) = self.tenants.get_mut(&hints.tenant) else {
            return;
        };
        let old = tenant.total;
        tenant.total -= work;
        let key = class(hints, work);
        if let Some(group) = tenant.classes.get_mut(&key) {
            group.remove(weight(hints), work);
            if group.members == 0 {
                tenant.classes.remove(&key);
            }
        }
        let new = tenant.total;
        if tenant.classes.is_empty() {
            self.tenants.remove(&hints.tenant);
        }
        self.resize(old, new);
    }

    /// Moves a tenant whose waiting work was `old` to the group of `new`.
    fn resize(&mut self, old: Work, new: Work) {
        if old.sequences > 0
            && let Some(group) = self.sizes.get_mut(&size(old))
        {
            group.remove(FULL_SHARE, old);
            if group.members == 0 {
                self.sizes.remove(&size(old));
            }
        }
        if new.sequences > 0 {
            self.sizes
                .entry(size(new))
                .or_default()
                .add(FULL_SHARE, new);
        }
    }

    /// Seconds of work that all requests together are given by the time a request of `hints` has had
    /// `work`. Where `waits` is set, the request is itself in the backlog.
    pub(super) fn seconds_until_served(
        &self,
        hints: SchedulingHints,
        work: Work,
        waits: bool,
        speed: Speed,
    ) -> f64 {
        let cost = |work| speed.cost.marginal(work);
        let own = cost(work);
        let mut total = own;
        let tenant = self.tenants.get(&hints.tenant);
        for (key, group) in tenant.iter().flat_map(|tenant| &tenant.classes) {
            self.step();
            let mut group = *group;
            if waits && *key == class(hints, work) {
                group = group.without(weight(hints), work);
            }
            let shares = group.weight as f64 / FULL_SHARE as f64 * hints.priority.parts() as f64;
            total += cost(group.work).min(own * shares);
        }
        let within = total;
        for (key, group) in &self.sizes {
            self.step();
            let mut group = *group;
            if let Some(tenant) = tenant
                && *key == size(tenant.total)
            {
                group = group.without(FULL_SHARE, tenant.total);
            }
            total += cost(group.work).min(within * group.members as f64);
        }
        total
    }

    fn step(&self) {
        #[cfg(test)]
        self.steps.set(self.steps.get() + 1);
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.sizes.is_empty()
    }
}
