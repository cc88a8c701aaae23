//! Rotary position embeddings: how far each plane of a head turns from one position to the next.

use std::f64::consts::PI;

use super::ModelError;
use super::json::Object;

/// The base of transformers where a model names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Rotary position embeddings of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Base of the wavelengths; above 1.
    pub theta: f64,
    /// How they are stretched for long texts.
    pub scaling: Scaling,
}

/// How wavelengths are stretched. Factors are positive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// All by a factor, short ones less than long ones (NTK-aware), as in GTE's code.
    Ntk {
        /// The factor; above 1.
        factor: f64,
        /// The exponent by which stretching grows with the plane ("mixed"); without it, the base is stretched.
        mixed: Option<f64>,
    },
    /// Long ones by a factor, as in Llama 3.1.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low: f64,
        /// Wavelengths below `original / high` are not.
        high: f64,
        /// Positions that the model was trained with first.
        original: f64,
    },
    /// YaRN: those that turn seldom by a factor, and attention sharpened.
    Yarn {
        /// The factor.
        factor: f64,
        /// Multiplied into cosines and sines.
        magnitude: f64,
        /// Planes that turn more often than this are not stretched.
        fast: f64,
        /// Planes that turn less often than this are stretched in full.
        slow: f64,
        /// Positions that the model was trained with first.
        original: f64,
        /// Whether the limits between them are whole planes.
        truncate: bool,
    },
}

impl Rotary {
    /// Reads `rope_parameters`, or the former `rope_scaling` and `rope_theta`.
    pub(super) fn read(config: &Object, max_positions: usize) -> Result<Self, ModelError> {
        let former = config.object("rope_scaling")?;
        let former = former.filter(|parameters| parameters.names().next().is_some());
        let parameters = match former {
            Some(parameters) => Some(parameters),
            None => config.object("rope_parameters")?,
        };
        let theta = match &parameters {
            Some(parameters) => parameters.number("rope_theta")?,
            None => None,
        };
        let theta = match theta {
            Some(theta) => theta,
            None => config.number("rope_theta")?.unwrap_or(DEFAULT_THETA),
        };
        if !(theta.is_finite() && theta > 1.0) {
            return Err(config.invalid("rope_theta", &format!("is {theta}; it must be above 1")));
        }
        let scaling = match &parameters {
            Some(parameters) => {
                let original = match config.number("original_max_position_embeddings")? {
                    Some(original) => original,
                    None => parameters
                        .number("original_max_position_embeddings")?
                        .unwrap_or(max_positions as f64),
                };
                scaling(parameters, original, max_positions)?
            }
            None => Scaling::None,
        };
        Ok(Self { theta, scaling })
    }

    /// Reads `rope_theta` and `rope_scaling` of GTE, whose code knows no scaling but `ntk`.
    pub(super) fn read_gte(config: &Object) -> Result<Self, ModelError> {
        let scaling = config.object("rope_scaling")?;
        let kind = match &scaling {
            Some(scaling) => scaling.text("type")?,
            None => None,
        };
        let theta = config.number("rope_theta")?.unwrap_or(DEFAULT_THETA);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(config.invalid("rope_theta", &format!("is {theta}; it must be above 1")));
        }
        let scaling = match (&scaling, kind) {
            (Some(scaling), Some("ntk")) => scaling,
            (Some(scaling), kind) if scaling.names().next().is_some() => {
                let kind = kind.unwrap_or("missing");
                return Err(
                    scaling.unsupported("type", &format!("is `{kind}`; only `ntk` is supported"))
                );
            }
            _ => {
                return Ok(Self {
                    theta,
                    scaling: Scaling::None,
                });
            }
        };
        let factor = scaling.number("factor")?.unwrap_or(0.0);
        if !(factor.is_finite() && factor >= 1.0) {
            return Err(scaling.invalid("factor", &format!("is {factor}; it must be at least 1")));
        }
        let mixed = scaling.number("mixed_b")?;
        Ok(Self {
            theta,
            scaling: match factor > 1.0 {
                true => Scaling::Ntk { factor, mixed },
                false => Scaling::None,
            },
        })
    }

    /// Cosines, then sines, of each position, `[positions, size]`, for heads of `size` numbers.
    pub fn table(&self, positions: usize, size: usize) -> Vec<f32> {
        let frequencies = self.frequencies(size);
        let magnitude = match self.scaling {
            Scaling::Yarn { magnitude, .. } => magnitude as f32,
            _ => 1.0,
        };
        let mut table = Vec::with_capacity(positions * size);
        for position in 0..positions {
            // In f32, as the reference implementation.
            let angles = frequencies.iter().map(|f| f64::from(position as f32 * f));
            table.extend(angles.clone().map(|angle| angle.cos() as f32 * magnitude));
            table.extend(angles.map(|angle| angle.sin() as f32 * magnitude));
        }
        table
    }

    /// Radians from one position to the next, of each plane, in f32 as the reference implementation.
    fn frequencies(&self, size: usize) -> Vec<f32> {
        let base = match self.scaling {
            Scaling::Ntk {
                factor,
                mixed: None,
            } => self.theta * factor,
            _ => self.theta,
        };
        let wavelengths = (0..size / 2).map(|plane| {
            let exponent = (2 * plane) as f32 / size as f32;
            base.powf(f64::from(exponent)) as f32
        });
        match self.scaling {
            Scaling::None => wavelengths.map(|wave| 1.0 / wave).collect(),
            Scaling::Linear { factor } => {
                wavelengths.map(|wave| 1.0 / wave / factor as f32).collect()
            }
            Scaling::Ntk { factor, mixed } => {
                let planes = size as f64 / 2.0;
                let stretched = |(plane, wave): (usize, f32)| {
                    let stretch = match mixed {
                        None => factor.powf(1.0 / planes),
                        Some(exponent) => {
                            let share = ((plane + 1) as f64 / planes).powf(exponent);
                            factor.powf(share)
                        }
                    };
                    1.0 / wave / stretch as f32
                };
                wavelengths.enumerate().map(stretched).collect()
            }
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => wavelengths
                .map(|wave| {
                    let frequency = f64::from(1.0 / wave);
                    let length = 2.0 * PI / frequency;
                    let smooth = (original / length - low) / (high - low);
                    let scaled = if length > original / low {
                        frequency / factor
                    } else if length < original / high {
                        frequency
                    } else {
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    };
                    scaled as f32
                })
                .collect(),
            Scaling::Yarn {
                factor,
                fast,
                slow,
                original,
                truncate,
                ..
            } => {
                // The plane that turns so often within the original positions.
                let plane = |turns: f64| {
                    size as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut from, mut to) = (plane(fast), plane(slow));
                if truncate {
                    (from, to) = (from.floor(), to.ceil());
                }
                let (from, mut to) = (from.max(0.0), to.min(size as f64 - 1.0));
                if from == to {
                    to += 0.001;
                }
                let ramp = |plane: usize| ((plane as f64 - from) / (to - from)).clamp(0.0, 1.0);
                let stretched = |(plane, wave): (usize, f32)| {
                    let (wave, ramp) = (f64::from(wave), ramp(plane));
                    (ramp / (factor * wave) + (1.0 - ramp) / wave) as f32
                };
                wavelengths.enumerate().map(stretched).collect()
            }
        }
    }
}

