//! Lays out batches for a decoder's graph, with prefix caching: a prefix that sequences share is computed once, and
//! its keys and values stay in the session's KV cache for the next batch.

use rerankd_core::Batch;
use rerankd_model::EncoderConfig;
use rerankd_model::graph::operator::{KEEP, SEGMENT};

/// Maximum bytes of a session's KV cache.
const KEPT_BYTES: usize = 64 << 20;
/// Maximum tokens of the KV cache: more than a template with its query has.
const KEPT_TOKENS: usize = 1024;

/// Maximum tokens of a session's KV cache, which keeps keys and values for the next batch.
pub fn kept_tokens(encoder: &EncoderConfig) -> usize {
    encoder.decoder().map_or(0, |decoder| {
        let numbers = encoder.layers * 2 * decoder.kv_heads * decoder.head_size;
        (KEPT_BYTES / (numbers * size_of::<f32>())).min(KEPT_TOKENS)
    })
}

/// How a decoder's sequences are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causal {
    /// The padding token, if the head skips it at the end of a sequence.
    pub padding: Option<u32>,
    /// Whether tokens that sequences of a batch share at their start are computed once.
    pub shares: bool,
    /// Maximum tokens of the KV cache.
    pub keeps: usize,
}

/// The graph's inputs for one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalInputs {
    /// Token ids, `[rows]`.
    pub input_ids: Vec<i64>,
    /// Segments, `[segments, SEGMENT]`; see [`rerankd_model::graph::operator::DECODER_LAYER`].
    pub segments: Vec<i32>,
    /// What layers keep.
    pub keep: [i32; KEEP],
    /// The tokens that they have kept after the run.
    pub kept: Vec<u32>,
    /// The sequence of the batch that each output belongs to.
    pub order: Vec<usize>,
}

/// Sequences that share a prefix.
struct Group {
    count: usize,
    /// Tokens of the prefix; 0 if there is none.
    prefix: usize,
    /// Whether the layers have kept it.
    is_kept: bool,
}

impl CausalInputs {
    /// Lays out `batch`, without trailing tokens that are padding, for a session whose layers have `kept` these
    /// tokens.
    pub fn new(batch: &Batch, causal: Causal, kept: &[u32]) -> Self {
        let mut rest = batch.ids();
        let mut sequences: Vec<&[u32]> = Vec::with_capacity(batch.sequences());
        for &length in batch.lengths() {
            let (ids, others) = rest.split_at(length);
            sequences.push(without_trailing(ids, causal.padding));
            rest = others;
        }
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        if causal.shares {
            // Those that share the most come together.
            order.sort_by(|&a, &b| sequences[a].cmp(sequences[b]));
        }
        let ordered: Vec<&[u32]> = order.iter().map(|&at| sequences[at]).collect();
        let mut inputs = Self {
            input_ids: Vec::with_capacity(batch.tokens()),
            segments: Vec::new(),
            keep: [0; KEEP],
            kept: Vec::new(),
            order,
        };
        let (mut first, mut largest) = (0, 0);
        while first < ordered.len() {
            let group = Group::of_first(&ordered[first..], causal.shares, kept);
            let members = &ordered[first..first + group.count];
            let start = inputs.push_group(&group, members);
            // The largest request most likely goes on.
            if group.count >= largest {
                largest = group.count;
                inputs.keep(&group, members[0], start, causal.keeps);
            }
            first += group.count;
        }
        inputs
    }

    /// Adds all rows of a group; returns the first.
    fn push_group(&mut self, group: &Group, members: &[&[u32]]) -> usize {
        let start = self.input_ids.len();
        let prefix_start = if group.is_kept { -1 } else { start as i32 };
        if group.prefix > 0 && !group.is_kept {
            self.push(&members[0][..group.prefix], [0, 0], false);
        }
        for ids in members {
            let prefix = [group.prefix as i32, prefix_start];
            self.push(&ids[group.prefix..], prefix, true);
        }
        start
    }

    fn push(&mut self, ids: &[u32], [prefix, prefix_start]: [i32; 2], scored: bool) {
        self.input_ids.extend(ids.iter().map(|&id| i64::from(id)));
        let segment: [i32; SEGMENT] = [ids.len() as i32, prefix, prefix_start, i32::from(scored)];
        self.segments.extend(segment);
    }

    /// Has the layers keep the beginning of a group, whose first member has `ids` and whose rows begin at `start`:
    /// its prefix, or all of that member if the prefix was kept before or there is none.
    fn keep(&mut self, group: &Group, ids: &[u32], start: usize, most: usize) {
        let (before, end) = match (group.is_kept, group.prefix) {
            (true, prefix) => (prefix, ids.len()),
            (false, 0) => (0, ids.len()),
            (false, prefix) => (0, prefix),
        };
        let end = end.min(most);
        let before = before.min(end);
        self.keep = [before, start, end - before].map(|number| number as i32);
        self.kept = ids[..end].to_vec();
    }

    /// Outputs of the graph, `[sequences, labels]`, in the order of the batch.
    pub fn restore(&self, outputs: &[f32]) -> Vec<f32> {
        let labels = outputs.len() / self.order.len().max(1);
        let mut restored = vec![0.0; outputs.len()];
        for (output, &at) in outputs.chunks_exact(labels.max(1)).zip(&self.order) {
            restored[at * labels..][..labels].copy_from_slice(output);
        }
        restored
    }
}

impl Group {
    /// The group of the first sequence: as many as save the most rows, while each one more saves some. Every
    /// sequence keeps a token of its own.
    fn of_first(sequences: &[&[u32]], shares: bool, kept: &[u32]) -> Self {
        let first = sequences[0];
        let (mut count, mut prefix) = (1, first.len() - 1);
        let others = if shares { &sequences[1..] } else { &[] };
        for ids in others {
            let shared = equal(first, ids).min(prefix).min(ids.len() - 1);
            if count * shared <= (count - 1) * prefix {
                break;
            }
            (count, prefix) = (count + 1, shared);
        }
        let known = equal(first, kept).min(prefix);
        let shared = if count > 1 { prefix } else { 0 };
        let is_kept = known > 0 && count * known >= (count - 1) * shared;
        Self {
            count,
            prefix: if is_kept { known } else { shared },
            is_kept,
        }
    }
}

/// Equal tokens at the beginning of both.
fn equal(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A sequence up to its last token that is not `padding`; its first token if there is none.
pub(super) fn without_trailing(ids: &[u32], padding: Option<u32>) -> &[u32] {
    let last = ids.iter().rposition(|&id| Some(id) != padding);
    &ids[..=last.unwrap_or(0)]
}

#[cfg(test)]
mod tests;
