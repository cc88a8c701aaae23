//! What waits to be scored, and in which order. Plain data: the batcher locks it, tests drive it.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::reply::Reply;
use crate::admission::Permit;
use crate::batch::Encoding;
use crate::batch::plan::{BatchLimits, Draft};

/// Identifies a request in the queue. Later requests have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowId(u64);

/// One sequence on its way through a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub flow: FlowId,
    /// Position in its request.
    pub index: usize,
    pub encoding: Encoding,
    pub queued_at: Instant,
}

/// A request of which something is waiting or running.
struct Flow {
    /// Shortest first, so that popping takes the longest: a long one left for the end would run
    /// alone while other workers idle.
    waiting: Vec<(usize, Encoding)>,
    /// Sequences that are not scored yet, waiting or running.
    unscored: usize,
    /// Tokens taken for this request, from where it started: the fair share it has had.
    served: u64,
    logits: Vec<f32>,
    reply: Reply,
    permit: Permit,
    queued_at: Instant,
}

/// All requests in the queue. The one that has been served least goes first.
pub(super) struct Queue {
    flows: HashMap<FlowId, Flow>,
    /// Flows with something waiting, by what they have been served, then by arrival.
    order: BTreeSet<(u64, FlowId)>,
    waiting_tokens: usize,
    /// What the least served flow had been served when it was last its turn: where new ones start,
    /// so that waiting long ago earns nothing and arriving late costs nothing.
    clock: u64,
    next: u64,
    labels: usize,
}

impl Queue {
    pub(super) fn new(labels: usize) -> Self {
        Self {
            flows: HashMap::new(),
            order: BTreeSet::new(),
            waiting_tokens: 0,
            clock: 0,
            next: 0,
            labels,
        }
    }

    pub(super) fn push(
        &mut self,
        encodings: Vec<Encoding>,
        reply: Reply,
        permit: Permit,
        now: Instant,
    ) -> FlowId {
        let id = FlowId(self.next);
        self.next += 1;
        self.waiting_tokens += encodings.iter().map(Encoding::len).sum::<usize>();
        let unscored = encodings.len();
        let mut waiting: Vec<_> = encodings.into_iter().enumerate().collect();
        waiting.sort_by_key(|(_, encoding)| encoding.len());
        self.order.insert((self.clock, id));
        self.flows.insert(
            id,
            Flow {
                waiting,
                unscored,
                served: self.clock,
                logits: vec![0.0; unscored * self.labels],
                reply,
                permit,
                queued_at: now,
            },
        );
        id
    }

    /// Tokens that wait for a batch.
    pub(super) fn waiting_tokens(&self) -> usize {
        self.waiting_tokens
    }

    /// Requests that are not answered yet.
    pub(super) fn requests(&self) -> usize {
        self.flows.len()
    }

    /// Takes the next batch out of the queue; empty when nothing waits.
    ///
    /// Turn by turn, the request that has been served least gives its longest waiting sequence. One
    /// whose sequence does not fit any more sits this batch out.
    pub(super) fn take(&mut self, limits: BatchLimits) -> Vec<Job> {
        let mut jobs = Vec::new();
        let mut draft = Draft::default();
        let mut skipped = Vec::new();
        while let Some((served, id)) = self.order.pop_first() {
            if jobs.is_empty() {
                self.clock = served;
            }
            let flow = self.flows.get_mut(&id).expect("ordered flows exist");
            let length = flow.waiting.last().map_or(0, |(_, e)| e.len());
            if !draft.accepts(length, limits) {
                skipped.push((served, id));
                if draft.tokens >= limits.max_tokens {
                    break;
                }
                continue;
            }
            let Some((index, encoding)) = flow.waiting.pop() else {
                continue;
            };
            draft = draft.with(length);
            flow.served += length as u64;
            if !flow.waiting.is_empty() {
                self.order.insert((flow.served, id));
            }
            jobs.push(Job {
                flow: id,
                index,
                encoding,
                queued_at: flow.queued_at,
            });
        }
        self.order.extend(skipped);
        self.waiting_tokens -= draft.tokens;
        jobs
    }

    /// Files the logits of a batch, `[jobs, labels]`, and answers the requests it completes.
    /// Returns how many tokens were scored for requests that are gone.
    pub(super) fn complete(&mut self, jobs: &[Job], logits: &[f32]) -> usize {
        let mut wasted = 0;
        for (job, row) in jobs.iter().zip(logits.chunks_exact(self.labels)) {
            let Some(flow) = self.flows.get_mut(&job.flow) else {
                wasted += job.encoding.len();
                continue;
            };
            let start = job.index * self.labels;
            flow.logits[start..start + self.labels].copy_from_slice(row);
            flow.unscored -= 1;
            flow.permit.spend(job.encoding.len());
            if flow.unscored == 0 {
                let flow = self.flows.remove(&job.flow).expect("it was just there");
                // Nothing of it is counted as outstanding by the time its client hears of it.
                drop(flow.permit);
                flow.reply.answer(Ok(flow.logits));
            }
        }
        wasted
    }

    /// Answers every request of a batch with `reason` and forgets what else they had waiting.
    pub(super) fn fail(&mut self, jobs: &[Job], reason: &str) {
        for job in jobs {
            if let Some(flow) = self.remove(job.flow) {
                // As in `complete`: given back before the client hears of it.
                drop(flow.permit);
                flow.reply.answer(Err(reason.to_owned()));
            }
        }
    }

    /// Forgets a request whose client has left. Does nothing when it was already answered.
    pub(super) fn cancel(&mut self, id: FlowId) -> bool {
        self.remove(id).is_some()
    }

    fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        self.order.remove(&(flow.served, id));
        self.waiting_tokens -= flow.waiting.iter().map(|(_, e)| e.len()).sum::<usize>();
        Some(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply;
    use super::*;
    use crate::admission::Admission;
    use proptest::prelude::*;
    use std::sync::Arc;

    const LIMITS: BatchLimits = BatchLimits { max_tokens: 64 };

    fn admission() -> Arc<Admission> {
        let gauge = prometheus::IntGauge::new("queue_tokens", "test").unwrap();
        Admission::new(usize::MAX, 512, gauge)
    }

    fn sequences(lengths: &[usize]) -> Vec<Encoding> {
        lengths
            .iter()
            .map(|&length| Encoding {
                ids: vec![length as u32; length],
                type_ids: vec![0; length],
            })
            .collect()
    }

    fn push(queue: &mut Queue, lengths: &[usize]) -> (FlowId, reply::Receiver) {
        let (reply, receiver) = reply::channel();
        let permit = admission().admit(&[], 1).unwrap();
        let id = queue.push(sequences(lengths), reply, permit, Instant::now());
        (id, receiver)
    }

    /// Scores each sequence with its length.
    fn run(queue: &mut Queue, limits: BatchLimits) -> Vec<(FlowId, usize)> {
        let jobs = queue.take(limits);
        let logits: Vec<f32> = jobs.iter().map(|j| j.encoding.len() as f32).collect();
        queue.complete(&jobs, &logits);
        jobs.iter().map(|j| (j.flow, j.encoding.len())).collect()
    }

    #[test]
    fn a_small_request_does_not_wait_for_a_big_one_to_finish() {
        let mut queue = Queue::new(1);
        let (big, _keep) = push(&mut queue, &[16; 100]);
        run(&mut queue, LIMITS);
        let (small, mut answer) = push(&mut queue, &[16, 16]);
        let batch = run(&mut queue, LIMITS);
        assert_eq!(batch, [(small, 16), (small, 16), (big, 16), (big, 16)]);
        assert_eq!(answer.try_recv().unwrap().unwrap(), [16.0, 16.0]);
    }

    #[test]
    fn a_cancelled_request_leaves_at_once() {
        let mut queue = Queue::new(1);
        let (first, _gone) = push(&mut queue, &[30, 30, 30]);
        let (second, _keep) = push(&mut queue, &[10]);
        let running = queue.take(LIMITS);
        assert!(queue.cancel(first));
        assert!(!queue.cancel(first));
        let logits = vec![0.0; running.len()];
        assert!(queue.complete(&running, &logits) > 0);
        while queue.waiting_tokens() > 0 {
            assert!(run(&mut queue, LIMITS).iter().all(|(id, _)| *id == second));
        }
        assert_eq!(queue.requests(), 0);
    }

    #[test]
    fn a_failed_batch_fails_its_own_requests_and_no_other() {
        let mut queue = Queue::new(1);
        let (_, mut failed) = push(&mut queue, &[64, 64]);
        let jobs = queue.take(LIMITS);
        let (_, mut other) = push(&mut queue, &[5]);
        queue.fail(&jobs, "broken");
        assert_eq!(failed.try_recv().unwrap().unwrap_err(), "broken");
        run(&mut queue, LIMITS);
        assert_eq!(other.try_recv().unwrap().unwrap(), [5.0]);
        assert_eq!(queue.waiting_tokens(), 0);
    }

    proptest! {
        /// No sequence lost, none answered twice, every answer in the order of its request, and the
        /// token budget kept, whatever is cancelled on the way.
        #[test]
        fn every_request_is_answered_once_and_in_order(
            requests in prop::collection::vec(
                (prop::collection::vec(1_usize..100, 1..20), any::<bool>()), 1..12),
            max_tokens in 1_usize..200,
        ) {
            let limits = BatchLimits { max_tokens };
            let mut queue = Queue::new(1);
            let mut expected = Vec::new();
            for (lengths, cancel) in requests {
                let (id, receiver) = push(&mut queue, &lengths);
                run(&mut queue, limits);
                let cancelled = cancel && queue.cancel(id);
                expected.push((lengths, cancelled, receiver));
            }
            while queue.waiting_tokens() > 0 {
                let batch = run(&mut queue, limits);
                prop_assert!(!batch.is_empty());
                let tokens: usize = batch.iter().map(|(_, length)| length).sum();
                prop_assert!(tokens <= max_tokens || batch.len() == 1);
            }
            prop_assert_eq!(queue.requests(), 0);
            for (lengths, cancelled, mut receiver) in expected {
                let answer = receiver.try_recv();
                if cancelled {
                    prop_assert!(answer.is_err());
                } else {
                    let lengths: Vec<f32> = lengths.iter().map(|&l| l as f32).collect();
                    prop_assert_eq!(answer.unwrap().unwrap(), lengths);
                }
            }
        }

        /// While two requests both wait, neither is served more than one batch and one sequence
        /// ahead of the other.
        #[test]
        fn shares_stay_fair(
            first in prop::collection::vec(1_usize..64, 50..100),
            second in prop::collection::vec(1_usize..64, 50..100),
        ) {
            let mut queue = Queue::new(1);
            let (a, _a) = push(&mut queue, &first);
            let (b, _b) = push(&mut queue, &second);
            let (mut left_a, mut left_b) = (first.len(), second.len());
            let (mut served_a, mut served_b) = (0_usize, 0_usize);
            while left_a > 0 && left_b > 0 {
                for (id, length) in run(&mut queue, LIMITS) {
                    if id == a { served_a += length; left_a -= 1; }
                    if id == b { served_b += length; left_b -= 1; }
                }
                if left_a > 0 && left_b > 0 {
                    prop_assert!(served_a.abs_diff(served_b) <= LIMITS.max_tokens + 64);
                }
            }
        }
    }
}
