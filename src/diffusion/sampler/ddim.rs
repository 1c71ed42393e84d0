//! DDIM (Song, Meng & Ermon 2021, eq. 12 and 16), as diffusers' DDIMScheduler:
//! ```text
//! x_s = alpha_s x_0 + sqrt(sigma_s^2 - c_z^2) eps + c_z z
//! c_z = eta sqrt(beta-tilde between s and t)
//! ```
//! x_0 is limited and eps is not, as diffusers does by default.

use super::{Options, Output, Previous, Program, Stage, conversions, steps};
use crate::diffusion::process::{Pair, Posterior};
use crate::diffusion::schedule::Table;
use crate::diffusion::scheduler::{SchedulerConfig, Spacing};
use crate::error::{Error, Result};

/// The program of N steps.
pub fn program(
    config: &SchedulerConfig,
    table: &Table,
    count: usize,
    options: &Options,
) -> Result<Program> {
    let eta = options.eta;
    if !(0.0..=1.0).contains(&eta) {
        return Err(Error::Usage(format!("--eta {eta} must lie between 0 and 1")));
    }
    let labels = config.labels(count)?;
    let end = match config.set_alpha_to_one.unwrap_or(true) {
        true => Pair::DATA,
        false => table.labelled(0),
    };
    let ratio = table.steps() / count;
    let mut stages = Vec::with_capacity(count);
    for (update, (label, pair, grid)) in steps(table, &labels, end).into_iter().enumerate() {
        let next = match options.previous {
            Previous::Grid => grid,
            Previous::Ratio => label.checked_sub(ratio).map_or(end, |label| table.labelled(label)),
        };
        let (x0, eps) = conversions(config.prediction_type, pair, label)?;
        let variance = eta * eta * Posterior::between(next, pair).variance;
        let direction = (next.variance() - variance).max(0.0).sqrt();
        let mut output = Output { x0: next.signal(), noise: variance.sqrt(), ..Output::default() };
        if options.clipped_eps {
            output.x0 -= direction * pair.signal() / pair.std;
            output.slots[0] = direction / pair.std;
        } else {
            output.eps = direction;
        }
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
    let irregular = match config.timestep_spacing {
        Spacing::Leading => false,
        Spacing::Trailing => !table.steps().is_multiple_of(count),
        Spacing::Linspace => true,
    };
    let mut notes = Vec::new();
    if irregular && options.previous == Previous::Grid {
        notes.push(
            "every step leads to the time the next one starts from; diffusers misses it on this \
             grid (huggingface/diffusers#11347)"
                .into(),
        );
    }
    Ok(Program { name: "ddim", slots: 1, limit: config.limit(), start_std: 1.0, stages, notes })
}
