//! What a run begins with: drawn weights, another model's, or a checkpoint's.

use std::path::Path;

use super::Report;
use crate::backend::Engine;
use crate::checkpoint::diffusers;
use crate::checkpoint::training::{Cursor, load_state};
use crate::checkpoint::weights::Weights;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plan::{Parameters, Space};
use crate::random::{self, Purpose, image_keys};

/// First weights, each element keyed by (seed, weight, position).
pub fn initial_weights(parameters: &Parameters, seed: u64) -> Vec<f32> {
    use crate::plan::Init;
    let mut arena = vec![0f32; parameters.arena_len()];
    for (i, p) in parameters.entries.iter().enumerate() {
        let values = &mut arena[p.offset..p.offset + p.len()];
        let keys = image_keys(seed, i as u64);
        match p.init {
            Init::Constant(c) => values.fill(c),
            Init::Normal(std) => {
                random::fill_normal(keys, Purpose::Init, 0, 0, values);
                values.iter_mut().for_each(|v| *v *= std);
            }
            Init::Uniform(bound) => {
                random::fill_uniform(keys, Purpose::Init, 0, 0, values);
                values.iter_mut().for_each(|v| *v = (2.0 * *v - 1.0) * bound);
            }
        }
    }
    arena
}

pub(super) fn initial_from(path: &Path, parameters: &Parameters, say: Report) -> Result<Vec<f32>> {
    let files = diffusers::open(path)?;
    let mut arena = vec![0f32; parameters.arena_len()];
    let report = Weights::open(&files.weights)?.load_into(parameters, &mut arena)?;
    say(&format!("first weights: {report}"));
    Ok(arena)
}

pub(super) fn load_checkpoint(
    engine: &mut Engine,
    parameters: &Parameters,
    path: &Path,
    config: &Config,
    images: u64,
) -> Result<u64> {
    let files = diffusers::open(path)?;
    let (Some(raw), Some(training)) = (&files.raw_weights, &files.training) else {
        return Err(Error::checkpoint(
            path,
            "has no raw weights or no training state to resume from",
        ));
    };
    let len = parameters.arena_len();
    let mut arena = vec![0f32; len];
    Weights::open(raw)?.load_into(parameters, &mut arena)?;
    engine.set_arena(Space::Parameters, &arena)?;
    Weights::open(&files.weights)?.load_into(parameters, &mut arena)?;
    engine.set_arena(Space::Average, &arena)?;
    let mut second = vec![0f32; len];
    let progress = load_state(training, parameters, &mut arena, &mut second)?;
    engine.set_arena(Space::FirstMoments, &arena)?;
    engine.set_arena(Space::SecondMoments, &second)?;
    if progress.seed != config.train.seed {
        return Err(Error::config(
            "train.seed",
            format!(
                "the run was begun with seed {} and cannot go on with {}",
                progress.seed, config.train.seed
            ),
        ));
    }
    let seen = progress.step * (config.train.batch * config.train.accumulation) as u64;
    if progress.cursor != (Cursor { epoch: seen / images, position: seen % images }) {
        return Err(Error::Data {
            spec: config.data.spec.clone().unwrap_or_default(),
            problem: format!(
                "has {images} images, another number than when the run was begun; a resumed run \
                 needs the same data"
            ),
        });
    }
    Ok(progress.step)
}
