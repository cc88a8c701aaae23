//! Chunks of tokenizing work and the order in which they are taken. Plain data: the pool locks it.
//!
//! Turns are those of the queue of sequences: tenants share evenly, and requests by their weights. Beside
//! two hundred requests of many chunks, that alone would have a small request wait for a chunk of each. So
//! requests of a single chunk have turns of their own, and every second turn at most: a small request
//! waits for the chunk that runs, and large ones keep half of the turns.

use std::collections::{HashMap, VecDeque};

use super::CHUNK_COST;
use crate::batcher::fair::{FULL_SHARE, Turns};
use rerankd_core::{SchedulingHints, Tenant};

/// Identifies a request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowId(u64);

/// A request of which chunks wait.
struct Flow<W> {
    tenant: Tenant,
    /// Whether it takes the turns of small requests.
    small: bool,
    /// Cost and work of each.
    chunks: VecDeque<(usize, W)>,
}

/// The waiting chunks of all requests.
pub(super) struct ChunkQueue<W> {
    flows: HashMap<FlowId, Flow<W>>,
    small: Turns<Tenant, FlowId>,
    large: Turns<Tenant, FlowId>,
    /// Whether the last turn was that of a small request.
    small_was_last: bool,
    next_flow: u64,
}

impl<W> ChunkQueue<W> {
    pub fn new() -> Self {
        Self {
            flows: HashMap::new(),
            small: Turns::new(),
            large: Turns::new(),
            small_was_last: false,
            next_flow: 0,
        }
    }

    /// Queues the chunks of a request, each with its cost.
    pub fn push(
        &mut self,
        hints: SchedulingHints,
        chunks: impl IntoIterator<Item = (usize, W)>,
    ) -> FlowId {
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        let chunks: VecDeque<(usize, W)> = chunks.into_iter().collect();
        if chunks.is_empty() {
            return id;
        }
        let small = chunks.len() == 1 && chunks[0].0 <= CHUNK_COST;
        let tenant = hints.tenant;
        let weight = FULL_SHARE / hints.priority.parts();
        self.turns(small).join(tenant, id, weight);
        let flow = Flow {
            tenant,
            small,
            chunks,
        };
        self.flows.insert(id, flow);
        id
    }

    /// The next chunk, and the request it belongs to.
    pub fn take(&mut self) -> Option<(FlowId, W)> {
        let (small, large) = (self.small.next(), self.large.next());
        let takes_small = small.is_some() && (large.is_none() || !self.small_was_last);
        let (tenant, id) = if takes_small { small? } else { large? };
        self.small_was_last = takes_small;
        let flow = self.flows.get_mut(&id).expect("a turn belongs to a flow");
        let (cost, work) = flow
            .chunks
            .pop_front()
            .expect("a flow that takes turns has a chunk");
        let done = flow.chunks.is_empty();
        let turns = self.turns(takes_small);
        turns.charge(tenant, id, cost.max(1));
        if done {
            turns.leave(tenant, id);
            self.flows.remove(&id);
        }
        Some((id, work))
    }

    /// Removes the chunks of a request that were not taken, and returns them.
    pub fn cancel(&mut self, id: FlowId) -> Vec<W> {
        let Some(flow) = self.flows.remove(&id) else {
            return Vec::new();
        };
        self.turns(flow.small).leave(flow.tenant, id);
        flow.chunks.into_iter().map(|(_, work)| work).collect()
    }

    fn turns(&mut self, small: bool) -> &mut Turns<Tenant, FlowId> {
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

    /// A request of so many full chunks.
    fn large(
        queue: &mut ChunkQueue<u64>,
        hints: SchedulingHints,
        name: u64,
        chunks: usize,
    ) -> FlowId {
        queue.push(hints, (0..chunks).map(|_| (CHUNK_COST, name)))
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
            let small = queue.push(SchedulingHints::default(), [(8 * 100, 1000)]);
            assert_eq!(queue.take().unwrap().0, small, "after {taken_before}");
        }
    }

    #[test]
    fn small_requests_take_every_second_turn_at_most() {
        let mut queue = ChunkQueue::new();
        large(&mut queue, SchedulingHints::default(), 0, 50);
        let mut order = Vec::new();
        for name in 1..=100 {
            queue.push(SchedulingHints::default(), [(CHUNK_COST, name)]);
            queue.push(SchedulingHints::default(), [(CHUNK_COST, name)]);
            order.push(queue.take().unwrap().1);
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
            *served.entry(queue.take().unwrap().1).or_insert(0_usize) += 1;
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
        assert_eq!(queue.cancel(gone).len(), 9);
        assert_eq!(queue.cancel(gone).len(), 0);
        let rest: Vec<u64> = std::iter::from_fn(|| queue.take())
            .map(|(_, name)| name)
            .collect();
        assert_eq!(rest, [2, 2]);
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
                queue.push(of(*tenant), chunks);
            }
            let mut next = vec![0; requests.len()];
            while let Some((_, (name, nth))) = queue.take() {
                prop_assert_eq!(nth, next[name]);
                next[name] += 1;
            }
            for ((_, costs), taken) in requests.iter().zip(next) {
                prop_assert_eq!(costs.len(), taken);
            }
            prop_assert!(queue.flows.is_empty());
        }
    }
}
