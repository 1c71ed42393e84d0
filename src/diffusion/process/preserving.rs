//! Processes with a prescribed decay of the signal: variance preserving ones,
//! and sub-VP.
//!
//! Where sigma^2 = 1 - alpha^2, f sets everything: g^2 = -2 f.

use std::f64::consts::{FRAC_PI_2, LN_2};

use super::{LABELS, Pair, Process, softplus};
use crate::error::{Error, Result};

/// B(t), the integral of beta(t) = beta_min + t (beta_max - beta_min) from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LinearBeta {
    min: f64,
    max: f64,
}

impl LinearBeta {
    fn new(min: f64, max: f64) -> Result<LinearBeta> {
        let key = "process.beta_min";
        if !(min >= 0.0 && min.is_finite()) {
            return Err(Error::config(key, format!("{min} must be 0 or more, e.g. 0.1")));
        }
        if !(max > 0.0 && max.is_finite()) {
            return Err(Error::config(
                "process.beta_max",
                format!("{max} must be above 0, e.g. 20"),
            ));
        }
        if min > max {
            return Err(Error::config(
                key,
                format!("{min} is above process.beta_max = {max}; swap them"),
            ));
        }
        Ok(LinearBeta { min, max })
    }

    fn at(self, t: f64) -> f64 {
        self.min + t * (self.max - self.min)
    }

    fn integral(self, t: f64) -> f64 {
        t * (self.min + 0.5 * t * (self.max - self.min))
    }

    /// The time at which the integral has a value: the stable root.
    fn time(self, integral: f64) -> f64 {
        let slope = self.max - self.min;
        if integral == 0.0 {
            return 0.0;
        }
        2.0 * integral / (self.min + (self.min * self.min + 2.0 * slope * integral).sqrt())
    }
}

/// VP-SDE: dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vp {
    beta: LinearBeta,
    earliest: f64,
}

/// sub-VP-SDE: the drift of [`Vp`], std = 1 - signal^2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubVp {
    beta: LinearBeta,
    earliest: f64,
}

/// The continuous cosine of Nichol & Dhariwal 2021, sec. 3.2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    offset: f64,
    earliest: f64,
    end: f64,
}

/// signal = exp(-rate t^2), std^2 = 1 - exp(-2 rate t^2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amplitude {
    rate: f64,
    earliest: f64,
}

impl Vp {
    /// beta from `beta_min` at 0 to `beta_max` at 1; 0.1 and 20 in Song et al. 2021.
    pub fn new(beta_min: f64, beta_max: f64) -> Result<Vp> {
        Ok(Vp { beta: LinearBeta::new(beta_min, beta_max)?, earliest: 1e-3 })
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> Vp {
        Vp { earliest, ..self }
    }
}

impl Process for Vp {
    fn name(&self) -> &'static str {
        "vp"
    }

    fn end(&self) -> f64 {
        1.0
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        Pair::variance_preserving(-0.5 * self.beta.integral(time))
    }

    fn drift(&self, time: f64) -> f64 {
        -0.5 * self.beta.at(time)
    }

    fn diffusion2(&self, time: f64) -> f64 {
        self.beta.at(time)
    }

    fn label(&self, time: f64) -> f64 {
        LABELS * time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        self.beta.time(softplus(-2.0 * half_log_snr)).min(1.0)
    }

    fn prior_std(&self) -> f64 {
        1.0
    }
}

impl SubVp {
    /// beta from `beta_min` at 0 to `beta_max` at 1.
    pub fn new(beta_min: f64, beta_max: f64) -> Result<SubVp> {
        Ok(SubVp { beta: LinearBeta::new(beta_min, beta_max)?, earliest: 1e-3 })
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> SubVp {
        SubVp { earliest, ..self }
    }
}

impl Process for SubVp {
    fn name(&self) -> &'static str {
        "sub-vp"
    }

    fn end(&self) -> f64 {
        1.0
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        let integral = self.beta.integral(time);
        Pair { ln_signal: -0.5 * integral, std: -(-integral).exp_m1() }
    }

    fn drift(&self, time: f64) -> f64 {
        -0.5 * self.beta.at(time)
    }

    /// beta(t) (1 - e^(-2 B)).
    fn diffusion2(&self, time: f64) -> f64 {
        -self.beta.at(time) * (-2.0 * self.beta.integral(time)).exp_m1()
    }

