//! The probability-flow ODE by Euler and by Heun. Along it x = alpha x_0 + sigma
//! eps with the network's x_0 and eps, and dx/dt = alpha' x_0 + sigma' eps, so that
//! a step between two pairs needs no derivative:
//! ```text
//! Euler  x_s = x_t + (alpha_s - alpha_t) x_0 + (sigma_s - sigma_t) eps
//! Heun   the same with the mean of x_0 and of eps at both ends, the far one at
//!        Euler's x_s
//! ```
//! In the coordinates x / signal, where alpha = 1, that is diffusers'
//! EulerDiscreteScheduler and HeunDiscreteScheduler (Karras et al. 2022, Alg. 1);
//! Euler is then DDIM at eta 0 in any coordinates. A process that starts without
//! signal is solved in its own coordinates, which for flow matching are straight
//! lines. The last step is Euler's. eps is taken again from the limited x_0.
//!
//! `edm` is Karras et al. 2022, Alg. 2: before a step noise is put back, up to
//! sigma^ = (1 + gamma) sigma with gamma = min(S_churn / N, sqrt 2 - 1) where S_min
//! <= sigma <= S_max, its std inflated by S_noise; then Heun from sigma^.

use super::{Coordinates, Kind, Next, Output, Path, Point, Program, Setup, Stage};
use crate::diffusion::process::Pair;
use crate::error::Result;

/// Euler's step: x_s from x in slot 0 and x_0.
fn euler_step(from: Pair, to: Pair, target: usize) -> Output {
    let kept = to.std / from.std;
    let mut output = Output { target, x0: to.signal() - from.signal() * kept, ..Output::default() };
    output.slots[0] = kept;
    output
}

/// Heun's second half: x_s from x in slot 0, Euler's x_s in slot 1 and x_0 there.
/// x + x_euler is twice x and Euler's whole step.
fn heun_step(from: Pair, to: Pair) -> Output {
    let (d_alpha, d_sigma) = (to.signal() - from.signal(), to.std - from.std);
    let slope = d_sigma / to.std;
    let mut output = Output { x0: 0.5 * (d_alpha - slope * to.signal()), ..Output::default() };
    output.slots[0] = 0.5;
    output.slots[1] = 0.5 + 0.5 * slope;
    output
}

fn coordinates(setup: &Setup) -> Coordinates {
    let process = &setup.process;
    let silent = process.pair(process.end()).ln_signal == f64::NEG_INFINITY;
    setup.options.coordinates.unwrap_or(match silent && setup.table().is_none() {
        true => Coordinates::Process,
        false => Coordinates::Scaled,
    })
}

/// Euler's program.
pub fn euler(setup: &Setup) -> Result<Program> {
    let path = setup.path(Kind::OdeEuler, coordinates(setup))?;
    let stages = path.steps().map(|(update, point, next)| {
        let output = euler_step(point.pair, next.pair, 0);
        Stage { outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    let stages = stages.collect();
    Ok(Program {
        name: Kind::OdeEuler.name(),
        slots: 1,
        limit: setup.limit(Kind::OdeEuler),
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes: path.notes,
    })
}

/// Appends a step of Heun from `point`, whose state is in slot 0.
fn push_heun(
    stages: &mut Vec<Stage>,
    update: usize,
    point: &Point,
    next: Next,
    far: Option<&Point>,
) {
    let Some(far) = far else {
        let output = euler_step(point.pair, next.pair, 0);
        stages.push(Stage { outputs: [Some(output), None], ..Stage::at(point, update) });
        return;
    };
    let euler = euler_step(point.pair, next.pair, 1);
    stages.push(Stage { outputs: [Some(euler), None], ..Stage::at(point, update) });
    let heun = heun_step(point.pair, next.pair);
    stages.push(Stage { input_slot: 1, outputs: [Some(heun), None], ..Stage::at(far, update) });
}

fn heun_program(setup: &Setup, kind: Kind, path: Path, stages: Vec<Stage>) -> Program {
    Program {
        name: kind.name(),
        slots: 2,
        limit: setup.limit(kind),
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes: path.notes,
    }
}

/// Heun's program.
pub fn heun(setup: &Setup) -> Result<Program> {
    let path = setup.path(Kind::OdeHeun, coordinates(setup))?;
    let mut stages = Vec::with_capacity(2 * path.points.len());
    for (update, point, next) in path.steps() {
        push_heun(&mut stages, update, point, next, path.points.get(update + 1));
    }
    Ok(heun_program(setup, Kind::OdeHeun, path, stages))
}

/// EDM's program.
pub fn edm(setup: &Setup) -> Result<Program> {
    let mut path = setup.path(Kind::Edm, Coordinates::Scaled)?;
    let churn = setup.options.churn;
    let count = path.points.len();
    let gamma = (churn.amount / count as f64).min(std::f64::consts::SQRT_2 - 1.0);
    let trained = &setup.denoiser.process;
    let noisiest = (-trained.pair(trained.end()).half_log_snr()).exp();
    let mut stages = Vec::with_capacity(3 * count);
    let mut held = false;
    for (update, point, next) in path.steps() {
        let sigma = point.pair.std;
        let mut raised = *point;
        if gamma > 0.0 && (churn.from..=churn.to).contains(&sigma) {
            let wanted = (1.0 + gamma) * sigma;
            let hat = wanted.min(noisiest).max(sigma);
            held |= hat < wanted;
            let added = (hat * hat - sigma * sigma).sqrt();
            if added > 0.0 {
                let mut output = Output { noise: churn.noise * added, ..Output::default() };
                output.slots[0] = 1.0;
                let stage = Stage::at(point, update);
                stages.push(Stage { evaluates: false, outputs: [Some(output), None], ..stage });
                raised.pair = Pair { ln_signal: 0.0, std: hat };
                raised.evaluation = setup.evaluate(raised.pair)?;
            }
        }
        push_heun(&mut stages, update, &raised, next, path.points.get(update + 1));
    }
    if held {
        path.notes.push(format!(
            "noise is put back up to sigma = {noisiest:.4}, the most that the network knows"
        ));
    }
    Ok(heun_program(setup, Kind::Edm, path, stages))
}
