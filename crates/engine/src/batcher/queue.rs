//! Waiting and running sequences of one model. Plain data: the batcher locks it, tests drive it.
//!
//! A pair that several requests want, or one request wants twice, is one job. It waits in all of them and
//! is taken at the turn of whichever comes first; the others have it for nothing. When one of them leaves,
//! the job stays with the rest, so no request leads the others.

use std::collections::hash_map::Entry;
use std::time::Instant;

use slotmap::{SlotMap, new_key_type};
use smallvec::SmallVec;

use super::BatchError;
use super::reply::Reply;
use super::sharing::{ForecastRequest, Speed};
use crate::admission::{Expected, MemoryPermit};
use crate::backlog::{Backlog, Newcomers, weight};
use crate::cost::{Cost, Work, duration};
use crate::fair::{HashMap, Turns};
use crate::plan::{Draft, Plan};
use crate::trace::{self, Timeline};
use rerankd_core::{Encoding, PairKey};
use rerankd_core::{SchedulingHints, Tenant};

/// Identifies a request in the queue. Later requests have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowId(u64);

new_key_type! {
    /// Identifies a sequence to be scored.
    pub(super) struct JobId;

    /// Identifies a model.
    pub(super) struct LaneId;
}

/// One sequence of a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub id: JobId,
    pub key: PairKey,
    pub encoding: Encoding,
    /// Tokens that are computed for it: without a prefix that an earlier one of its request has computed.
    pub tokens: usize,
    pub queued_at: Instant,
    /// Timelines of the requests that want it, where traces are sent.
    pub requests: Vec<Timeline>,
}

/// A sequence that waits or runs.
struct Pending {
    key: PairKey,
    state: PendingState,
    /// See [`Job::tokens`].
    tokens: usize,
    /// Requests that want it, with its position in each. Empty when all have left while it runs.
    owners: SmallVec<[(FlowId, usize); 1]>,
}

enum PendingState {
    Waiting(Encoding),
    /// In a batch of this worker.
    Running(usize),
}

impl Pending {
    fn waits(&self) -> bool {
        matches!(self.state, PendingState::Waiting(_))
    }

    /// Hands it to a batch of `worker`.
    fn start(&mut self, worker: usize) -> Encoding {
        let running = PendingState::Running(worker);
        match std::mem::replace(&mut self.state, running) {
            PendingState::Waiting(encoding) => encoding,
            PendingState::Running(_) => unreachable!("a job that runs waits in no request"),
        }
    }
}

/// A request of which something is waiting or running.
struct Flow {
    hints: SchedulingHints,
    /// The job of each of its sequences, in the order in which they are taken.
    jobs: Vec<JobId>,
    /// Position of the first sequence that waits; the number of sequences if none does.
    next: usize,
    /// Work of the waiting sequences.
    work: Work,
    /// The same as the backlog has it, which follows once for each batch.
    counted: Work,
    /// Work of all its sequences.
    total: Work,
    /// Sequences that are not scored yet, waiting or running.
    unscored: usize,
    /// Whether a sequence was taken at its turn.
    begun: bool,
    /// Tokens that were scored for it.
    scored_tokens: usize,
    /// Those of them that its permit still holds.
    unspent_tokens: usize,
    logits: Vec<f32>,
    reply: Reply,
    permit: MemoryPermit,
    timeline: Timeline,
    queued_at: Instant,
}

type Jobs = SlotMap<JobId, Pending>;

impl Flow {
    /// Goes on to the next sequence that waits.
    fn advance(&mut self, jobs: &Jobs) {
        let waits = |job: &JobId| jobs.get(*job).is_some_and(Pending::waits);
        let passed = self.jobs[self.next..].iter().position(waits);
        self.next = passed.map_or(self.jobs.len(), |passed| self.next + passed);
    }
}

/// A request that enters the queue.
pub(super) struct Arrival {
    pub hints: SchedulingHints,
    pub encodings: Vec<(PairKey, Encoding)>,
    /// Tokens that all of them begin with and that are computed once; fewer than each has.
    pub prefix: usize,
    pub reply: Reply,
    pub permit: MemoryPermit,
    pub timeline: Timeline,
    pub now: Instant,
}

/// What it takes to score `jobs`.
pub(super) fn work(jobs: &[Job]) -> Work {
    Work::all(jobs.iter().map(|job| job.tokens))
}

