//! Chunks of tokenizing work and the order in which they are taken. Plain data: the pool locks it.
//!
//! Turns are those of the queue of sequences: tenants share evenly, and requests by their weights. Beside
//! two hundred requests of many chunks, that alone would have a small request wait for a chunk of each. So
//! requests of a single chunk have turns of their own, and every second turn at most: a small request
//! waits for the chunk that runs, and large ones keep half of the turns.

use std::collections::{HashMap, VecDeque};

use super::CHUNK_COST;
use crate::backlog::{Backlog, Forecast, weight};
use crate::cost::{Cost, Work};
use crate::fair::Turns;
use rerankd_core::{SchedulingHints, Tenant};

/// Identifies a request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowId(u64);

/// A request of which chunks wait, or will.
struct Flow<W> {
    hints: SchedulingHints,
    /// Whether it takes the turns of small requests.
    small: bool,
    /// Cost of what has not been taken, queued or not.
    left: usize,
    /// Cost and work of each.
    chunks: VecDeque<(usize, W)>,
}

/// The requests of one kind.
struct Lane {
    turns: Turns<Tenant, FlowId>,
    backlog: Backlog,
}

/// A chunk whose turn it is.
pub(super) struct Taken<W> {
    pub id: FlowId,
    pub cost: usize,
    pub work: W,
}

/// The waiting chunks of all requests.
pub(super) struct ChunkQueue<W> {
    flows: HashMap<FlowId, Flow<W>>,
    small: Lane,
    large: Lane,
    /// Whether the last turn was that of a small request.
    small_was_last: bool,
    next_flow: u64,
}

/// Bytes as the work of one sequence, whose cost is linear in them.
fn work(bytes: usize) -> Work {
    Work {
        sequences: 1,
        tokens: bytes,
        squares: 0,
    }
}

/// Whether a request of this `cost` takes the turns of small ones.
fn is_small(cost: usize) -> bool {
    cost <= CHUNK_COST
}

impl Lane {
    fn new() -> Self {
        Self {
            turns: Turns::new(),
            backlog: Backlog::default(),
        }
    }
}

impl<W> ChunkQueue<W> {
    pub fn new() -> Self {
        Self {
            flows: HashMap::new(),
            small: Lane::new(),
            large: Lane::new(),
            small_was_last: false,
            next_flow: 0,
        }
    }

    /// A request that will queue chunks of this `cost` in all.
    pub fn open(&mut self, hints: SchedulingHints, cost: usize) -> FlowId {
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        let flow = Flow {
            hints,
            small: is_small(cost),
            left: cost,
            chunks: VecDeque::new(),
        };
        self.lane(flow.small).backlog.add(hints, work(cost));
        self.flows.insert(id, flow);
        id
    }

