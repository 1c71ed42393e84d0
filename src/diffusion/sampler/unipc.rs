//! UniPC (Zhao et al. 2023), as diffusers' UniPCMultistep: a predictor UniP of
//! order p and, with the network's answer at the predicted state and no further
//! evaluation, the corrector UniC of order p + 1 for the step just made.
//!
//! In lambda = ln(alpha / sigma), with m the network's x_0 (or eps, where the roles
//! of alpha and sigma are exchanged), hh = -h and B(hh) = hh (`bh1`) or e^hh - 1
//! (`bh2`):
//! ```text
//! x_s = (sigma_s/sigma_t) x - alpha_s (e^hh - 1) m_0 - alpha_s B sum_k rho_k D_k
//! D_k = (m_k - m_0) / r_k,   r_k = (lambda_k - lambda_0) / h
//! ```
//! and rho solves a Vandermonde system. The corrector has one more D, of the new
//! answer at r = 1.
//!
//! The corrected state need not be kept: x enters predictor and corrector of a step
//! with the same factor, so that the corrected state is the predicted one plus the
//! difference of the m's factors. A stage corrects the last step and predicts the
//! next in one sum over the predicted state and the last answers.

use super::dpmpp::add_model;
use super::{Coordinates, Kind, MOST_SLOTS, Output, Program, Setup, Stage};
use crate::diffusion::denoiser::Limit;
use crate::diffusion::process::Pair;
use crate::diffusion::scheduler::SolverType;
use crate::error::{Error, Result};

/// Solves a small dense system by elimination with pivoting.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap_or(i);
        a.swap(i, pivot);
        b.swap(i, pivot);
        let (upper, lower) = a.split_at_mut(i + 1);
        let top = &upper[i];
        for (j, row) in lower.iter_mut().enumerate() {
            let factor = row[i] / top[i];
            for (v, t) in row.iter_mut().zip(top).skip(i) {
                *v -= factor * t;
            }
            b[i + 1 + j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let rest: f64 = (i + 1..n).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - rest) / a[i][i];
    }
    b
}

/// One step from t to s, as factors of x and of the answers: the one at s first
/// (corrector only), then m_0, m_1, ...
struct Step {
    state: f64,
    scale: f64,
    of_m0: f64,
    b_h: f64,
    hh: f64,
}

impl Step {
    fn new(t: Pair, s: Pair, of_eps: bool, bh1: bool) -> Step {
        let h = s.half_log_snr() - t.half_log_snr();
        let hh = if of_eps { h } else { -h };
        let (state, scale, of_m0) = if of_eps {
            let ratio = (s.ln_signal - t.ln_signal).exp();
            // sigma_s e^h, finite also where the step reaches the data.
            (ratio, s.std, s.std - ratio * t.std)
        } else {
            (s.std / t.std, s.signal(), -s.signal() * hh.exp_m1())
        };
        Step { state, scale, of_m0, b_h: if bh1 { hh } else { hh.exp_m1() }, hh }
    }

    /// rho of the D's at the given r.
    fn rhos(&self, r: &[f64]) -> Vec<f64> {
        let (mut phi, mut factorial) = (self.hh.exp_m1() / self.hh - 1.0, 1.0);
        let mut b = Vec::with_capacity(r.len());
        for i in 1..=r.len() {
            b.push(phi * factorial / self.b_h);
            factorial *= (i + 1) as f64;
            phi = phi / self.hh - 1.0 / factorial;
        }
        let rows = (0..r.len()).map(|i| r.iter().map(|r| r.powi(i as i32)).collect()).collect();
        solve(rows, b)
    }

    /// Factors of m_0, m_1, ... for D's with these r and rho.
    fn models(&self, r: &[f64], rho: &[f64]) -> Vec<f64> {
        let mut factors = vec![self.of_m0];
        for (r, rho) in r.iter().zip(rho) {
            let factor = -self.scale * self.b_h * rho / r;
            factors[0] -= factor;
            factors.push(factor);
        }
        factors
    }

    /// The predictor's factors of m_0, m_1, ...; `r` has order - 1 entries.
    fn predict(&self, r: &[f64]) -> Vec<f64> {
        match r.len() {
            0 => vec![self.of_m0],
            // diffusers' simplified second order.
            1 => self.models(r, &[0.5]),
            _ => self.models(r, &self.rhos(r)),
        }
    }