/// All requests in the queue.
pub(super) struct Queue {
    flows: HashMap<FlowId, Flow>,
    jobs: Jobs,
    /// Jobs that later requests for the same pair join.
    by_key: HashMap<PairKey, JobId>,
    turns: Turns<Tenant, FlowId>,
    backlog: Backlog,
    /// Requests of which something was taken since the backlog was updated.
    touched: Vec<FlowId>,
    /// Jobs that wait, each counted once.
    waiting: Work,
    /// Estimated work of requests that are admitted and being tokenized.
    reserved: Work,
    next_flow: u64,
    labels: usize,
}

/// Requests that a batch may pass over because their next sequence is too long for what is left of
/// it: bounds the time under the lock.
const MAX_PASSED_OVER: usize = 16;
/// What is left of a batch is filled up unless the next sequence, which no longer fits, is so many times smaller.
const WORTH_FILLING: usize = 16;
/// With more requests, one gives several short sequences in a turn: bounds the time under the lock.
const MANY_REQUESTS: usize = 64;
/// Tokens of such a turn.
const TURN_TOKENS: usize = 256;
/// Sequences for which a batch has room from the start.
const USUAL_JOBS: usize = 32;
/// Late requests that are refused while one batch is formed: bounds the time under the lock.
const MAX_REFUSED: usize = 64;

/// A request is taken to wait this much longer than expected: under overload every wait is at its limit,
/// and half of them would be over it.
const MARGIN: f64 = 1.1;

/// What one turn may add to a batch.
struct Room<'a> {
    plan: &'a Plan,
    draft: &'a mut Draft,
    /// Seconds that the request takes of every worker.
    each: f64,
    /// Tokens of a turn of several sequences.
    turn_tokens: usize,
}

/// What an event has cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Tokens that were scored for requests whose client has left.
    pub wasted: usize,
}

/// The next batch of a worker.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The model that it is for.
    pub lane: LaneId,
    /// Empty when nothing waits, or when `more` is set and only late requests were looked at.
    pub jobs: Vec<Job>,
    /// How long the batch should take.
    pub seconds: f64,
    pub outcome: Outcome,
    /// Requests that left the queue's waiting line with this batch, and when each was queued. Recorded by
    /// the caller, who no longer holds the lock.
    pub begun: Vec<(Timeline, Instant)>,
    /// Whether the search for a batch was cut short: call again.
    pub more: bool,
}

impl Queue {
    pub(super) fn new(labels: usize) -> Self {
        Self {
            flows: HashMap::default(),
            jobs: Jobs::default(),
            by_key: HashMap::default(),
            turns: Turns::new(),
            backlog: Backlog::default(),
            touched: Vec::new(),
            waiting: Work::default(),
            reserved: Work::default(),
            next_flow: 0,
            labels,
        }
    }

    /// Reserves the turns of a request that was admitted and will be queued.
    pub(super) fn reserve(&mut self, request: ForecastRequest, cost: Cost, now: Instant) {
        self.backlog.arrive(request.hints, request.work, cost, now);
        self.backlog.add(request.hints, request.work);
        self.reserved += request.work;
    }

    /// Ends a reservation.
    pub(super) fn release(&mut self, request: ForecastRequest) {
        self.backlog.remove(request.hints, request.work);
        self.reserved -= request.work;
    }

    /// Queues a request. Returns its id, and how many of its sequences other requests wait for already.
    pub(super) fn push(&mut self, arrival: Arrival) -> (FlowId, usize) {
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        let unscored = arrival.encodings.len();
        let mut jobs = Vec::with_capacity(unscored);
        let (mut next, mut work, mut shared) = (unscored, Work::default(), 0);
        // Of the first sequence that is the request's own, the prefix counts.
        let mut prefix = 0;
        for (index, (key, encoding)) in arrival.encodings.into_iter().enumerate() {
            let (job, known) = self.job(key, encoding, prefix);
            if known {
                shared += 1;
            } else {
                prefix = arrival.prefix;
            }
            let pending = &mut self.jobs[job];
            pending.owners.push((id, index));
            jobs.push(job);
            if pending.waits() {
                next = next.min(index);
                work += Work::of(pending.tokens);
            }
        }
        let hints = arrival.hints;
        if let Some(first) = jobs.get(next) {
            let next = self.jobs[*first].tokens;
            self.turns.join(hints.tenant, id, weight(hints), next);
            self.backlog.add(hints, work);
        }
        self.flows.insert(
            id,
            Flow {
                hints,
                jobs,
                next,
                work,
                counted: work,
                total: work,
                unscored,
                begun: false,
                scored_tokens: 0,
                unspent_tokens: 0,
                logits: vec![0.0; unscored * self.labels],
                reply: arrival.reply,
                permit: arrival.permit,
                timeline: arrival.timeline,
                queued_at: arrival.now,
            },
        );
        (id, shared)
    }

