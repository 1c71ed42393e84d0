//! A network as a denoiser: what its output means, how its input and output are
//! scaled, and x_0 and eps from them. And limits on x_0.
//!
//! Every prediction is linear in (x_0, eps), so that with x = alpha x_0 + sigma eps
//! two equations give both. eps always means that of x; the score is -eps/sigma.
//!
//! The network may see scaled states: EDM's c_in ([`Precondition`]) or the
//! linear [`correction`](super::correction).

use serde::{Deserialize, Serialize};

use super::process::{Pair, Posterior, SharedProcess};
use crate::error::{Error, Result};

/// What the network's output means. The first three are diffusers'
/// `prediction_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// eps of x_t = alpha x_0 + sigma eps.
    #[default]
    Epsilon,
    /// x_0.
    Sample,
    /// v = alpha eps - sigma x_0 (Salimans & Ho 2022).
    VPrediction,
    /// grad log p(x) = -eps / sigma; under the linear correction that of x_a,
    /// -alpha eps / sigma.
    Score,
    /// eps - x_0, the velocity of flow matching.
    Flow,
    /// The posterior mean mu-tilde of the state one step of the chain earlier
    /// (Ho et al. 2020, eq. 7).
    PosteriorMean,
    /// The noise z_t of the last step of the chain, x_t = sqrt(alpha_t) x_(t-1) +
    /// sqrt(1-alpha_t) z_t; its mean given x_0 and x_t is sqrt(1-alpha_t)/sigma_t eps.
    StepNoise,
}

/// `state * x_t + prediction * p`, p the network's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Factor of x_t.
    pub state: f64,
    /// Factor of the network's output.
    pub prediction: f64,
}

/// Factors of the noise in one step of a chain from `before` to `pair`:
/// x_t = a x_(t-1) + b z.
pub fn step(before: Pair, pair: Pair) -> (f64, f64) {
    let lost = -(2.0 * (pair.half_log_snr() - before.half_log_snr())).exp_m1();
    ((pair.ln_signal - before.ln_signal).exp(), pair.std * lost.sqrt())
}

impl Prediction {
    /// All of them.
    pub const ALL: [Prediction; 7] = [
        Prediction::Epsilon,
        Prediction::Sample,
        Prediction::VPrediction,
        Prediction::Score,
        Prediction::Flow,
        Prediction::PosteriorMean,
        Prediction::StepNoise,
    ];

