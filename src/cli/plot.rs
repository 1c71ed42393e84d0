//! Pictures of models of points in the plane: scatter, trajectories, score field.

use clap::ValueEnum;
use langevin::Result;
use langevin::backend::{Backend, Engine, WeightSet};
use langevin::data::{DataOptions, Dataset};
use langevin::diffusion::sampler::run::Samples;
use langevin::picture::{Field, field_png, scatter_png, trajectory_png};
use langevin::plan::Space;
use langevin::predict::{Conditions, predict};

use super::Global;
use super::model::Model;

/// What `--out picture.png` shows of points in the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plot {
    /// The samples as dots over the data
    Scatter,
    /// The paths from the noise to the samples
    Trajectory,
    /// The network's score as arrows over the density of the data, at four times
    Field,
}

/// std / signal of the states whose fields are drawn.
const NOISES: [f64; 4] = [0.1, 0.35, 0.9, 3.0];
/// Arrows and density cells of a row.
const ARROWS: usize = 21;
const CELLS: usize = 120;
/// Points of the data that a density is made of.
const DENSITY_POINTS: usize = 2000;

/// Points of the data the model was trained on, where the program makes them itself.
pub fn reference(model: &Model, count: usize) -> Option<Vec<f32>> {
    let name = model.files.extras.as_ref()?.get("data")?.as_str()?;
    let data = Dataset::open(
        name.starts_with("points:").then_some(name)?,
        &DataOptions { limit: Some(count), ..DataOptions::default() },
    );
    Some(data.ok()?.first_values(count))
}

/// The scatter or trajectory plot of what was drawn.
pub fn of_samples(plot: Plot, model: &Model, samples: &Samples) -> Vec<u8> {
    let reference = reference(model, 4000);
    if plot == Plot::Trajectory {
        let frames: Vec<&[f32]> = samples.trajectory.iter().map(|f| &f.images[..]).collect();
        return trajectory_png(&frames, reference.as_deref());
    }
    scatter_png(&samples.images, reference.as_deref())
}

/// The score field of a network, whose weights are given.
pub fn field(model: &Model, weights: &[f32], global: &Global) -> Result<Vec<u8>> {
    global.on_device(|backend| field_on(model, weights, backend))
}

fn field_on(model: &Model, weights: &[f32], backend: Box<dyn Backend>) -> Result<Vec<u8>> {
    let mut engine = Engine::new(backend, model.parameters.arena_len(), false)?;
    engine.set_arena(Space::Parameters, weights)?;
    let reference = reference(model, DENSITY_POINTS).unwrap_or_default();
    let process = &model.denoiser.process;
    let mut fields = Vec::new();
    for noise in NOISES {
        let time = process.time_of(-f64::ln(noise)).clamp(process.earliest(), process.end());
        // A table's network knows its entries alone; state 0 is the data.
        let time = if process.steps().is_some() { time.round().max(1.0) } else { time };
        let (pair, evaluation) = (process.pair(time), model.denoiser.at(time)?);
        let limit = extent(&reference, pair.signal(), pair.std);
        let centre = |i: usize, cells: usize| ((2 * i + 1) as f64 / cells as f64 - 1.0) * limit;
        let grid: Vec<f32> = (0..ARROWS * ARROWS)
            .flat_map(|k| [centre(k % ARROWS, ARROWS) as f32, centre(k / ARROWS, ARROWS) as f32])
            .collect();
        let shape = [ARROWS * ARROWS, 1, 1, 2];
        let t = vec![evaluation.label as f32; ARROWS * ARROWS];
        let input: Vec<f32> = grid.iter().map(|&x| x * evaluation.input_scale as f32).collect();
        let conditions = Conditions { t, ..Conditions::default() };
        let out = predict(&mut engine, &model.network, WeightSet::Raw, shape, &input, &conditions)?;
        let eps = evaluation.eps;
        let score =
            |x: f32, p: f32| -(eps.state * f64::from(x) + eps.prediction * f64::from(p)) / pair.std;
        let arrows = grid
            .chunks_exact(2)
            .zip(out.chunks_exact(2))
            .map(|(x, p)| {
                let at = [f64::from(x[0]), f64::from(x[1])];
                (at, [score(x[0], p[0]), score(x[1], p[1])])
            })
            .collect();
        let density = (0..if reference.is_empty() { 0 } else { CELLS * CELLS })
            .map(|k| {
                let at = [centre(k % CELLS, CELLS), centre(k / CELLS, CELLS)];
                density(&reference, at, pair.signal(), pair.std)
            })
            .collect();
        fields.push(Field {
            title: format!(
                "score at time {time:.4}: signal {:.3}, std {:.3}",
                pair.signal(),
                pair.std
            ),
            limit,
            density,
            side: CELLS,
            arrows,
        });
    }
    Ok(field_png(&fields))
}

/// Half the side of the square that is shown: the data, scaled and noised.
fn extent(reference: &[f32], signal: f64, std: f64) -> f64 {
    let most = reference.iter().fold(0f32, |most, v| most.max(v.abs()));
    let most = if most > 0.0 { f64::from(most) } else { 2.0 };
    1.1 * ((signal * most).powi(2) + (1.5 * std).powi(2)).sqrt()
}

/// Density of the noised data at a point, up to a factor.
fn density(reference: &[f32], at: [f64; 2], signal: f64, std: f64) -> f64 {
    // Narrower than two cells, a Gaussian would fall between their centres.
    let std = std.max(0.05);
    let term = |p: &[f32]| {
        let (dx, dy) = (at[0] - signal * f64::from(p[0]), at[1] - signal * f64::from(p[1]));
        (-(dx * dx + dy * dy) / (2.0 * std * std)).exp()
    };
    reference.chunks_exact(2).map(term).sum()
}
