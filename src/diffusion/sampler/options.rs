//! What a person may choose about a sampler, beside the scheduler's fields.

use super::Kind;
use super::grid::Grid;
use super::pc::Predictor;
use crate::diffusion::scheduler::{FinalSigmas, VarianceType};
use crate::error::{Error, Result};

/// Choices; `None` is the sampler's own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// Number of steps.
    pub steps: Option<usize>,
    /// DDIM: share of the ancestral noise, 0 to 1.
    pub eta: f64,
    /// DDIM: take eps again from the limited x_0 (diffusers'
    /// `use_clipped_model_output`, off there and here).
    pub clipped_eps: bool,
    /// DDIM: which time a step leads to.
    pub previous: Previous,
    /// Spacing of the steps.
    pub grid: Option<Grid>,
    /// Karras' exponent, 7 by default.
    pub rho: Option<f64>,
    /// Least sigma / signal visited.
    pub sigma_min: Option<f64>,
    /// Largest sigma / signal visited: where sampling starts.
    pub sigma_max: Option<f64>,
    /// Last time visited before the data; the process's own by default.
    pub t_eps: Option<f64>,
    /// Where sampling ends: at the data, or at the last time visited.
    pub end: Option<FinalSigmas>,
    /// Limit of |x_0|; infinite for none.
    pub clip: Option<f64>,
    /// Coordinates in which an ODE is solved.
    pub coordinates: Option<Coordinates>,
    /// DPM-Solver++, UniPC: order.
    pub order: Option<usize>,
    /// DDPM: variance of a step.
    pub variance: Option<VarianceType>,
    /// Reversal: the cumulative eps in place of the step's noise.
    pub literal: bool,
    /// EDM: how much noise is put back.
    pub churn: Churn,
    /// PC: what leads to the next noise level.
    pub predictor: Predictor,
    /// PC: signal-to-noise ratio of the corrector's step.
    pub snr: Option<f64>,
    /// PC, ALD: Langevin steps at a noise level.
    pub n_steps: Option<usize>,
    /// PC: the batch's mean norms, as the reference; an image then depends on its
    /// batch.
    pub batch_norm: bool,
    /// ALD: step size over the noise's variance.
    pub step: Option<f64>,
    /// ODE-RK45: absolute tolerance.
    pub atol: Option<f64>,
    /// ODE-RK45: relative tolerance.
    pub rtol: Option<f64>,
    /// ODE-RK45: most steps of an image, rejected ones counted.
    pub max_steps: Option<usize>,
}

/// Noise that EDM's sampler puts back before each step (Karras et al. 2022, Alg. 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// S_churn: over all steps together.
    pub amount: f64,
    /// S_min: least noise level at which it is put back.
    pub from: f64,
    /// S_max: largest.
    pub to: f64,
    /// S_noise: inflation of the noise put back.
    pub noise: f64,
}

impl Default for Churn {
    /// No churn.
    fn default() -> Self {
        Churn { amount: 0.0, from: 0.0, to: f64::INFINITY, noise: 1.0 }
    }
}

/// Which time a DDIM step leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Previous {
    /// The next time of the grid: the one the next step starts from.
    #[default]
    Grid,
    /// `t - T / N` rounded down, as diffusers has it. It misses the next step's
    /// start wherever the grid is not that regular: `linspace`, and `trailing`
    /// when N does not divide T (huggingface/diffusers#11347). To compare only.
    Ratio,
}

/// In which coordinates an ODE is solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinates {
    /// x / signal, whose noise level is std / signal: there dx/dsigma = eps, and
    /// diffusers' Euler and Heun work there.
    Scaled,
    /// The process's own x.
    Process,
}

/// Keys of `--set sampler.KEY=VALUE` with the samplers that take them.
const KEYS: &[(&str, &[Kind])] = {
    use Kind::*;
    &[
        ("grid", &Kind::ALL),
        ("rho", &Kind::ALL),
        ("sigma_min", &Kind::ALL),
        ("sigma_max", &Kind::ALL),
        ("t_eps", &Kind::ALL),
        ("end", &Kind::ALL),
        ("clip", &Kind::ALL),
        ("clipped_eps", &[Ddim]),
        ("previous", &[Ddim]),
        ("variance", &[Ddpm]),
        ("literal", &[Reversal]),
        ("coordinates", &[OdeEuler, OdeHeun]),
        ("order", &[Dpmpp2m, DpmppSde2m, UniPc]),
        ("s_churn", &[Edm]),
        ("s_min", &[Edm]),
        ("s_max", &[Edm]),
        ("s_noise", &[Edm]),
        ("predictor", &[Pc]),
        ("snr", &[Pc]),
        ("n_steps", &[Pc, Ald]),
        ("batch_norm", &[Pc]),
        ("step", &[Ald]),
        ("atol", &[OdeRk45]),
        ("rtol", &[OdeRk45]),
        ("max_steps", &[OdeRk45]),
    ]
};

