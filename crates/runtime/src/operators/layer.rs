//! A layer of the encoder as one operator, in each arithmetic and form.

use std::cell::RefCell;
use std::marker::PhantomData;

use half::slice::HalfFloatSliceExt;
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

use super::{
    PositionInputs, check_lengths, epsilon, floats, inputs, number, one_output, output,
    position_inputs, required, window,
};
use crate::preemption::between_layers;
use rerankd_kernels::attention::Queries;
use rerankd_kernels::bf16::{self, Bf16};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::fp32::{self, Fp32, WidenedBf16, WidenedMatrix};
use rerankd_kernels::layer::{
    self, Epilogue, Layer, LayerInput, Norms, Products, QkvProjection, Scratch,
};
use rerankd_kernels::norm::LayerNorm;
use rerankd_kernels::quantized::{self, Equalization, Int8};
use rerankd_model::graph::operator;

/// The form of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Post-norm, as in BERT: see [`operator::LAYER`].
    PostNorm,
    /// The same with a gated feed-forward network: see [`operator::POST_NORM_GATED_LAYER`].
    PostNormGated,
    /// Pre-norm with a gated feed-forward network, as in ModernBERT: see [`operator::GATED_LAYER`].
    PreNormGated,
}

impl Form {
    /// Dense layers of a layer.
    const fn matrices(self) -> usize {
        match self {
            Self::PostNorm => operator::MATRICES,
            Self::PostNormGated | Self::PreNormGated => operator::GATED_MATRICES,
        }
    }
}

/// How an arithmetic appears in a graph.
pub(super) trait GraphProducts: Products {
    /// The element types of a dense layer's inputs.
    const MATRIX: &'static [TensorElementType];

    /// The name of the operator of a decoder layer.
    const DECODER_LAYER: &'static str;

    /// The dense layer in the inputs that [`Self::MATRIX`] describes.
    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<Self::Matrix<'a>>;
}

/// An arithmetic that encoders have.
pub(super) trait EncoderProducts: GraphProducts {
    /// The name of the operator of a layer.
    fn operator_name(form: Form) -> &'static str;
}

thread_local! {
    /// Layers that a thread runs one after the other share the memory.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl GraphProducts for Int8 {
    const MATRIX: &'static [TensorElementType] = &[
        TensorElementType::Int8,
        TensorElementType::Float32,
        TensorElementType::Int32,
        TensorElementType::Float32,
        TensorElementType::Float32,
        TensorElementType::Float32,
    ];
    const DECODER_LAYER: &'static str = operator::QUANTIZED_DECODER_LAYER;

    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<quantized::Matrix<'a>> {
        Ok(quantized::Matrix {
            strips: inputs[0].try_extract_tensor::<i8>()?.1,
            scales: floats(inputs, 1)?,
            sums: inputs[2].try_extract_tensor::<i32>()?.1,
            bias: floats(inputs, 3)?,
            equalization: match (floats(inputs, 4)?, floats(inputs, 5)?) {
                ([], []) => None,
                (shifts, factors) => Some(Equalization { shifts, factors }),
            },
        })
    }
}

impl GraphProducts for Fp32 {
    const MATRIX: &'static [TensorElementType] =
        &[TensorElementType::Float32, TensorElementType::Float32];
    const DECODER_LAYER: &'static str = operator::DECODER_LAYER;

    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<fp32::Matrix<'a>> {
        Ok(fp32::Matrix {
            strips: floats(inputs, 0)?,
            bias: floats(inputs, 1)?,
        })
    }
}

impl GraphProducts for WidenedBf16 {
    const MATRIX: &'static [TensorElementType] =
        &[TensorElementType::Bfloat16, TensorElementType::Float32];
    const DECODER_LAYER: &'static str = operator::WIDENED_DECODER_LAYER;

    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<WidenedMatrix<'a>> {
        let (_, strips) = inputs[0].try_extract_tensor::<half::bf16>()?;
        Ok(WidenedMatrix {
            strips: strips.reinterpret_cast(),
            bias: floats(inputs, 1)?,
        })
    }
}

impl GraphProducts for Bf16 {
    const MATRIX: &'static [TensorElementType] =
        &[TensorElementType::Int32, TensorElementType::Float32];
    const DECODER_LAYER: &'static str = operator::BF16_DECODER_LAYER;

    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<bf16::Matrix<'a>> {
        Ok(bf16::Matrix {
            strips: inputs[0].try_extract_tensor::<bf16::Pair>()?.1,
            bias: floats(inputs, 1)?,
        })
    }
}

