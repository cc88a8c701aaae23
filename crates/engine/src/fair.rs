//! Weighted fair queueing. Plain data.
//!
//! Models share by their weights; within a model, tenants share evenly, and the requests of a tenant share its
//! part by their weights. Each level has a virtual time, which advances by the cost of what is taken over the weights of all that wait. A newcomer
//! starts at the present virtual time. A member that is served moves ahead by its cost over its weight.
//! The member that would be least ahead after its next turn is next, so that short turns do not wait for
//! long ones. The present moves with the work, so a stream of newcomers starts ever later and cannot
//! starve a member that was there before.

use std::collections::BTreeSet;
use std::hash::Hash;

/// The program makes the keys itself, so clients cannot make them collide.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// Resolution of virtual time: ticks for each unit of cost.
const TICKS: u128 = 1024;
/// The weight of one full share.
pub(crate) const FULL_SHARE: u64 = 1 << 20;

/// One level.
#[derive(Debug)]
pub(crate) struct Level<K> {
    /// Virtual time.
    now: u64,
    /// Sum of the weights of all that wait.
    weight: u64,
    /// Members that wait and take turns, by the virtual time after their next turn, then by key.
    waiting: BTreeSet<(u64, K)>,
    /// Members that wait and are set aside.
    aside: BTreeSet<(u64, K)>,
    /// Members that left ahead of the present, by virtual time. One that comes back continues from there.
    resting: BTreeSet<(u64, K)>,
    shares: HashMap<K, Share>,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    /// Its virtual time.
    reached: u64,
    weight: u64,
    /// Cost of its next turn.
    next: usize,
}

impl Share {
    /// How far a turn moves it ahead.
    fn ticks(&self, cost: usize) -> u64 {
        (ticks(cost) / u128::from(self.weight)) as u64
    }

    /// Its virtual time after its next turn.
    fn finish(&self) -> u64 {
        self.reached.saturating_add(self.ticks(self.next))
    }
}

/// How far a turn moves a member of weight 1 ahead.
fn ticks(cost: usize) -> u128 {
    cost as u128 * TICKS * u128::from(FULL_SHARE)
}

impl<K> Default for Level<K> {
    fn default() -> Self {
        Self {
            now: 0,
            weight: 0,
            waiting: BTreeSet::new(),
            aside: BTreeSet::new(),
            resting: BTreeSet::new(),
            shares: HashMap::default(),
        }
    }
}

impl<K: Copy + Ord + Hash> Level<K> {
    /// Adds `key`. A member that left ahead of the present continues where it was.
    pub(crate) fn join(&mut self, key: K, weight: u64, next: usize) {
        if let Some(share) = self.shares.get_mut(&key) {
            if self.resting.remove(&(share.reached, key)) {
                share.next = next;
                self.weight += share.weight;
                self.waiting.insert((share.finish(), key));
            } else {
                self.set_next(key, next);
            }
            return;
        }
        let share = Share {
            reached: self.now,
            weight: weight.max(1),
            next,
        };
        self.weight += share.weight;
        self.shares.insert(key, share);
        self.waiting.insert((share.finish(), key));
    }

    /// The next turn of `key`, which waits, costs `next`.
    fn set_next(&mut self, key: K, next: usize) {
        let Some(share) = self.shares.get_mut(&key) else {
            return;
        };
        if share.next == next {
            return;
        }
        let old = (share.finish(), key);
        share.next = next;
        let new = (share.finish(), key);
        for members in [&mut self.waiting, &mut self.aside] {
            if members.remove(&old) {
                members.insert(new);
                return;
            }
        }
    }

    /// `key`, which waits, is served at a cost of `tokens`.
    pub(crate) fn charge(&mut self, key: K, tokens: usize) {
        let share = self
            .shares
            .get_mut(&key)
            .expect("a member that waits has a share");
        self.waiting.remove(&(share.finish(), key));
        // Those who leave before the present reaches them leave the others ever further behind it. More
        // than a turn of that is forgiven, or newcomers would wait for many turns.
        let least = self.now.saturating_sub(share.ticks(tokens));
        share.reached = share.reached.max(least) + share.ticks(tokens);
        self.waiting.insert((share.finish(), key));
        self.now += (ticks(tokens) / u128::from(self.weight)) as u64;
        while let Some(&(reached, key)) = self.resting.first()
            && reached <= self.now
        {
            self.resting.pop_first();
            self.shares.remove(&key);
        }
    }

