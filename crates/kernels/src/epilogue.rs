//! Epilogues: what is done to the outputs of a matrix product before they are written.

/// The activation fused into a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// None.
    Identity,
    /// GELU by the error function: `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// SiLU (swish): `x / (1 + e^-x)`.
    Silu,
}

/// Evaluates an expression with the function of an [`Epilogue`], inlined into it. `$gelu` is the GELU that is
/// exact enough for the arithmetic.
macro_rules! with_epilogue {
    ($epilogue:expr, $isa:ty, $gelu:expr, |$function:ident| $result:expr) => {
        match $epilogue {
            $crate::epilogue::Epilogue::Identity => {
                let $function = |x: f32| x;
                $result
            }
            $crate::epilogue::Epilogue::Gelu => {
                let $function = $gelu;
                $result
            }
            $crate::epilogue::Epilogue::GeluTanh => {
                let $function = $crate::elementary::gelu_tanh::<$isa>;
                $result
            }
            $crate::epilogue::Epilogue::Relu => {
                let $function = $crate::elementary::relu;
                $result
            }
            $crate::epilogue::Epilogue::Silu => {
                let $function = $crate::elementary::silu::<$isa>;
                $result
            }
        }
    };
}
pub(crate) use with_epilogue;
