//! A layer of the encoder as one operator, in each arithmetic.

use std::cell::RefCell;
use std::marker::PhantomData;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

use super::{
    PlaceInputs, check_lengths, epsilon, floats, inputs, number, one_output, output, place_inputs,
    required, window,
};
use rerankd_kernels::attention::Queries;
use rerankd_kernels::fp32::{self, Fp32};
use rerankd_kernels::hardware::Hardware;
use rerankd_kernels::layer::Finish;
use rerankd_kernels::layer::{self, Asking, Input, Layer, NotFinite, Products, Scratch};
use rerankd_kernels::norm::LayerNorm;
use rerankd_kernels::quantized::{self, Int8};
use rerankd_model::graph::operator;

/// How an arithmetic is called in a graph.
pub(super) trait Named: Products {
    /// The operator.
    const NAME: &'static str;
    /// The one of the form with a gate.
    const GATED_NAME: &'static str;
    /// What its inputs have of each dense layer.
    const MATRIX: &'static [TensorElementType];

    /// A dense layer, of so many inputs.
    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<Self::Matrix<'a>>;
}

thread_local! {
    /// A thread runs one layer after the other, and they share the memory.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Named for Int8 {
    const NAME: &'static str = operator::QUANTIZED_LAYER;
    const GATED_NAME: &'static str = operator::QUANTIZED_GATED_LAYER;
    const MATRIX: &'static [TensorElementType] = &[
        TensorElementType::Int8,
        TensorElementType::Float32,
        TensorElementType::Int32,
        TensorElementType::Float32,
    ];

    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<quantized::Matrix<'a>> {
        Ok(quantized::Matrix {
            strips: inputs[0].try_extract_tensor::<i8>()?.1,
            scales: floats(inputs, 1)?,
            sums: inputs[2].try_extract_tensor::<i32>()?.1,
            bias: floats(inputs, 3)?,
        })
    }
}

impl Named for Fp32 {
    const NAME: &'static str = operator::LAYER;
    const GATED_NAME: &'static str = operator::GATED_LAYER;
    const MATRIX: &'static [TensorElementType] =
        &[TensorElementType::Float32, TensorElementType::Float32];

    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<fp32::Matrix<'a>> {
        Ok(fp32::Matrix {
            strips: floats(inputs, 0)?,
            bias: floats(inputs, 1)?,
        })
    }
}

fn activation(number: i64) -> ort::Result<Finish> {
    Ok(match number {
        operator::GELU => Finish::Gelu,
        operator::GELU_TANH => Finish::GeluTanh,
        operator::RELU => Finish::Relu,
        other => return Err(ort::Error::new(format!("activation {other} is unknown"))),
    })
}

/// What both forms of a layer are told by attributes.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) hardware: Hardware,
    heads: usize,
    pub(super) activation: Finish,
    window: Option<usize>,
    queries: Queries,
    epsilon: f32,
}

impl Settings {
    pub(super) fn read(hardware: &Hardware, context: &KernelContext<'_>) -> ort::Result<Self> {
        Ok(Self {
            hardware: hardware.clone(),
            heads: number(context, operator::HEADS)? as usize,
            activation: activation(number(context, operator::ACTIVATION)?)?,
            window: window(context),
            queries: match number(context, operator::FIRST_OF_EACH)? {
                0 => Queries::EveryToken,
                _ => Queries::OnePerSequence,
            },
            epsilon: epsilon(context)?,
        })
    }
}

/// Inputs of a layer before its dense layers.
const ROWS: usize = 2;

/// Those before its LayerNorms.
const fn before_norms<P: Named>(matrices: usize) -> usize {
    ROWS + matrices * P::MATRIX.len()
}

/// The inputs of a layer with so many dense layers.
pub(super) fn layer_inputs<P: Named>(matrices: usize) -> Vec<OperatorInput> {
    let mut types = vec![TensorElementType::Float32, TensorElementType::Int32];
    for _ in 0..matrices {
        types.extend(P::MATRIX);
    }
    types.extend([TensorElementType::Float32; operator::NORMS * 2]);
    let mut inputs = required(types);
    inputs.extend(place_inputs());
    inputs
}

/// What was fed to a layer.
pub(super) struct Fed<'a, P> {
    values: Vec<ValueRef<'a>>,
    places: PlaceInputs<'a>,
    matrices: usize,
    settings: &'a Settings,
    products: PhantomData<fn() -> P>,
}

