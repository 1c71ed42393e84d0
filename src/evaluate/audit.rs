//! Memorisation: how near samples lie to training images, against how near those
//! lie to each other.

use serde::Serialize;

use crate::diffusion::empirical::Nearest;
use crate::picture::grid_png;

/// A ratio below this counts as a copy (Yoon et al. 2023).
pub const COPY: f64 = 1.0 / 3.0;

/// Summary of an audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Quantiles asked for: 0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.
    pub quantiles: [f64; 7],
    /// Those of the distance to the nearest training image.
    pub distance: [f64; 7],
    /// Those of that distance over the next nearest's: near 0 for a copy, near 1
    /// for an image between several.
    pub ratio: [f64; 7],
    /// Share of samples with a ratio below [`COPY`].
    pub copies: f64,
    /// The samples with the smallest ratios: sample, training image, ratio.
    pub closest: Vec<(usize, usize, f64)>,
}

const QUANTILES: [f64; 7] = [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0];
/// Samples of the list and the picture.
const CLOSEST: usize = 12;

/// Quantile of sorted values, with linear interpolation.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    // Between equal ends, also infinite ones, there is nothing to interpolate.
    if low == high { low } else { low + at.fract() * (high - low) }
}

/// Summarises what [`nearest_two`](crate::diffusion::empirical::nearest_two) found
/// for at least one sample.
pub fn audit(nearest: &[Nearest]) -> Audit {
    let all = |of: &dyn Fn(&Nearest) -> f64| {
        let mut values: Vec<f64> = nearest.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        QUANTILES.map(|q| quantile(&values, q))
    };
    let mut order: Vec<usize> = (0..nearest.len()).collect();
    order.sort_by(|&a, &b| nearest[a].ratio().total_cmp(&nearest[b].ratio()).then(a.cmp(&b)));
    let copies = nearest.iter().filter(|n| n.ratio() < COPY).count();
    Audit {
        quantiles: QUANTILES,
        distance: all(&|n| n.distance),
        ratio: all(&Nearest::ratio),
        copies: copies as f64 / nearest.len() as f64,
        closest: order
            .into_iter()
            .take(CLOSEST)
            .map(|i| (i, nearest[i].index, nearest[i].ratio()))
            .collect(),
    }
}

/// The closest samples as a PNG: each beside its nearest and its next nearest
/// training image, two a row. Images `[n, h, w, c]` in model range.
pub fn closest_png(
    audit: &Audit,
    nearest: &[Nearest],
    samples: &[f32],
    data: &[f32],
    [h, w, c]: [usize; 3],
) -> Vec<u8> {
    let len = h * w * c;
    let mut images = Vec::new();
    for &(sample, index, _) in &audit.closest {
        images.extend_from_slice(&samples[sample * len..][..len]);
        images.extend_from_slice(&data[index * len..][..len]);
        images.extend_from_slice(&data[nearest[sample].second * len..][..len]);
    }
    grid_png(&images, [3 * audit.closest.len(), h, w, c], Some(6))
}
