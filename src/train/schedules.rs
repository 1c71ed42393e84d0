//! What changes from step to step: the learning rate and the decay of the
//! averaged weights. Pure functions of the step, so that resuming needs no state.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It does not.
    #[default]
    Constant,
    /// Half a cosine to 0 at the horizon.
    Cosine,
    /// A line to 0 at the horizon.
    Linear,
}

/// Factor of the peak learning rate in the optimizer step after `done` finished
/// ones: a line from 0 over `warmup` steps, then `decay` until step `horizon`,
/// and 0 from there on.
///
/// diffusers' `get_scheduler` (`constant_with_warmup`, `cosine`, `linear`), whose
/// first step has the factor 0 when there is a warmup; its cosine rises again
/// past the horizon, this one stays at 0.
pub fn learning_rate_factor(decay: Decay, warmup: u64, horizon: u64, done: u64) -> f64 {
    if done < warmup {
        return done as f64 / warmup as f64;
    }
    let progress = (done - warmup) as f64 / horizon.saturating_sub(warmup).max(1) as f64;
    match decay {
        Decay::Constant => 1.0,
        Decay::Cosine => 0.5 * (1.0 + (PI * progress.min(1.0)).cos()),
        Decay::Linear => (1.0 - progress).max(0.0),
    }
}

/// How the decay of the averaged weights grows to its largest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmaWarmup {
    /// At once.
    None,
    /// `(1 + s) / (10 + s)` at step s.
    Simple,
    /// `1 - (1 + s / inv_gamma)^-power` at step s (`use_ema_warmup`).
    Power {
        /// Inverse of the rate, in steps.
        inv_gamma: f64,
        /// 2/3 for runs of a million steps and more, 3/4 for shorter ones.
        power: f64,
    },
}

/// The decay of the averaged weights, with the names and meaning of diffusers'
/// `EMAModel`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmaDecay {
    /// Largest decay.
    pub decay: f64,
    /// Smallest decay once averaging has begun.
    pub min_decay: f64,
    /// Steps during which the average is a copy.
    pub update_after_step: u64,
    /// Growth.
    pub warmup: EmaWarmup,
}

impl EmaDecay {
    /// The decay in the optimizer step after `done` finished ones
    /// (`EMAModel.get_decay(done + 1)`): 0, a copy, in the first.
    pub fn at(&self, done: u64) -> f64 {
        let s = done.saturating_sub(self.update_after_step) as f64;
        if s == 0.0 {
            return 0.0;
        }
        let decay = match self.warmup {
            EmaWarmup::None => self.decay,
            EmaWarmup::Simple => (1.0 + s) / (10.0 + s),
            EmaWarmup::Power { inv_gamma, power } => 1.0 - (1.0 + s / inv_gamma).powf(-power),
        };
        decay.min(self.decay).max(self.min_decay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-14, "{found} is not {expected}");
    }

    /// `get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=50)`
    /// of diffusers 0.42.1.
    #[test]
    fn learning_rates_are_those_of_diffusers() {
        let steps = [0, 1, 9, 10, 11, 20, 30, 37, 49, 50];
        let constant = [0.0, 0.1, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let linear = [0.0, 0.1, 0.9, 1.0, 0.975, 0.75, 0.5, 0.325, 0.025, 0.0];
        let cosine = [
            0.0,
            0.1,
            0.9,
            1.0,
            0.998458666866564,
            0.8535533905932737,
            0.5,
            0.2387507176420256,
            0.001541333133436018,
            0.0,
        ];
        for (i, &step) in steps.iter().enumerate() {
            assert_close(learning_rate_factor(Decay::Constant, 10, 50, step), constant[i]);
            assert_close(learning_rate_factor(Decay::Linear, 10, 50, step), linear[i]);
            assert_close(learning_rate_factor(Decay::Cosine, 10, 50, step), cosine[i]);
        }
        for (step, expected) in [(0, 1.0), (3, 0.6112604669781572), (7, 0.0)] {
            assert_close(learning_rate_factor(Decay::Cosine, 0, 7, step), expected);
        }
    }

    #[test]
    fn learning_rates_stay_at_zero_past_the_horizon() {
        for decay in [Decay::Cosine, Decay::Linear] {
            for (warmup, horizon, done) in
                [(10, 50, 51), (10, 50, 90), (10, 50, u64::MAX), (10, 5, 11)]
            {
                assert_close(learning_rate_factor(decay, warmup, horizon, done), 0.0);
            }
        }
    }

    /// `EMAModel(...).get_decay(step)` of diffusers 0.42.1.
    #[test]
    fn averaging_decays_as_diffusers_does() {
        let steps = [1, 2, 3, 6, 10, 100, 1000, 100000];
        let simple = EmaDecay {
            decay: 0.9999,
            min_decay: 0.0,
            update_after_step: 0,
            warmup: EmaWarmup::Simple,
        };
        let power = EmaDecay { warmup: EmaWarmup::Power { inv_gamma: 1.0, power: 0.75 }, ..simple };
        let bounded = EmaDecay {
            decay: 0.99,
            min_decay: 0.5,
            update_after_step: 3,
            warmup: EmaWarmup::Power { inv_gamma: 2.0, power: 2.0 / 3.0 },
        };
        let expected = [
            [0.0, 0.0, 0.0],
            [0.18181818181818182, 0.4053964424986395, 0.0],
            [0.25, 0.5613086623491692, 0.0],
            [0.4, 0.7391525699877854, 0.5],
            [0.5263157894736842, 0.8221720589961077, 0.6031497370079502],
            [0.9174311926605505, 0.9683772233983162, 0.9253202916321842],
            [0.9910802775024777, 0.9943765867480965, 0.9841047887945522],
            [0.9999, 0.9998221720589962, 0.99],
        ];
        for (step, expected) in steps.into_iter().zip(expected) {
            for (schedule, expected) in [simple, power, bounded].iter().zip(expected) {
                assert_close(schedule.at(step - 1), expected);
            }
        }
        let at_once = EmaDecay { warmup: EmaWarmup::None, ..simple };
        assert_close(at_once.at(0), 0.0);
        assert_close(at_once.at(1), 0.9999);
    }
}
