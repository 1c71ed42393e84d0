//! Likelihoods: how many bits a model needs for a dimension of the data.
//!
//! - [`ode`]: the exact likelihood of the probability-flow ODE, its divergence
//!   estimated with random probes (Song et al. 2021, sec. 4.3).
//! - [`bound`]: the variational bound by terms (Ho et al. 2020, eq. 5), an upper
//!   bound of the same number.
//!
//! Both ask a network through [`Ask`], and give the same bits for an image
//! whatever batch it is asked in.
//!
//! **Units.** Byte v of L levels stands at 2 v / (L - 1) - 1, so levels lie
//! w = 2 / (L - 1) apart. A density scores discrete data by uniform
//! dequantisation: byte v is spread over its cell, x = value + w (u - 1/2), and
//! ```text
//! -log2 P(v) <= E_u[-log2 p(x)] - d log2 w     (Theis et al. 2016)
//! ```
//! A uniform density over all cells, the cube of side L w, thus scores log2 L.

pub mod bound;
pub mod ode;

use crate::error::{Error, Result};
use crate::random::{Purpose, fill_uniform, image_keys};

/// What a network is asked: a full batch of rows, each with a time of its own.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Inputs `[batch, len]`, already scaled.
    pub x: Vec<f32>,
    /// What the network is told, `[batch]`.
    pub labels: Vec<f64>,
    /// Classes `[batch]`, for networks that take one; empty otherwise.
    pub classes: Vec<u32>,
    /// Probes `[batch, len]`; empty where no product is wanted.
    pub probe: Vec<f32>,
}

/// What it answers.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// `[batch, len]`
    pub prediction: Vec<f32>,
    /// The outputs for a learned variance, `[batch, len]`; empty without.
    pub variance: Vec<f32>,
    /// The Jacobian, transposed, times the probe: `[batch, len]`. Holds nothing
    /// of use where no probe was given.
    pub product: Vec<f32>,
}

/// A network that answers a batch at a time, each row by itself.
pub trait Ask {
    /// Rows of a question.
    fn batch(&self) -> usize;
    /// Elements of an input.
    fn len(&self) -> usize;
    /// Whether an input has no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether the network has outputs for a learned variance.
    fn learns_variance(&self) -> bool {
        false
    }
    /// Fills the answer, whose vectors have their full length.
    fn ask(&mut self, question: &Question, answer: &mut Answer) -> Result<()>;
}

impl Question {
    /// Room for a network's batch; with or without probes.
    pub fn of(ask: &dyn Ask, classes: bool, probe: bool) -> Question {
        let (batch, len) = (ask.batch(), ask.len());
        Question {
            x: vec![0.0; batch * len],
            labels: vec![0.0; batch],
            classes: vec![0; if classes { batch } else { 0 }],
            probe: vec![0.0; if probe { batch * len } else { 0 }],
        }
    }
}

impl Answer {
    /// Room for a network's batch.
    pub fn of(ask: &dyn Ask) -> Answer {
        let len = ask.batch() * ask.len();
        let variance = vec![0.0; if ask.learns_variance() { len } else { 0 }];
        Answer { prediction: vec![0.0; len], variance, product: vec![0.0; len] }
    }
}

/// Mean of independent values and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the mean; `None` of a single value.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Estimate {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let standard_error = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Estimate { mean, standard_error }
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.standard_error {
            Some(error) => write!(f, "{:.4} +- {error:.4}", self.mean),
            None => write!(f, "{:.4}", self.mean),
        }
    }
}

/// w: the distance between two of `levels` values in [-1, 1].
pub fn cell(levels: usize) -> f64 {
    2.0 / (levels - 1) as f64
}

/// Bits for a dimension, of a density `log_density` in nats of an image of
/// `len` elements. `levels` are those of dequantised data; 0 for continuous data,
/// whose density is scored as it is.
pub fn bits_per_dim(log_density: f64, len: usize, levels: usize) -> f64 {
    let offset = if levels == 0 { 0.0 } else { cell(levels).ln() };
    -(log_density / len as f64 + offset) / std::f64::consts::LN_2
}

/// Spreads an image's levels uniformly over their cells, in f64: image `index`
/// of the data, noise of its own `draw`.
pub fn dequantise(levels: usize, seed: u64, index: u64, draw: u32, x: &mut [f64]) {
    let mut uniform = vec![0f32; x.len()];
    fill_uniform(image_keys(seed, index), Purpose::Dequantise, draw, 0, &mut uniform);
    for (x, &u) in x.iter_mut().zip(&uniform) {
        *x += cell(levels) * (f64::from(u) - 0.5);
    }
}

fn not_finite(what: String) -> Error {
    Error::NotFinite {
        step: 0,
        what,
        tensor: None,
        remedy: "the network's weights are broken, or it is asked where it was never trained"
            .into(),
    }
}

/// How far a run is: called with images done and all images; an error ends it.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uniform_cube_scores_log2_of_its_levels() {
        for levels in [2, 17, 256] {
            let side = cell(levels) * levels as f64;
            for len in [1, 64] {
                let found = bits_per_dim(-(len as f64) * side.ln(), len, levels);
                assert!((found - (levels as f64).log2()).abs() < 1e-12, "{levels} {found}");
            }
        }
        // A standard normal at its mode, as it is.
        let mode = -0.5 * (2.0 * std::f64::consts::PI).ln();
        assert!((bits_per_dim(3.0 * mode, 3, 0) - 1.325_748).abs() < 1e-6);
    }

    #[test]
    fn dequantised_levels_stay_in_their_cells_and_fill_them() {
        let mut x = vec![-1.0; 4096];
        dequantise(17, 3, 7, 0, &mut x);
        let half = 0.5 * cell(17);
        assert!(x.iter().all(|x| (x + 1.0).abs() < half));
        let mean = x.iter().map(|x| (x + 1.0) / half).sum::<f64>() / 4096.0;
        let square = x.iter().map(|x| ((x + 1.0) / half).powi(2)).sum::<f64>() / 4096.0;
        assert!(mean.abs() < 0.05 && (square - 1.0 / 3.0).abs() < 0.02, "{mean} {square}");
        let mut again = vec![-1.0; 4096];
        dequantise(17, 3, 7, 0, &mut again);
        assert_eq!(x, again);
    }

    #[test]
    fn estimates_have_the_standard_error_of_their_mean() {
        let found = Estimate::of(&[1.0, 3.0]);
        assert_eq!(found, Estimate { mean: 2.0, standard_error: Some(1.0) });
        assert_eq!(Estimate::of(&[4.0]).standard_error, None);
    }
}
