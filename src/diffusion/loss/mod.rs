//! Training: times, targets and weights, as the rows of coefficients that
//! [`ops::noising`](crate::ops::noising), [`ops::loss`](crate::ops::loss) and
//! [`ops::variational`](crate::ops::variational) read.
//!
//! With the network's answer F, x_0 = a x + X F and eps = b x + E F
//! ([`Denoiser::at`]). An error of F is X times that of x_0 and E times that of
//! eps, so that a squared error of anything is one of F by a weight of the time.

mod config;
mod times;

pub use config::{Lambda, LossConfig, LossKind, TimesKind};
pub use times::Draw;
use times::{Cells, Times};

use super::denoiser::{Denoiser, Evaluation, Precondition, Prediction, step};
use super::scheduler::VarianceType;
use super::vlb::{Decoder, Step};
use crate::error::{Error, Result};
use crate::ops::noising::coefficient;
use crate::ops::variational::column;

/// EDM's sigma_data where nothing names one.
const SIGMA_DATA: f64 = 0.5;

/// One training example's time and coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Example {
    /// Its time, and what comes with it.
    pub draw: Draw,
    /// What the network is told.
    pub label: f64,
    /// Row of [`ops::noising`](crate::ops::noising) and [`ops::loss`](crate::ops::loss).
    pub row: [f32; coefficient::COLUMNS],
    /// Row of [`ops::variational`](crate::ops::variational), where the loss is one.
    pub variational: [f32; column::COLUMNS],
    /// Two-variable loss: factor of the second noise in the target, whose part
    /// linear in x_0 it takes the place of.
    pub second: f32,
}

/// What is minimised: a denoiser, a loss, a distribution of times.
#[derive(Clone, Debug)]
pub struct Objective {
    denoiser: Denoiser,
    config: LossConfig,
    times: Times,
    variance: VarianceType,
    decoder: Option<Decoder>,
}

impl Objective {
    /// `levels` are the data's, 0 where its values are continuous; `variance` is
    /// the model's.
    ///
    /// # Errors
    /// Values out of range, and a loss that does not fit the process, the
    /// prediction, the variance or the data.
    pub fn new(
        denoiser: Denoiser,
        config: LossConfig,
        variance: VarianceType,
        levels: usize,
    ) -> Result<Objective> {
        let refuse = |key: &str, problem: String| Err(Error::config(key, problem));
        let process = denoiser.process.clone();
        let kind = config.times_for(process.name());
        config.validate(kind)?;
        let name = serde_json::to_value(config.kind).ok();
        let name = name.as_ref().and_then(|n| n.as_str()).unwrap_or_default().to_string();
        let variational = matches!(config.kind, LossKind::Vlb | LossKind::Hybrid);
        let stepwise = matches!(
            config.kind,
            LossKind::PosteriorMean | LossKind::StepNoise | LossKind::TwoVariable
        );
        if (variational || stepwise) && process.steps().is_none() {
            return refuse(
                "loss.kind",
                format!(
                    "`{name}` speaks of the steps of a chain, and the process `{}` is continuous: \
                     set process.kind to table or smld, or loss.kind = score with loss.lambda = g2, \
                     the bound's limit",
                    process.name()
                ),
            );
        }
        if variational && levels < 2 {
            return refuse(
                "loss.kind",
                format!("`{name}` scores the data's levels, and this data is continuous"),
            );
        }
        match variance {
            VarianceType::Learned => {
                return refuse(
                    "scheduler.variance_type",
                    "`learned` takes a network's output for the variance itself, which nothing \
                     keeps above 0 in training: use learned_range"
                        .into(),
                );
            }
            VarianceType::LearnedRange if !variational => {
                return refuse(
                    "loss.kind",
                    format!(
                        "`{name}` teaches no variance, and scheduler.variance_type is \
                         learned_range: set loss.kind to hybrid or vlb"
                    ),
                );
            }
            VarianceType::LearnedRange => {}
            _ if config.kind == LossKind::Hybrid => {
                return refuse(
                    "loss.kind",
                    "`hybrid` teaches the variance: set scheduler.variance_type = learned_range, \
                     and twice the data's channels in model.out_channels"
                        .into(),
                );
            }
            _ => {}
        }
        if config.kind == LossKind::TwoVariable
            && !matches!(denoiser.prediction, Prediction::Epsilon | Prediction::StepNoise)
        {
            return refuse(
                "loss.kind",
                format!(
                    "`two-variable` compares noises, and the network predicts `{}`: set \
                     denoiser.prediction to epsilon or step_noise",
                    denoiser.prediction.name()
                ),
            );
        }
        let earliest = process.earliest();
        let from = config.t_min.unwrap_or(earliest);
        if !(from >= 0.0 && from < process.end() && process.pair(from).std > 0.0) {
            return refuse(
                "loss.t_min",
                format!("{from} must be a time with noise, before the end at {}", process.end()),
            );
        }
        let discrete = process.steps().is_some();
        if discrete && from.fract() != 0.0 {
            return refuse(
                "loss.t_min",
                format!("{from} must be the number of a state, 1 to {}", process.end()),
            );
        }
        let times = match kind {
            TimesKind::Uniform if discrete => {
                Times::States { first: from as usize, last: process.end() as usize }
            }
            TimesKind::Uniform => Times::Interval { from, to: process.end() },
            TimesKind::Importance => Times::Cells(Cells::new(from, process.end(), discrete, |t| {
                lambda(&config, &denoiser, t) / process.pair(t).variance()
            })),
            TimesKind::LogNormal => Times::LogNormal {
                mean: config.p_mean.unwrap_or(-1.2),
                std: config.p_std.unwrap_or(1.2),
                from,
            },
        };
        let decoder = match variational {
            true => Some(Decoder::new(levels)?),
            false => None,
        };
        let objective = Objective { denoiser, config, times, variance, decoder };
        // The ends are where something may divide by 0.
        for time in [from, process.end()] {
            objective.at(Draw { time, weight: 1.0, quantile: 0.0 })?;
        }
        Ok(objective)
    }

