//! Scores of samples against data, on pixels or on features.
//!
//! ```text
//! frechet      distance of the Gaussians with the sets' means and covariances
//! kernel       unbiased MMD^2 with KID's cubic kernel, over random subsets
//! neighbours   precision, recall, density, coverage by k-nearest-neighbour balls
//! audit        memorisation: each sample's two nearest training images
//! ```
//! Everything is computed in f64, in an order that depends on the sets alone:
//! not on threads, nor on the batches the samples were drawn in. Sets too small
//! for a score are refused with the reason.

pub mod audit;
pub mod frechet;
pub mod kernel;
pub mod matrix;
pub mod neighbours;

use serde::Serialize;

use crate::backend::cpu::pool::Pool;
use crate::error::{Error, Result};

/// A set of vectors `[n, dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    values: Vec<f64>,
    dim: usize,
}

impl Features {
    /// Vectors of `dim` elements, one after another.
    ///
    /// # Errors
    /// There is no vector, the length does not fit, or a value is not finite;
    /// `what` names the set.
    pub fn new(what: &str, values: &[f32], dim: usize) -> Result<Features> {
        if dim == 0 || values.is_empty() || !values.len().is_multiple_of(dim) {
            return Err(Error::Shape {
                op: "evaluate",
                tensor: what.into(),
                expected: format!("at least one vector of {dim} elements"),
                found: vec![values.len()],
            });
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let problem =
                format!("{what}: element {} of vector {} is not finite", at % dim, at / dim);
            return Err(Error::Usage(problem));
        }
        Ok(Features { values: values.iter().map(|&v| v.into()).collect(), dim })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Never true: [`Features::new`] refuses empty sets.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Elements of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All values, `[n, dim]`.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The vectors of these indices.
    pub fn select(&self, indices: &[usize]) -> Features {
        let row = |&i: &usize| &self.values[i * self.dim..][..self.dim];
        Features { values: indices.iter().flat_map(row).copied().collect(), dim: self.dim }
    }

    /// The first vectors, at most `count`.
    fn first(&self, count: usize) -> Features {
        let len = self.dim * count.min(self.len());
        Features { values: self.values[..len].to_vec(), dim: self.dim }
    }
}

/// What to compute and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Neighbours k of precision, recall, density and coverage.
    pub neighbours: usize,
    /// Vectors of each side that they look at, at most.
    pub most: usize,
    /// Vectors of a subset of the MMD; halves of the smaller set where it has fewer.
    pub subset: usize,
    /// Number of subsets.
    pub subsets: usize,
    /// Seed of the subsets.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { neighbours: 5, most: 10_000, subset: 1000, subsets: 100, seed: 0 }
    }
}

/// All scores of samples against data.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    /// Samples compared.
    pub samples: usize,
    /// Vectors of the data.
    pub data: usize,
    /// Elements of a vector.
    pub dim: usize,
    /// Frechet distance.
    pub frechet: frechet::Frechet,
    /// MMD^2.
    pub mmd2: kernel::Mmd,
    /// Precision, recall, density, coverage.
    pub neighbours: neighbours::Neighbours,
    /// What limits these numbers, for people.
    pub notes: Vec<String>,
}

/// Scores `samples` against `data`.
///
/// # Errors
/// The vectors differ in length, or a set is too small for a score.
pub fn evaluate(
    pool: &Pool,
    samples: &Features,
    data: &Features,
    options: &Options,
) -> Result<Scores> {
    if samples.dim != data.dim {
        return Err(Error::Usage(format!(
            "the samples have {} values each and the data {}: they cannot be compared",
            samples.dim, data.dim
        )));
    }
    let mut notes = Vec::new();
    let least = samples.len().min(data.len());
    if least <= data.dim {
        notes.push(format!(
            "{least} vectors cannot span {} dimensions: the Frechet distance is biased upwards; \
             compare it only with one of as many",
            data.dim
        ));
    }
    if samples.len().max(data.len()) > options.most {
        notes.push(format!(
            "precision, recall, density and coverage look at the first {} of each side",
            options.most
        ));
    }
    Ok(Scores {
        samples: samples.len(),
        data: data.len(),
        dim: data.dim,
        frechet: frechet::distance(pool, samples, data)?,
        mmd2: kernel::mmd2(pool, samples, data, options)?,
        neighbours: neighbours::neighbours(
            pool,
            &samples.first(options.most),
            &data.first(options.most),
            options.neighbours,
        )?,
        notes,
    })
}

/// Refuses a set of fewer than `needed` vectors.
fn at_least(what: &str, features: &Features, needed: usize, why: &str) -> Result<()> {
    if features.len() >= needed {
        return Ok(());
    }
    let found = features.len();
    Err(Error::Usage(format!("{what}: {found} of them, and {why} at least {needed}")))
}
