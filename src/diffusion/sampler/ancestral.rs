//! Ancestral sampling: x_s ~ N(c_0 x_0 + c_x x_t, variance) with the posterior
//! between two times.
//!
//! `ddpm` is Ho et al. 2020, Alg. 2, over all labels or a subset of them, as
//! diffusers' DDPMScheduler. The step that reaches the data adds no noise.
//! diffusers leaves it out only at label 0; with `fixed_large` and a grid that ends
//! above label 0 (`trailing`, or `steps_offset`) it adds noise of variance
//! sigma_t^2 to the finished picture, which is not copied.
//!
//! With `variance_type` learned or learned_range (Nichol & Dhariwal 2021) the
//! network has twice the channels, and the second half says the variance of every
//! element.
//!
//! `euler-a` is the same step with beta-tilde in the coordinates x / signal, as
//! diffusers' EulerAncestralDiscreteScheduler: its sigma_down is sigma_s^2/sigma_t
//! and its sigma_up the root of beta-tilde. With DDIM at eta 1 that makes three
//! names of one step.

use super::{Coordinates, Kind, Learned, Output, Program, Setup, Stage};
use crate::diffusion::process::{Pair, Posterior};
use crate::diffusion::scheduler::VarianceType;
use crate::error::Result;

/// What diffusers takes a variance for at least before its logarithm.
const LEAST_VARIANCE: f64 = 1e-20;

/// DDPM's program.
pub fn ddpm(setup: &Setup) -> Result<Program> {
    let variance_type = setup.options.variance.or(setup.scheduler.variance_type);
    let variance_type = variance_type.unwrap_or_default();
    let large = matches!(variance_type, VarianceType::FixedLarge | VarianceType::FixedLargeLog);
    let path = setup.path(Kind::Ddpm, Coordinates::Process)?;
    let mut notes = path.notes.clone();
    let ends_at = path.points[path.points.len() - 1].time;
    if large && setup.table().is_some() && ends_at > 1.0 && path.end.pair == Pair::DATA {
        notes.push(
            "the last step adds no noise; diffusers adds it here, because its grid does not end at label 0"
                .into(),
        );
    }
    let stages = path.steps().map(|(update, point, next)| {
        let posterior = Posterior::between(next.pair, point.pair);
        let variance = if large { posterior.step_variance } else { posterior.variance };
        let mut output = Output { x0: posterior.c_0, ..Output::default() };
        output.slots[0] = posterior.c_x;
        let learned = match variance_type {
            _ if next.pair.std == 0.0 => None,
            VarianceType::Learned => Some(Learned::Variance),
            VarianceType::LearnedRange => Some(Learned::Range {
                small: posterior.variance.max(LEAST_VARIANCE).ln(),
                large: posterior.step_variance.ln(),
            }),
            _ => None,
        };
        output.noise = match learned {
            _ if next.pair.std == 0.0 => 0.0,
            Some(_) => 1.0,
            None => variance.sqrt(),
        };
        Stage { learned, outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    let stages = stages.collect();
    Ok(Program {
        name: Kind::Ddpm.name(),
        slots: 1,
        limit: setup.limit(Kind::Ddpm),
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes,
    })
}

/// The program of Euler's ancestral sampler.
pub fn euler(setup: &Setup) -> Result<Program> {
    let path = setup.path(Kind::EulerA, Coordinates::Scaled)?;
    let stages = path.steps().map(|(update, point, next)| {
        let posterior = Posterior::between(next.pair, point.pair);
        let mut output = Output { x0: posterior.c_0, ..Output::default() };
        output.slots[0] = posterior.c_x;
        output.noise = posterior.variance.sqrt();
        Stage { outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    let stages = stages.collect();
    Ok(Program {
        name: Kind::EulerA.name(),
        slots: 1,
        limit: setup.limit(Kind::EulerA),
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes: path.notes,
    })
}