    /// The name in configurations; diffusers' where it has one.
    pub fn name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::Sample => "sample",
            Prediction::VPrediction => "v_prediction",
            Prediction::Score => "score",
            Prediction::Flow => "flow",
            Prediction::PosteriorMean => "posterior_mean",
            Prediction::StepNoise => "step_noise",
        }
    }

    /// Whether diffusers' `prediction_type` knows it.
    pub fn in_diffusers(self) -> bool {
        matches!(self, Prediction::Epsilon | Prediction::Sample | Prediction::VPrediction)
    }

    /// Whether it speaks of one step of a discrete chain.
    pub fn needs_step(self) -> bool {
        matches!(self, Prediction::PosteriorMean | Prediction::StepNoise)
    }

    /// The target in terms of x_0 and eps: `(factor of x_0, factor of eps)`.
    /// `None` where there is none: the score at std 0, and what needs a step.
    pub fn target(self, pair: Pair) -> Option<(f64, f64)> {
        self.target_from(None, pair)
    }

    /// As [`target`](Self::target), with the pair one step of the chain earlier.
    pub fn target_from(self, before: Option<Pair>, pair: Pair) -> Option<(f64, f64)> {
        let sigma = pair.std;
        match self {
            Prediction::Epsilon => Some((0.0, 1.0)),
            Prediction::Sample => Some((1.0, 0.0)),
            Prediction::VPrediction => Some((-sigma, pair.signal())),
            Prediction::Score => (sigma > 0.0).then(|| (0.0, -1.0 / sigma)),
            Prediction::Flow => Some((-1.0, 1.0)),
            Prediction::PosteriorMean => {
                let posterior = Posterior::between(before?, pair);
                Some((before?.signal(), posterior.c_x * sigma))
            }
            Prediction::StepNoise => Some((0.0, step(before?, pair).1 / sigma)),
        }
    }

    /// x_0 from state and output. `None` where it is not determined: eps at
    /// signal 0.
    pub fn x0(self, pair: Pair) -> Option<Linear> {
        self.x0_from(None, pair)
    }

    /// As [`x0`](Self::x0), with the pair one step of the chain earlier.
    pub fn x0_from(self, before: Option<Pair>, pair: Pair) -> Option<Linear> {
        let sigma = pair.std;
        let inverse = (-pair.ln_signal).exp();
        match self {
            Prediction::Sample => Some(Linear { state: 0.0, prediction: 1.0 }),
            // mu-tilde is signal_s x_0 without its noise at the first state.
            Prediction::PosteriorMean => {
                let posterior = Posterior::between(before?, pair);
                let found = Linear {
                    state: -posterior.c_x / posterior.c_0,
                    prediction: 1.0 / posterior.c_0,
                };
                found.finite()
            }
            // Where eps is the output times a factor, x_0 = (x - sigma eps) / alpha.
            Prediction::Epsilon | Prediction::Score | Prediction::StepNoise => {
                let (_, factor) = self.target_from(before, pair)?;
                Linear { state: inverse, prediction: -sigma * inverse / factor }.finite()
            }
            Prediction::VPrediction | Prediction::Flow => {
                let (of_x0, of_eps) = self.target_from(before, pair)?;
                // alpha b - sigma a: alpha^2 + sigma^2, or alpha + sigma.
                let norm = pair.signal() * of_eps - sigma * of_x0;
                Linear { state: of_eps / norm, prediction: -sigma / norm }.finite()
            }
        }
    }

    /// eps from state and output, before any limit on x_0. `None` where it is
    /// not determined: x_0 at std 0.
    pub fn eps(self, pair: Pair) -> Option<Linear> {
        self.eps_from(None, pair)
    }

    /// As [`eps`](Self::eps), with the pair one step of the chain earlier.
    pub fn eps_from(self, before: Option<Pair>, pair: Pair) -> Option<Linear> {
        let (alpha, sigma) = (pair.signal(), pair.std);
        let (of_x0, of_eps) = self.target_from(before, pair)?;
        match self {
            Prediction::Epsilon | Prediction::Score | Prediction::StepNoise => {
                Linear { state: 0.0, prediction: 1.0 / of_eps }.finite()
            }
            Prediction::Sample => {
                Linear { state: 1.0 / sigma, prediction: -alpha / sigma }.finite()
            }
            Prediction::VPrediction | Prediction::Flow => {
                let norm = alpha * of_eps - sigma * of_x0;
                Linear { state: -of_x0 / norm, prediction: alpha / norm }.finite()
            }
            Prediction::PosteriorMean => {
                // alpha b - sigma a = -sigma c_0.
                let c_0 = Posterior::between(before?, pair).c_0;
                Linear { state: of_x0 / (sigma * c_0), prediction: -alpha / (sigma * c_0) }.finite()
            }
        }
    }
}

impl Linear {
    fn finite(self) -> Option<Linear> {
        (self.state.is_finite() && self.prediction.is_finite()).then_some(self)
    }

    /// The same of an output that is itself `inner` of the state and another
    /// output.
    fn of(self, inner: Linear) -> Linear {
        Linear {
            state: self.state + self.prediction * inner.state,
            prediction: self.prediction * inner.prediction,
        }
    }
}

/// How a network's input and output are scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Precondition {
    /// Not at all.
    #[default]
    None,
    /// Karras et al. 2022, table 1, at sigma_a = sigma/alpha: x_0 = c_skip x_a +
    /// c_out F(c_in x_a; ln(sigma_a)/4). The network's output has unit variance at
    /// every time where the data's is `sigma_data`^2.
    Edm {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
}

/// EDM's scalings at one sigma.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Scalings {
    pub c_skip: f64,
    pub c_out: f64,
    pub c_in: f64,
    pub c_noise: f64,
}

impl Scalings {
    /// Karras et al. 2022, table 1.
    pub fn edm(sigma: f64, sigma_data: f64) -> Scalings {
        let total = sigma.hypot(sigma_data);
        Scalings {
            c_skip: (sigma_data / total).powi(2),
            c_out: sigma / total * sigma_data,
            c_in: 1.0 / total,
            c_noise: 0.25 * sigma.ln(),
        }
    }
}

