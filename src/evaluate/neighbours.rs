//! Fidelity and diversity by balls around each vector that reach to its k-th
//! nearest neighbour in its own set.
//!
//! - precision: share of samples inside a ball of the data; recall: share of the
//!   data inside a ball of the samples (Kynkaanniemi et al. 2019).
//! - density: balls of the data around a sample, over k, on average; coverage:
//!   share of the data whose own ball holds a sample (Naeem et al. 2020).
//!
//! A ball holds its surface, so that a set has precision and recall 1 against itself.

use serde::Serialize;

use super::matrix::{Pair, map_rows};
use super::{Features, at_least};
use crate::backend::cpu::pool::Pool;
use crate::error::{Error, Result};

/// The four scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Neighbours {
    pub precision: f64,
    pub recall: f64,
    pub density: f64,
    pub coverage: f64,
    /// Neighbours of a ball.
    pub k: usize,
}

/// Squared distance of every vector to its k-th nearest neighbour in its set.
fn radii(pool: &Pool, set: &Features, k: usize) -> Vec<f64> {
    let values = set.values();
    map_rows(pool, Pair::SquaredDistance, set.dim(), values, values, &|i, distances| {
        let mut others = distances.to_vec();
        others.swap_remove(i);
        *others.select_nth_unstable_by(k - 1, f64::total_cmp).1
    })
}

/// Precision, recall, density and coverage of samples against data.
///
/// # Errors
/// k is 0, or a set has no k-th neighbour.
pub fn neighbours(
    pool: &Pool,
    samples: &Features,
    data: &Features,
    k: usize,
) -> Result<Neighbours> {
    if k == 0 {
        return Err(Error::Usage(
            "a ball reaches to at least the first neighbour, not to 0".into(),
        ));
    }
    for (what, set) in [("samples", samples), ("data", data)] {
        at_least(what, set, k + 1, &format!("balls to the {k}-th neighbour need"))?;
    }
    let (of_samples, of_data) = (radii(pool, samples, k), radii(pool, data, k));
    let (distance, dim) = (Pair::SquaredDistance, data.dim());
    let balls = map_rows(pool, distance, dim, samples.values(), data.values(), &|_, distances| {
        distances.iter().zip(&of_data).filter(|(d, r)| d <= r).count()
    });
    let held = map_rows(pool, distance, dim, data.values(), samples.values(), &|i, distances| {
        let recalled = distances.iter().zip(&of_samples).any(|(d, r)| d <= r);
        (recalled, distances.iter().any(|d| *d <= of_data[i]))
    });
    let (n, m) = (samples.len() as f64, data.len() as f64);
    let count = |list: usize, of: f64| list as f64 / of;
    Ok(Neighbours {
        precision: count(balls.iter().filter(|&&b| b > 0).count(), n),
        recall: count(held.iter().filter(|h| h.0).count(), m),
        density: balls.iter().sum::<usize>() as f64 / (k as f64 * n),
        coverage: count(held.iter().filter(|h| h.1).count(), m),
        k,
    })
}
