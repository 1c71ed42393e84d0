//! What a network predicts, turned into x_0 and eps, and limits on x_0.

use serde::{Deserialize, Serialize};

use super::process::Pair;

/// What the network's output means; diffusers' `prediction_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// eps of x_t = alpha x_0 + sigma eps.
    #[default]
    Epsilon,
    /// x_0.
    Sample,
    /// v = alpha eps - sigma x_0 (Salimans & Ho 2022).
    VPrediction,
}

/// `state * x_t + prediction * p`, p the network's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Factor of x_t.
    pub state: f64,
    /// Factor of the network's output.
    pub prediction: f64,
}

impl Prediction {
    /// diffusers' name.
    pub fn name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::Sample => "sample",
            Prediction::VPrediction => "v_prediction",
        }
    }

    /// The target in terms of x_0 and eps: `(factor of x_0, factor of eps)`.
    pub fn target(self, pair: Pair) -> (f64, f64) {
        match self {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::Sample => (1.0, 0.0),
            Prediction::VPrediction => (-pair.std, pair.signal()),
        }
    }

    /// x_0 from state and output. `None` where it is not determined: eps at
    /// signal 0.
    pub fn x0(self, pair: Pair) -> Option<Linear> {
        let (alpha, sigma) = (pair.signal(), pair.std);
        match self {
            Prediction::Epsilon => (alpha > 0.0).then(|| Linear {
                state: (-pair.ln_signal).exp(),
                prediction: -sigma * (-pair.ln_signal).exp(),
            }),
            Prediction::Sample => Some(Linear { state: 0.0, prediction: 1.0 }),
            Prediction::VPrediction => {
                let norm2 = alpha * alpha + sigma * sigma;
                Some(Linear { state: alpha / norm2, prediction: -sigma / norm2 })
            }
        }
    }

    /// eps from state and output, before any limit on x_0. `None` where it is
    /// not determined: x_0 at std 0.
    pub fn eps(self, pair: Pair) -> Option<Linear> {
        let (alpha, sigma) = (pair.signal(), pair.std);
        match self {
            Prediction::Epsilon => Some(Linear { state: 0.0, prediction: 1.0 }),
            Prediction::Sample => {
                (sigma > 0.0).then(|| Linear { state: 1.0 / sigma, prediction: -alpha / sigma })
            }
            Prediction::VPrediction => {
                let norm2 = alpha * alpha + sigma * sigma;
                Some(Linear { state: sigma / norm2, prediction: alpha / norm2 })
            }
        }
    }
}

/// What is done to x_0 before a sampler uses it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// Clamped to `[-range, range]`.
    Clip {
        /// Largest magnitude.
        range: f64,
    },
    /// Dynamic thresholding (Saharia et al. 2022, sec. 2.3): with s the quantile
    /// `ratio` of |x_0| over the image, brought into `[1, max]`, x_0 is clamped
    /// to `[-s, s]` and divided by s.
    Threshold {
        /// Quantile, 0 to 1.
        ratio: f64,
        /// Largest s.
        max: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Prediction; 3] = [Prediction::Epsilon, Prediction::Sample, Prediction::VPrediction];

    #[test]
    fn conversions_invert_the_target_on_and_off_variance_preserving() {
        let (x0, eps) = (0.37, -1.4);
        for pair in [
            Pair::variance_preserving(-0.8),
            Pair { ln_signal: 0.0, std: 3.0 },
            Pair { ln_signal: 0.3f64.ln(), std: 0.7 },
        ] {
            let x = pair.signal() * x0 + pair.std * eps;
            for prediction in ALL {
                let (a, b) = prediction.target(pair);
                let p = a * x0 + b * eps;
                let to_x0 = prediction.x0(pair).unwrap();
                let to_eps = prediction.eps(pair).unwrap();
                assert!((to_x0.state * x + to_x0.prediction * p - x0).abs() < 1e-14);
                assert!((to_eps.state * x + to_eps.prediction * p - eps).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn x0_stays_accurate_where_almost_no_noise_is_left() {
        let pair = Pair { ln_signal: -0.5e-12, std: 1e-6 };
        let (x0, eps) = (0.37, -1.4);
        let x = pair.signal() * x0 + pair.std * eps;
        for prediction in ALL {
            let (a, b) = prediction.target(pair);
            let p = a * x0 + b * eps;
            let to_x0 = prediction.x0(pair).unwrap();
            assert!((to_x0.state * x + to_x0.prediction * p - x0).abs() < 1e-15);
        }
    }

    #[test]
    fn undetermined_conversions_are_none() {
        let noise = Pair::variance_preserving(f64::NEG_INFINITY);
        assert!(Prediction::Epsilon.x0(noise).is_none());
        assert!(Prediction::Sample.eps(Pair::DATA).is_none());
        let v = Prediction::VPrediction.x0(noise).unwrap();
        assert_eq!((v.state, v.prediction), (0.0, -1.0));
    }
}
