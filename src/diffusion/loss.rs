//! Training: times, targets and weights, as the rows of coefficients that
//! [`ops::noising`](crate::ops::noising) and [`ops::loss`](crate::ops::loss) read.

use super::denoiser::Prediction;
use super::process::Pair;
use crate::ops::noising::coefficient;
use crate::random::{Purpose, words};

/// Weight of an example's squared error by its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weighting {
    /// 1 at every time (Ho et al. 2020, eq. 14).
    #[default]
    Simple,
}

impl Weighting {
    /// The weight at a pair.
    pub fn weight(self, _pair: Pair) -> f64 {
        match self {
            Weighting::Simple => 1.0,
        }
    }
}

/// The coefficients of one training example: its noised input
/// `signal x_0 + std eps`, its target and its weight.
pub fn row(
    pair: Pair,
    prediction: Prediction,
    weighting: Weighting,
) -> [f32; coefficient::COLUMNS] {
    let (target_x0, target_noise) = prediction.target(pair);
    let mut row = [0.0; coefficient::COLUMNS];
    row[coefficient::SIGNAL] = pair.signal() as f32;
    row[coefficient::STD] = pair.std as f32;
    row[coefficient::TARGET_X0] = target_x0 as f32;
    row[coefficient::TARGET_NOISE] = target_noise as f32;
    row[coefficient::WEIGHT] = weighting.weight(pair) as f32;
    row
}

/// The row of an image that only fills up the last batch: noised like any other
/// (its values stay finite), of weight 0.
pub fn padding_row() -> [f32; coefficient::COLUMNS] {
    let mut row = [0.0; coefficient::COLUMNS];
    row[coefficient::SIGNAL] = 1.0;
    row
}

/// The label of a training example, uniform over 0..T: a function of the seed
/// and the example's index alone. `keys` as [`image_keys`](crate::random::image_keys)
/// makes them.
pub fn uniform_label(keys: [u32; 4], steps: usize) -> usize {
    let mut word = [0];
    words(keys, Purpose::TrainTime, 0, 0, &mut word);
    // The product's high word; uneven by less than T / 2^32.
    ((word[0] as u64 * steps as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::image_keys;

    #[test]
    fn labels_cover_all_times_evenly() {
        let steps = 7;
        let mut counts = vec![0usize; steps];
        for image in 0..7000 {
            counts[uniform_label(image_keys(1, image), steps)] += 1;
        }
        // Standard deviation 29.
        assert!(counts.iter().all(|c| c.abs_diff(1000) < 150), "{counts:?}");
    }

    #[test]
    fn rows_hold_the_target_of_the_prediction() {
        let pair = Pair::variance_preserving(-0.5);
        let (alpha, sigma) = (pair.signal() as f32, pair.std as f32);
        for (prediction, target) in [
            (Prediction::Epsilon, [0.0, 1.0]),
            (Prediction::Sample, [1.0, 0.0]),
            (Prediction::VPrediction, [-sigma, alpha]),
        ] {
            let row = row(pair, prediction, Weighting::Simple);
            assert_eq!(row[..5], [alpha, sigma, target[0], target[1], 1.0]);
        }
        assert_eq!(padding_row()[coefficient::WEIGHT], 0.0);
    }
}
