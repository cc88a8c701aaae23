//! A layer of a decoder as one operator, in each arithmetic.

use std::array::from_fn;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

use super::layer::{GraphProducts, activation};
use super::{epsilon, floats, inputs, number, one_output, output, required, window};
use crate::preemption::between_layers;
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::layer::Epilogue;
use rerankd_kernels::layer::decoder::{
    Asked, DecoderInput, DecoderLayer, DecoderScratch, QkvProjection, RmsNorm, Segment, decode,
};
use rerankd_model::graph::operator;

thread_local! {
    /// Layers that a thread runs one after the other share the memory.
    static SCRATCH: RefCell<DecoderScratch> = RefCell::default();
}

/// Inputs before the dense layers: hidden states, segments, and what to keep.
const ACTIVATIONS: usize = 3;
/// Optional inputs behind all others: the weights of the norms of queries and keys.
const HEAD_NORMS: usize = 2;

/// The attributes of a layer.
#[derive(Debug, Clone)]
struct Attributes {
    heads: usize,
    kv_heads: usize,
    size: usize,
    activation: Epilogue,
    window: Option<usize>,
    asked: Asked,
    epsilon: f32,
}

impl Attributes {
    fn read(context: &KernelContext<'_>) -> ort::Result<Self> {
        let attributes = Self {
            heads: number(context, operator::HEADS)? as usize,
            kv_heads: number(context, operator::KV_HEADS)? as usize,
            size: number(context, operator::HEAD_SIZE)? as usize,
            activation: activation(number(context, operator::ACTIVATION)?)?,
            window: window(context),
            asked: match number(context, operator::LAST_OF_EACH)? {
                0 => Asked::EveryRow,
                _ => Asked::LastRows,
            },
            epsilon: epsilon(context)?,
        };
        let Self {
            heads,
            kv_heads,
            size,
            ..
        } = attributes;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || !size.is_multiple_of(2) {
            return Err(ort::Error::new(format!(
                "{heads} heads of {size} do not share {kv_heads} heads of keys"
            )));
        }
        Ok(attributes)
    }
}

/// The operator of a layer.
pub(super) struct Decoder<P> {
    pool: ComputePool,
    products: PhantomData<fn() -> P>,
}

impl<P: GraphProducts> Decoder<P> {
    /// Index of the first input behind so many dense layers.
    const fn behind_matrices(count: usize) -> usize {
        ACTIVATIONS + count * P::MATRIX.len()
    }

    /// Inputs that every layer has.
    const REQUIRED: usize = Self::behind_matrices(operator::DECODER_MATRICES) + operator::NORMS + 1;

    pub(super) fn new(pool: &ComputePool) -> Self {
        Self {
            pool: pool.clone(),
            products: PhantomData,
        }
    }
}

impl<P: GraphProducts> Operator for Decoder<P> {
    type Kernel<'attr> = DecoderKernel<P>;

    fn name(&self) -> &str {
        P::DECODER_LAYER
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let numbers = TensorElementType::Int32;
        let mut types = vec![TensorElementType::Float32, numbers, numbers];
        for _ in 0..operator::DECODER_MATRICES {
            types.extend(P::MATRIX);
        }
        types.extend([TensorElementType::Float32; operator::NORMS + 1]);
        let mut inputs = required(types);
        inputs.extend([const { OperatorInput::optional(TensorElementType::Float32) }; HEAD_NORMS]);
        inputs
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(DecoderKernel {
            pool: self.pool.clone(),
            attributes: Attributes::read(context)?,
            kept: Vec::new(),
            products: PhantomData,
        })
    }
}

pub(super) struct DecoderKernel<P> {
    pool: ComputePool,
    attributes: Attributes,
    /// Keys and values of the first rows of a sequence, `[rows, 2 * kv_heads * size]`.
    kept: Vec<f32>,
    products: PhantomData<fn() -> P>,
}

impl<P: GraphProducts> Kernel for DecoderKernel<P> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        between_layers();
        let count = Decoder::<P>::REQUIRED;
        let values = inputs(context, count)?;
        let head_norms = [context.input(count)?, context.input(count + 1)?];
        let (shape, hidden) = values[0].try_extract_tensor::<f32>()?;
        let (rows, width) = (shape[0] as usize, shape[1] as usize);
        let (_, numbers) = values[1].try_extract_tensor::<i32>()?;
        let key_width = 2 * self.attributes.kv_heads * self.attributes.size;
        let kept = self.kept.len() / key_width;
        let (segments, longest) = segments(numbers, rows, kept)?;
        let keep = Keep::read(values[2].try_extract_tensor::<i32>()?.1, rows, kept)?;
        let layer = self.layer(&values, &head_norms)?;
        let positions = layer.qkv.rotary.len() / layer.qkv.size;
        if longest > positions {
            return Err(ort::Error::new(format!(
                "a sequence has {longest} tokens; there are {positions} positions"
            )));
        }
        let input = DecoderInput {
            hidden,
            segments: &segments,
            kept: &self.kept,
            asked: self.attributes.asked,
        };
        let asked = match input.asked {
            Asked::EveryRow => rows,
            Asked::LastRows => segments.iter().filter(|segment| segment.scored).count(),
        };
        let mut output = output(context, [asked, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        // Taken and not borrowed: while this thread waits for a part, it may run another layer.
        let mut scratch = SCRATCH.take();
        decode::<P>(&self.pool, &layer, input, &mut scratch, output);
        self.kept.truncate(keep.before * key_width);
        let rows = keep.rows.start * key_width..keep.rows.end * key_width;
        self.kept.extend_from_slice(&scratch.keys()[rows]);
        SCRATCH.set(scratch);
        Ok(())
    }
}

