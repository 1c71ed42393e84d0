//! DDPM's ancestral sampling (Ho et al. 2020, Alg. 2), over all labels or a
//! subset of them: x_s ~ N(c_0 x_0 + c_x x_t, variance) with the posterior
//! between the two times, as diffusers' DDPMScheduler.
//!
//! The step that reaches the data adds no noise. diffusers leaves it out only at
//! label 0; with `fixed_large` and a grid that ends above label 0 (`trailing`, or
//! `steps_offset`) it adds noise of variance sigma_t^2 to the finished picture,
//! which is not copied.

use super::{Output, Program, Stage, conversions, steps};
use crate::diffusion::process::{Pair, Posterior};
use crate::diffusion::schedule::Table;
use crate::diffusion::scheduler::{SchedulerConfig, VarianceType};
use crate::error::{Error, Result};

/// The program of N steps.
pub fn program(config: &SchedulerConfig, table: &Table, count: usize) -> Result<Program> {
    let large = match config.variance_type.unwrap_or_default() {
        VarianceType::FixedSmall | VarianceType::FixedSmallLog => false,
        VarianceType::FixedLarge | VarianceType::FixedLargeLog => true,
        VarianceType::Learned | VarianceType::LearnedRange => {
            return Err(Error::config(
                "scheduler.variance_type",
                "learned variances are not supported; use fixed_small or fixed_large",
            ));
        }
    };
    let labels = config.labels(count)?;
    let mut stages = Vec::with_capacity(count);
    for (update, (label, pair, next)) in steps(table, &labels, Pair::DATA).into_iter().enumerate() {
        let posterior = Posterior::between(next, pair);
        let (x0, eps) = conversions(config.prediction_type, pair, label)?;
        let variance = if large { posterior.step_variance } else { posterior.variance };
        let mut output = Output { x0: posterior.c_0, ..Output::default() };
        output.slots[0] = posterior.c_x;
        output.noise = if next == Pair::DATA { 0.0 } else { variance.sqrt() };
        stages.push(Stage {
            evaluates: true,
            label: label as f64,
            pair,
            input_slot: 0,
            input_scale: 1.0,
            x0,
            eps,
            update,
            draw: update,
            outputs: [Some(output), None],
        });
    }
    let mut notes = Vec::new();
    if large && labels.last() != Some(&0) {
        notes.push(
            "the last step adds no noise; diffusers adds it here, because its grid does not end at label 0"
                .into(),
        );
    }
    Ok(Program { name: "ddpm", slots: 1, limit: config.limit(), start_std: 1.0, stages, notes })
}