    /// The job of a pair, of which `prefix` tokens are computed with another, and whether it was there already.
    fn job(&mut self, key: PairKey, encoding: Encoding, prefix: usize) -> (JobId, bool) {
        let entry = match self.by_key.entry(key) {
            Entry::Occupied(known) => return (*known.get(), true),
            Entry::Vacant(entry) => entry,
        };
        let tokens = encoding.len() - prefix;
        self.waiting += Work::of(tokens);
        let id = self.jobs.insert(Pending {
            key,
            state: PendingState::Waiting(encoding),
            tokens,
            owners: SmallVec::new(),
        });
        entry.insert(id);
        (id, false)
    }

    /// What was admitted and is not in a batch yet.
    pub(super) fn admitted(&self) -> Work {
        self.waiting + self.reserved
    }

    /// Whether several requests wait or run.
    pub(super) fn is_shared(&self) -> bool {
        self.flows.len() > 1
    }

    /// What waits for a batch.
    pub(super) fn waiting(&self) -> Work {
        self.waiting
    }

    /// Requests that are not answered yet.
    pub(super) fn requests(&self) -> usize {
        self.flows.len()
    }

    /// All work of the request whose turn it is, and the tokens of its next sequence.
    pub(super) fn next_request(&self) -> Option<(Work, usize)> {
        let (_, id) = self.turns.next()?;
        Some((self.flows[&id].total, self.next_tokens(id)))
    }

    /// Tokens of the next sequence of a request that waits.
    fn next_tokens(&self, id: FlowId) -> usize {
        let flow = &self.flows[&id];
        self.jobs[flow.jobs[flow.next]].tokens
    }

    /// Takes the next batch of `worker` out of the queue.
    ///
    /// Turn by turn, the request that is least ahead of its share gives its next sequence. One whose
    /// sequence no longer fits sits this batch out. One that cannot be answered in time is refused instead
    /// of begun.
    pub(super) fn take(
        &mut self,
        worker: usize,
        plan: &Plan,
        speed: Speed<'_>,
        now: Instant,
    ) -> Taken {
        let mut taken = Taken {
            jobs: Vec::with_capacity(USUAL_JOBS),
            ..Taken::default()
        };
        let mut draft = Draft::default();
        let mut aside = Vec::new();
        let mut refused = 0;
        let turn_tokens = match self.flows.len() > MANY_REQUESTS {
            true => TURN_TOKENS,
            false => 0,
        };
        while let Some((tenant, id)) = self.turns.next() {
            if let Some(refusal) = self.too_late(id, speed, now) {
                if refused == MAX_REFUSED {
                    taken.more = true;
                    break;
                }
                refused += 1;
                taken.outcome.wasted += self.refuse(id, refusal).wasted;
                continue;
            }
            let flow = self.flows.get_mut(&id).expect("a turn belongs to a flow");
            let each = plan.cost.marginal(flow.total) / speed.workers() as f64;
            if !plan.admits(&draft, each) {
                break;
            }
            let mut room = Room {
                plan,
                draft: &mut draft,
                each,
                turn_tokens,
            };
            let turn = self.take_turn(id, worker, &mut room, &mut taken.jobs);
            if turn == 0 {
                let next = self.next_tokens(id);
                if plan.preempts() || next * WORTH_FILLING <= draft.work().tokens {
                    break;
                }
                self.turns.set_aside(tenant, id);
                aside.push((tenant, id));
                if aside.len() > MAX_PASSED_OVER {
                    break;
                }
                continue;
            }
            self.turns.charge(tenant, id, turn);
            self.follow(id);
            let flow = self.flows.get_mut(&id).expect("it was just there");
            if !std::mem::replace(&mut flow.begun, true) {
                taken.begun.push((flow.timeline.clone(), flow.queued_at));
            }
        }
        self.turns.recall(&aside);
        self.update_backlog();
        self.trace(&mut taken.jobs);
        taken
    }

    /// Tells the backlog what was taken.
    fn update_backlog(&mut self) {
        for id in self.touched.drain(..) {
            // It may have been refused since.
            let Some(flow) = self.flows.get_mut(&id) else {
                continue;
            };
            self.backlog.replace(flow.hints, flow.counted, flow.work);
            flow.counted = flow.work;
        }
    }

