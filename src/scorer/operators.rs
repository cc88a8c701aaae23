//! Operators of this crate's own, for graphs that run in ONNX Runtime.

use std::cell::RefCell;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::attention::{Attention, Columns, Queries, Scratch, attend};
use super::isa::Path;
use super::quantized::{self, Embeddings, Finish, Layer, LayerNorm, Matrix};
use crate::graph::operator;

/// All operators, to be registered with a session.
pub(super) fn domain(path: Path) -> ort::Result<OperatorDomain> {
    OperatorDomain::new(operator::DOMAIN)?
        .add(PackedAttention(path))?
        .add(QuantizedEmbeddings(path))?
        .add(QuantizedLayer(path))
}

/// See [`operator::PACKED_ATTENTION`].
struct PackedAttention(Path);

impl Operator for PackedAttention {
    type Kernel<'attr> = PackedAttentionKernel;

    fn name(&self) -> &str {
        operator::PACKED_ATTENTION
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = || OperatorInput::required(TensorElementType::Float32);
        let lengths = OperatorInput::required(TensorElementType::Int32);
        [float(), float(), float(), lengths]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let heads = context
            .get::<i64>(operator::HEADS)
            .ok_or_else(|| ort::Error::new("`heads` is missing"))?;
        Ok(PackedAttentionKernel {
            path: self.0,
            heads: heads as usize,
            scratch: Scratch::default(),
        })
    }
}

struct PackedAttentionKernel {
    path: Path,
    heads: usize,
    scratch: Scratch,
}

impl Kernel for PackedAttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let query = context.input(0)?.ok_or_else(missing)?;
        let keys = context.input(1)?.ok_or_else(missing)?;
        let bias = context.input(2)?.ok_or_else(missing)?;
        let lengths = context.input(3)?.ok_or_else(missing)?;
        let (query_shape, query) = query.try_extract_tensor::<f32>()?;
        let (keys_shape, keys) = keys.try_extract_tensor::<f32>()?;
        let (_, query_bias) = bias.try_extract_tensor::<f32>()?;
        let (_, lengths) = lengths.try_extract_tensor::<i32>()?;

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
        };
        let mut output = context.output(0, [rows, width])?.ok_or_else(missing)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        attend(self.path, &attention, &mut self.scratch, output);
        Ok(())
    }
}

/// See [`operator::QUANTIZED_EMBEDDINGS`].
struct QuantizedEmbeddings(Path);

impl Operator for QuantizedEmbeddings {
    type Kernel<'attr> = QuantizedEmbeddingsKernel;

    fn name(&self) -> &str {
        operator::QUANTIZED_EMBEDDINGS
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = || OperatorInput::required(TensorElementType::Float32);
        let ids = || OperatorInput::required(TensorElementType::Int64);
        let words = OperatorInput::required(TensorElementType::Int8);
        [ids(), ids(), words, float(), float(), float(), float()]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(QuantizedEmbeddingsKernel {
            path: self.0,
            epsilon: context
                .get::<f32>(operator::EPSILON)
                .ok_or_else(|| ort::Error::new("`epsilon` is missing"))?,
        })
    }
}

struct QuantizedEmbeddingsKernel {
    path: Path,
    epsilon: f32,
}

impl Kernel for QuantizedEmbeddingsKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let mut inputs = Vec::with_capacity(7);
        for index in 0..7 {
            inputs.push(context.input(index)?.ok_or_else(missing)?);
        }
        let floats = |index: usize| inputs[index].try_extract_tensor::<f32>();
        let (_, ids) = inputs[0].try_extract_tensor::<i64>()?;
        let (_, positions) = inputs[1].try_extract_tensor::<i64>()?;
        let embeddings = Embeddings {
            words: inputs[2].try_extract_tensor::<i8>()?.1,
            scales: floats(3)?.1,
            positions: floats(4)?.1,
            norm: LayerNorm {
                gamma: floats(5)?.1,
                beta: floats(6)?.1,
                epsilon: self.epsilon,
            },
        };
        let shape = [ids.len(), embeddings.norm.gamma.len()];
        let mut output = context.output(0, shape)?.ok_or_else(missing)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        quantized::embed(self.path, &embeddings, ids, positions, output)
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}