    /// `key` has nothing waiting any more.
    pub(crate) fn leave(&mut self, key: K) {
        let Some(share) = self.shares.get(&key).copied() else {
            return;
        };
        let entry = (share.finish(), key);
        if !self.waiting.remove(&entry) && !self.aside.remove(&entry) {
            return;
        }
        self.weight -= share.weight;
        if share.reached <= self.now {
            self.shares.remove(&key);
        } else {
            self.resting.insert((share.reached, key));
        }
        // Nobody is left to be ahead of.
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Those that wait and take turns, in the order of their turns.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = K> + '_ {
        self.waiting.iter().map(|(_, key)| *key)
    }

    /// Sets `key`, which waits, aside.
    fn set_aside(&mut self, key: K) {
        let entry = (self.shares[&key].finish(), key);
        if self.waiting.remove(&entry) {
            self.aside.insert(entry);
        }
    }

    /// Cost of the next turn that is taken.
    fn next_cost(&self) -> Option<usize> {
        let (_, key) = self.waiting.first()?;
        Some(self.shares[key].next)
    }

    /// All members take turns again.
    fn recall(&mut self) {
        // `BTreeSet::append` would build the whole set anew.
        self.waiting.extend(std::mem::take(&mut self.aside));
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.aside.is_empty()
    }
}

/// The order of turns. `T` identifies tenants, `F` their requests.
#[derive(Debug)]
pub(crate) struct Turns<T, F> {
    tenants: Level<T>,
    flows: HashMap<T, Level<F>>,
}

impl<T: Copy + Ord + Hash, F: Copy + Ord + Hash> Turns<T, F> {
    pub(crate) fn new() -> Self {
        Self {
            tenants: Level::default(),
            flows: HashMap::default(),
        }
    }

    /// Adds `flow` of `tenant`, whose next turn costs `next`.
    pub(crate) fn join(&mut self, tenant: T, flow: F, weight: u64, next: usize) {
        self.flows
            .entry(tenant)
            .or_default()
            .join(flow, weight, next);
        self.tenants.join(tenant, FULL_SHARE, next);
        self.sync(tenant);
    }

    /// The next turn of `flow`, which waits, costs `next`.
    pub(crate) fn set_next(&mut self, tenant: T, flow: F, next: usize) {
        if let Some(flows) = self.flows.get_mut(&tenant) {
            flows.set_next(flow, next);
            self.sync(tenant);
        }
    }

    /// The next turn of a tenant is that of its next request.
    fn sync(&mut self, tenant: T) {
        if let Some(next) = self.flows.get(&tenant).and_then(Level::next_cost) {
            self.tenants.set_next(tenant, next);
        }
    }

    /// Whose turn it is, among those that are not set aside.
    pub(crate) fn next(&self) -> Option<(T, F)> {
        let (_, tenant) = self.tenants.waiting.first()?;
        let (_, flow) = self.flows[tenant].waiting.first()?;
        Some((*tenant, *flow))
    }

    /// `flow`, whose turn it is, was served at a cost of `tokens`.
    pub(crate) fn charge(&mut self, tenant: T, flow: F, tokens: usize) {
        if let Some(flows) = self.flows.get_mut(&tenant) {
            flows.charge(flow, tokens);
            self.tenants.charge(tenant, tokens);
            self.sync(tenant);
        }
    }

    /// `flow` has nothing waiting any more.
    pub(crate) fn leave(&mut self, tenant: T, flow: F) {
        let Some(flows) = self.flows.get_mut(&tenant) else {
            return;
        };
        flows.leave(flow);
        if flows.is_empty() {
            self.flows.remove(&tenant);
            self.tenants.leave(tenant);
        } else if flows.waiting.is_empty() {
            self.tenants.set_aside(tenant);
        } else {
            self.sync(tenant);
        }
    }

    /// Sets `flow`, whose turn it is, aside until [`Turns::recall`].
    pub(crate) fn set_aside(&mut self, tenant: T, flow: F) {
        let flows = self.flows.get_mut(&tenant).expect("it is its turn");
        flows.set_aside(flow);
        if flows.waiting.is_empty() {
            self.tenants.set_aside(tenant);
        } else {
            self.sync(tenant);
        }
    }

    /// All members take turns again. Those of `aside` had been set aside.
    pub(crate) fn recall(&mut self, aside: &[(T, F)]) {
        self.tenants.recall();
        for (tenant, _) in aside {
            if let Some(flows) = self.flows.get_mut(tenant) {
                flows.recall();
                self.sync(*tenant);
            }
        }
    }
}