    /// The corrector's factor of the answer at s, and of m_0, m_1, ...
    fn correct(&self, r: &[f64]) -> (f64, Vec<f64>) {
        let all: Vec<f64> = r.iter().copied().chain([1.0]).collect();
        let rho = if r.is_empty() { vec![0.5] } else { self.rhos(&all) };
        let own = -self.scale * self.b_h * rho[r.len()];
        let mut factors = self.models(r, &rho[..r.len()]);
        factors[0] -= own;
        (own, factors)
    }
}

/// UniPC's program.
pub fn program(setup: &Setup) -> Result<Program> {
    let scheduler = &setup.scheduler;
    let order = setup.options.order.or(scheduler.solver_order).unwrap_or(2);
    if !(1..MOST_SLOTS).contains(&order) {
        return Err(Error::config(
            "scheduler.solver_order",
            format!("{order}: unipc has orders 1 to {}", MOST_SLOTS - 1),
        ));
    }
    let of_eps = scheduler.predict_x0 == Some(false);
    let bh1 = scheduler.solver_type == Some(SolverType::Bh1);
    let falls = scheduler.lower_order_final.unwrap_or(true);
    let uncorrected = scheduler.disable_corrector.as_deref().unwrap_or_default();
    let path = setup.path(Kind::UniPc, Coordinates::Process)?;
    let count = path.points.len();
    if !falls && order > 1 && count > 1 && path.end.pair.std == 0.0 {
        return Err(Error::config(
            "scheduler.lower_order_final",
            "false needs an end with noise: the step to the data is infinitely long in lambda; \
             set final_sigmas_type to sigma_min",
        ));
    }
    let limit = if of_eps { Limit::None } else { setup.limit(Kind::UniPc) };
    let order_of = |i: usize| {
        let most = if falls { order.min(count - i) } else { order };
        most.min(i + 1)
    };
    let lambda: Vec<f64> = path.points.iter().map(|p| p.pair.half_log_snr()).collect();
    let slot = |i: usize| 1 + i % order;
    // r of the answers at points i - 1, i - 2, ... for the step from i to `end`.
    let ratios = |i: usize, end: f64, order: usize| -> Vec<f64> {
        (1..order).map(|k| (lambda[i - k] - lambda[i]) / (end - lambda[i])).collect()
    };
    let mut stages = Vec::with_capacity(count);
    // The step just made, and its predictor's factors.
    let mut made: Option<(Step, Vec<f64>, Vec<f64>)> = None;
    for (i, point, next) in path.steps() {
        let t = point.pair;
        // The corrected state, as factors: of slot 0, of the answer here, of slots.
        let mut corrected = Output::default();
        corrected.slots[0] = 1.0;
        let mut of_here = 0.0;
        if let Some((step, r, predicted)) = &made
            && !uncorrected.contains(&(i - 1))
        {
            let (own, factors) = step.correct(r);
            of_here = own;
            for (k, (factor, predicted)) in factors.iter().zip(predicted).enumerate() {
                corrected.slots[slot(i - 1 - k)] += factor - predicted;
            }
        }
        let step = Step::new(t, next.pair, of_eps, bh1);
        // A step that leads nowhere, where the last level is also the end.
        let order = if step.hh == 0.0 { 1 } else { order_of(i) };
        let r = ratios(i, next.pair.half_log_snr(), order);
        let predicted = step.predict(&r);
        let mut output = Output::default();
        for (slot, corrected) in output.slots.iter_mut().zip(corrected.slots) {
            *slot = step.state * corrected;
        }
        add_model(&mut output, of_eps, limit, t, step.state * of_here + predicted[0]);
        for (k, factor) in predicted.iter().enumerate().skip(1) {
            output.slots[slot(i - k)] += factor;
        }
        let saved = (i + 1 < count).then(|| {
            let mut saved = Output { target: slot(i), ..Output::default() };
            add_model(&mut saved, of_eps, limit, t, 1.0);
            saved
        });
        stages.push(Stage { outputs: [Some(output), saved], ..Stage::at(point, i) });
        made = Some((step, r, predicted));
    }
    Ok(Program {
        name: Kind::UniPc.name(),
        slots: 1 + order,
        limit,
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes: path.notes,
    })
}