    /// Moves sequences of the request `id` to a batch of `worker`, as many as there is room for. Returns their
    /// tokens. Its next turn is left to [`Self::follow`].
    fn take_turn(
        &mut self,
        id: FlowId,
        worker: usize,
        room: &mut Room<'_>,
        taken: &mut Vec<Job>,
    ) -> usize {
        let flow = self.flows.get_mut(&id).expect("a turn belongs to a flow");
        let mut turn = 0;
        // Other requests that wait for one of the sequences: almost always none.
        let mut others = Vec::new();
        while let Some(&job) = flow.jobs.get(flow.next) {
            let pending = &mut self.jobs[job];
            let tokens = pending.tokens;
            if turn > 0 && turn + tokens > room.turn_tokens
                || !room.plan.accepts(room.draft, tokens)
            {
                break;
            }
            turn += tokens;
            let own = pending.owners.iter().filter(|(owner, _)| *owner == id);
            let is_last = flow.work.sequences == own.count();
            room.draft.add(tokens, is_last, room.each);
            let work = Work::of(tokens);
            self.waiting -= work;
            if flow.counted == flow.work {
                self.touched.push(id);
            }
            for (owner, _) in &pending.owners {
                match *owner == id {
                    true => flow.work -= work,
                    false => others.push((*owner, work)),
                }
            }
            taken.push(Job {
                id: job,
                key: pending.key,
                encoding: pending.start(worker),
                tokens,
                queued_at: flow.queued_at,
                requests: Vec::new(),
            });
            flow.advance(&self.jobs);
        }
        for (other, work) in others {
            let flow = self.flows.get_mut(&other).expect("an owner is a flow");
            if flow.counted == flow.work {
                self.touched.push(other);
            }
            flow.work -= work;
            flow.advance(&self.jobs);
            self.follow(other);
        }
        turn
    }

    /// Adds the timelines of the requests that want each of `jobs`, where traces are sent.
    fn trace(&self, jobs: &mut [Job]) {
        if !trace::is_on() {
            return;
        }
        for job in jobs {
            let owners = self.jobs[job.id].owners.iter();
            let timelines = owners.map(|(id, _)| self.flows[id].timeline.clone());
            job.requests = timelines.collect();
        }
    }

    /// Gives a request of which something was taken its next turn.
    fn follow(&mut self, id: FlowId) {
        let flow = &self.flows[&id];
        let tenant = flow.hints.tenant;
        match flow.jobs.get(flow.next) {
            Some(next) => self.turns.set_next(tenant, id, self.jobs[*next].tokens),
            None => self.turns.leave(tenant, id),
        }
    }

    /// Why a request that has not begun should not begin.
    fn too_late(&self, id: FlowId, speed: Speed<'_>, now: Instant) -> Option<BatchError> {
        let flow = &self.flows[&id];
        let deadline = flow.hints.deadline?;
        if now >= deadline.at {
            return Some(BatchError::DeadlinePassed { begun: flow.begun });
        }
        if flow.begun {
            return None;
        }
        let request = ForecastRequest {
            hints: flow.hints,
            work: flow.counted,
        };
        let needed = duration(self.forecast(request, true, speed));
        (now + needed > deadline.at).then_some(BatchError::TooLate { needed })
    }

    /// Seconds until `request` would be done if no other came after it: the rest of what runs, then all
    /// that the others are given by the time it has had its share. `waits` says that it is in the queue.
    pub(super) fn forecast(&self, request: ForecastRequest, waits: bool, speed: Speed<'_>) -> f64 {
        let forecast = speed.forecast(request, waits);
        speed.completion(request.work, self.backlog.seconds_until_served(&forecast))
    }

    /// When a newcomer would be done, whose texts are tokenized after the seconds of `tokenizing`.
    pub(super) fn expect(
        &self,
        request: ForecastRequest,
        tokenizing: Expected,
        speed: Speed<'_>,
        now: Instant,
    ) -> Expected {
        let forecast = speed.forecast(request, false);
        let work = request.work;
        let alone = speed.alone(work);
        let others = |newcomers| {
            let served = self.backlog.expected_seconds(&forecast, newcomers, now);
            (speed.completion(work, served) - alone).max(0.0)
        };
        Expected {
            completion: tokenizing.completion + others(Newcomers::All) + alone,
            alone: tokenizing.alone + alone,
            wait: tokenizing.wait + MARGIN * others(Newcomers::Comparable),
        }
    }

