//! DDIM (Song, Meng & Ermon 2021, eq. 12 and 16), as diffusers' DDIMScheduler:
//! ```text
//! x_s = alpha_s x_0 + sqrt(sigma_s^2 - c_z^2) eps + c_z z
//! c_z = eta sqrt(beta-tilde between s and t)
//! ```
//! x_0 is limited and eps is not, as diffusers does by default.

use super::{Coordinates, Kind, Next, Output, Previous, Program, Setup, Stage};
use crate::diffusion::process::Posterior;
use crate::diffusion::scheduler::{FinalSigmas, Spacing};
use crate::error::{Error, Result};

/// DDIM's program.
pub fn program(setup: &Setup) -> Result<Program> {
    let options = &setup.options;
    let eta = options.eta;
    if !(0.0..=1.0).contains(&eta) {
        return Err(Error::Usage(format!("--eta {eta} must lie between 0 and 1")));
    }
    let mut path = setup.path(Kind::Ddim, Coordinates::Process)?;
    let count = path.points.len();
    let labelled = |label: usize| {
        let time = label as f64 + 1.0;
        Next { time, pair: setup.process.pair(time) }
    };
    if let Some(table) = setup.table()
        && options.end != Some(FinalSigmas::SigmaMin)
        && setup.scheduler.set_alpha_to_one == Some(false)
        && path.points[count - 1].time > 1.0 - 1.0 / table.steps() as f64
    {
        path.end = labelled(0);
    }
    let ratio = match (options.previous, setup.table()) {
        (Previous::Grid, _) => None,
        (Previous::Ratio, Some(table)) => Some(table.steps() / count),
        (Previous::Ratio, None) => {
            return Err(Error::config(
                "sampler.previous",
                "ratio is of diffusers' labels, and the process sampled under has none; use grid",
            ));
        }
    };
    let stages = path.steps().map(|(update, point, grid)| {
        let next = match ratio {
            None => grid,
            Some(ratio) => (point.time as usize - 1).checked_sub(ratio).map_or(path.end, labelled),
        };
        let variance = eta * eta * Posterior::between(next.pair, point.pair).variance;
        let direction = (next.pair.variance() - variance).max(0.0).sqrt();
        let mut output = Output { x0: next.pair.signal(), ..Output::default() };
        output.noise = variance.sqrt();
        if options.clipped_eps {
            output.x0 -= direction * point.pair.signal() / point.pair.std;
            output.slots[0] = direction / point.pair.std;
        } else {
            output.eps = direction;
        }
        Stage { outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    let stages = stages.collect();
    let mut notes = path.notes.clone();
    if let Some(table) = setup.table()
        && options.grid.is_none()
        && options.previous == Previous::Grid
    {
        let irregular = match setup.scheduler.timestep_spacing.unwrap_or_default() {
            Spacing::Leading => false,
            Spacing::Trailing => !table.steps().is_multiple_of(count),
            Spacing::Linspace => true,
        };
        if irregular {
            notes.push(
                "every step leads to the time the next one starts from; diffusers misses it on this \
                 grid (huggingface/diffusers#11347)"
                    .into(),
            );
        }
    }
    Ok(Program {
        name: Kind::Ddim.name(),
        slots: 1,
        limit: setup.limit(Kind::Ddim),
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes,
    })
}