/// A network with the process it was trained under and the meaning of its
/// output.
#[derive(Clone, Debug)]
pub struct Denoiser {
    /// The process it was trained under.
    pub process: SharedProcess,
    /// What it predicts; under [`Precondition::Edm`] the scaled output is x_0.
    pub prediction: Prediction,
    /// Scaling of input and output.
    pub precondition: Precondition,
    /// Whether it sees x / alpha (x_t / sqrt(alpha_t) where it predicts the step's noise).
    pub correction: bool,
}

/// One evaluation of a network: how to ask it, and what its answer means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// What it is told.
    pub label: f64,
    /// Factor of the state in its input.
    pub input_scale: f64,
    /// x_0 from the state and its output.
    pub x0: Linear,
    /// eps from the state and its output.
    pub eps: Linear,
}

/// What a network is shown and should answer in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// What it is told.
    pub label: f64,
    /// Factor of x_t in its input.
    pub input_scale: f64,
    /// Factor of x_0 in the answer.
    pub x0: f64,
    /// Factor of eps in the answer.
    pub eps: f64,
}

/// Tolerance on lambda for a state that is as noisy as training went.
const EDGE: f64 = 1e-6;

impl Denoiser {
    /// A network without preconditioning or correction.
    pub fn plain(process: SharedProcess, prediction: Prediction) -> Denoiser {
        Denoiser { process, prediction, precondition: Precondition::None, correction: false }
    }