impl<'a, P: Named> Fed<'a, P> {
    /// Reads the inputs of a layer with so many dense layers.
    pub(super) fn read(
        context: &'a ComputeContext,
        matrices: usize,
        settings: &'a Settings,
    ) -> ort::Result<Self> {
        let count = before_norms::<P>(matrices) + operator::NORMS * 2;
        let values = inputs(context, count)?;
        let places = PlaceInputs::read(context, count)?;
        let fed = Self {
            values,
            places,
            matrices,
            settings,
            products: PhantomData,
        };
        check_lengths(fed.lengths()?, fed.shape()?[0])?;
        Ok(fed)
    }

    pub(super) fn matrix(&self, index: usize) -> ort::Result<P::Matrix<'_>> {
        let first = before_norms::<P>(index);
        P::matrix(&self.values[first..first + P::MATRIX.len()])
    }

    pub(super) fn norm(&self, index: usize) -> ort::Result<LayerNorm<'_>> {
        let first = before_norms::<P>(self.matrices) + index * 2;
        Ok(LayerNorm {
            gamma: floats(&self.values, first)?,
            beta: floats(&self.values, first + 1)?,
            epsilon: self.settings.epsilon,
        })
    }

    /// The first two dense layers, and what attention is told beside them.
    pub(super) fn asking(&self) -> ort::Result<Asking<'_, P::Matrix<'_>>> {
        let Settings { heads, window, .. } = *self.settings;
        let size = self.shape()?[1] / heads;
        Ok(Asking {
            query: self.matrix(0)?,
            keys: self.matrix(1)?,
            heads,
            places: self.places.places(window, (heads, size), self.lengths()?)?,
        })
    }

    /// Has `forward` write the output.
    pub(super) fn run(
        &self,
        context: &ComputeContext,
        forward: impl FnOnce(Input<'_>, &mut Scratch, &mut [f32]) -> Result<(), NotFinite>,
    ) -> ort::Result<()> {
        let [tokens, width] = self.shape()?;
        let input = Input {
            hidden: floats(&self.values, 0)?,
            lengths: self.lengths()?,
            queries: self.settings.queries,
        };
        let rows = match input.queries {
            Queries::EveryToken => tokens,
            Queries::OnePerSequence => input.lengths.len(),
        };
        let mut output = output(context, [rows, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        // Taken and not borrowed: while this thread waits for a part, it may run another layer.
        let mut scratch = SCRATCH.take();
        let done = forward(input, &mut scratch, output);
        SCRATCH.set(scratch);
        done.map_err(|error| ort::Error::new(error.to_string()))
    }

    fn shape(&self) -> ort::Result<[usize; 2]> {
        let (shape, _) = self.values[0].try_extract_tensor::<f32>()?;
        Ok([shape[0] as usize, shape[1] as usize])
    }

    fn lengths(&self) -> ort::Result<&[i32]> {
        Ok(self.values[1].try_extract_tensor::<i32>()?.1)
    }
}

/// See [`operator::LAYER`] and [`operator::QUANTIZED_LAYER`].
pub(super) struct EncoderLayer<P> {
    hardware: Hardware,
    products: PhantomData<fn() -> P>,
}

impl<P> EncoderLayer<P> {
    pub(super) fn new(hardware: Hardware) -> Self {
        Self {
            hardware,
            products: PhantomData,
        }
    }
}

impl<P: Named> Operator for EncoderLayer<P> {
    type Kernel<'attr> = EncoderLayerKernel<P>;

    fn name(&self) -> &str {
        P::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        layer_inputs::<P>(operator::MATRICES)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(EncoderLayerKernel {
            settings: Settings::read(&self.hardware, context)?,
            products: PhantomData,
        })
    }
}

pub(super) struct EncoderLayerKernel<P> {
    settings: Settings,
    products: PhantomData<fn() -> P>,
}

impl<P: Named> Kernel for EncoderLayerKernel<P> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let Settings {
            ref hardware,
            activation,
            ..
        } = self.settings;
        let fed = Fed::<P>::read(context, operator::MATRICES, &self.settings)?;
        let layer = Layer {
            asking: fed.asking()?,
            projection: fed.matrix(2)?,
            up: fed.matrix(3)?,
            down: fed.matrix(4)?,
            attention_norm: fed.norm(0)?,
            output_norm: fed.norm(1)?,
            activation,
        };
        fed.run(context, |input, scratch, output| {
            layer::forward::<P>(hardware, &layer, input, scratch, output)
        })
    }
}
