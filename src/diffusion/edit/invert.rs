//! DDIM run from an image to the noise that it would be drawn from (Song et al.
//! 2021, DDIM, sec. 4.3), and back.
//!
//! From the state x_s to the next noisier one, x_t must solve
//! ```text
//! x_t = a x_s + (sigma_t - a sigma_s) eps(x_t, t),   a = alpha_t / alpha_s
//! ```
//! for DDIM's step from x_t to lead to x_s. It is found by `iterations` evaluations
//! at t, each with the x_t so far, from a x_s on. One is the usual inversion, whose
//! error is of first order in the step; each further one takes it down by another
//! order, and in the limit the inversion is exact at any number of steps. x_0 is
//! not limited, there and back: a limit has no inverse.

use super::path;
use crate::diffusion::denoiser::Limit;
use crate::diffusion::process::Pair;
use crate::diffusion::sampler::{Control, Output, Program, Setup, Stage};
use crate::error::{Error, Result};

/// The program from an image, its start, to the noise at the noisiest level.
pub fn program(setup: &Setup, iterations: usize) -> Result<Program> {
    if iterations == 0 {
        return Err(Error::Usage("--iterations must be at least 1".into()));
    }
    let path = path(setup)?;
    // From the data on.
    let levels: Vec<_> = path.points.iter().rev().collect();
    let factor = |from: Pair, to: Pair| (to.ln_signal - from.ln_signal).exp();
    let copy = |target: usize, scale: f64| {
        let mut output = Output { target, ..Output::default() };
        output.slots[0] = scale;
        Some(output)
    };
    // Slot 1 holds x_s, slot 0 the x_t so far.
    let mut stages = vec![Stage {
        evaluates: false,
        input_scale: levels[0].evaluation.input_scale,
        outputs: [copy(0, factor(Pair::DATA, levels[0].pair)), copy(1, 1.0)],
        ..Stage::default()
    }];
    let mut before = Pair::DATA;
    for (update, point) in levels.iter().enumerate() {
        let a = factor(before, point.pair);
        let next = |scale: f64, target: usize| {
            let eps = scale * (point.pair.std - a * before.std);
            let mut output = Output { target, eps, ..Output::default() };
            output.slots[1] = scale * a;
            Some(output)
        };
        for i in 0..iterations {
            let outputs = match levels.get(update + 1) {
                Some(following) if i + 1 == iterations => {
                    [next(factor(point.pair, following.pair), 0), next(1.0, 1)]
                }
                _ => [next(1.0, 0), None],
            };
            stages.push(Stage { outputs, ..Stage::at(point, update) });
        }
        before = point.pair;
    }
    Ok(Program {
        name: "ddim-inversion",
        slots: 2,
        limit: Limit::None,
        start_std: 1.0,
        stages,
        control: Control::None,
        notes: path.notes,
    })
}

/// The program from the noise, its start as it stands, to an image.
pub fn back(setup: &Setup) -> Result<Program> {
    let path = path(setup)?;
    let stages = path.steps().map(|(update, point, next)| {
        let output = super::step(point, next.pair, 0.0);
        Stage { outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    Ok(Program {
        name: "ddim",
        slots: 1,
        limit: Limit::None,
        start_std: 1.0,
        stages: stages.collect(),
        control: Control::None,
        notes: path.notes,
    })
}

/// Factor of standard normals that DDIM's path starts from.
pub fn start_std(setup: &Setup) -> Result<f64> {
    Ok(path(setup)?.start_std)
}