    /// Checks that prediction, preconditioning, correction and process fit.
    ///
    /// # Errors
    /// The key that does not fit, and what would.
    pub fn validate(&self) -> Result<()> {
        if let Precondition::Edm { sigma_data } = self.precondition {
            if self.prediction != Prediction::Sample {
                return Err(Error::config(
                    "denoiser.prediction",
                    format!(
                        "`{}` does not fit denoiser.precondition = edm, whose output is x_0 by \
                         c_skip and c_out: leave denoiser.prediction out, or set it to sample",
                        self.prediction.name()
                    ),
                ));
            }
            if !(sigma_data > 0.0 && sigma_data.is_finite()) {
                return Err(Error::config(
                    "denoiser.sigma_data",
                    format!("{sigma_data} must be above 0, e.g. 0.5"),
                ));
            }
        }
        if self.prediction.needs_step() && self.process.steps().is_none() {
            return Err(Error::config(
                "denoiser.prediction",
                format!(
                    "`{}` speaks of one step of a chain, and the process `{}` is continuous: use \
                     process.kind = table or smld, or another prediction",
                    self.prediction.name(),
                    self.process.name()
                ),
            ));
        }
        let end = self.process.pair(self.process.end());
        if end.ln_signal == f64::NEG_INFINITY {
            if self.correction {
                return Err(Error::config(
                    "denoiser.correction",
                    format!(
                        "divides by the signal, which `{}` loses at time {}: set process.t_max \
                         below it (flow, cosine), or leave rescale_betas_zero_snr out",
                        self.process.name(),
                        self.process.end()
                    ),
                ));
            }
            if self.precondition != Precondition::None {
                return Err(Error::config(
                    "denoiser.precondition",
                    format!(
                        "works in std/signal, and `{}` loses its signal at time {}: set \
                         process.t_max below it (flow, cosine), or leave rescale_betas_zero_snr out",
                        self.process.name(),
                        self.process.end()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The pair one step of the chain before a time.
    fn before(&self, time: f64) -> Option<Pair> {
        self.process.steps().map(|_| self.process.pair((time - 1.0).max(0.0)))
    }

    /// For a state of the process it was trained under, at that time.
    ///
    /// # Errors
    /// x_0 or eps is not determined there (eps without signal, x_0 without noise).
    pub fn at(&self, time: f64) -> Result<Evaluation> {
        self.evaluation(time, self.process.pair(time))
    }

    /// For a state x of any process at a pair: the time is that of the same SNR,
    /// and the input is brought to the signal that the network was trained at.
    /// A state with less noise than training ever had is taken at the earliest
    /// time.
    ///
    /// # Errors
    /// The state is noisier than training went, or as for [`at`](Self::at).
    pub fn matched(&self, pair: Pair) -> Result<Evaluation> {
        let process = &self.process;
        let last = process.pair(process.end());
        if pair.half_log_snr() < last.half_log_snr() - EDGE {
            return Err(Error::Usage(format!(
                "a state with std/signal = {:.6} is noisier than the network ever saw: `{}` ends \
                 at {:.6}; start from less noise (process.sigma_max, process.t_max)",
                (-pair.half_log_snr()).exp(),
                process.name(),
                (-last.half_log_snr()).exp()
            )));
        }
        let time = process.time_of(pair.half_log_snr()).clamp(process.earliest(), process.end());
        let trained = process.pair(time);
        // Equal SNR: the ratio of the signals is that of the stds. The larger of the
        // two keeps its digits, also where a time rounds to one without signal.
        let ln_scale = if pair.half_log_snr() < 0.0 {
            (trained.std / pair.std).ln()
        } else {
            trained.ln_signal - pair.ln_signal
        };
        let scale = ln_scale.exp();
        let seen = Pair { ln_signal: pair.ln_signal + ln_scale, std: pair.std * scale };
        let found = self.evaluation(time, seen)?;
        // In terms of x, of which the trained process's state is `scale` times.
        let scaled = |l: Linear| Linear { state: l.state * scale, ..l };
        Ok(Evaluation {
            label: found.label,
            input_scale: found.input_scale * scale,
            x0: scaled(found.x0),
            eps: scaled(found.eps),
        })
    }

    /// What to show and ask in training at a time.
    ///
    /// # Errors
    /// The target is not finite there.
    pub fn target(&self, time: f64) -> Result<Target> {
        let pair = self.process.pair(time);
        let (label, input_scale) = self.asked(time, pair)?;
        let undetermined = || self.undetermined("a target", time);
        let (x0, eps) = match self.precondition {
            Precondition::None => {
                let (x0, eps) = self
                    .prediction
                    .target_from(self.before(time), pair)
                    .ok_or_else(undetermined)?;
                let unit = self.unit(pair);
                (x0 * unit, eps * unit)
            }
            Precondition::Edm { sigma_data } => {
                let sigma = (-pair.half_log_snr()).exp();
                let total = sigma.hypot(sigma_data);
                // (x_0 - c_skip (x_0 + sigma eps)) / c_out, without the cancellation
                // of 1 - c_skip.
                (sigma / (total * sigma_data), -sigma_data / total)
            }
        };
        match x0.is_finite() && eps.is_finite() && input_scale.is_finite() {
            true => Ok(Target { label, input_scale, x0, eps }),
            false => Err(undetermined()),
        }
    }

    /// Factor of the prediction's unit: a corrected score is that of x_a.
    fn unit(&self, pair: Pair) -> f64 {
        match self.correction && self.prediction == Prediction::Score {
            true => pair.signal(),
            false => 1.0,
        }
    }

    /// Label and input scale at a time of the trained process.
    fn asked(&self, time: f64, pair: Pair) -> Result<(f64, f64)> {
        if let Precondition::Edm { sigma_data } = self.precondition {
            let s = Scalings::edm((-pair.half_log_snr()).exp(), sigma_data);
            return Ok((s.c_noise, s.c_in * (-pair.ln_signal).exp()));
        }
        let label = self.process.label(time);
        if !self.correction {
            return Ok((label, 1.0));
        }
        let ln_signal = match (self.prediction, self.before(time)) {
            (Prediction::StepNoise, Some(before)) => pair.ln_signal - before.ln_signal,
            _ => pair.ln_signal,
        };
        if ln_signal == f64::NEG_INFINITY {
            return Err(Error::config(
                "denoiser.correction",
                format!("divides by the signal, which is 0 at time {time}: end the process before"),
            ));
        }
        Ok((label, (-ln_signal).exp()))
    }

    fn undetermined(&self, what: &str, time: f64) -> Error {
        Error::config(
            if self.prediction.in_diffusers() {
                "scheduler.prediction_type"
            } else {
                "denoiser.prediction"
            },
            format!(
                "`{}` cannot give {what} at label {} (time {time} of `{}`), which holds no signal or \
                 no noise; use v_prediction, or end the process before (process.t_max, process.t_eps)",
                self.prediction.name(),
                self.process.label(time),
                self.process.name()
            ),
        )
    }

    fn evaluation(&self, time: f64, pair: Pair) -> Result<Evaluation> {
        let (label, input_scale) = self.asked(time, pair)?;
        let before = self.before(time);
        let x0 = self.prediction.x0_from(before, pair);
        let eps = self.prediction.eps_from(before, pair);
        let mut x0 = x0.ok_or_else(|| self.undetermined("x_0", time))?;
        let mut eps = eps.ok_or_else(|| self.undetermined("eps", time))?;
        if let Precondition::Edm { sigma_data } = self.precondition {
            let inverse = (-pair.ln_signal).exp();
            let sigma = pair.std * inverse;
            let s = Scalings::edm(sigma, sigma_data);
            // eps = (x_a - x_0) / sigma_a, without the cancellation of 1 - c_skip.
            let total2 = sigma * sigma + sigma_data * sigma_data;
            eps = Linear { state: sigma / total2 * inverse, prediction: -s.c_out / sigma };
            x0 = x0.of(Linear { state: s.c_skip * inverse, prediction: s.c_out });
        }
        let unit = self.unit(pair);
        x0.prediction /= unit;
        eps.prediction /= unit;
        match (x0.finite(), eps.finite(), input_scale.is_finite()) {
            (Some(x0), Some(eps), true) => Ok(Evaluation { label, input_scale, x0, eps }),
            _ => Err(self.undetermined("x_0 and eps", time)),
        }
    }
}

/// What is done to x_0 before a sampler uses it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// Clamped to `[-range, range]`.
    Clip {
        /// Largest magnitude.
        range: f64,
    },
    /// Dynamic thresholding (Saharia et al. 2022, sec. 2.3): with s the quantile
    /// `ratio` of |x_0| over the image, brought into `[1, max]`, x_0 is clamped
    /// to `[-s, s]` and divided by s.
    Threshold {
        /// Quantile, 0 to 1.
        ratio: f64,
        /// Largest s.
        max: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Pair = Pair { ln_signal: -1e-13, std: 3e-7 };

    fn check(pair: Pair, before: Pair, tolerance: f64) {
        let (x0, eps) = (0.37, -1.4);
        let x = pair.signal() * x0 + pair.std * eps;
        for prediction in Prediction::ALL {
            let (a, b) = prediction.target_from(Some(before), pair).unwrap();
            let p = a * x0 + b * eps;
            let to_x0 = prediction.x0_from(Some(before), pair).unwrap();
            let to_eps = prediction.eps_from(Some(before), pair).unwrap();
            let found = to_x0.state * x + to_x0.prediction * p;
            assert!((found - x0).abs() < tolerance, "{prediction:?} {pair:?} {found}");
            // Rounding of x and p by 1 in 2^53 is all that 1/sigma may amplify.
            let amplified = (to_eps.state * x).abs() + (to_eps.prediction * p).abs();
            let found = to_eps.state * x + to_eps.prediction * p;
            let bound = tolerance + 4.0 * f64::EPSILON * amplified;
            assert!((found - eps).abs() < bound, "{prediction:?} {pair:?} {found}");
        }
    }

    #[test]
    fn conversions_invert_the_target_on_and_off_variance_preserving() {
        for pair in [
            Pair::variance_preserving(-0.8),
            Pair { ln_signal: 0.0, std: 3.0 },
            Pair { ln_signal: 0.3f64.ln(), std: 0.7 },
        ] {
            let before = Pair { ln_signal: 0.7 * pair.ln_signal, std: 0.6 * pair.std };
            check(pair, before, 1e-14);
        }
    }

    #[test]
    fn conversions_stay_accurate_where_almost_no_noise_is_left() {
        check(Pair { ln_signal: -0.5e-12, std: 1e-6 }, BEFORE, 1e-15);
    }

    #[test]
    fn undetermined_conversions_are_none() {
        let noise = Pair::variance_preserving(f64::NEG_INFINITY);
        assert!(Prediction::Epsilon.x0(noise).is_none());
        assert!(Prediction::Sample.eps(Pair::DATA).is_none());
        assert!(Prediction::Score.target(Pair::DATA).is_none());
        assert!(Prediction::PosteriorMean.target(noise).is_none());
        let v = Prediction::VPrediction.x0(noise).unwrap();
        assert_eq!((v.state, v.prediction), (0.0, -1.0));
        let flow = Prediction::Flow.x0(noise).unwrap();
        assert_eq!((flow.state, flow.prediction), (1.0, -1.0));
    }
}
