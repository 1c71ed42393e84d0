//! Beta schedules and the discrete table of DDPM.
//!
//! State i = 0..=T has signal prod_{j<i} sqrt(1 - beta_j); state 0 is the data.
//! The network's label of state i is i - 1, so that labels are 0..T and beta_t
//! leads from state t to state t + 1. A table is tied to its T.

use serde::{Deserialize, Serialize};

use super::process::{Pair, Posterior, Process};
use crate::error::{Error, Result};

/// Shape of the betas over time; diffusers' `beta_schedule`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in beta (Ho et al. 2020).
    #[default]
    Linear,
    /// Linear in sqrt(beta) (Rombach et al. 2022).
    ScaledLinear,
    /// signal^2 = cos^2 of time, betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// Sigmoid of a line from -6 to 6 (Xu et al. 2022, GeoDiff).
    Sigmoid,
}

/// `count` evenly spaced values from `from` to `to`, both included.
fn line(from: f64, to: f64, count: usize) -> impl Iterator<Item = f64> {
    let step = if count > 1 { (to - from) / (count - 1) as f64 } else { 0.0 };
    (0..count).map(move |i| if i + 1 == count && i > 0 { to } else { from + step * i as f64 })
}

impl BetaSchedule {
    /// Betas of T steps. `start` and `end` are not used by the cosine.
    pub fn betas(self, steps: usize, start: f64, end: f64) -> Vec<f64> {
        match self {
            BetaSchedule::Linear => line(start, end, steps).collect(),
            BetaSchedule::ScaledLinear => {
                line(start.sqrt(), end.sqrt(), steps).map(|b| b * b).collect()
            }
            BetaSchedule::SquaredcosCapV2 => {
                let signal2 = |i: usize| {
                    let t = i as f64 / steps as f64;
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                (0..steps).map(|i| (1.0 - signal2(i + 1) / signal2(i)).min(0.999)).collect()
            }
            BetaSchedule::Sigmoid => {
                line(-6.0, 6.0, steps).map(|x| start + (end - start) / (1.0 + (-x).exp())).collect()
            }
        }
    }
}

/// DDPM's process: the pairs of states 0..=T, variance preserving.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    betas: Vec<f64>,
    pairs: Vec<Pair>,
}

impl Table {
    /// The table of given betas, each in (0, 1]; only the last may be 1.
    pub fn new(betas: Vec<f64>) -> Result<Table> {
        let bad = |problem: String| Err(Error::config("scheduler", problem));
        if betas.is_empty() {
            return bad("a schedule needs at least one step".into());
        }
        let last = betas.len() - 1;
        let mut pairs = Vec::with_capacity(betas.len() + 1);
        pairs.push(Pair::DATA);
        let mut ln_signal = 0.0;
        for (t, &beta) in betas.iter().enumerate() {
            if !(beta > 0.0 && (beta < 1.0 || beta == 1.0 && t == last)) {
                return bad(format!("beta of step {t} is {beta}, it must lie between 0 and 1"));
            }
            ln_signal += 0.5 * (-beta).ln_1p();
            pairs.push(Pair::variance_preserving(ln_signal));
        }
        Ok(Table { betas, pairs })
    }

    /// The same table stretched so that its last state holds no signal and its
    /// first keeps its own (Lin et al. 2024, Alg. 1).
    pub fn with_zero_terminal_snr(&self) -> Result<Table> {
        let steps = self.steps();
        if steps < 2 {
            return Err(Error::config(
                "scheduler.rescale_betas_zero_snr",
                "needs at least 2 steps: the first keeps its signal and the last has none",
            ));
        }
        let (first, last) = (self.pairs[1].signal(), self.pairs[steps].signal());
        let stretched = |i: usize| (self.pairs[i].signal() - last) * first / (first - last);
        let mut betas = Vec::with_capacity(steps);
        betas.push(self.betas[0]);
        for i in 2..=steps {
            let ratio = stretched(i) / stretched(i - 1);
            betas.push(1.0 - ratio * ratio);
        }
        Table::new(betas)
    }

    /// T: the number of steps, and of labels.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// beta_t, t = 0..T.
    pub fn beta(&self, label: usize) -> f64 {
        self.betas[label]
    }

    /// The pair of state i = 0..=T.
    pub fn state(&self, i: usize) -> Pair {
        self.pairs[i]
    }

    /// The pair the network sees under a label 0..T.
    pub fn labelled(&self, label: usize) -> Pair {
        self.pairs[label + 1]
    }

    /// One row for each label, for `langevin schedule`.
    pub fn rows(&self) -> Vec<Row> {
        (0..self.steps())
            .map(|t| {
                let pair = self.labelled(t);
                let posterior = Posterior::between(self.state(t), pair);
                Row {
                    t,
                    signal: pair.signal(),
                    std: pair.std,
                    variance: pair.variance(),
                    beta: self.betas[t],
                    snr: pair.snr(),
                    mean_x0: posterior.c_0,
                    mean_xt: posterior.c_x,
                    variance_small: posterior.variance,
                    variance_large: posterior.step_variance,
                }
            })
            .collect()
    }
}

impl Process for Table {
    fn end(&self) -> f64 {
        self.steps() as f64
    }

    /// Time is the state's number. Between two states ln(alpha) is linear, that
    /// is beta(t) is piecewise constant, and the pair stays variance preserving.
    fn pair(&self, time: f64) -> Pair {
        let i = (time.max(0.0) as usize).min(self.steps());
        let part = time - i as f64;
        if part <= 0.0 || i == self.steps() {
            return self.pairs[i];
        }
        let (a, b) = (self.pairs[i].ln_signal, self.pairs[i + 1].ln_signal);
        Pair::variance_preserving(a + part * (b - a))
    }

    fn label(&self, time: f64) -> f64 {
        time - 1.0
    }
}

/// One row of `langevin schedule`: the table at label t and the posterior of the
/// step from there to the state before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The network's label.
    pub t: usize,
    /// alpha_t.
    pub signal: f64,
    /// sigma_t.
    pub std: f64,
    /// sigma_t^2.
    pub variance: f64,
    /// beta_t.
    pub beta: f64,
    /// alpha_t^2 / sigma_t^2.
    pub snr: f64,
    /// Factor of x_0 in the posterior mean.
    pub mean_x0: f64,
    /// Factor of x_t in the posterior mean.
    pub mean_xt: f64,
    /// The posterior's variance, beta-tilde.
    pub variance_small: f64,
    /// beta_t again, as a sampler's variance.
    pub variance_large: f64,
}