    /// The denoiser.
    pub fn denoiser(&self) -> &Denoiser {
        &self.denoiser
    }

    /// Whether the network also gives the variance, in as many channels again.
    pub fn learns_variance(&self) -> bool {
        self.variance == VarianceType::LearnedRange
    }

    /// Half a bin of the decoder, where the loss is a variational one.
    pub fn half_bin(&self) -> Option<f32> {
        self.decoder.map(|d| d.half_bin() as f32)
    }

    /// Whether the mean is held fixed in the bound.
    pub fn holds_mean(&self) -> bool {
        self.config.kind == LossKind::Hybrid
    }

    /// Whether the target takes a second noise.
    pub fn is_two_variable(&self) -> bool {
        self.config.kind == LossKind::TwoVariable
    }

    /// The example of a uniform `u` in (0, 1) and a standard normal `z`.
    ///
    /// # Errors
    /// A coefficient is not finite at the drawn time.
    pub fn example(&self, u: f64, z: f64) -> Result<Example> {
        self.at(self.times.draw(&*self.denoiser.process, u, z))
    }

    /// The example at a drawn time.
    ///
    /// # Errors
    /// A coefficient is not finite there.
    pub fn at(&self, draw: Draw) -> Result<Example> {
        let time = draw.time;
        let pair = self.denoiser.process.pair(time);
        let target = self.denoiser.target(time)?;
        let mut row = [0.0; coefficient::COLUMNS];
        row[coefficient::SIGNAL] = (pair.signal() * target.input_scale) as f32;
        row[coefficient::STD] = (pair.std * target.input_scale) as f32;
        let (mut of_x0, mut of_eps, mut second) = (target.x0, target.eps, 0.0);
        if self.config.kind == LossKind::TwoVariable {
            // z = r eps + sqrt(1 - r^2) xi, in units of the prediction.
            let ratio = self.step_ratio(time);
            let unit = if self.denoiser.prediction == Prediction::StepNoise { 1.0 } else { ratio };
            of_x0 = 1.0;
            of_eps = ratio / unit;
            second = ((1.0 - ratio * ratio).max(0.0).sqrt() / unit) as f32;
        }
        row[coefficient::TARGET_X0] = of_x0 as f32;
        row[coefficient::TARGET_NOISE] = of_eps as f32;
        let mut variational = [0.0; column::COLUMNS];
        if let Some(steps) = self.denoiser.process.steps().filter(|_| self.decoder.is_some()) {
            variational = self.variational(time, steps, draw.weight)?;
            variational[column::TARGET_X0] = row[coefficient::TARGET_X0];
            variational[column::TARGET_NOISE] = row[coefficient::TARGET_NOISE];
        } else {
            row[coefficient::WEIGHT] = (self.weight(time)? * draw.weight) as f32;
        }
        let finite = row.iter().chain(&variational).all(|c| c.is_finite());
        match finite && second.is_finite() {
            true => Ok(Example { draw, label: target.label, row, variational, second }),
            false => Err(Error::config(
                "loss.kind",
                format!(
                    "its weight at time {time} of `{}` is not finite: raise loss.t_min, end the \
                     process before (process.t_max), or choose another loss",
                    self.denoiser.process.name()
                ),
            )),
        }
    }

