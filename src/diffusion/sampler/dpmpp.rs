//! DPM-Solver++ multistep (Lu et al. 2022), as diffusers' DPMSolverMultistep, in
//! lambda = ln(alpha / sigma). With h the step in lambda and m_0, m_1, m_2 the
//! network's x_0 at this and the two last points,
//! ```text
//! D_0 = m_0    D_1 ~ h x_0'    D_2 ~ h^2 x_0''        by divided differences
//! ODE  x_s = (sigma_s/sigma_t) x + alpha_s (1 - e^-h) D_0 + ...
//! SDE  x_s = (sigma_s/sigma_t) e^-h x + alpha_s (1 - e^-2h) D_0 + ... + sigma_s sqrt(1 - e^-2h) z
//! ```
//! The older forms that integrate eps (`algorithm_type` dpmsolver and
//! sde-dpmsolver) have the roles of alpha and sigma exchanged. `solver_type` says
//! how D_1 enters at second order: `midpoint` as half of D_0's factor, `heun` by its
//! own integral.
//!
//! The factors of D_2 are those of diffusers. Along the ODE it is half the integral
//! of the parabola, as in the authors' own code, and along the SDE it has the wrong
//! limit for small steps, -1 for 2h/3: third order gains nothing there, and the
//! program says so.

use super::{Coordinates, Kind, Output, Program, Setup, Stage};
use crate::diffusion::denoiser::Limit;
use crate::diffusion::process::Pair;
use crate::diffusion::scheduler::{Algorithm, SolverType};
use crate::error::{Error, Result};

/// A step in lambda and the last two, noisiest last.
#[derive(Clone, Copy)]
struct Steps {
    h: f64,
    last: f64,
    before: f64,
}

/// Factors of x, of m_0, m_1, m_2 and of noise.
struct Factors {
    state: f64,
    model: [f64; 3],
    noise: f64,
}

/// Factors of D_0, D_1, D_2 as factors of m_0, m_1, m_2. Divided differences; a
/// last step of infinite length (from a state without signal) drops out.
fn of_models(order: usize, d: [f64; 3], steps: Steps) -> [f64; 3] {
    if order == 1 {
        return [d[0], 0.0, 0.0];
    }
    let r0 = steps.last / steps.h;
    if order == 2 {
        return [d[0] + d[1] / r0, -d[1] / r0, 0.0];
    }
    // D_1 = (1 + w) A - w B and D_2 = v (A - B), with A = (m_0 - m_1)/r_0,
    // B = (m_1 - m_2)/r_1, w = r_0/(r_0 + r_1), v = 1/(r_0 + r_1).
    let r1 = steps.before / steps.h;
    let (w, v) = (r0 / (r0 + r1), 1.0 / (r0 + r1));
    let a = d[1] * (1.0 + w) + d[2] * v;
    let b = -d[1] * w - d[2] * v;
    [d[0] + a / r0, -a / r0 + b / r1, -b / r1]
}

/// One step from `t` to `s`.
fn factors(
    algorithm: Algorithm,
    heun: bool,
    order: usize,
    t: Pair,
    s: Pair,
    steps: Steps,
) -> Factors {
    let h = steps.h;
    let (alpha, sigma) = (s.signal(), s.std);
    let ratio = (s.ln_signal - t.ln_signal).exp();
    let (state, d, noise) = match algorithm {
        Algorithm::DpmsolverPlusPlus => {
            let first = -alpha * (-h).exp_m1();
            let own = alpha * ((-h).exp_m1() / h + 1.0);
            let second = if order == 2 && !heun { 0.5 * first } else { own };
            let third = -alpha * (((-h).exp_m1() + h) / (h * h) - 0.5);
            (sigma / t.std, [first, second, third], 0.0)
        }
        Algorithm::SdeDpmsolverPlusPlus => {
            let twice = -(-2.0 * h).exp_m1();
            let first = alpha * twice;
            let own = alpha * (1.0 - twice / (2.0 * h));
            let second = if order == 2 && !heun { 0.5 * first } else { own };
            let third = alpha * ((twice - 2.0 * h) / (4.0 * h * h) - 0.5);
            (sigma / t.std * (-h).exp(), [first, second, third], sigma * twice.sqrt())
        }
        Algorithm::Dpmsolver => {
            let first = -sigma * h.exp_m1();
            let own = -sigma * (h.exp_m1() / h - 1.0);
            let second = if order == 2 && !heun { 0.5 * first } else { own };
            let third = -sigma * ((h.exp_m1() - h) / (h * h) - 0.5);
            (ratio, [first, second, third], 0.0)
        }
        Algorithm::SdeDpmsolver => {
            let first = -2.0 * sigma * h.exp_m1();
            let own = -2.0 * sigma * (h.exp_m1() / h - 1.0);
            let second = if heun { own } else { 0.5 * first };
            (ratio, [first, second, 0.0], sigma * (2.0 * h).exp_m1().sqrt())
        }
    };
    Factors { state, model: of_models(order, d, steps), noise }
}