impl EncoderProducts for Int8 {
    fn operator_name(form: Form) -> &'static str {
        match form {
            Form::PostNorm => operator::QUANTIZED_LAYER,
            Form::PostNormGated => operator::QUANTIZED_POST_NORM_GATED_LAYER,
            Form::PreNormGated => operator::QUANTIZED_GATED_LAYER,
        }
    }
}

impl EncoderProducts for Bf16 {
    fn operator_name(form: Form) -> &'static str {
        match form {
            Form::PostNorm => operator::BF16_LAYER,
            Form::PostNormGated => operator::BF16_POST_NORM_GATED_LAYER,
            Form::PreNormGated => operator::BF16_GATED_LAYER,
        }
    }
}

impl EncoderProducts for Fp32 {
    fn operator_name(form: Form) -> &'static str {
        match form {
            Form::PostNorm => operator::LAYER,
            Form::PostNormGated => operator::POST_NORM_GATED_LAYER,
            Form::PreNormGated => operator::GATED_LAYER,
        }
    }
}

pub(super) fn activation(number: i64) -> ort::Result<Epilogue> {
    Ok(match number {
        operator::GELU => Epilogue::Gelu,
        operator::GELU_TANH => Epilogue::GeluTanh,
        operator::RELU => Epilogue::Relu,
        operator::SILU => Epilogue::Silu,
        other => return Err(ort::Error::new(format!("activation {other} is unknown"))),
    })
}

/// The attributes of a layer.
#[derive(Debug, Clone)]
struct Attributes {
    heads: usize,
    activation: Epilogue,
    window: Option<usize>,
    queries: Queries,
    epsilon: f32,
    /// Whether the input of a pre-norm layer is normalized already.
    normalized: bool,
}

impl Attributes {
    fn read(form: Form, context: &KernelContext<'_>) -> ort::Result<Self> {
        Ok(Self {
            heads: number(context, operator::HEADS)? as usize,
            activation: activation(number(context, operator::ACTIVATION)?)?,
            window: window(context),
            queries: match number(context, operator::FIRST_OF_EACH)? {
                0 => Queries::EveryToken,
                _ => Queries::OnePerSequence,
            },
            epsilon: epsilon(context)?,
            normalized: match form {
                Form::PostNorm | Form::PostNormGated => false,
                Form::PreNormGated => number(context, operator::NORMED)? != 0,
            },
        })
    }
}

/// Inputs of a layer before its dense layers: hidden states and lengths.
const ACTIVATIONS: usize = 2;

/// The inputs of a layer, read once for a run.
struct LayerInputs<'a, P> {
    values: Vec<ValueRef<'a>>,
    positions: PositionInputs<'a>,
    form: Form,
    attributes: &'a Attributes,
    products: PhantomData<fn() -> P>,
}

impl<'a, P: GraphProducts> LayerInputs<'a, P> {
    /// Index of the first input behind so many dense layers.
    const fn behind_matrices(count: usize) -> usize {
        ACTIVATIONS + count * P::MATRIX.len()
    }

    /// Inputs that a layer has whatever its position encoding.
    const fn required(form: Form) -> usize {
        Self::behind_matrices(form.matrices()) + operator::NORMS * 2
    }

    /// Declares the inputs.
    fn declare(form: Form) -> Vec<OperatorInput> {
        let mut types = vec![TensorElementType::Float32, TensorElementType::Int32];
        for _ in 0..form.matrices() {
            types.extend(P::MATRIX);
        }
        types.extend([TensorElementType::Float32; operator::NORMS * 2]);
        let mut inputs = required(types);
        inputs.extend(position_inputs());
        inputs
    }

    fn read(
        context: &'a ComputeContext,
        form: Form,
        attributes: &'a Attributes,
    ) -> ort::Result<Self> {
        let count = Self::required(form);
        let inputs = Self {
            values: inputs(context, count)?,
            positions: PositionInputs::read(context, count)?,
            form,
            attributes,
            products: PhantomData,
        };
        check_lengths(inputs.lengths()?, inputs.shape()?[0])?;
        Ok(inputs)
    }

