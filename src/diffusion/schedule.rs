//! Beta schedules and the discrete table of DDPM.
//!
//! State i = 0..=T has signal prod_{j<i} sqrt(1 - beta_j); state 0 is the data.
//! The network's label of state i is i - 1, so that labels are 0..T and beta_t
//! leads from state t to state t + 1. A table is tied to its T. SMLD's chain is a
//! table too: signal 1 and geometric std, state 0 the data.

use serde::{Deserialize, Serialize};

use super::process::{Pair, Posterior, Process, Ve, softplus};
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

/// What a table's pairs have in common; fixes the pair between two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// sigma^2 = 1 - alpha^2.
    Preserving,
    /// alpha = 1.
    Exploding,
}

/// A discrete chain: the pairs of states 0..=T, from the data on.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    form: Form,
    betas: Vec<f64>,
    pairs: Vec<Pair>,
}

impl Table {
    /// DDPM's table of given betas, each in (0, 1]; only the last may be 1.
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
        Ok(Table { form: Form::Preserving, betas, pairs })
    }

    /// SMLD's chain (Song & Ermon 2019; Song et al. 2021, eq. 8): T states of
    /// geometric std from `sigma_min` to `sigma_max`, x_i = x_(i-1) +
    /// sqrt(sigma_i^2 - sigma_(i-1)^2) z, after the data at state 0.
    pub fn smld(steps: usize, sigma_min: f64, sigma_max: f64) -> Result<Table> {
        if steps < 2 {
            return Err(Error::config(
                "process.steps",
                format!("{steps} is too few: the chain goes from sigma_min to sigma_max"),
            ));
        }
        let ve = Ve::new(sigma_min, sigma_max)?;
        let noisy = (0..steps).map(|i| match i + 1 == steps {
            true => Pair { ln_signal: 0.0, std: sigma_max },
            false => ve.pair(i as f64 / (steps - 1) as f64),
        });
        let pairs = [Pair::DATA].into_iter().chain(noisy).collect();
        Ok(Table { form: Form::Exploding, betas: vec![0.0; steps], pairs })
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

    /// beta_t, t = 0..T: the share of the signal's power that the step to state
    /// t + 1 takes; 0 where the signal stays.
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

    /// One row for each label; see [`rows`].
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = rows(self, self.steps());
        for (row, &beta) in rows.iter_mut().zip(&self.betas) {
            row.beta = beta;
        }
        rows
    }

    /// Lambda and its slope in time between states i and i + 1, `part` of the way;
    /// not for the intervals that start without noise or end without signal.
    fn lambda(&self, i: usize, part: f64) -> (f64, f64) {
        let (a, b) = (self.pairs[i].half_log_snr(), self.pairs[i + 1].half_log_snr());
        (a + part * (b - a), b - a)
    }

    /// The interval that leads to a time (the first at 0) and how far it is done.
    fn interval(&self, time: f64) -> (usize, f64) {
        let time = time.clamp(0.0, self.steps() as f64);
        let i = (time.ceil() as usize).max(1) - 1;
        (i, time - i as f64)
    }

    fn has_signal(&self, i: usize) -> bool {
        self.pairs[i].ln_signal > f64::NEG_INFINITY
    }
}