/// Order of every step: rising at the start, falling at the end where asked.
fn orders(setup: &Setup, order: usize, count: usize, ends_at_data: bool) -> Vec<usize> {
    let s = &setup.scheduler;
    let few = s.lower_order_final.unwrap_or(true) && count < 15;
    let euler = s.euler_at_final == Some(true) || few || ends_at_data;
    let most = |i: usize| match count - i {
        1 if euler => 1,
        2 if few => 2,
        _ => order,
    };
    (0..count).map(|i| most(i).min(order).min(i + 1)).collect()
}

/// The program of the ODE solver or, `stochastic`, of the SDE solver.
pub fn program(setup: &Setup, stochastic: bool) -> Result<Program> {
    let kind = if stochastic { Kind::DpmppSde2m } else { Kind::Dpmpp2m };
    let scheduler = &setup.scheduler;
    let refuse = |key: &str, problem: String| Err(Error::config(key, problem));
    let of_eps =
        matches!(scheduler.algorithm_type, Some(Algorithm::Dpmsolver | Algorithm::SdeDpmsolver));
    let algorithm = match (of_eps, stochastic) {
        (false, false) => Algorithm::DpmsolverPlusPlus,
        (false, true) => Algorithm::SdeDpmsolverPlusPlus,
        (true, false) => Algorithm::Dpmsolver,
        (true, true) => Algorithm::SdeDpmsolver,
    };
    let order = setup.options.order.or(scheduler.solver_order).unwrap_or(2);
    let most = if algorithm == Algorithm::SdeDpmsolver { 2 } else { 3 };
    if !(1..=most).contains(&order) {
        return refuse(
            "scheduler.solver_order",
            format!("{order}: {} has orders 1 to {most}", kind.name()),
        );
    }
    let heun = scheduler.solver_type == Some(SolverType::Heun);
    let mut path = setup.path(kind, Coordinates::Process)?;
    let count = path.points.len();
    let ends_at_data = path.end.pair.std == 0.0;
    if of_eps && ends_at_data {
        return refuse(
            "scheduler.final_sigmas_type",
            "zero is out of reach of algorithm_type dpmsolver and sde-dpmsolver, which integrate \
             eps; use sigma_min, or dpmsolver++"
                .into(),
        );
    }
    let orders = orders(setup, order, count, ends_at_data);
    let lambda: Vec<f64> = path.points.iter().map(|p| p.pair.half_log_snr()).collect();
    // The network's last answers are kept in slots 1.., each written over by the
    // one that is needed `kept` steps later.
    let kept = order - 1;
    let slot = |i: usize| 1 + i % kept.max(1);
    let limit = setup.limit(kind);
    let mut stages = Vec::with_capacity(count);
    for (i, point, next) in path.steps() {
        let (t, s) = (point.pair, next.pair);
        let back = |k: usize| if i >= k { lambda[i + 1 - k] - lambda[i - k] } else { f64::NAN };
        let steps = Steps { h: s.half_log_snr() - lambda[i], last: back(1), before: back(2) };
        // A step that leads nowhere, where the last level is also the end.
        let order = if steps.h == 0.0 { 1 } else { orders[i] };
        let Factors { state, model, noise } = factors(algorithm, heun, order, t, s, steps);
        let mut output = Output { noise, ..Output::default() };
        output.slots[0] = state;
        add_model(&mut output, of_eps, limit, t, model[0]);
        for (k, factor) in model.into_iter().enumerate().take(order).skip(1) {
            output.slots[slot(i - k)] += factor;
        }
        let saved = (kept > 0 && i + 1 < count).then(|| {
            let mut saved = Output { target: slot(i), ..Output::default() };
            add_model(&mut saved, of_eps, limit, t, 1.0);
            saved
        });
        stages.push(Stage { outputs: [Some(output), saved], ..Stage::at(point, i) });
    }
    if algorithm == Algorithm::SdeDpmsolverPlusPlus && order == 3 && count > 2 {
        path.notes.push(
            "solver_order 3 of sde-dpmsolver++ has diffusers' factor of the third-order term, \
             which is wrong for small steps; order 2 is more accurate"
                .into(),
        );
    }
    Ok(Program {
        name: kind.name(),
        slots: 1 + kept,
        limit,
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes: path.notes,
    })
}

/// Adds `factor` times what the solver integrates: x_0, or eps, which is taken
/// again from the limited x_0 where there is a limit.
pub(super) fn add_model(output: &mut Output, of_eps: bool, limit: Limit, t: Pair, factor: f64) {
    match (of_eps, limit) {
        (false, _) => output.x0 += factor,
        (true, Limit::None) => output.eps += factor,
        (true, _) => {
            output.slots[0] += factor / t.std;
            output.x0 -= factor * t.signal() / t.std;
        }
    }
}
