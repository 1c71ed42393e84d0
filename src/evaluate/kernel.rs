//! Squared maximum mean discrepancy with KID's kernel (Binkowski et al. 2018):
//! k(x, y) = (x . y / dim + 1)^3, the unbiased estimate, averaged over random
//! subsets.

use rand::seq::SliceRandom;
use serde::Serialize;

use super::matrix::{Pair, map_rows};
use super::{Features, Options, at_least};
use crate::backend::cpu::pool::Pool;
use crate::error::{Error, Result};
use crate::random::{HostRng, Purpose};

/// MMD^2 over subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mmd {
    /// Mean over the subsets: an unbiased estimate, so it may lie below 0.
    pub mmd2: f64,
    /// Standard deviation over the subsets.
    pub std: f64,
    /// Standard error of the mean: `std` over the root of the number of disjoint
    /// subsets the smaller set holds.
    pub standard_error: f64,
    /// Vectors of a subset.
    pub subset: usize,
    /// Subsets.
    pub subsets: usize,
}

/// The unbiased estimate of MMD^2 between all of two sets.
///
/// # Errors
/// A set has fewer than two vectors.
pub fn unbiased(pool: &Pool, x: &Features, y: &Features) -> Result<f64> {
    for (what, set) in [("samples", x), ("data", y)] {
        at_least(what, set, 2, "an unbiased MMD needs")?;
    }
    let dim = x.dim();
    let kernel = |product: f64| (product / dim as f64 + 1.0).powi(3);
    let sum = |a: &Features, b: &Features, same: bool| -> f64 {
        let rows = map_rows(pool, Pair::Product, dim, a.values(), b.values(), &|i, products| {
            let others = products.iter().enumerate().filter(|&(j, _)| !(same && i == j));
            others.map(|(_, &p)| kernel(p)).sum::<f64>()
        });
        rows.iter().sum()
    };
    let (n, m) = (x.len() as f64, y.len() as f64);
    Ok(sum(x, x, true) / (n * (n - 1.0)) + sum(y, y, true) / (m * (m - 1.0))
        - 2.0 * sum(x, y, false) / (n * m))
}

/// Mean of [`unbiased`] over random subsets of both sets. The sets are shuffled
/// and cut into subsets that share nothing, and shuffled again when used up.
/// Where the smaller set has fewer than `options.subset` vectors, a subset is
/// half of it.
///
/// # Errors
/// A set is too small for two subsets of two vectors, or an option is 0.
pub fn mmd2(pool: &Pool, samples: &Features, data: &Features, options: &Options) -> Result<Mmd> {
    for (what, set) in [("samples", samples), ("data", data)] {
        at_least(what, set, 4, "subsets of an MMD need")?;
    }
    if options.subset < 2 || options.subsets < 2 {
        return Err(Error::Usage(
            "the MMD's standard error needs at least 2 subsets of at least 2 vectors".into(),
        ));
    }
    let least = samples.len().min(data.len());
    let subset = if least >= options.subset { options.subset } else { least / 2 };
    let disjoint = least / subset;
    let mut order = [samples, data].map(|set| (0..set.len()).collect::<Vec<usize>>());
    let mut values = Vec::with_capacity(options.subsets);
    for i in 0..options.subsets {
        let (round, at) = (i / disjoint, i % disjoint);
        if at == 0 {
            for (side, order) in order.iter_mut().enumerate() {
                let stream = (2 * round + side) as u64;
                order.shuffle(&mut HostRng::new(options.seed, Purpose::Shuffle, stream));
            }
        }
        let part =
            |order: &[usize], set: &Features| set.select(&order[at * subset..(at + 1) * subset]);
        values.push(unbiased(pool, &part(&order[0], samples), &part(&order[1], data))?);
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
    let independent = disjoint.min(options.subsets) as f64;
    Ok(Mmd {
        mmd2: mean,
        std,
        standard_error: std / independent.sqrt(),
        subset,
        subsets: options.subsets,
    })
}