fn scaling(
    parameters: &Object,
    original: f64,
    max_positions: usize,
) -> Result<Scaling, ModelError> {
    if parameters.number("partial_rotary_factor")?.unwrap_or(1.0) != 1.0 {
        return Err(parameters.unsupported(
            "partial_rotary_factor",
            "is set; only rotary embeddings of whole heads are supported",
        ));
    }
    let kind = match parameters.text("rope_type")? {
        Some(kind) => Some(kind),
        None => parameters.text("type")?,
    };
    let positive = |field: &str, default: Option<f64>| {
        let number = parameters.number(field)?.or(default);
        match number {
            Some(number) if number.is_finite() && number > 0.0 => Ok(number),
            Some(number) => {
                Err(parameters.invalid(field, &format!("is {number}; it must be positive")))
            }
            None => Err(parameters.invalid(field, "is missing")),
        }
    };
    if !(original.is_finite() && original >= 1.0) {
        return Err(parameters.invalid(
            "original_max_position_embeddings",
            &format!("is {original}; it must be a positive integer"),
        ));
    }
    match kind.unwrap_or("default") {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear {
            factor: positive("factor", None)?,
        }),
        "llama3" => {
            let low = positive("low_freq_factor", None)?;
            let high = positive("high_freq_factor", None)?;
            if high <= low {
                return Err(parameters.invalid(
                    "high_freq_factor",
                    &format!("is {high}; it must be above `low_freq_factor` {low}"),
                ));
            }
            Ok(Scaling::Llama3 {
                factor: positive("factor", None)?,
                low,
                high,
                original,
            })
        }
        "yarn" => {
            let factor = positive("factor", Some(max_positions as f64 / original))?;
            // The reference takes 0 for unset.
            let or_default = |field, default| match parameters.number(field)? {
                Some(0.0) => Ok(default),
                _ => positive(field, Some(default)),
            };
            Ok(Scaling::Yarn {
                factor,
                magnitude: magnitude(parameters, factor)?,
                fast: or_default("beta_fast", 32.0)?,
                slow: or_default("beta_slow", 1.0)?,
                original,
                truncate: parameters.flag("truncate")?.unwrap_or(true),
            })
        }
        other => Err(parameters.unsupported(
            "rope_type",
            &format!("is `{other}`; supported are `default`, `linear`, `llama3` and `yarn`"),
        )),
    }
}

/// What YaRN multiplies cosines and sines by.
fn magnitude(parameters: &Object, factor: f64) -> Result<f64, ModelError> {
    let scale = |weight: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * weight * factor.ln() + 1.0,
    };
    if let Some(given) = parameters.number("attention_factor")? {
        return Ok(given);
    }
    let weight = |field| Ok::<_, ModelError>(parameters.number(field)?.unwrap_or(0.0));
    let (some, all) = (weight("mscale")?, weight("mscale_all_dim")?);
    Ok(match some != 0.0 && all != 0.0 {
        true => scale(some) / scale(all),
        false => scale(1.0),
    })
}
