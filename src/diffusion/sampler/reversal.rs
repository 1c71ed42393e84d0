//! Reversal of the forward step without noise: with x_t = a x_s + b z,
//! ```text
//! x_s = (x_t - b zhat) / a
//! ```
//! zhat is the network's step noise, which is (b / sigma_t) eps: so x_s is the
//! posterior mean c_0 x_0 + c_x x_t, ancestral sampling without its noise. What the
//! noise keeps apart then falls together: for normal data of variance 0.25 under
//! DDPM's 1000 steps the drawn variance is 2.5e-6.
//!
//! The literal form (`--set sampler.literal=true`) puts the cumulative eps in
//! zhat's place, as if the step had added all of it. It is a counterexample: every
//! step then removes b eps where b^2/sigma_t eps was to go, sigma_t / b times too
//! much, and the same variance is 6e-85.

use super::{Coordinates, Kind, Output, Program, Setup, Stage};
use crate::diffusion::denoiser::{Limit, step};
use crate::diffusion::process::Posterior;
use crate::error::Result;

/// The program of the reversal.
pub fn program(setup: &Setup) -> Result<Program> {
    let literal = setup.options.literal;
    let path = setup.path(Kind::Reversal, Coordinates::Process)?;
    let stages = path.steps().map(|(update, point, next)| {
        let mut output = Output::default();
        if literal {
            let (a, b) = step(next.pair, point.pair);
            output.slots[0] = 1.0 / a;
            output.eps = -b / a;
        } else {
            let posterior = Posterior::between(next.pair, point.pair);
            output.slots[0] = posterior.c_x;
            output.x0 = posterior.c_0;
        }
        Stage { outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    let stages = stages.collect();
    let mut notes = path.notes.clone();
    if literal {
        notes.push(
            "the literal reversal takes the cumulative eps for the step's noise: expect samples \
             without any spread"
                .into(),
        );
    }
    Ok(Program {
        name: Kind::Reversal.name(),
        slots: 1,
        limit: if literal { Limit::None } else { setup.limit(Kind::Reversal) },
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes,
    })
}
