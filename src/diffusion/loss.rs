//! Training: targets and weights, as the rows of coefficients that
//! [`ops::noising`](crate::ops::noising) and [`ops::loss`](crate::ops::loss) read.

use super::denoiser::Prediction;
use super::process::Pair;
use crate::ops::noising::coefficient;

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
    let (target_x0, target_noise) = prediction.target(pair).unwrap_or((f64::NAN, f64::NAN));
    let mut row = [0.0; coefficient::COLUMNS];
    row[coefficient::SIGNAL] = pair.signal() as f32;
    row[coefficient::STD] = pair.std as f32;
    row[coefficient::TARGET_X0] = target_x0 as f32;
    row[coefficient::TARGET_NOISE] = target_noise as f32;
    row[coefficient::WEIGHT] = weighting.weight(pair) as f32;
    row
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