    /// Queues chunks of a request, each with its cost.
    pub fn push(&mut self, id: FlowId, chunks: impl IntoIterator<Item = (usize, W)>) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.chunks.extend(chunks);
        if let Some((next, _)) = flow.chunks.front() {
            let (hints, small, next) = (flow.hints, flow.small, *next);
            let turns = &mut self.lane(small).turns;
            turns.join(hints.tenant, id, weight(hints), next);
        }
    }

    /// The next chunk.
    pub fn take(&mut self) -> Option<Taken<W>> {
        let (small, large) = (self.small.turns.next(), self.large.turns.next());
        let takes_small = small.is_some() && (large.is_none() || !self.small_was_last);
        let (tenant, id) = if takes_small { small? } else { large? };
        self.small_was_last = takes_small;
        let flow = self.flows.get_mut(&id).expect("a turn belongs to a flow");
        let (cost, chunk) = flow
            .chunks
            .pop_front()
            .expect("a flow that takes turns has a chunk");
        let before = flow.left;
        flow.left -= cost.min(before);
        let (hints, after) = (flow.hints, flow.left);
        let next = flow.chunks.front().map(|(cost, _)| *cost);
        let lane = self.lane(takes_small);
        lane.backlog.replace(hints, work(before), work(after));
        lane.turns.charge(tenant, id, cost.max(1));
        match next {
            Some(next) => lane.turns.set_next(tenant, id, next),
            None => lane.turns.leave(tenant, id),
        }
        Some(Taken {
            id,
            cost,
            work: chunk,
        })
    }

    /// Ends a request. Returns its chunks that were not taken.
    pub fn close(&mut self, id: FlowId) -> Vec<W> {
        let Some(flow) = self.flows.remove(&id) else {
            return Vec::new();
        };
        let lane = self.lane(flow.small);
        lane.turns.leave(flow.hints.tenant, id);
        lane.backlog.remove(flow.hints, work(flow.left));
        flow.chunks.into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Cost of all that has not been taken.
    pub fn cost(&self) -> usize {
        (self.small.backlog.total() + self.large.backlog.total()).tokens
    }

    /// Bytes that are read before a newcomer of this `cost` is done, its own among them.
    pub fn cost_until_done(&self, hints: SchedulingHints, cost: usize) -> f64 {
        let bytes = Cost {
            base: 0.0,
            per_token: 1.0,
            per_square: 0.0,
        };
        let forecast = Forecast {
            hints,
            work: work(cost),
            waits: false,
            cost: bytes,
            speed: 1.0,
        };
        let (own, other) = if is_small(cost) {
            (&self.small, &self.large)
        } else {
            (&self.large, &self.small)
        };
        let within = own.backlog.seconds_until_served(&forecast);
        // The other kind has every second turn at most.
        within + within.min(other.backlog.total().tokens as f64)
    }

    fn lane(&mut self, small: bool) -> &mut Lane {
        if small {
            &mut self.small
        } else {
            &mut self.large
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rerankd_core::Priority;

    fn of(tenant: u64) -> SchedulingHints {
        SchedulingHints {
            tenant: Tenant(tenant),
            ..SchedulingHints::default()
        }
    }

    /// A request of these chunks.
    fn push<W>(
        queue: &mut ChunkQueue<W>,
        hints: SchedulingHints,
        chunks: impl IntoIterator<Item = (usize, W)>,
    ) -> FlowId {
        let chunks: Vec<(usize, W)> = chunks.into_iter().collect();
        let id = queue.open(hints, chunks.iter().map(|(cost, _)| cost).sum());
        queue.push(id, chunks);
        id
    }

    /// A request of so many full chunks.
    fn large(
        queue: &mut ChunkQueue<u64>,
        hints: SchedulingHints,
        name: u64,
        chunks: usize,
    ) -> FlowId {
        push(queue, hints, (0..chunks).map(|_| (CHUNK_COST, name)))
    }

    /// Each of the 200 has 340 documents, of which 4 KiB are read: 85 chunks.
    #[test]
    fn a_small_request_waits_for_no_chunk_but_those_that_run() {
        for taken_before in [0, 1, 199, 200, 399, 5_000, 16_999] {
            let mut queue = ChunkQueue::new();
            for name in 0..200 {
                large(&mut queue, SchedulingHints::default(), name, 85);
            }
            for _ in 0..taken_before {
                queue.take().unwrap();
            }
            let small = push(&mut queue, SchedulingHints::default(), [(8 * 100, 1000)]);
            assert_eq!(queue.take().unwrap().id, small, "after {taken_before}");
        }
    }

    #[test]
    fn small_requests_take_every_second_turn_at_most() {
        let mut queue = ChunkQueue::new();
        large(&mut queue, SchedulingHints::default(), 0, 50);
        let mut order = Vec::new();
        for name in 1..=100 {
            push(&mut queue, SchedulingHints::default(), [(CHUNK_COST, name)]);
            push(&mut queue, SchedulingHints::default(), [(CHUNK_COST, name)]);
            order.push(queue.take().unwrap().work);
        }
        let large = order.iter().filter(|&&name| name == 0).count();
        assert_eq!(large, 50);
    }

    #[test]
    fn tenants_and_priorities_share_the_turns() {
        let mut queue = ChunkQueue::new();
        for name in 0..9 {
            large(&mut queue, of(1), name, 1000);
        }
        large(&mut queue, of(2), 100, 1000);
        let patient = SchedulingHints {
            priority: Priority::new(3).unwrap(),
            ..of(2)
        };
        large(&mut queue, patient, 200, 1000);
        let mut served = HashMap::new();
        for _ in 0..1000 {
            *served.entry(queue.take().unwrap().work).or_insert(0_usize) += 1;
        }
        let first: usize = (0..9).map(|name| served[&name]).sum();
        assert!(first.abs_diff(500) <= 2, "{served:?}");
        assert!(
            served[&100].abs_diff(400) <= 4 && served[&200].abs_diff(100) <= 4,
            "{served:?}"
        );
    }

    #[test]
    fn a_cancelled_request_takes_no_turn() {
        let mut queue = ChunkQueue::new();
        let gone = large(&mut queue, of(1), 1, 10);
        large(&mut queue, of(1), 2, 2);
        queue.take();
        assert_eq!(queue.close(gone).len(), 9);
        assert_eq!(queue.close(gone).len(), 0);
        let rest: Vec<u64> = std::iter::from_fn(|| queue.take())
            .map(|taken| taken.work)
            .collect();
        assert_eq!(rest, [2, 2]);
    }

    /// Beside eight large requests, a small one waits for a chunk of its own kind and one of the other.
    #[test]
    fn a_request_is_forecast_with_its_turns() {
        let mut queue = ChunkQueue::new();
        for name in 0..8 {
            large(&mut queue, SchedulingHints::default(), name, 100);
        }
        let hints = SchedulingHints::default();
        assert!((queue.cost_until_done(hints, 1000) - 2000.0).abs() < 1.0);
        let big = queue.cost_until_done(hints, 10 * CHUNK_COST);
        assert!((big - 90.0 * CHUNK_COST as f64).abs() < 1.0);
        assert_eq!(queue.cost(), 800 * CHUNK_COST);
    }

    proptest! {
        /// Every chunk is taken once, those of a request in their order.
        #[test]
        fn no_chunk_is_lost(
            requests in prop::collection::vec((0..3_u64, prop::collection::vec(1..40_000_usize, 1..6)), 1..30),
        ) {
            let mut queue = ChunkQueue::new();
            for (name, (tenant, costs)) in requests.iter().enumerate() {
                let chunks = costs.iter().enumerate().map(|(nth, &cost)| (cost, (name, nth)));
                push(&mut queue, of(*tenant), chunks);
            }
            let mut next = vec![0; requests.len()];
            while let Some(Taken { work: (name, nth), .. }) = queue.take() {
                prop_assert_eq!(nth, next[name]);
                next[name] += 1;
            }
            for ((_, costs), taken) in requests.iter().zip(next) {
                prop_assert_eq!(costs.len(), taken);
            }
            prop_assert_eq!(queue.cost(), 0);
            for id in queue.flows.keys().copied().collect::<Vec<_>>() {
                prop_assert!(queue.close(id).is_empty());
            }
            prop_assert!(queue.small.backlog.is_empty() && queue.large.backlog.is_empty());
        }
    }
}