    /// Stores the logits of a batch, `[jobs, labels]`, and answers the requests it completes. A sequence
    /// whose logits are not finite fails the requests that want it, and no other.
    pub(super) fn complete(&mut self, jobs: &[Job], logits: &[f32]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut unspent = Vec::new();
        // In a loop of its own: where many requests wait, the entries are in no cache, and the processor waits for
        // several at a time.
        for job in jobs {
            self.by_key.remove(&job.key);
        }
        for (job, row) in jobs.iter().zip(logits.chunks_exact(self.labels)) {
            let pending = self.jobs.remove(job.id).expect("a job ends once");
            if pending.owners.is_empty() {
                outcome.wasted += pending.tokens;
            }
            if !row.iter().all(|logit| logit.is_finite()) {
                self.fail_owners(pending, "the model returned a logit that is not finite");
                continue;
            }
            for (nth, (id, index)) in pending.owners.into_iter().enumerate() {
                // It was answered when another of its sequences failed.
                let Some(flow) = self.flows.get_mut(&id) else {
                    continue;
                };
                if nth == 0 {
                    flow.scored_tokens += pending.tokens;
                }
                let start = index * self.labels;
                flow.logits[start..start + self.labels].copy_from_slice(row);
                flow.unscored -= 1;
                if unspent.last() != Some(&id) {
                    unspent.push(id);
                }
                flow.unspent_tokens += pending.tokens;
                if flow.unscored == 0 {
                    let flow = self.flows.remove(&id).expect("it was just there");
                    // Its tokens are no longer outstanding when its client sees the answer.
                    drop(flow.permit);
                    flow.reply.answer(Ok(flow.logits));
                }
            }
        }
        for id in unspent {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.permit.spend(std::mem::take(&mut flow.unspent_tokens));
            }
        }
        outcome
    }

    /// Fails every request that has a sequence in a batch.
    pub(super) fn fail(&mut self, jobs: &[Job], reason: &str) {
        for job in jobs {
            let pending = self.end(job.id);
            self.fail_owners(pending, reason);
        }
    }

    fn fail_owners(&mut self, pending: Pending, reason: &str) {
        for (id, _) in pending.owners {
            // A request may own several sequences of a batch; it is refused once.
            self.refuse(id, BatchError::Failed(reason.to_owned()));
        }
    }

    /// Fails the requests of a batch that `worker` lost. Relies on nothing that a panic may have left
    /// half done.
    pub(super) fn abandon(&mut self, worker: usize, reason: &str) {
        let lost =
            |pending: &Pending| matches!(pending.state, PendingState::Running(by) if by == worker);
        let running = self.jobs.iter().filter(|(_, pending)| lost(pending));
        let jobs: Vec<JobId> = running.map(|(id, _)| id).collect();
        for job in jobs {
            let pending = self.end(job);
            self.fail_owners(pending, reason);
        }
        // A request whose job ended without being counted would wait forever.
        let stuck = |flow: &Flow| {
            let open = flow.jobs.iter().filter(|job| self.jobs.contains_key(**job));
            open.count() != flow.unscored
        };
        let flows: Vec<FlowId> = self
            .flows
            .iter()
            .filter(|(_, f)| stuck(f))
            .map(|(id, _)| *id)
            .collect();
        for id in flows {
            self.refuse(id, BatchError::Failed(reason.to_owned()));
        }
    }

    /// Fails every request.
    pub(super) fn fail_all(&mut self, error: &BatchError) {
        let flows: Vec<FlowId> = self.flows.keys().copied().collect();
        for id in flows {
            self.refuse(id, error.clone());
        }
    }

    fn end(&mut self, job: JobId) -> Pending {
        let pending = self.jobs.remove(job).expect("a job ends once");
        self.by_key.remove(&pending.key);
        pending
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
        // As in `complete`: returned before the client sees the answer.
        drop(flow.permit);
        flow.reply.answer(Err(reason));
        Outcome {
            wasted: flow.scored_tokens,
        }
    }

    /// Forgets a request whose client has left. Does nothing when it was already answered.
    pub(super) fn cancel(&mut self, id: FlowId) -> Outcome {
        let wasted = self.remove(id).map_or(0, |flow| flow.scored_tokens);
        Outcome { wasted }
    }

    fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let mut flow = self.flows.remove(&id)?;
        self.turns.leave(flow.hints.tenant, id);
        self.backlog.remove(flow.hints, flow.counted);
        flow.jobs.sort_unstable();
        flow.jobs.dedup();
        for &job in &flow.jobs {
            // Scored jobs are gone.
            let Some(pending) = self.jobs.get_mut(job) else {
                continue;
            };
            pending.owners.retain(|(other, _)| *other != id);
            // A running job goes on: a later request may want it.
            if pending.owners.is_empty() && pending.waits() {
                let pending = self.end(job);
                self.waiting -= Work::of(pending.tokens);
            }
        }
        Some(flow)
    }
}

#[cfg(test)]
mod tests;
