//! Processes that only add noise: signal 1.

use super::{LABELS, Pair, Process};
use crate::error::{Error, Result};

fn check(sigma_min: f64, sigma_max: f64) -> Result<()> {
    for (key, sigma) in [("process.sigma_min", sigma_min), ("process.sigma_max", sigma_max)] {
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(Error::config(key, format!("{sigma} must be above 0")));
        }
    }
    if sigma_min >= sigma_max {
        return Err(Error::config(
            "process.sigma_min",
            format!("{sigma_min} must be below process.sigma_max = {sigma_max}; noise only grows"),
        ));
    }
    Ok(())
}

/// VE-SDE with geometric std: `std(0) = sigma_min`, prior `sigma_max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ve {
    sigma_min: f64,
    ln_ratio: f64,
    sigma_max: f64,
    earliest: f64,
}

impl Ve {
    /// 0.01 and 50 in Song et al. 2021, for 32x32 images.
    pub fn new(sigma_min: f64, sigma_max: f64) -> Result<Ve> {
        check(sigma_min, sigma_max)?;
        Ok(Ve { sigma_min, ln_ratio: (sigma_max / sigma_min).ln(), sigma_max, earliest: 1e-5 })
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> Ve {
        Ve { earliest, ..self }
    }
}

impl Process for Ve {
    fn name(&self) -> &'static str {
        "ve"
    }

    fn end(&self) -> f64 {
        1.0
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        Pair { ln_signal: 0.0, std: self.sigma_min * (self.ln_ratio * time).exp() }
    }

    fn drift(&self, _time: f64) -> f64 {
        0.0
    }

    fn diffusion2(&self, time: f64) -> f64 {
        2.0 * self.ln_ratio * self.pair(time).variance()
    }

    /// Proportional to the time, that is to ln(std): a network sees every
    /// magnitude of noise with the same resolution.
    fn label(&self, time: f64) -> f64 {
        LABELS * time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        ((-half_log_snr - self.sigma_min.ln()) / self.ln_ratio).clamp(0.0, 1.0)
    }

    fn prior_std(&self) -> f64 {
        self.sigma_max
    }
}

/// std = t: times are in units of the data (Karras et al. 2022, sec. 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edm {
    sigma_min: f64,
    sigma_max: f64,
}

impl Edm {
    /// 0.002 and 80 in the paper: the range of sampling and of labels.
    pub fn new(sigma_min: f64, sigma_max: f64) -> Result<Edm> {
        check(sigma_min, sigma_max)?;
        Ok(Edm { sigma_min, sigma_max })
    }
}

impl Process for Edm {
    fn name(&self) -> &'static str {
        "edm"
    }

    fn end(&self) -> f64 {
        self.sigma_max
    }

    fn earliest(&self) -> f64 {
        self.sigma_min
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

    /// ln(std) laid over the range of labels. EDM's preconditioning tells
    /// ln(std) / 4 in its place.
    fn label(&self, time: f64) -> f64 {
        LABELS * (time / self.sigma_min).ln() / (self.sigma_max / self.sigma_min).ln()
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        (-half_log_snr).exp().min(self.sigma_max)
    }

    fn prior_std(&self) -> f64 {
        self.sigma_max
    }
}