impl<P: GraphProducts> DecoderKernel<P> {
    fn layer<'a>(
        &self,
        values: &'a [ValueRef<'_>],
        head_norms: &'a [Option<ValueRef<'_>>; HEAD_NORMS],
    ) -> ort::Result<DecoderLayer<'a, P::Matrix<'a>>> {
        let Attributes {
            heads,
            kv_heads,
            size,
            activation,
            window,
            epsilon,
            ..
        } = self.attributes;
        let matrix = |index: usize| {
            let first = Decoder::<P>::behind_matrices(index);
            P::matrix(&values[first..first + P::MATRIX.len()])
        };
        let weight = |weight| RmsNorm { weight, epsilon };
        let behind = Decoder::<P>::behind_matrices(operator::DECODER_MATRICES);
        let norm = |index: usize| Ok::<_, ort::Error>(weight(floats(values, behind + index)?));
        let head_norm = |index: usize| match &head_norms[index] {
            Some(value) => Ok::<_, ort::Error>(Some(weight(value.try_extract_tensor::<f32>()?.1))),
            None => Ok(None),
        };
        Ok(DecoderLayer {
            attention_norm: norm(0)?,
            qkv: QkvProjection {
                query: matrix(0)?,
                key_value: matrix(1)?,
                query_norm: head_norm(0)?,
                key_norm: head_norm(1)?,
                heads,
                kv_heads,
                size,
                rotary: floats(values, behind + operator::NORMS)?,
                window,
            },
            projection: matrix(2)?,
            feed_forward_norm: norm(1)?,
            gate: matrix(3)?,
            activation,
            up: matrix(4)?,
            down: matrix(5)?,
        })
    }
}

/// What a layer keeps for the next run.
struct Keep {
    /// Rows of what it kept before.
    before: usize,
    /// Rows of this run.
    rows: Range<usize>,
}

impl Keep {
    /// Refuses what is not there.
    fn read(numbers: &[i32], rows: usize, kept: usize) -> ort::Result<Self> {
        let [before, start, count] = natural(numbers);
        if before > kept || start > rows || count > rows - start {
            return Err(ort::Error::new(format!(
                "{rows} rows and {kept} that were kept cannot be kept as {numbers:?}"
            )));
        }
        Ok(Self {
            before,
            rows: start..start + count,
        })
    }
}

/// Numbers that should not be negative; those that are count as too large.
fn natural<const N: usize>(numbers: &[i32]) -> [usize; N] {
    let number = |index: usize| numbers.get(index).copied().map(usize::try_from);
    from_fn(|index| match number(index) {
        Some(Ok(number)) => number,
        _ => usize::MAX,
    })
}

/// The segments in `numbers`, and the tokens of the longest sequence. Refuses those that do not cover `rows`, or
/// whose prefix is neither before them nor among those `kept`.
fn segments(numbers: &[i32], rows: usize, kept: usize) -> ort::Result<(Vec<Segment>, usize)> {
    let (mut start, mut longest) = (0, 0);
    let mut segments = Vec::with_capacity(numbers.len() / operator::SEGMENT);
    for numbers in numbers.chunks_exact(operator::SEGMENT) {
        let [length, prefix_length, first, scored]: [usize; operator::SEGMENT] = natural(numbers);
        let prefix_start = (numbers[2] >= 0).then_some(first);
        let known = match prefix_start {
            Some(first) => first.saturating_add(prefix_length) <= start,
            None => prefix_length <= kept,
        };
        if length == 0 || length > rows - start || !known {
            return Err(ort::Error::new(format!(
                "{rows} rows have no segment {numbers:?} at {start}"
            )));
        }
        segments.push(Segment {
            start,
            length,
            prefix_length,
            prefix_start,
            scored: scored != 0,
        });
        longest = longest.max(prefix_length + length);
        start += length;
    }
    if start != rows {
        return Err(ort::Error::new(format!(
            "{rows} rows in segments of {start}"
        )));
    }
    Ok((segments, longest))
}
