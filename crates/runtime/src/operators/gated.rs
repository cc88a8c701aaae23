//! A layer with a gate as one operator, in each arithmetic.

use std::marker::PhantomData;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};

use super::layer::{Fed, Named, Settings, layer_inputs};
use super::{number, one_output};
use rerankd_kernels::hardware::Hardware;
use rerankd_kernels::layer::{self, GatedLayer};
use rerankd_model::graph::operator;

/// See [`operator::GATED_LAYER`].
pub(super) struct GatedEncoderLayer<P> {
    hardware: Hardware,
    products: PhantomData<fn() -> P>,
}

impl<P> GatedEncoderLayer<P> {
    pub(super) fn new(hardware: Hardware) -> Self {
        Self {
            hardware,
            products: PhantomData,
        }
    }
}

impl<P: Named> Operator for GatedEncoderLayer<P> {
    type Kernel<'attr> = GatedKernel<P>;

    fn name(&self) -> &str {
        P::GATED_NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        layer_inputs::<P>(operator::GATED_MATRICES)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        one_output()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(GatedKernel {
            settings: Settings::read(&self.hardware, context)?,
            normed: number(context, operator::NORMED)? != 0,
            products: PhantomData,
        })
    }
}

pub(super) struct GatedKernel<P> {
    settings: Settings,
    normed: bool,
    products: PhantomData<fn() -> P>,
}

impl<P: Named> Kernel for GatedKernel<P> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let Settings {
            ref hardware,
            activation,
            ..
        } = self.settings;
        let fed = Fed::<P>::read(context, operator::GATED_MATRICES, &self.settings)?;
        let layer = GatedLayer {
            attention_norm: match self.normed {
                true => None,
                false => Some(fed.norm(0)?),
            },
            asking: fed.asking()?,
            projection: fed.matrix(2)?,
            inner_norm: fed.norm(1)?,
            up: fed.matrix(3)?,
            activation,
            gate: fed.matrix(4)?,
            down: fed.matrix(5)?,
        };
        fed.run(context, |input, scratch, output| {
            layer::forward_gated::<P>(hardware, &layer, input, scratch, output)
        })
    }
}