/// See [`operator::QUANTIZED_LAYER`].
struct QuantizedLayer(Path);

impl Operator for QuantizedLayer {
    type Kernel<'attr> = QuantizedLayerKernel;

    fn name(&self) -> &str {
        operator::QUANTIZED_LAYER
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = || OperatorInput::required(TensorElementType::Float32);
        let whole = || OperatorInput::required(TensorElementType::Int32);
        let bytes = || OperatorInput::required(TensorElementType::Int8);
        let matrix = || [bytes(), float(), whole(), float()];
        let norm = || [float(), float()];
        let mut inputs = vec![float(), whole()];
        for _ in 0..operator::MATRICES {
            inputs.extend(matrix());
        }
        for _ in 0..operator::NORMS {
            inputs.extend(norm());
        }
        inputs
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let missing = |name| ort::Error::new(format!("`{name}` is missing"));
        let number = |name| context.get::<i64>(name).ok_or_else(|| missing(name));
        Ok(QuantizedLayerKernel {
            path: self.0,
            heads: number(operator::HEADS)? as usize,
            activation: match number(operator::ACTIVATION)? {
                operator::GELU => Finish::Gelu,
                operator::GELU_TANH => Finish::GeluTanh,
                operator::RELU => Finish::Relu,
                other => return Err(ort::Error::new(format!("activation {other} is unknown"))),
            },
            queries: match number(operator::FIRST_OF_EACH)? {
                0 => Queries::EveryToken,
                _ => Queries::OnePerSequence,
            },
            epsilon: context
                .get::<f32>(operator::EPSILON)
                .ok_or_else(|| missing(operator::EPSILON))?,
        })
    }
}

struct QuantizedLayerKernel {
    path: Path,
    heads: usize,
    activation: Finish,
    queries: Queries,
    epsilon: f32,
}

thread_local! {
    /// A thread runs one layer after the other, and they share the memory.
    static SCRATCH: RefCell<quantized::Scratch> = RefCell::default();
}

impl Kernel for QuantizedLayerKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let mut inputs = Vec::with_capacity(operator::LAYER_INPUTS);
        for index in 0..operator::LAYER_INPUTS {
            inputs.push(context.input(index)?.ok_or_else(missing)?);
        }
        let floats = |index: usize| inputs[index].try_extract_tensor::<f32>();
        let matrix = |index: usize| -> ort::Result<Matrix<'_>> {
            let first = 2 + index * 4;
            Ok(Matrix {
                strips: inputs[first].try_extract_tensor::<i8>()?.1,
                scales: floats(first + 1)?.1,
                sums: inputs[first + 2].try_extract_tensor::<i32>()?.1,
                bias: floats(first + 3)?.1,
            })
        };
        let norm = |index: usize| -> ort::Result<LayerNorm<'_>> {
            let first = 2 + operator::MATRICES * 4 + index * 2;
            Ok(LayerNorm {
                gamma: floats(first)?.1,
                beta: floats(first + 1)?.1,
                epsilon: self.epsilon,
            })
        };
        let layer = Layer {
            query: matrix(0)?,
            keys: matrix(1)?,
            projection: matrix(2)?,
            up: matrix(3)?,
            down: matrix(4)?,
            attention_norm: norm(0)?,
            output_norm: norm(1)?,
            activation: self.activation,
            heads: self.heads,
        };
        let (shape, hidden) = floats(0)?;
        let (_, lengths) = inputs[1].try_extract_tensor::<i32>()?;
        let (tokens, width) = (shape[0] as usize, shape[1] as usize);
        let counted: i64 = lengths.iter().map(|&length| i64::from(length)).sum();
        if counted != tokens as i64 || lengths.iter().any(|&length| length < 1) {
            return Err(ort::Error::new(format!(
                "{tokens} tokens for {} sequences of {counted}",
                lengths.len()
            )));
        }
        let rows = match self.queries {
            Queries::EveryToken => tokens,
            Queries::OnePerSequence => lengths.len(),
        };
        let mut output = context.output(0, [rows, width])?.ok_or_else(missing)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let input = quantized::Input {
            hidden,
            lengths,
            queries: self.queries,
        };
        SCRATCH
            .with_borrow_mut(|scratch| {
                quantized::forward(self.path, &layer, input, scratch, output)
            })
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}