/// Time is the number of the state. Between two states lambda is linear (as
/// diffusers interpolates sigma/alpha, in its logarithm); from the data to the
/// first state the noise's power grows linearly, and to a state without signal
/// the signal falls linearly.
impl Process for Table {
    fn name(&self) -> &'static str {
        match self.form {
            Form::Preserving => "ddpm",
            Form::Exploding => "smld",
        }
    }

    fn end(&self) -> f64 {
        self.steps() as f64
    }

    fn earliest(&self) -> f64 {
        1.0
    }

    fn pair(&self, time: f64) -> Pair {
        let (i, part) = self.interval(time);
        if part == 0.0 || part == 1.0 {
            return self.pairs[i + part as usize];
        }
        if i == 0 && self.has_signal(1) {
            return match self.form {
                // beta(t) is constant.
                Form::Preserving => Pair::variance_preserving(part * self.pairs[1].ln_signal),
                Form::Exploding => Pair { ln_signal: 0.0, std: self.pairs[1].std * part.sqrt() },
            };
        }
        if !self.has_signal(i + 1) {
            return Pair::variance_preserving(self.pairs[i].ln_signal + (-part).ln_1p());
        }
        let (lambda, _) = self.lambda(i, part);
        match self.form {
            Form::Preserving => Pair::variance_preserving_at(lambda),
            Form::Exploding => Pair { ln_signal: 0.0, std: (-lambda).exp() },
        }
    }

    /// At a state, that of the step which leads to it.
    fn drift(&self, time: f64) -> f64 {
        let (i, part) = self.interval(time);
        if self.form == Form::Exploding {
            0.0
        } else if !self.has_signal(i + 1) {
            -1.0 / (1.0 - part)
        } else if i == 0 {
            self.pairs[1].ln_signal
        } else {
            // alpha^2 = 1 / (1 + e^(-2 lambda)).
            self.pair(time).variance() * self.lambda(i, part).1
        }
    }

    /// At a state, that of the step which leads to it.
    fn diffusion2(&self, time: f64) -> f64 {
        let (i, part) = self.interval(time);
        match self.form {
            Form::Preserving => -2.0 * self.drift(time),
            Form::Exploding if i == 0 => self.pairs[1].variance(),
            Form::Exploding => -2.0 * self.lambda(i, part).1 * self.pair(time).variance(),
        }
    }

    fn label(&self, time: f64) -> f64 {
        time - 1.0
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        // The first state that is at least as noisy.
        let i = self.pairs.partition_point(|p| p.half_log_snr() > half_log_snr);
        if i == 0 || i > self.steps() {
            return i.min(self.steps()) as f64;
        }
        let part = if self.pairs[i].half_log_snr() == half_log_snr {
            1.0
        } else if i == 1 && self.has_signal(1) {
            let ratio2 = |p: f64| match self.form {
                Form::Preserving => softplus(-2.0 * p),
                Form::Exploding => (-2.0 * p).exp(),
            };
            ratio2(half_log_snr) / ratio2(self.pairs[1].half_log_snr())
        } else if !self.has_signal(i) {
            let signal = Pair::variance_preserving_at(half_log_snr).ln_signal;
            -(signal - self.pairs[i - 1].ln_signal).exp_m1()
        } else {
            let (a, b) = (self.pairs[i - 1].half_log_snr(), self.pairs[i].half_log_snr());
            (half_log_snr - a) / (b - a)
        };
        let time = (i - 1) as f64 + part;
        // A lambda that went through another process comes back rounded.
        let nearest = time.round();
        if (time - nearest).abs() < SNAP { nearest } else { time }
    }

    fn steps(&self) -> Option<usize> {
        Some(self.betas.len())
    }

    fn prior_std(&self) -> f64 {
        match self.form {
            Form::Preserving => 1.0,
            Form::Exploding => self.pairs[self.betas.len()].std,
        }
    }
}

/// Distance in steps within which a time counts as that of a state.
const SNAP: f64 = 1e-9;

/// Rows of a process for `langevin schedule`: one for each label of a discrete
/// table, else `steps` of equal length from 0 to the end.
pub fn rows(process: &dyn Process, steps: usize) -> Vec<Row> {
    let count = process.steps().unwrap_or(steps);
    let width = process.end() / count as f64;
    (0..count)
        .map(|t| {
            let at = |i: usize| if i == count { process.end() } else { i as f64 * width };
            let (time, pair) = (at(t + 1), process.pair(at(t + 1)));
            let before = process.pair(at(t));
            let posterior = Posterior::between(before, pair);
            let beta = match process.steps() {
                Some(_) => -(2.0 * (pair.ln_signal - before.ln_signal)).exp_m1(),
                None => -2.0 * process.drift(time) * width,
            };
            Row {
                t,
                signal: pair.signal(),
                std: pair.std,
                variance: pair.variance(),
                beta: beta + 0.0,
                snr: pair.snr(),
                mean_x0: posterior.c_0,
                mean_xt: posterior.c_x,
                variance_small: posterior.variance,
                variance_large: posterior.step_variance,
                time,
                f: process.drift(time) + 0.0,
                g2: process.diffusion2(time),
            }
        })
        .collect()
}

/// One row of `langevin schedule`: the process at a label (the end of step t)
/// and the posterior of the step from there to the time before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The label of a table; the step's number elsewhere.
    pub t: usize,
    /// alpha_t.
    pub signal: f64,
    /// sigma_t.
    pub std: f64,
    /// sigma_t^2.
    pub variance: f64,
    /// beta_t: the share of the signal's power that a table's step takes; of a
    /// continuous process beta(i/T)/T with beta(t) = -2 f(t).
    pub beta: f64,
    /// alpha_t^2 / sigma_t^2.
    pub snr: f64,
    /// Factor of x_0 in the posterior mean.
    pub mean_x0: f64,
    /// Factor of x_t in the posterior mean.
    pub mean_xt: f64,
    /// The posterior's variance, beta-tilde.
    pub variance_small: f64,
    /// Variance of the forward step (DDPM's beta), as a sampler's variance.
    pub variance_large: f64,
    /// The process's own time.
    pub time: f64,
    /// f = d ln(signal)/dt; null in JSON where it is infinite.
    pub f: f64,
    /// g^2; null in JSON where it is infinite.
    pub g2: f64,
}
