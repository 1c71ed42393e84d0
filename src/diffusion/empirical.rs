//! A finite data set in place of a network: its exact denoiser at every noise,
//! and what a memorisation audit asks of it.
//!
//! The optimal denoiser of a training set is a softmax-weighted mean of its
//! images ([`ops::empirical`](crate::ops::empirical)). A network that generalises
//! differs from it; samples that follow it are training images.

use std::sync::Arc;

use crate::backend::cpu::{Pool, empirical};
use crate::diffusion::denoiser::{Denoiser, Prediction};
use crate::diffusion::process::{Pair, Process};
use crate::error::{Error, Result};

/// The states that [`Network::Empirical`](crate::model::Network::Empirical)
/// denoises: signal 1, any noise, and the noise's standard deviation is the time
/// and what the network is told. Any process of a finite SNR is matched to it.
#[derive(Clone, Copy, Debug)]
struct Levels;

impl Process for Levels {
    fn name(&self) -> &'static str {
        "levels"
    }

    fn end(&self) -> f64 {
        f64::INFINITY
    }

    fn earliest(&self) -> f64 {
        0.0
    }

    fn pair(&self, time: f64) -> Pair {
        Pair { ln_signal: 0.0, std: time }
    }

    fn drift(&self, _time: f64) -> f64 {
        0.0
    }

    fn diffusion2(&self, time: f64) -> f64 {
        2.0 * time
    }

    fn label(&self, time: f64) -> f64 {
        time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        (-half_log_snr).exp()
    }

    fn prior_std(&self) -> f64 {
        f64::INFINITY
    }
}

/// A data set as a denoiser, for samplers and likelihoods under any process. A
/// state without any signal says nothing about x_0 in its coordinates and is
/// refused, as by a network that predicts eps.
pub fn denoiser() -> Denoiser {
    Denoiser::plain(Arc::new(Levels), Prediction::Sample)
}

/// The two nearest images of a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Index of the nearest, of equally near ones the first.
    pub index: usize,
    /// Its Euclidean distance.
    pub distance: f64,
    /// Index of the next.
    pub second: usize,
    /// Its distance; infinite where the set holds one image.
    pub second_distance: f64,
}

impl Nearest {
    /// Distance of the nearest over that of the next, 0 to 1. A copy of a
    /// training image is near 0, an image between several is near 1; below 1/3
    /// (Yoon et al. 2023) it counts as memorised. Two equal images in the set,
    /// at distance 0, give 1.
    pub fn ratio(&self) -> f64 {
        if self.distance == self.second_distance {
            1.0
        } else {
            self.distance / self.second_distance
        }
    }
}

/// For every sample the two nearest images of `data`; both hold images of `len`
/// elements in model range, one after another. Deterministic, whatever the
/// number of threads.
///
/// # Errors
/// There is no image, or the lengths do not fit.
pub fn nearest_two(pool: &Pool, samples: &[f32], data: &[f32], len: usize) -> Result<Vec<Nearest>> {
    for (name, values) in [("samples", samples), ("data", data)] {
        if len == 0 || values.is_empty() || !values.len().is_multiple_of(len) {
            return Err(Error::Shape {
                op: "nearest_two",
                tensor: name.into(),
                expected: format!("at least one image of {len} elements"),
                found: vec![values.len()],
            });
        }
    }
    let found = empirical::nearest_two(pool, samples, data, len);
    let nearest = found.into_iter().map(|[(distance, index), (second_distance, second)]| Nearest {
        index,
        distance: distance.sqrt(),
        second,
        second_distance: second_distance.sqrt(),
    });
    Ok(nearest.collect())
}
