//! The forward process, simulated three ways: in one go from x_0, as a chain of
//! exact steps, and by Euler-Maruyama on its stochastic differential equation.
//!
//! Each is a list of steps x' = gain x + std z with independent standard normal
//! z, so that its exact distribution is carried along beside the samples.

use super::denoiser::step;
use super::process::{Pair, Process};
use crate::error::{Error, Result};
use crate::random::{Purpose, fill_normal};

/// x' = gain x + std z.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of the state.
    pub gain: f64,
    /// Factor of the noise.
    pub std: f64,
}

/// A simulation of the forward process from x_0.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// In order of time.
    pub steps: Vec<Step>,
}

impl Forward {
    /// x_t = signal x_0 + std eps.
    pub fn closed(process: &dyn Process, time: f64) -> Forward {
        Forward { steps: vec![of_pair(process.pair(time))] }
    }

    /// From x_0 to the first time, and from each time to the next: x_t = a x_s +
    /// b z with the exact a and b. For a discrete table with all its states this
    /// is x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) z.
    ///
    /// # Errors
    /// Times that are none, or do not rise within the process.
    pub fn chain(process: &dyn Process, times: &[f64]) -> Result<Forward> {
        let first = check(process, times)?;
        let steps = times.windows(2).map(|w| {
            let (gain, std) = step(process.pair(w[0]), process.pair(w[1]));
            Step { gain, std }
        });
        Ok(Forward { steps: [first].into_iter().chain(steps).collect() })
    }

    /// From x_0 to the first time in closed form, and on by Euler-Maruyama:
    /// x' = x + f(s) x h + g(s) sqrt(h) z from each time s to the next, h later.
    /// Its error falls as h.
    ///
    /// # Errors
    /// Times that are none, or do not rise within the process; a time at which f
    /// or g is infinite.
    pub fn euler_maruyama(process: &dyn Process, times: &[f64]) -> Result<Forward> {
        let mut steps = vec![check(process, times)?];
        for w in times.windows(2) {
            let h = w[1] - w[0];
            let (f, g2) = (process.drift(w[0]), process.diffusion2(w[0]));
            if !(f.is_finite() && g2.is_finite()) {
                return Err(Error::Usage(format!(
                    "the equation of `{}` is infinite at time {}: end before it",
                    process.name(),
                    w[0]
                )));
            }
            steps.push(Step { gain: 1.0 + f * h, std: (g2 * h).sqrt() });
        }
        Ok(Forward { steps })
    }

    /// After each step: the factor of x_0 in the mean, and the variance around it.
    pub fn moments(&self) -> Vec<(f64, f64)> {
        let mut now = (1.0, 0.0);
        let next = |s: &Step| {
            now = (s.gain * now.0, s.gain * s.gain * now.1 + s.std * s.std);
            now
        };
        self.steps.iter().map(next).collect()
    }

    /// Covariance, given x_0, of the states after steps `i <= j`.
    pub fn covariance(&self, i: usize, j: usize) -> f64 {
        let gain: f64 = self.steps[i + 1..=j].iter().map(|s| s.gain).product();
        gain * self.moments()[i].1
    }

    /// The states after each step, for the image of `keys`
    /// ([`image_keys`](crate::random::image_keys)): the z of step i are the normals
    /// of purpose [`Purpose::TrainNoise`], draw i.
    pub fn simulate(&self, x0: &[f32], keys: [u32; 4]) -> Vec<Vec<f32>> {
        let mut x = x0.to_vec();
        let mut z = vec![0f32; x0.len()];
        let advance = |(draw, s): (usize, &Step)| {
            fill_normal(keys, Purpose::TrainNoise, draw as u32, 0, &mut z);
            for (x, &z) in x.iter_mut().zip(&z) {
                *x = (s.gain * f64::from(*x) + s.std * f64::from(z)) as f32;
            }
            x.clone()
        };
        self.steps.iter().enumerate().map(advance).collect()
    }
}

fn of_pair(pair: Pair) -> Step {
    Step { gain: pair.signal(), std: pair.std }
}

fn check(process: &dyn Process, times: &[f64]) -> Result<Step> {
    let inside = |t: &f64| (0.0..=process.end()).contains(t);
    if times.is_empty() || !times.iter().all(inside) || times.windows(2).any(|w| w[0] >= w[1]) {
        return Err(Error::Usage(format!(
            "times must rise within 0 and {}, the end of `{}`",
            process.end(),
            process.name()
        )));
    }
    Ok(of_pair(process.pair(times[0])))
}
