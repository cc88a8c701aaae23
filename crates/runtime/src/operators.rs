//! Operators of this crate's own, for graphs that run in ONNX Runtime.

mod decoder;
mod layer;
mod unwind;

use std::sync::{Arc, Mutex, PoisonError};

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{TensorElementType, ValueRef, ValueRefMut};

use self::decoder::Decoder;
use self::layer::{EncoderLayer, Form};
use self::unwind::CatchUnwind;
use rerankd_kernels::attention::{
    Attention, Columns, Disentangled, PositionalEncoding, Queries, Scratch, attend,
};
use rerankd_kernels::bf16::Bf16;
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::fp32::{Fp32, WidenedBf16};
use rerankd_kernels::isa::InstructionSet;
use rerankd_kernels::norm::LayerNorm;
use rerankd_kernels::pooling::{self, Mode};
use rerankd_kernels::quantized::{self, Embeddings, Int8};
use rerankd_model::graph::operator;

/// All operators, to be registered with a session.
pub(super) fn domain(pool: &ComputePool) -> ort::Result<OperatorDomain> {
    let set = pool.instruction_set;
    let mut domain = OperatorDomain::new(operator::DOMAIN)?;
    domain = register(domain, PackedAttention(set))?;
    domain = register(domain, PackedPooling)?;
    domain = register(domain, QuantizedEmbeddings(set))?;
    for form in [Form::PostNorm, Form::PostNormGated, Form::PreNormGated] {
        domain = register(domain, EncoderLayer::<Fp32>::new(pool, form))?;
        domain = register(domain, EncoderLayer::<Bf16>::new(pool, form))?;
        domain = register(domain, EncoderLayer::<Int8>::new(pool, form))?;
    }
    domain = register(domain, Decoder::<Fp32>::new(pool))?;
    domain = register(domain, Decoder::<WidenedBf16>::new(pool))?;
    domain = register(domain, Decoder::<Bf16>::new(pool))?;
    domain = register(domain, Decoder::<Int8>::new(pool))?;
    Ok(domain)
}

/// Opens a session of `graph` that has the operators of `domain`.
pub(super) fn open(
    builder: SessionBuilder,
    domain: impl Into<Arc<OperatorDomain>>,
    graph: &[u8],
) -> ort::Result<Session> {
    // ONNX Runtime registers the domain with the process, and two sessions that open at once can both find it
    // missing.
    static OPENING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    builder.with_operators(domain)?.commit_from_memory(graph)
}

/// Adds an operator whose panics are errors.
fn register<O: Operator + 'static>(
    domain: OperatorDomain,
    operator: O,
) -> ort::Result<OperatorDomain> {
    domain.add(CatchUnwind(operator))
}

/// Inputs that an operator does not work without.
fn required(types: impl IntoIterator<Item = TensorElementType>) -> Vec<OperatorInput> {
    types.into_iter().map(OperatorInput::required).collect()
}

/// The optional inputs of an operator with attention: its position tables, in the order of their offsets.
fn position_inputs() -> [OperatorInput; operator::POSITION_INPUTS] {
    let float = || OperatorInput::optional(TensorElementType::Float32);
    [
        float(),
        float(),
        float(),
        float(),
        OperatorInput::optional(TensorElementType::Int32),
    ]
}

/// Their values.
struct PositionInputs<'a>([Option<ValueRef<'a>>; operator::POSITION_INPUTS]);

impl<'a> PositionInputs<'a> {
    /// Reads what is behind so many `others`.
    fn read(context: &'a ComputeContext, others: usize) -> ort::Result<Self> {
        let mut values = [const { None }; operator::POSITION_INPUTS];
        for (offset, value) in values.iter_mut().enumerate() {
            *value = context.input(others + offset)?;
        }
        Ok(Self(values))
    }

