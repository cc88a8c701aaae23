//! A layer with a gate as one operator, in each arithmetic.

use std::marker::PhantomData;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::layer::{Named, activation, queries};
use super::{
    PlaceInputs, check_lengths, epsilon, floats, inputs, missing_attribute, one_output, output,
    place_inputs, required, window,
};
use crate::graph::operator;
use crate::scorer::attention::Queries;
use crate::scorer::elementary::Finish;
use crate::scorer::isa::Path;
use crate::scorer::layer::{self, GatedLayer, Input};
use crate::scorer::norm::LayerNorm;

/// See [`operator::GATED_LAYER`].
pub(super) struct GatedEncoderLayer<P> {
    path: Path,
    products: PhantomData<fn() -> P>,
}

impl<P> GatedEncoderLayer<P> {
    pub(super) fn new(path: Path) -> Self {
        Self {
            path,
            products: PhantomData,
        }
    }
}

impl<P: Named> GatedEncoderLayer<P> {
    /// Inputs before the dense layers.
    const ROWS: usize = 2;
    /// Inputs before the LayerNorms.
    const MATRICES: usize = Self::ROWS + operator::GATED_MATRICES * P::MATRIX.len();
    /// All inputs.
    const INPUTS: usize = Self::MATRICES + operator::NORMS * 2;
}

impl<P: Named> Operator for GatedEncoderLayer<P> {
    type Kernel<'attr> = GatedKernel<P>;

    fn name(&self) -> &str {
        P::GATED_NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let mut types = vec![TensorElementType::Float32, TensorElementType::Int32];
        for _ in 0..operator::GATED_MATRICES {
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
        Ok(GatedKernel {
            path: self.path,
            products: PhantomData,
            heads: number(operator::HEADS)? as usize,
            window: window(context),
            activation: activation(number(operator::ACTIVATION)?)?,
            queries: queries(number(operator::FIRST_OF_EACH)?),
            normed: number(operator::NORMED)? != 0,
            epsilon: epsilon(context)?,
        })
    }
}

pub(super) struct GatedKernel<P> {
    path: Path,
    products: PhantomData<fn() -> P>,
    heads: usize,
    window: Option<usize>,
    activation: Finish,
    queries: Queries,
    normed: bool,
    epsilon: f32,
}

impl<P: Named> Kernel for GatedKernel<P> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = inputs(context, GatedEncoderLayer::<P>::INPUTS)?;
        let places = PlaceInputs::read(context, inputs.len())?;
        let (shape, hidden) = inputs[0].try_extract_tensor::<f32>()?;
        let (_, lengths) = inputs[1].try_extract_tensor::<i32>()?;
        let (tokens, width) = (shape[0] as usize, shape[1] as usize);
        check_lengths(lengths, tokens)?;
        let matrix = |index: usize| {
            let first = GatedEncoderLayer::<P>::ROWS + index * P::MATRIX.len();
            P::matrix(&inputs[first..first + P::MATRIX.len()])
        };
        let norm = |index: usize| -> ort::Result<LayerNorm<'_>> {
            let first = GatedEncoderLayer::<P>::MATRICES + index * 2;
            Ok(LayerNorm {
                gamma: floats(&inputs, first)?,
                beta: floats(&inputs, first + 1)?,
                epsilon: self.epsilon,
            })
        };
        let layer = GatedLayer {
            attention_norm: match self.normed {
                true => None,
                false => Some(norm(0)?),
            },
            query: matrix(0)?,
            keys: matrix(1)?,
            projection: matrix(2)?,
            inner_norm: norm(1)?,
            up: matrix(3)?,
            activation: self.activation,
            gate: matrix(4)?,
            down: matrix(5)?,
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
            .with_borrow_mut(|scratch| {
                layer::forward_gated(self.path, &layer, input, scratch, output)
            })
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}
