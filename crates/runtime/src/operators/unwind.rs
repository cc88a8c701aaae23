//! Keeps panics from unwinding into ONNX Runtime.
//!
//! ONNX Runtime calls operators through `extern "system"` functions, and a panic that reaches one aborts the
//! process. Every operator is registered through [`CatchUnwind`], the only place where a panic becomes an
//! error of the run.

use std::any::Any;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};

/// An operator whose callbacks return an error where the inner one panics.
pub(super) struct CatchUnwind<O>(pub(super) O);

impl<O: Operator> Operator for CatchUnwind<O> {
    type Kernel<'attr> = CatchUnwindKernel<O::Kernel<'attr>>;

    const INPLACES: &[(u32, u32)] = O::INPLACES;
    const ALIASES: &[(u32, u32)] = O::ALIASES;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn versions(&self) -> RangeInclusive<u32> {
        self.0.versions()
    }

    fn execution_provider_type(&self) -> Option<&str> {
        self.0.execution_provider_type()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.0.inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.0.outputs()
    }

    fn create_kernel<'attr>(
        &self,
        context: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        Ok(CatchUnwindKernel {
            operator: self.name().to_owned(),
            kernel: guard(self.name(), || self.0.create_kernel(context))?,
        })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        guard(self.name(), || self.0.infer_shape(context))
    }
}

pub(super) struct CatchUnwindKernel<K> {
    operator: String,
    kernel: K,
}

impl<K: Kernel> Kernel for CatchUnwindKernel<K> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guard(&self.operator, || self.kernel.compute(context))
    }
}

/// Runs a callback of `operator`. Kernels overwrite their scratch memory before they read it, so one that
/// panicked can run again.
fn guard<T>(operator: &str, callback: impl FnOnce() -> ort::Result<T>) -> ort::Result<T> {
    catch_unwind(AssertUnwindSafe(callback)).unwrap_or_else(|payload| {
        let reason = message(&*payload);
        Err(ort::Error::new(format!(
            "operator `{operator}` panicked: {reason}"
        )))
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::super::{floats, inputs, number, one_output, open, output, register, required};
    use super::*;
    use crate::library::Library;
    use ort::operator::OperatorDomain;
    use ort::session::Session;
    use ort::value::{TensorElementType, TensorRef};
    use rerankd_model::graph::builder::{Dim, GraphBuilder};
    use rerankd_model::graph::operator::DOMAIN;
    use rerankd_model::onnx::{AttributeProto, DataType};

    /// Panics when its kernel is created with `fail` set, and when its input is negative.
    struct Panics;

    impl Operator for Panics {
        type Kernel<'attr> = PanicsKernel;

        fn name(&self) -> &str {
            "Panics"
        }

        fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
            required([TensorElementType::Float32])
        }

        fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
            one_output()
        }

        fn create_kernel<'attr>(
            &self,
            context: &KernelContext<'attr>,
        ) -> ort::Result<PanicsKernel> {
            assert!(number(context, "fail")? == 0, "planted in creation");
            Ok(PanicsKernel)
        }
    }

    struct PanicsKernel;

    impl Kernel for PanicsKernel {
        fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
            let inputs = inputs(context, 1)?;
            let x = floats(&inputs, 0)?;
            assert!(x[0] >= 0.0, "planted in computation");
            let mut output = output(context, [1, 1])?;
            output.try_extract_tensor_mut::<f32>()?.1[0] = x[0];
            Ok(())
        }
    }

    fn session(fail: bool) -> ort::Result<Session> {
        let library = Library::load(std::env::var_os("ORT_DYLIB_PATH").as_deref()).unwrap();
        let mut graph = GraphBuilder::default();
        let shape = [Dim::Fixed(1), Dim::Fixed(1)];
        let x = graph.input("x", DataType::Float, &shape);
        let attributes = [AttributeProto::int("fail", i64::from(fail))];
        let y = graph.node("panics", DOMAIN, "Panics", &[&x], &attributes);
        graph.output("y", &y, DataType::Float, &shape);
        let domain = register(OperatorDomain::new(DOMAIN)?, Panics)?;
        let builder = Session::builder(&library.environment)?;
        open(builder, domain, &graph.finish("panics").model)
    }

    fn run(session: &mut Session, x: f32) -> ort::Result<f32> {
        let x = [x];
        let inputs = ort::inputs!["x" => TensorRef::from_array_view(([1_usize, 1], &x[..]))?];
        let outputs = session.run(inputs)?;
        Ok(outputs["y"].try_extract_tensor::<f32>()?.1[0])
    }

    #[test]
    fn a_panic_in_a_kernel_fails_its_run_and_the_next_one_works() {
        let mut session = session(false).unwrap();
        let error = run(&mut session, -1.0).unwrap_err().to_string();
        assert!(
            error.contains("operator `Panics` panicked: planted in computation"),
            "{error}"
        );
        assert_eq!(run(&mut session, 3.0).unwrap(), 3.0);
    }

    #[test]
    fn a_panic_while_a_kernel_is_created_fails_the_session() {
        let error = session(true).err().unwrap().to_string();
        assert!(error.contains("planted in creation"), "{error}");
    }
}