    /// Refuses tables that do not fit heads of so many numbers, and the lengths.
    fn encoding(
        &self,
        window: Option<usize>,
        (heads, size): (usize, usize),
        lengths: &[i32],
    ) -> ort::Result<PositionalEncoding<'_>> {
        let table = |offset: usize| -> ort::Result<Option<&[f32]>> {
            match &self.0[offset] {
                Some(value) => Ok(Some(value.try_extract_tensor::<f32>()?.1)),
                None => Ok(None),
            }
        };
        let rotary = table(operator::ROTARY_INPUT)?;
        let bias = table(operator::BIAS_INPUT)?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let rotary_fits =
            rotary.is_none_or(|t| size.is_multiple_of(2) && t.len() >= longest * size);
        let bias_fits = bias.is_none_or(|t| t.len().is_multiple_of(heads) && t.len() >= heads);
        let disentangled = match (
            table(operator::POSITION_KEYS_INPUT)?,
            table(operator::POSITION_QUERIES_INPUT)?,
            &self.0[operator::BUCKETS_INPUT],
        ) {
            (Some(keys), Some(queries), Some(buckets)) => Some(Disentangled {
                keys,
                queries,
                buckets: buckets.try_extract_tensor::<i32>()?.1,
            }),
            (None, None, None) => None,
            _ => return Err(ort::Error::new("positions are incomplete")),
        };
        let disentangled_fits = disentangled.is_none_or(|table| {
            let count = table.keys.len() / (heads * size);
            table.keys.len() == count * heads * size
                && table.queries.len() == table.keys.len()
                && table.buckets.len() >= (2 * longest).saturating_sub(1)
                && table
                    .buckets
                    .iter()
                    .all(|bucket| (0..count).contains(&(*bucket as usize)))
                && window.is_none()
        });
        if !rotary_fits || !bias_fits || !disentangled_fits {
            return Err(ort::Error::new(format!(
                "position tables do not fit {heads} heads of {size} and {longest} tokens"
            )));
        }
        Ok(PositionalEncoding {
            rotary,
            bias,
            disentangled,
            window,
        })
    }
}

fn window(context: &KernelContext<'_>) -> Option<usize> {
    let window = context.get::<i64>(operator::WINDOW);
    window.map(|window| window as usize)
}

/// The output of every operator here.
fn one_output() -> [OperatorOutput; 1] {
    [OperatorOutput::required(TensorElementType::Float32)]
}

/// The values of the `count` inputs of an operator.
fn inputs<'a>(context: &'a ComputeContext, count: usize) -> ort::Result<Vec<ValueRef<'a>>> {
    let input = |index| {
        let input = context.input(index)?;
        input.ok_or_else(|| ort::Error::new(format!("input {index} is missing")))
    };
    (0..count).map(input).collect()
}

/// Where an operator writes.
fn output<'a>(context: &'a ComputeContext, shape: [usize; 2]) -> ort::Result<ValueRefMut<'a>> {
    let output = context.output(0, shape)?;
    output.ok_or_else(|| ort::Error::new("the output is missing"))
}