    fn label(&self, time: f64) -> f64 {
        LABELS * time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        // r = alpha / (1 - alpha^2): alpha = 2 r / (1 + sqrt(1 + 4 r^2)).
        let r = half_log_snr.exp();
        let integral = if r > 1.0 {
            // alpha^2 = 1 - alpha / r, to keep the digits of a signal near 1.
            -(-2.0 / (1.0 + (4.0 * r * r + 1.0).sqrt())).ln_1p()
        } else {
            -2.0 * (half_log_snr + LN_2 - (4.0 * r * r + 1.0).sqrt().ln_1p())
        };
        self.beta.time(integral.max(0.0)).min(1.0)
    }

    fn prior_std(&self) -> f64 {
        1.0
    }
}

impl Cosine {
    /// `offset` keeps the first steps from being too small, 0.008 in the paper;
    /// `end` is the last time, below 1 unless the signal may end at 0 (Lu et al.
    /// 2022 take 0.9946).
    pub fn new(offset: f64, end: f64) -> Result<Cosine> {
        if !(0.0..1.0).contains(&offset) {
            return Err(Error::config(
                "process.offset",
                format!("{offset} must lie between 0 and 1, e.g. 0.008"),
            ));
        }
        if !(end > 0.0 && end <= 1.0) {
            return Err(Error::config(
                "process.t_max",
                format!("{end} must lie above 0 and at most at 1, where the signal ends"),
            ));
        }
        Ok(Cosine { offset, earliest: 1e-3, end })
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> Cosine {
        Cosine { earliest, ..self }
    }

    fn angle(&self, time: f64) -> f64 {
        (time + self.offset) / (1.0 + self.offset) * FRAC_PI_2
    }
}

impl Process for Cosine {
    fn name(&self) -> &'static str {
        "cosine"
    }

    fn end(&self) -> f64 {
        self.end
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        if time >= 1.0 {
            return Pair::variance_preserving(f64::NEG_INFINITY);
        }
        let (start, now) = (self.angle(0.0), self.angle(time));
        let ln_signal = if time < 0.5 {
            // cos(now)/cos(start) = 1 - 2 sin((now+start)/2) sin((now-start)/2) / cos(start).
            let half = 0.5 * time / (1.0 + self.offset) * FRAC_PI_2;
            (-2.0 * (0.5 * (now + start)).sin() * half.sin() / start.cos()).ln_1p()
        } else {
            // sin of the angle that is left, for the digits of a small cosine.
            ((1.0 - time) / (1.0 + self.offset) * FRAC_PI_2).sin().ln() - start.cos().ln()
        };
        Pair::variance_preserving(ln_signal)
    }

    fn drift(&self, time: f64) -> f64 {
        if time >= 1.0 {
            return f64::NEG_INFINITY;
        }
        let left = (1.0 - time) / (1.0 + self.offset) * FRAC_PI_2;
        -FRAC_PI_2 / (1.0 + self.offset) / left.tan()
    }

    fn diffusion2(&self, time: f64) -> f64 {
        -2.0 * self.drift(time)
    }

    fn label(&self, time: f64) -> f64 {
        LABELS * time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        let pair = Pair::variance_preserving_at(half_log_snr);
        let (sin, cos) = self.angle(0.0).sin_cos();
        let now = (sin * sin + cos * cos * pair.variance()).sqrt().atan2(pair.signal() * cos);
        (now / FRAC_PI_2 * (1.0 + self.offset) - self.offset).clamp(0.0, self.end)
    }

    fn prior_std(&self) -> f64 {
        1.0
    }
}

impl Amplitude {
    /// `rate` sets how much signal is left at 1: exp(-rate).
    pub fn new(rate: f64) -> Result<Amplitude> {
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(Error::config("process.rate", format!("{rate} must be above 0, e.g. 5")));
        }
        Ok(Amplitude { rate, earliest: 1e-3 })
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> Amplitude {
        Amplitude { earliest, ..self }
    }
}

impl Process for Amplitude {
    fn name(&self) -> &'static str {
        "amplitude"
    }

    fn end(&self) -> f64 {
        1.0
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        Pair::variance_preserving(-self.rate * time * time)
    }

    fn drift(&self, time: f64) -> f64 {
        -2.0 * self.rate * time
    }

    fn diffusion2(&self, time: f64) -> f64 {
        4.0 * self.rate * time
    }

    fn label(&self, time: f64) -> f64 {
        LABELS * time
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        (0.5 * softplus(-2.0 * half_log_snr) / self.rate).sqrt().min(1.0)
    }

    fn prior_std(&self) -> f64 {
        1.0
    }
}
