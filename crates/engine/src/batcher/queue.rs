//! What waits to be scored, and in which order. Plain data: the batcher locks it, tests drive it.
//!
//! A pair that several requests want, or one request twice, is one job. It waits in all of them and is
//! taken at the turn of whichever comes first; the others have it for nothing. When one of them leaves,
//! the job stays with the rest, so there is no leader whose leaving would have to be dealt with.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::BatchError;
use super::fair::{FULL_SHARE, Turns};
use super::reply::Reply;
use crate::admission::Permit;
use crate::cost::{Cost, Work, duration};
use crate::plan::Plan;
use crate::trace::{self, Timeline};
use rerankd_core::{Claim, Tenant};
use rerankd_core::{Encoding, PairKey};

/// Identifies a request in the queue. Later requests have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowId(u64);

/// Identifies a sequence to be scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct JobId(u64);

/// One sequence on its way through a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub id: JobId,
    pub key: PairKey,
    pub encoding: Encoding,
    pub queued_at: Instant,
    /// Requests that want it, where traces are sent.
    pub requests: Vec<Timeline>,
}

/// A sequence that waits or runs.
struct Wanted {
    key: PairKey,
    /// `None` once it runs.
    encoding: Option<Encoding>,
    tokens: usize,
    /// Who wants it, with the place in that request. Empty when all have left while it runs.
    by: Vec<(FlowId, usize)>,
}

/// A request of which something is waiting or running.
struct Flow {
    claim: Claim,
    /// By place in the request, which is the order in which they are taken.
    waiting: BTreeMap<usize, JobId>,
    /// What of it waits.
    work: Work,
    /// Sequences that are not scored yet, waiting or running.
    unscored: usize,
    /// Every job it has had.
    jobs: Vec<JobId>,
    /// Whether a token was taken at its turn.
    begun: bool,
    /// Tokens that were scored for it.
    scored_tokens: usize,
    logits: Vec<f32>,
    reply: Reply,
    permit: Permit,
    timeline: Timeline,
    queued_at: Instant,
}

/// What a request brings to the queue.
pub(super) struct Arrival {
    pub claim: Claim,
    pub encodings: Vec<(PairKey, Encoding)>,
    pub reply: Reply,
    pub permit: Permit,
    pub timeline: Timeline,
    pub now: Instant,
}

/// What a request costs that is not in the queue yet, or has not begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub claim: Claim,
    pub work: Work,
}

/// How fast the queue empties.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    /// Of a batch while all workers run.
    pub cost: Cost,
    pub workers: usize,
    /// Seconds that the workers are still busy with what they have, all together.
    pub busy: f64,
    /// Tokens of a full batch.
    pub batch_tokens: usize,
}

/// All requests in the queue.
pub(super) struct Queue {
    flows: HashMap<FlowId, Flow>,
    jobs: HashMap<JobId, Wanted>,
    /// Jobs that others may join.
    by_key: HashMap<PairKey, JobId>,
    turns: Turns<Tenant, FlowId>,
    /// Jobs that wait, each counted once.
    waiting: Work,
    next_flow: u64,
    next_job: u64,
    labels: usize,
}

/// Requests that a batch may pass over because their next sequence is too long for what is left of
/// it: bounds the time under the lock.
const MOST_PASSED_OVER: usize = 16;

/// What an event has cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Tokens that were scored for requests that nobody waits for any more.
    pub wasted: usize,
}

impl Queue {
    pub(super) fn new(labels: usize) -> Self {
        Self {
            flows: HashMap::new(),
            jobs: HashMap::new(),
            by_key: HashMap::new(),
            turns: Turns::new(),
            waiting: Work::default(),
            next_flow: 0,
            next_job: 0,
            labels,
        }
    }

    /// Queues a request. Returns its name, and how many of its sequences others wait for already.
    pub(super) fn push(&mut self, arrival: Arrival) -> (FlowId, usize) {
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        let unscored = arrival.encodings.len();
        let mut jobs = Vec::with_capacity(unscored);
        let (mut waiting, mut work, mut shared) = (BTreeMap::new(), Work::default(), 0);
        for (index, (key, encoding)) in arrival.encodings.into_iter().enumerate() {
            let known = self.by_key.get(&key).copied();
            shared += usize::from(known.is_some());
            let job = known.unwrap_or_else(|| self.add(key, encoding));
            let wanted = self.jobs.get_mut(&job).expect("known jobs exist");
            wanted.by.push((id, index));
            jobs.push(job);
            if wanted.encoding.is_some() {
                waiting.insert(index, job);
                work += Work::of(wanted.tokens);
            }
        }
        let claim = arrival.claim;
        if !waiting.is_empty() {
            let weight = FULL_SHARE / claim.priority.parts();
            self.turns.join(claim.tenant, id, weight);
        }
        self.flows.insert(
            id,
            Flow {
                claim,
                waiting,
                work,
                unscored,
                jobs,
                begun: false,
                scored_tokens: 0,
                logits: vec![0.0; unscored * self.labels],
                reply: arrival.reply,
                permit: arrival.permit,
                timeline: arrival.timeline,
                queued_at: arrival.now,
            },
        );
        (id, shared)
    }

