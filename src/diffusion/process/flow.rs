//! Flow matching's straight line from data to noise.

use super::{LABELS, Pair, Process};
use crate::error::{Error, Result};

/// signal = 1 - t, std = t. At t = 1 the signal ends: f and g^2 = 2t/(1-t) are
/// infinite there, and what divides by the signal refuses that time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    earliest: f64,
    end: f64,
}

impl Flow {
    /// `end` is the last time, 1 unless something needs a signal that is left.
    pub fn new(end: f64) -> Result<Flow> {
        if !(end > 0.0 && end <= 1.0) {
            return Err(Error::config(
                "process.t_max",
                format!("{end} must lie above 0 and at most at 1, where the signal ends"),
            ));
        }
        Ok(Flow { earliest: 1e-3, end })
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> Flow {
        Flow { earliest, ..self }
    }
}

impl Process for Flow {
    fn name(&self) -> &'static str {
        "flow"
    }

    fn end(&self) -> f64 {
        self.end
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        Pair { ln_signal: (-time).ln_1p(), std: time }
    }

    fn drift(&self, time: f64) -> f64 {
        -1.0 / (1.0 - time)
    }

    fn diffusion2(&self, time: f64) -> f64 {
        2.0 * time / (1.0 - time)
    }

    fn label(&self, time: f64) -> f64 {
        LABELS * time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        (1.0 / (1.0 + half_log_snr.exp())).min(self.end)
    }

    fn prior_std(&self) -> f64 {
        self.pair(self.end).std
    }
}
