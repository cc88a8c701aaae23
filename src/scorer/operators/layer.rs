//! A layer of the encoder as one operator, in each arithmetic.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::thread::LocalKey;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

use super::{
    PlaceInputs, check_lengths, epsilon, floats, inputs, missing_attribute, one_output, output,
    place_inputs, required, window,
};
use crate::graph::operator;
use crate::scorer::attention::Queries;
use crate::scorer::elementary::Finish;
use crate::scorer::fp32::{self, Fp32};
use crate::scorer::isa::Path;
use crate::scorer::layer::{self, Input, Layer, Products, Scratch};
use crate::scorer::norm::LayerNorm;
use crate::scorer::quantized::{self, Int8};

/// How an arithmetic is called in a graph.
pub(super) trait Named: Products + 'static {
    /// The operator.
    const NAME: &'static str;
    /// The one of the form with a gate.
    const GATED_NAME: &'static str;
    /// What its inputs have of each dense layer.
    const MATRIX: &'static [TensorElementType];

    /// A dense layer, of so many inputs.
    fn matrix<'a>(inputs: &'a [ValueRef<'_>]) -> ort::Result<Self::Matrix<'a>>;

    /// A thread runs one layer after the other, and they share the memory.
    fn scratch() -> &'static LocalKey<RefCell<Scratch<Self>>>;
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

    fn scratch() -> &'static LocalKey<RefCell<Scratch<Self>>> {
        thread_local!(static SCRATCH: RefCell<Scratch<Int8>> = RefCell::default());
        &SCRATCH
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

    fn scratch() -> &'static LocalKey<RefCell<Scratch<Self>>> {
        thread_local!(static SCRATCH: RefCell<Scratch<Fp32>> = RefCell::default());
        &SCRATCH
    }
}

pub(super) fn activation(number: i64) -> ort::Result<Finish> {
    Ok(match number {
        operator::GELU => Finish::Gelu,
        operator::GELU_TANH => Finish::GeluTanh,
        operator::RELU => Finish::Relu,
        other => return Err(ort::Error::new(format!("activation {other} is unknown"))),
    })
}

pub(super) fn queries(first_of_each: i64) -> Queries {
    match first_of_each {
        0 => Queries::EveryToken,
        _ => Queries::OnePerSequence,
    }
}

/// See [`operator::LAYER`] and [`operator::QUANTIZED_LAYER`].
pub(super) struct EncoderLayer<P> {
    path: Path,
    products: PhantomData<fn() -> P>,
}

impl<P> EncoderLayer<P> {
    pub(super) fn new(path: Path) -> Self {
        Self {
            path,
            products: PhantomData,
        }
    }
}

impl<P: Named> EncoderLayer<P> {
    /// Inputs before the dense layers.
    const ROWS: usize = 2;
    /// Inputs before the LayerNorms.
    const MATRICES: usize = Self::ROWS + operator::MATRICES * P::MATRIX.len();
    /// All inputs.
    const INPUTS: usize = Self::MATRICES + operator::NORMS * 2;
}

impl<P: Named> Operator for EncoderLayer<P> {
    type Kernel<'attr> = EncoderLayerKernel<P>;

    fn name(&self) -> &str {
        P::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let mut types = vec![TensorElementType::Float32, TensorElementType::Int32];
        for _ in 0..operator::MATRICES {
            types.extend(P::MATRIX);
        }
        types.resize(Self::INPUTS, TensorElementType::Float32);
        let mut inputs = required(types);
        inputs.extend(place_inputs());
        inputs
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let number = |name| {
            context
                .get::<i64>(name)
                .ok_or_else(|| missing_attribute(name))
        };
        Ok(EncoderLayerKernel {
            path: self.path,
            products: PhantomData,
            heads: number(operator::HEADS)? as usize,
            window: window(context),
            activation: activation(number(operator::ACTIVATION)?)?,
            queries: queries(number(operator::FIRST_OF_EACH)?),
            epsilon: epsilon(context)?,
        })
    }
}

pub(super) struct EncoderLayerKernel<P> {
    path: Path,
    products: PhantomData<fn() -> P>,
    heads: usize,
    window: Option<usize>,
    activation: Finish,
    queries: Queries,
    epsilon: f32,
}

impl<P: Named> Kernel for EncoderLayerKernel<P> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = inputs(context, EncoderLayer::<P>::INPUTS)?;
        let places = PlaceInputs::read(context, inputs.len())?;
        let (shape, hidden) = inputs[0].try_extract_tensor::<f32>()?;
        let (_, lengths) = inputs[1].try_extract_tensor::<i32>()?;
        let (tokens, width) = (shape[0] as usize, shape[1] as usize);
        check_lengths(lengths, tokens)?;
        let matrix = |index: usize| {
            let first = EncoderLayer::<P>::ROWS + index * P::MATRIX.len();
            P::matrix(&inputs[first..first + P::MATRIX.len()])
        };
        let norm = |index: usize| -> ort::Result<LayerNorm<'_>> {
            let first = EncoderLayer::<P>::MATRICES + index * 2;
            Ok(LayerNorm {
                gamma: floats(&inputs, first)?,
                beta: floats(&inputs, first + 1)?,
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
            places: places.places(self.window, (self.heads, width / self.heads), lengths)?,
        };
        let rows = match self.queries {
            Queries::EveryToken => tokens,
            Queries::OnePerSequence => lengths.len(),
        };
        let mut output = output(context, [rows, width])?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let input = Input {
            hidden,
            lengths,
            queries: self.queries,
        };
        P::scratch()
            .with_borrow_mut(|scratch| layer::forward(self.path, &layer, input, scratch, output))
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}
