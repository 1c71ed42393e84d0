//! Frechet distance of the Gaussians with two sets' means and covariances
//! (Dowson & Landau 1982; Heusel et al. 2017):
//!
//! `|m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)`
//!
//! With S = L L^T the last trace is the sum of the singular values of L_1^T L_2.
//! That needs no square root of a matrix, keeps its digits where covariances are
//! singular, and gives 0 for equal sets.

use serde::Serialize;

use super::matrix::{Pair, covariance, factor, map_rows, mean, singular_values, trace};
use super::{Features, at_least};
use crate::backend::cpu::pool::Pool;
use crate::error::Result;

/// The distance and its two parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Frechet {
    /// All of it.
    pub distance: f64,
    /// |m_1 - m_2|^2.
    pub means: f64,
    /// tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2), not below 0.
    pub covariances: f64,
}

/// Frechet distance of two sets; covariances are divided by n - 1.
///
/// # Errors
/// A set has fewer than two vectors.
pub fn distance(pool: &Pool, samples: &Features, data: &Features) -> Result<Frechet> {
    for (what, set) in [("samples", samples), ("data", data)] {
        at_least(what, set, 2, "a covariance needs")?;
    }
    let moments = |set: &Features| {
        let mean = mean(set);
        let covariance = covariance(pool, set, &mean);
        (mean, covariance)
    };
    let ((m1, s1), (m2, s2)) = (moments(samples), moments(data));
    Ok(of_gaussians(pool, &m1, &s1, &m2, &s2))
}

/// The distance of N(m_1, s_1) and N(m_2, s_2); means `[dim]`, covariances
/// `[dim, dim]`.
pub fn of_gaussians(pool: &Pool, m1: &[f64], s1: &[f64], m2: &[f64], s2: &[f64]) -> Frechet {
    let dim = m1.len();
    let means = m1.iter().zip(m2).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let (l1, l2) = (factor(pool.isa(), s1, dim), factor(pool.isa(), s2, dim));
    // Rows of l1 and l2 are the columns of L_1 and L_2.
    let (r1, r2) = (l1.len() / dim, l2.len() / dim);
    let cross = match r1 * r2 {
        0 => Vec::new(),
        _ => {
            let rows = map_rows(pool, Pair::Product, dim, &l1, &l2, &|_, row| row.to_vec());
            rows.concat()
        }
    };
    let root: f64 = singular_values(pool, &cross, r1, r2).iter().sum();
    let covariances = (trace(s1, dim) + trace(s2, dim) - 2.0 * root).max(0.0);
    Frechet { distance: means + covariances, means, covariances }
}
