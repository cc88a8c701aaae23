//! Operators of this crate's own, for graphs that run in ONNX Runtime.

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::attention::{Attention, Columns, Queries, Scratch, attend};
use super::quantized::{self, Finish, Layer};
use crate::graph::operator;

/// All operators, to be registered with a session.
pub(super) fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new(operator::DOMAIN)?
        .add(PackedAttention)?
        .add(QuantizedDense)
}

/// See [`operator::PACKED_ATTENTION`].
struct PackedAttention;

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
            heads: heads as usize,
            scratch: Scratch::default(),
        })
    }
}

struct PackedAttentionKernel {
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
        attend(&attention, &mut self.scratch, output);
        Ok(())
    }
}

/// See [`operator::QUANTIZED_DENSE`].
struct QuantizedDense;

impl Operator for QuantizedDense {
    type Kernel<'attr> = QuantizedDenseKernel;

    fn name(&self) -> &str {
        operator::QUANTIZED_DENSE
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = || OperatorInput::required(TensorElementType::Float32);
        let panels = OperatorInput::required(TensorElementType::Int8);
        [float(), panels, float(), float()]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let finish = match context.get::<i64>(operator::GELU) {
            Some(1) => Finish::Gelu,
            _ => Finish::Nothing,
        };
        Ok(QuantizedDenseKernel {
            finish,
            scratch: quantized::Scratch::default(),
        })
    }
}

struct QuantizedDenseKernel {
    finish: Finish,
    scratch: quantized::Scratch,
}

impl Kernel for QuantizedDenseKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let x = context.input(0)?.ok_or_else(missing)?;
        let panels = context.input(1)?.ok_or_else(missing)?;
        let scales = context.input(2)?.ok_or_else(missing)?;
        let bias = context.input(3)?.ok_or_else(missing)?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let (_, panels) = panels.try_extract_tensor::<i8>()?;
        let (_, scales) = scales.try_extract_tensor::<f32>()?;
        let (_, bias) = bias.try_extract_tensor::<f32>()?;
        let (rows, inputs) = (shape[0] as usize, shape[1] as usize);
        let layer = Layer {
            panels,
            scales,
            bias,
            finish: self.finish,
        };
        let mut output = context
            .output(0, [rows, scales.len()])?
            .ok_or_else(missing)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        quantized::apply(&layer, x, inputs, &mut self.scratch, output);
        Ok(())
    }
}
