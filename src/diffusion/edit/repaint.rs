//! RePaint (Lugmayr et al. 2022): after every step the known pixels are put in with
//! their own noise, and the state is noised again and again over `jump_length`
//! levels, so that the unknown part has the time to agree with them.
//!
//! Levels are numbered from the data, 0, to the noisiest. As in the reference, a
//! jump starts at every `jump_length`-th level from 1 on and is made `resamples - 1`
//! times there. The known pixels of the result are those given, exactly. Without
//! resampling the unknown part is drawn with little regard to the known one: that
//! bias, and not the number of steps, is what resampling removes.

use super::{check_eta, path, step};
use crate::diffusion::process::{Pair, Posterior};
use crate::diffusion::sampler::{Blend, Control, Kind, Output, Program, Setup, Stage};
use crate::error::{Error, Result};

/// Choices; the defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RePaint {
    /// Levels of a jump back to more noise.
    pub jump_length: usize,
    /// Times a stretch is drawn; 1 for no jumps.
    pub resamples: usize,
    /// Share of the ancestral noise.
    pub eta: f64,
}

impl Default for RePaint {
    fn default() -> Self {
        RePaint { jump_length: 10, resamples: 10, eta: 1.0 }
    }
}

/// The program; its plan reads [`KNOWN`](crate::diffusion::sampler::run::KNOWN)
/// and [`MASK`](crate::diffusion::sampler::run::MASK), 1 where a pixel is known.
pub fn program(setup: &Setup, options: &RePaint) -> Result<Program> {
    let RePaint { jump_length, resamples, eta } = *options;
    check_eta(eta)?;
    if jump_length == 0 || resamples == 0 {
        return Err(Error::Usage("--jump-length and --resamples must be at least 1".into()));
    }
    let path = path(setup)?;
    let top = path.points.len();
    let pair = |level: usize| match level {
        0 => Pair::DATA,
        _ => path.points[top - level].pair,
    };
    // Jumps still to be made from each level.
    let mut jumps: Vec<usize> = (0..=top)
        .map(|level| {
            let is_start = level > 0 && (level - 1).is_multiple_of(jump_length);
            if is_start && level + jump_length <= top { resamples - 1 } else { 0 }
        })
        .collect();
    let mut stages: Vec<Stage> = Vec::new();
    let (mut level, mut draw, mut update) = (top, 0, 0);
    while level > 0 {
        let point = &path.points[top - level];
        level -= 1;
        let mut output = step(point, pair(level), eta);
        if level == 0 {
            output.noise = 0.0;
        }
        stages.push(Stage { draw, outputs: [Some(output), None], ..Stage::at(point, update) });
        draw += 1;
        let blend = Some(Blend { pair: pair(level), draw: update });
        // The network sees slot 0 next, as the points say how.
        let mut put_in = Stage { evaluates: false, blend, draw, update, ..Stage::default() };
        put_in.input_scale = point.evaluation.input_scale;
        if jumps[level] > 0 {
            jumps[level] -= 1;
            let (from, to) = (pair(level), pair(level + jump_length));
            let mut output = Output {
                noise: Posterior::between(from, to).step_variance.sqrt(),
                ..Output::default()
            };
            output.slots[0] = (to.ln_signal - from.ln_signal).exp();
            put_in.outputs = [Some(output), None];
            level += jump_length;
            draw += 1;
        }
        stages.push(put_in);
        update += 1;
    }
    Ok(Program {
        name: "repaint",
        slots: 1,
        limit: setup.limit(Kind::Ddim),
        start_std: path.start_std,
        stages,
        control: Control::None,
        notes: path.notes,
    })
}