    fn add(&mut self, key: PairKey, encoding: Encoding) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let tokens = encoding.len();
        self.waiting += Work::of(tokens);
        self.by_key.insert(key, id);
        let wanted = Wanted {
            key,
            encoding: Some(encoding),
            tokens,
            by: Vec::new(),
        };
        self.jobs.insert(id, wanted);
        id
    }

    /// What waits for a batch.
    pub(super) fn waiting(&self) -> Work {
        self.waiting
    }

    /// Requests that are not answered yet.
    pub(super) fn requests(&self) -> usize {
        self.flows.len()
    }

    /// Takes the next batch out of the queue; empty when nothing waits.
    ///
    /// Turn by turn, the request that is least ahead of its share gives its next sequence. One whose
    /// sequence does not fit any more sits this batch out. One that cannot be answered in time is
    /// refused instead of begun.
    pub(super) fn take(&mut self, plan: &Plan, speed: Speed, now: Instant) -> (Vec<Job>, Outcome) {
        let mut jobs = Vec::new();
        let mut outcome = Outcome::default();
        let mut draft = Work::default();
        let mut aside = Vec::new();
        while let Some((tenant, id)) = self.turns.next() {
            if let Some(refusal) = self.too_late(id, speed, now) {
                outcome.wasted += self.refuse(id, refusal).wasted;
                continue;
            }
            let flow = &self.flows[&id];
            let (_, &job) = flow.waiting.first_key_value().expect("its turn is its own");
            let tokens = self.jobs[&job].tokens;
            if !plan.accepts(draft, tokens) {
                self.turns.set_aside(tenant, id);
                aside.push((tenant, id));
                if aside.len() > MOST_PASSED_OVER {
                    break;
                }
                continue;
            }
            draft += Work::of(tokens);
            let queued_at = flow.queued_at;
            flow.timeline.take(queued_at, now);
            self.flows.get_mut(&id).expect("it was just there").begun = true;
            self.turns.charge(tenant, id, tokens);
            let (key, encoding) = self.start(job);
            jobs.push(Job {
                id: job,
                key,
                encoding,
                queued_at,
                requests: self.traced(job),
            });
        }
        self.turns.recall(&aside);
        (jobs, outcome)
    }

    /// The requests that want `job`, where somebody will ask.
    fn traced(&self, job: JobId) -> Vec<Timeline> {
        if !trace::is_on() {
            return Vec::new();
        }
        let by = self.jobs[&job].by.iter();
        by.map(|(id, _)| self.flows[id].timeline.clone()).collect()
    }

    /// Takes `job` out of all requests in which it waits.
    fn start(&mut self, job: JobId) -> (PairKey, Encoding) {
        let wanted = self.jobs.get_mut(&job).expect("who waits has a job");
        let encoding = wanted.encoding.take().expect("it has waited until now");
        let work = Work::of(wanted.tokens);
        self.waiting -= work;
        for (id, index) in &wanted.by {
            let flow = self.flows.get_mut(id).expect("who wants it is there");
            flow.waiting.remove(index);
            flow.work -= work;
            if flow.waiting.is_empty() {
                self.turns.leave(flow.claim.tenant, *id);
            }
        }
        (wanted.key, encoding)
    }

    /// Why a request that has not begun should not begin.
    fn too_late(&self, id: FlowId, speed: Speed, now: Instant) -> Option<BatchError> {
        let flow = &self.flows[&id];
        let deadline = flow.claim.deadline?;
        if now >= deadline.at {
            return Some(BatchError::DeadlinePassed { begun: flow.begun });
        }
        if flow.begun {
            return None;
        }
        let wish = Wish {
            claim: flow.claim,
            work: flow.work,
        };
        let needed = duration(self.forecast(wish, Some(id), speed));
        (now + needed > deadline.at).then_some(BatchError::TooLate { needed })
    }

    /// Seconds until `wish` would be fulfilled if nobody came after it: the rest of what runs, then all
    /// that the others are given by the time it has had its share. `own` is its flow, if it waits already.
    pub(super) fn forecast(&self, wish: Wish, own: Option<FlowId>, speed: Speed) -> f64 {
        let mine = speed.cost.marginal(wish.work);
        let (claim, mut before) = (wish.claim, mine);
        let mut tenants: HashMap<Tenant, f64> = HashMap::new();
        for (id, flow) in &self.flows {
            let theirs = speed.cost.marginal(flow.work);
            if flow.claim.tenant != claim.tenant {
                *tenants.entry(flow.claim.tenant).or_default() += theirs;
            } else if own != Some(*id) {
                let parts = claim.priority.parts() as f64 / flow.claim.priority.parts() as f64;
                before += theirs.min(mine * parts);
            }
        }
        let within = before;
        before += tenants
            .values()
            .map(|theirs| theirs.min(within))
            .sum::<f64>();
        let full = speed.cost.per_token * speed.batch_tokens as f64;
        let overhead = if full > 0.0 {
            speed.cost.base / full
        } else {
            0.0
        };
        let shared = (speed.busy + before * (1.0 + overhead)) / speed.workers as f64;
        // However many workers there are, a sequence runs on one.
        let sequences = wish.work.sequences.max(1);
        let one = Work {
            sequences: 1,
            tokens: wish.work.tokens / sequences,
            squares: wish.work.squares / sequences as u64,
        };
        shared.max(speed.cost.seconds(one))
    }

    /// Files the logits of a batch, `[jobs, labels]`, and answers the requests it completes.
    pub(super) fn complete(&mut self, jobs: &[Job], logits: &[f32]) -> Outcome {
        let mut outcome = Outcome::default();
        for (job, row) in jobs.iter().zip(logits.chunks_exact(self.labels)) {
            let wanted = self.end(job.id);
            if wanted.by.is_empty() {
                outcome.wasted += wanted.tokens;
            }
            for (nth, (id, index)) in wanted.by.into_iter().enumerate() {
                let flow = self.flows.get_mut(&id).expect("who wants it is there");
                if nth == 0 {
                    flow.scored_tokens += wanted.tokens;
                }
                let start = index * self.labels;
                flow.logits[start..start + self.labels].copy_from_slice(row);
                flow.unscored -= 1;
                flow.permit.spend(wanted.tokens);
                if flow.unscored == 0 {
                    let flow = self.flows.remove(&id).expect("it was just there");
                    // Nothing of it is counted as outstanding by the time its client hears of it.
                    drop(flow.permit);
                    flow.reply.answer(Ok(flow.logits));
                }
            }
        }
        outcome
    }

    /// Answers every request of a batch with `reason` and forgets what else they had waiting.
    pub(super) fn fail(&mut self, jobs: &[Job], reason: &str) {
        for job in jobs {
            let wanted = self.end(job.id);
            for (id, _) in wanted.by {
                // Twice the same request, where it wants several of the batch.
                if self.flows.contains_key(&id) {
                    self.refuse(id, BatchError::Failed(reason.to_owned()));
                }
            }
        }
    }

    fn end(&mut self, job: JobId) -> Wanted {
        let wanted = self.jobs.remove(&job).expect("what runs has a job");
        self.by_key.remove(&wanted.key);
        wanted
    }

    /// Ends a request whose deadline has passed. Does nothing when it was already answered.
    pub(super) fn expire(&mut self, id: FlowId) -> Outcome {
        match self.flows.get(&id).map(|flow| flow.begun) {
            Some(begun) => self.refuse(id, BatchError::DeadlinePassed { begun }),
            None => Outcome::default(),
        }
    }

    fn refuse(&mut self, id: FlowId, reason: BatchError) -> Outcome {
        let Some(flow) = self.remove(id) else {
            return Outcome::default();
        };
        // As in `complete`: given back before the client hears of it.
        drop(flow.permit);
        flow.reply.answer(Err(reason));
        Outcome {
            wasted: flow.scored_tokens,
        }
    }

    /// Forgets a request whose client has left. Does nothing when it was already answered.
    pub(super) fn cancel(&mut self, id: FlowId) -> Outcome {
        self.remove(id)
            .map_or_else(Outcome::default, |flow| Outcome {
                wasted: flow.scored_tokens,
            })
    }

    fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let mut flow = self.flows.remove(&id)?;
        self.turns.leave(flow.claim.tenant, id);
        flow.jobs.sort_unstable();
        flow.jobs.dedup();
        for &job in &flow.jobs {
            // Those that are scored are gone.
            let Some(wanted) = self.jobs.get_mut(&job) else {
                continue;
            };
            wanted.by.retain(|(other, _)| *other != id);
            // What runs goes on: somebody may come who wants it.
            if wanted.by.is_empty() && wanted.encoding.is_some() {
                let wanted = self.end(job);
                self.waiting -= Work::of(wanted.tokens);
            }
        }
        Some(flow)
    }
}

#[cfg(test)]
mod tests;
