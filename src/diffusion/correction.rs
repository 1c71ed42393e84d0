//! The linear correction: the network sees x_a = x / signal.
//!
//! x_a = x_0 + sigma_a eps with sigma_a = std/signal: the coordinates of a
//! variance-exploding process, in which x_0 keeps its size at every time. Then
//! ```text
//! grad log p_a(x_a) = signal grad log p(x)
//! log p(x)          = log p_a(x_a) - d ln(signal)         in d dimensions
//! ```
//! It needs a signal: flow matching at t = 1 and tables of zero terminal SNR are
//! refused there. In training and sampling it is a scale of the network's input
//! (`denoiser.correction = true`); a score network then answers with the score
//! of x_a.
//!
//! **What it does to a network.** x_a is not normalised. For DDPM's linear table of
//! T = 1000 its std goes from 1 to 157, over four decades of noise; the first
//! convolution sees 157 times larger values at the last label than at the first,
//! so that its gradients and those of what adds to its output are the noisiest
//! times', group normalisations hide the size from what follows them, and at the
//! last label single precision keeps about five digits of x_0. EDM's c_in =
//! 1/sqrt(sigma_a^2 + sigma_data^2) cancels all that: c_in x_a has unit variance
//! and equals x / sqrt(std^2 + signal^2 sigma_data^2), so that
//! `denoiser.precondition = edm` reads the same input with and without the
//! correction.
//!
//! **The form of one step** ([`OneStep`]) belongs to the network that predicts the
//! step's noise z of x_t = a x_(t-1) + b z, DDPM's a = sqrt(alpha_t) and b =
//! sqrt(1 - alpha_t). It sees x_a = x_t / a, near 1 at every label, and
//! ```text
//! x_(t-1) = x_a - (b/a) z
//! (a/b) (x_(t-1) - x_a)   = -z       the scaled score
//! (a/b)^2 (x_(t-1) - x_a)            the score of x_a given x_(t-1)
//! ```
//! beside, without the correction, x_(t-1) = (x_t - b z)/a, the scaled score
//! (a x_(t-1) - x_t)/b = -z and the score (a x_(t-1) - x_t)/b^2 of x_t.

use super::denoiser::step;
use super::process::Pair;
use crate::error::{Error, Result};

/// The corrected coordinates at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    ln_signal: f64,
    /// Standard deviation of the noise in x_a.
    pub std: f64,
}

impl Correction {
    /// At a pair.
    ///
    /// # Errors
    /// There is no signal to divide by.
    pub fn at(pair: Pair) -> Result<Correction> {
        if pair.ln_signal == f64::NEG_INFINITY {
            return Err(Error::config(
                "denoiser.correction",
                "divides by the signal, which is 0 here: end the process before (process.t_max)",
            ));
        }
        Ok(Correction { ln_signal: pair.ln_signal, std: (pair.std.ln() - pair.ln_signal).exp() })
    }

    /// Factor of x in x_a.
    pub fn scale(&self) -> f64 {
        (-self.ln_signal).exp()
    }

    /// The score of x, from that of x_a.
    pub fn score(&self, corrected: f64) -> f64 {
        corrected * (-self.ln_signal).exp()
    }

    /// log p(x) of `dimensions` numbers, from log p_a(x_a).
    pub fn log_density(&self, corrected: f64, dimensions: usize) -> f64 {
        corrected - dimensions as f64 * self.ln_signal
    }
}

/// One step x_t = a x_(t-1) + b z, backwards, with and without the correction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneStep {
    /// sqrt(alpha_t) in DDPM's notation.
    pub a: f64,
    /// sqrt(1 - alpha_t) in DDPM's notation.
    pub b: f64,
    /// Whether states at t are given as x_a = x_t / a.
    pub corrected: bool,
}

impl OneStep {
    /// The step from `before` to `pair`.
    ///
    /// # Errors
    /// The step keeps no signal, or adds no noise.
    pub fn between(before: Pair, pair: Pair, corrected: bool) -> Result<OneStep> {
        let (a, b) = step(before, pair);
        if !(a > 0.0 && b > 0.0) {
            return Err(Error::config(
                "denoiser.correction",
                "the step keeps no signal or adds no noise, so that it has no inverse",
            ));
        }
        Ok(OneStep { a, b, corrected })
    }

    /// Factor of x_t in the state that the network sees.
    pub fn scale(&self) -> f64 {
        if self.corrected { 1.0 / self.a } else { 1.0 }
    }

    /// x_(t-1) from the state at t and the step's noise.
    pub fn previous(&self, state: f64, z: f64) -> f64 {
        match self.corrected {
            true => state - self.b / self.a * z,
            false => (state - self.b * z) / self.a,
        }
    }

    /// The score of the state at t given x_(t-1), times its std: -z.
    pub fn scaled_score(&self, previous: f64, state: f64) -> f64 {
        match self.corrected {
            true => self.a / self.b * (previous - state),
            false => (self.a * previous - state) / self.b,
        }
    }

    /// The score of the state at t given x_(t-1).
    pub fn score(&self, previous: f64, state: f64) -> f64 {
        let std = if self.corrected { self.b / self.a } else { self.b };
        self.scaled_score(previous, state) / std
    }
}