impl Options {
    /// Sets one key of `--set sampler.KEY=VALUE`.
    ///
    /// # Errors
    /// The key is not known, is none of this sampler's, or the value is none of
    /// its own.
    pub fn set(&mut self, kind: Kind, key: &str, value: &str) -> Result<()> {
        let wrong = |problem: String| Error::config(format!("sampler.{key}"), problem);
        let Some((_, kinds)) = KEYS.iter().find(|(known, _)| *known == key) else {
            let known: Vec<_> =
                KEYS.iter().filter(|(_, of)| of.contains(&kind)).map(|(key, _)| *key).collect();
            return Err(wrong(format!(
                "unknown key; {} takes sampler.{}",
                kind.name(),
                known.join(", sampler.")
            )));
        };
        if !kinds.contains(&kind) {
            let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
            return Err(wrong(format!(
                "is a choice of {}, not of {}",
                names.join(", "),
                kind.name()
            )));
        }
        let flag = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(wrong(format!("`{value}` is neither true nor false"))),
        };
        let number = |fits: fn(f64) -> bool, range: &str| match value.parse::<f64>() {
            Ok(number) if fits(number) => Ok(number),
            _ => Err(wrong(format!("`{value}` is not a number {range}"))),
        };
        let positive = || number(|v| v > 0.0 && v.is_finite(), "above 0");
        let not_negative = || number(|v| v >= 0.0, "of at least 0");
        let one_of = |names: &[&str]| {
            let found = names.iter().position(|name| *name == value);
            found.ok_or_else(|| wrong(format!("`{value}` is none of {}", names.join(", "))))
        };
        match key {
            "grid" => self.grid = Some(Grid::ALL[one_of(&Grid::ALL.map(Grid::name))?]),
            "rho" => self.rho = Some(positive()?),
            "sigma_min" => self.sigma_min = Some(positive()?),
            "sigma_max" => self.sigma_max = Some(positive()?),
            "t_eps" => self.t_eps = Some(positive()?),
            "end" => {
                let ends = [FinalSigmas::Zero, FinalSigmas::SigmaMin];
                self.end = Some(ends[one_of(&["data", "t_eps"])?]);
            }
            "clip" if value == "none" => self.clip = Some(f64::INFINITY),
            "clip" => self.clip = Some(positive()?),
            "clipped_eps" => self.clipped_eps = flag()?,
            "previous" => {
                self.previous = [Previous::Grid, Previous::Ratio][one_of(&["grid", "ratio"])?]
            }
            "variance" => {
                let value = serde_json::Value::String(value.into());
                let variance = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
                self.variance = Some(variance);
            }
            "literal" => self.literal = flag()?,
            "coordinates" => {
                let all = [Coordinates::Scaled, Coordinates::Process];
                self.coordinates = Some(all[one_of(&["scaled", "process"])?]);
            }
            "order" => {
                let order = value.parse().ok().filter(|order| (1..=6).contains(order));
                let order = order.ok_or_else(|| wrong(format!("`{value}` is not 1 to 6")))?;
                self.order = Some(order);
            }
            "s_churn" => self.churn.amount = not_negative()?,
            "s_min" => self.churn.from = not_negative()?,
            "s_max" => self.churn.to = not_negative()?,
            "s_noise" => self.churn.noise = positive()?,
            "predictor" => {
                self.predictor = Predictor::ALL[one_of(&Predictor::ALL.map(Predictor::name))?];
            }
            "snr" => self.snr = Some(number(|v| v > 0.0 && v < 1.0, "between 0 and 1")?),
            "n_steps" => {
                let least = if kind == Kind::Ald { 1 } else { 0 };
                let steps = value.parse().ok().filter(|n| (least..=1000).contains(n));
                let steps =
                    steps.ok_or_else(|| wrong(format!("`{value}` is not {least} to 1000")))?;
                self.n_steps = Some(steps);
            }
            "batch_norm" => self.batch_norm = flag()?,
            "step" => self.step = Some(number(|v| v > 0.0 && v < 4.0, "above 0 and below 4")?),
            "atol" => self.atol = Some(positive()?),
            "rtol" => self.rtol = Some(not_negative()?),
            "max_steps" => {
                let steps = value.parse().ok().filter(|&steps: &usize| steps > 0);
                let steps = steps.ok_or_else(|| wrong(format!("`{value}` is not 1 or more")))?;
                self.max_steps = Some(steps);
            }
            _ => unreachable!("every key of the list is set"),
        }
        Ok(())
    }
}