    /// Weight of the squared error of the network's answer at a time.
    ///
    /// # Errors
    /// What the error is turned into is not determined there.
    pub fn weight(&self, time: f64) -> Result<f64> {
        let process = &self.denoiser.process;
        let pair = process.pair(time);
        let at = || self.denoiser.at(time);
        let x0 = |e: Evaluation| e.x0.prediction * e.x0.prediction;
        let eps = |e: Evaluation| e.eps.prediction * e.eps.prediction;
        let snr = pair.snr();
        Ok(match self.config.kind {
            LossKind::Simple | LossKind::Vlb | LossKind::Hybrid => 1.0,
            LossKind::Score => {
                lambda(&self.config, &self.denoiser, time) * eps(at()?) / pair.variance()
            }
            LossKind::MinSnr => snr.min(self.config.gamma.unwrap_or(5.0)) * x0(at()?),
            LossKind::Edm => {
                let sigma_data = match self.denoiser.precondition {
                    Precondition::Edm { sigma_data } => sigma_data,
                    Precondition::None => SIGMA_DATA,
                };
                (snr + sigma_data.powi(-2)) * x0(at()?)
            }
            LossKind::PosteriorMean => {
                let c_0 = Step::between(process.pair(time - 1.0), pair).c_0;
                c_0 * c_0 * x0(at()?)
            }
            LossKind::StepNoise => self.step_ratio(time).powi(2) * eps(at()?),
            LossKind::TwoVariable => match self.denoiser.prediction {
                Prediction::StepNoise => 1.0,
                _ => self.step_ratio(time).powi(2),
            },
        })
    }

    /// b_t / bbar_t: the step noise's share in eps.
    fn step_ratio(&self, time: f64) -> f64 {
        let process = &self.denoiser.process;
        let pair = process.pair(time);
        step(process.pair(time - 1.0), pair).1 / pair.std
    }

    /// The row of a term of the bound; its target is filled in by the caller.
    fn variational(&self, time: f64, steps: usize, weight: f64) -> Result<[f32; column::COLUMNS]> {
        let process = &*self.denoiser.process;
        let term = Step::of_chain(process, time as usize);
        let x0 = self.denoiser.at(time)?.x0;
        let pair = process.pair(time);
        let decoded = time == 1.0;
        let (small, large) = match self.variance {
            VarianceType::LearnedRange => (term.ln_small, term.ln_large),
            VarianceType::FixedLarge | VarianceType::FixedLargeLog => {
                (term.ln_large, term.ln_large)
            }
            _ => (term.ln_small, term.ln_small),
        };
        let total = weight * steps as f64;
        let (simple, bound) = match self.config.kind {
            LossKind::Hybrid => (weight, self.config.vlb_weight.unwrap_or(1e-3) * total),
            _ => (0.0, total),
        };
        let mut row = [0.0; column::COLUMNS];
        for (column, value) in [
            (column::GAP_X0, 1.0 - x0.state * pair.signal()),
            (column::GAP_NOISE, -x0.state * pair.std),
            (column::GAP_PREDICTION, -x0.prediction),
            (column::C_0, term.c_0),
            (column::LN_POSTERIOR, if decoded { 0.0 } else { term.ln_posterior }),
            (column::LN_SMALL, small),
            (column::LN_LARGE, large),
            (column::DECODED, f64::from(decoded)),
            (column::WEIGHT, bound),
            (column::SIMPLE_WEIGHT, simple),
        ] {
            row[column] = value as f32;
        }
        Ok(row)
    }
}

/// lambda of `loss.kind = score` at a time.
fn lambda(config: &LossConfig, denoiser: &Denoiser, time: f64) -> f64 {
    match config.lambda.unwrap_or_default() {
        Lambda::One => 1.0,
        Lambda::Sigma2 => denoiser.process.pair(time).variance(),
        Lambda::G2 => denoiser.process.diffusion2(time),
        Lambda::Given => config.given(time),
    }
}