    fn layer(&self) -> ort::Result<Layer<'_, P::Matrix<'_>>> {
        let Attributes {
            activation,
            normalized,
            ..
        } = *self.attributes;
        let norms = match self.form {
            Form::PostNorm | Form::PostNormGated => Norms::Post {
                attention: self.norm(0)?,
                feed_forward: self.norm(1)?,
            },
            Form::PreNormGated => Norms::Pre {
                attention: if normalized {
                    None
                } else {
                    Some(self.norm(0)?)
                },
                feed_forward: self.norm(1)?,
            },
        };
        let (gate, down) = match self.form {
            Form::PostNorm => (None, 4),
            Form::PostNormGated | Form::PreNormGated => (Some(self.matrix(4)?), 5),
        };
        Ok(Layer {
            qkv: self.qkv()?,
            projection: self.matrix(2)?,
            norms,
            up: self.matrix(3)?,
            activation,
            gate,
            down: self.matrix(down)?,
        })
    }

    fn qkv(&self) -> ort::Result<QkvProjection<'_, P::Matrix<'_>>> {
        let Attributes { heads, window, .. } = *self.attributes;
        let size = self.shape()?[1] / heads;
        Ok(QkvProjection {
            query: self.matrix(0)?,
            key_value: self.matrix(1)?,
            heads,
            positions: self
                .positions
                .encoding(window, (heads, size), self.lengths()?)?,
        })
    }

    fn matrix(&self, index: usize) -> ort::Result<P::Matrix<'_>> {
        let first = Self::behind_matrices(index);
        P::matrix(&self.values[first..first + P::MATRIX.len()])
    }

    fn norm(&self, index: usize) -> ort::Result<LayerNorm<'_>> {
        let first = Self::behind_matrices(self.form.matrices()) + index * 2;
        Ok(LayerNorm {
            gamma: floats(&self.values, first)?,
            beta: floats(&self.values, first + 1)?,
            epsilon: self.attributes.epsilon,
        })
    }

    fn input(&self) -> ort::Result<LayerInput<'_>> {
        Ok(LayerInput {
            hidden: floats(&self.values, 0)?,
            lengths: self.lengths()?,
            queries: self.attributes.queries,
        })
    }

    fn shape(&self) -> ort::Result<[usize; 2]> {
        let (shape, _) = self.values[0].try_extract_tensor::<f32>()?;
        Ok([shape[0] as usize, shape[1] as usize])
    }

    fn lengths(&self) -> ort::Result<&[i32]> {
        Ok(self.values[1].try_extract_tensor::<i32>()?.1)
    }
}

/// The operator of a layer.
pub(super) struct EncoderLayer<P> {
    pool: ComputePool,
    form: Form,
    products: PhantomData<fn() -> P>,
}

impl<P> EncoderLayer<P> {
    pub(super) fn new(pool: &ComputePool, form: Form) -> Self {
        Self {
            pool: pool.clone(),
            form,
            products: PhantomData,
        }
    }
}

impl<P: EncoderProducts> Operator for EncoderLayer<P> {
    type Kernel<'attr> = EncoderLayerKernel<P>;

    fn name(&self) -> &str {
        P::operator_name(self.form)
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        LayerInputs::<P>::declare(self.form)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(EncoderLayerKernel {
            pool: self.pool.clone(),
            form: self.form,
            attributes: Attributes::read(self.form, context)?,
            products: PhantomData,
        })
    }
}

pub(super) struct EncoderLayerKernel<P> {
    pool: ComputePool,
    form: Form,
    attributes: Attributes,
    products: PhantomData<fn() -> P>,
}

impl<P: GraphProducts> Kernel for EncoderLayerKernel<P> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        between_layers();
        let inputs = LayerInputs::<P>::read(context, self.form, &self.attributes)?;
        let (layer, input) = (inputs.layer()?, inputs.input()?);
        let [tokens, width] = inputs.shape()?;
        let rows = match input.queries {
            Queries::EveryToken => tokens,
            Queries::OnePerSequence => input.lengths.len(),
        };
        let mut output = output(context, [rows, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        // Taken and not borrowed: while this thread waits for a part, it may run another layer.
        let mut scratch = SCRATCH.take();
        layer::forward::<P>(&self.pool, &layer, input, &mut scratch, output);
        SCRATCH.set(scratch);
        Ok(())
    }
}
