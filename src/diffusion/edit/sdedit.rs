//! SDEdit (Meng et al. 2022): an image is noised to a level, `strength` of the way,
//! and drawn again from there. A little keeps the image, 1 forgets it.
//!
//! The image is the program's start; on data N(0, v) with the exact network an
//! image y becomes, in the limit of many steps of eta 1, a draw of mean alpha^2 v y /
//! (alpha^2 v + sigma^2) at the level's pair.

use super::{check_eta, path, step};
use crate::diffusion::sampler::{Control, Kind, Output, Program, Setup, Stage};
use crate::error::{Error, Result};

/// Choices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SdEdit {
    /// Part of the steps that are made, above 0 to 1.
    pub strength: f64,
    /// Share of the ancestral noise.
    pub eta: f64,
}

impl Default for SdEdit {
    fn default() -> Self {
        SdEdit { strength: 0.5, eta: 1.0 }
    }
}

/// The program; it starts from the image.
pub fn program(setup: &Setup, options: &SdEdit) -> Result<Program> {
    let SdEdit { strength, eta } = *options;
    check_eta(eta)?;
    if !(strength > 0.0 && strength <= 1.0) {
        return Err(Error::Usage(format!(
            "--strength {strength} must lie above 0 and at most at 1"
        )));
    }
    let path = path(setup)?;
    let count = path.points.len();
    let kept = ((strength * count as f64).round() as usize).clamp(1, count);
    let first = &path.points[count - kept];
    let mut noised = Output { noise: first.pair.std, ..Output::default() };
    noised.slots[0] = first.pair.signal();
    let mut stages = vec![Stage {
        evaluates: false,
        input_scale: first.evaluation.input_scale,
        outputs: [Some(noised), None],
        ..Stage::default()
    }];
    for (i, point, next) in path.steps().skip(count - kept) {
        let made = i - (count - kept);
        let output = step(point, next.pair, eta);
        stages.push(Stage {
            draw: made + 1,
            outputs: [Some(output), None],
            ..Stage::at(point, made)
        });
    }
    Ok(Program {
        name: "sdedit",
        slots: 1,
        limit: setup.limit(Kind::Ddim),
        start_std: 1.0,
        stages,
        control: Control::None,
        notes: path.notes,
    })
}