/// The numbers of an input.
fn floats<'a>(inputs: &'a [ValueRef<'_>], index: usize) -> ort::Result<&'a [f32]> {
    Ok(inputs[index].try_extract_tensor::<f32>()?.1)
}

fn missing_attribute(name: &str) -> ort::Error {
    ort::Error::new(format!("`{name}` is missing"))
}

/// An integer attribute.
fn number(context: &KernelContext<'_>, name: &str) -> ort::Result<i64> {
    let number = context.get::<i64>(name);
    number.ok_or_else(|| missing_attribute(name))
}

fn epsilon(context: &KernelContext<'_>) -> ort::Result<f32> {
    let epsilon = context.get::<f32>(operator::EPSILON);
    epsilon.ok_or_else(|| missing_attribute(operator::EPSILON))
}

/// Refuses lengths that are not those of so many tokens, or of no token.
fn check_lengths(lengths: &[i32], tokens: usize) -> ort::Result<()> {
    let counted: i64 = lengths.iter().map(|&length| i64::from(length)).sum();
    if counted == tokens as i64 && lengths.iter().all(|&length| length > 0) {
        return Ok(());
    }
    Err(ort::Error::new(format!(
        "{tokens} tokens for {} sequences of {counted}",
        lengths.len()
    )))
}

/// See [`operator::PACKED_ATTENTION`].
struct PackedAttention(InstructionSet);

impl Operator for PackedAttention {
    type Kernel<'attr> = PackedAttentionKernel;

    fn name(&self) -> &str {
        operator::PACKED_ATTENTION
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = TensorElementType::Float32;
        let mut inputs = required([float, float, float, TensorElementType::Int32]);
        inputs.extend(position_inputs());
        inputs
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(PackedAttentionKernel {
            set: self.0,
            heads: number(context, operator::HEADS)? as usize,
            window: window(context),
            scratch: Scratch::default(),
        })
    }
}

struct PackedAttentionKernel {
    set: InstructionSet,
    heads: usize,
    window: Option<usize>,
    scratch: Scratch,
}

impl Kernel for PackedAttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = inputs(context, 4)?;
        let positions = PositionInputs::read(context, inputs.len())?;
        let (query_shape, query) = inputs[0].try_extract_tensor::<f32>()?;
        let (keys_shape, keys) = inputs[1].try_extract_tensor::<f32>()?;
        let query_bias = floats(&inputs, 2)?;
        let (_, lengths) = inputs[3].try_extract_tensor::<i32>()?;

        let width = query_bias.len();
        let (rows, query_stride) = (query_shape[0] as usize, query_shape[1] as usize);
        let (tokens, key_stride) = (keys_shape[0] as usize, keys_shape[1] as usize);
        let counted: i64 = lengths.iter().map(|&length| i64::from(length)).sum();
        if counted != tokens as i64 || (rows != tokens && rows != lengths.len()) {
            return Err(ort::Error::new(format!(
                "{rows} queries and {tokens} keys for {} sequences of {counted} tokens",
                lengths.len()
            )));
        }
        let columns = |data, stride, offset| Columns {
            data,
            stride,
            offset,
        };
        let attention = Attention {
            query: columns(query, query_stride, 0),
            query_bias,
            key: columns(keys, key_stride, key_stride - 2 * width),
            value: columns(keys, key_stride, key_stride - width),
            lengths,
            queries: if rows == tokens {
                Queries::EveryToken
            } else {
                Queries::OnePerSequence
            },
            heads: self.heads,
            size: width / self.heads,
            positions: positions.encoding(
                self.window,
                (self.heads, width / self.heads),
                lengths,
            )?,
        };
        let mut output = output(context, [rows, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        attend(self.set, &attention, 0, &mut self.scratch, output);
        Ok(())
    }
}

/// See [`operator::PACKED_POOLING`].
struct PackedPooling;

impl Operator for PackedPooling {
    type Kernel<'attr> = PackedPoolingKernel;

    fn name(&self) -> &str {
        operator::PACKED_POOLING
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required([TensorElementType::Float32, TensorElementType::Int32])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(PackedPoolingKernel(
            match context.get::<i64>(operator::MODE) {
                Some(operator::MAX) => Mode::Max,
                Some(operator::MEAN) => Mode::Mean,
                Some(operator::MEAN_SQRT) => Mode::MeanSqrt,
                Some(operator::WEIGHTED_MEAN) => Mode::WeightedMean,
                Some(operator::LAST) => Mode::Last,
                other => return Err(ort::Error::new(format!("pooling {other:?} is unknown"))),
            },
        ))
    }
}

struct PackedPoolingKernel(Mode);

impl Kernel for PackedPoolingKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = inputs(context, 2)?;
        let (shape, hidden) = inputs[0].try_extract_tensor::<f32>()?;
        let (_, lengths) = inputs[1].try_extract_tensor::<i32>()?;
        check_lengths(lengths, shape[0] as usize)?;
        let mut output = output(context, [lengths.len(), shape[1] as usize])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        pooling::pool(self.0, hidden, lengths, output);
        Ok(())
    }
}

/// See [`operator::QUANTIZED_EMBEDDINGS`].
struct QuantizedEmbeddings(InstructionSet);

impl Operator for QuantizedEmbeddings {
    type Kernel<'attr> = QuantizedEmbeddingsKernel;

    fn name(&self) -> &str {
        operator::QUANTIZED_EMBEDDINGS
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (ids, float) = (TensorElementType::Int64, TensorElementType::Float32);
        let words = TensorElementType::Int8;
        required([ids, ids, words, float, float, float, float])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(QuantizedEmbeddingsKernel {
            set: self.0,
            epsilon: epsilon(context)?,
        })
    }
}

struct QuantizedEmbeddingsKernel {
    set: InstructionSet,
    epsilon: f32,
}

impl Kernel for QuantizedEmbeddingsKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = inputs(context, 7)?;
        let (_, ids) = inputs[0].try_extract_tensor::<i64>()?;
        let (_, positions) = inputs[1].try_extract_tensor::<i64>()?;
        let embeddings = Embeddings {
            words: inputs[2].try_extract_tensor::<i8>()?.1,
            scales: floats(&inputs, 3)?,
            positions: floats(&inputs, 4)?,
            norm: LayerNorm {
                gamma: floats(&inputs, 5)?,
                beta: floats(&inputs, 6)?,
                epsilon: self.epsilon,
            },
        };
        let shape = [ids.len(), embeddings.norm.gamma.len()];
        let mut output = output(context, shape)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        quantized::embed(self.set, &embeddings, ids, positions, output)
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}
