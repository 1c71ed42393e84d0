//! The pair (signal alpha, std sigma) and what follows from it.
//!
//! p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I). Between two times s <= t,
//! x_t = a x_s + noise of variance v with a = alpha_t / alpha_s and
//! v = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - snr_t / snr_s).
//!
//! | instance | signal | std | source |
//! |---|---|---|---|
//! | [`Table`](super::schedule::Table) | prod sqrt(1 - beta_j) | sqrt(1 - signal^2) | Ho et al. 2020 |
//! | [`Table::smld`](super::schedule::Table::smld) | 1 | geometric | Song & Ermon 2019 |
//! | [`Vp`] | exp(-B/2), B = integral of a linear beta(t) | sqrt(1 - signal^2) | Song et al. 2021, eq. 32 |
//! | [`SubVp`] | the same | 1 - signal^2 | Song et al. 2021, eq. 13 |
//! | [`Ve`] | 1 | sigma_min (sigma_max / sigma_min)^t | Song et al. 2021, eq. 30 |
//! | [`Cosine`] | cos((t+s)/(1+s) pi/2) / cos(s/(1+s) pi/2) | sqrt(1 - signal^2) | Nichol & Dhariwal 2021 |
//! | [`Amplitude`] | exp(-rate t^2) | sqrt(1 - signal^2) | rate 5 by default |
//! | [`Edm`] | 1 | t | Karras et al. 2022 |
//! | [`Flow`] | 1 - t | t | Lipman et al. 2023, Liu et al. 2023 |
//! | [`Given`] | a person's table | | |

pub mod config;
mod exploding;
mod flow;
mod given;
mod preserving;

pub use config::{DenoiserConfig, ProcessConfig, ProcessKind, of_checkpoint};
pub use exploding::{Edm, Ve};
pub use flow::Flow;
pub use given::Given;
pub use preserving::{Amplitude, Cosine, SubVp, Vp};

/// Signal and noise at one time. ln(alpha) and sigma are what is kept: alpha
/// near 1 loses its distance to 1, and products of many alphas lose digits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// ln(alpha); minus infinity where no signal is left.
    pub ln_signal: f64,
    /// sigma, in units of the data.
    pub std: f64,
}

impl Pair {
    /// The data itself: alpha = 1, sigma = 0.
    pub const DATA: Pair = Pair { ln_signal: 0.0, std: 0.0 };

    /// The variance-preserving pair of a given ln(alpha): sigma^2 = 1 - alpha^2.
    pub fn variance_preserving(ln_signal: f64) -> Pair {
        Pair { ln_signal, std: (-(2.0 * ln_signal).exp_m1()).sqrt() }
    }

    /// The variance-preserving pair of a given lambda.
    pub fn variance_preserving_at(half_log_snr: f64) -> Pair {
        Pair {
            ln_signal: -0.5 * softplus(-2.0 * half_log_snr),
            std: (-0.5 * softplus(2.0 * half_log_snr)).exp(),
        }
    }

    /// alpha.
    pub fn signal(&self) -> f64 {
        self.ln_signal.exp()
    }

    /// sigma^2.
    pub fn variance(&self) -> f64 {
        self.std * self.std
    }

    /// Signal-to-noise ratio alpha^2 / sigma^2; infinite for the data itself.
    pub fn snr(&self) -> f64 {
        (2.0 * self.half_log_snr()).exp()
    }

    /// lambda = ln(alpha / sigma) (Lu et al. 2022; half the log-SNR).
    pub fn half_log_snr(&self) -> f64 {
        self.ln_signal - self.std.ln()
    }
}

/// A forward process: its pair at every time of `[0, end]`. Samplers and losses
/// ask for pairs only, so that a process is an instance and never a branch.
///
/// Its stochastic differential equation is dx = f x dt + g dw with
/// f = d ln(alpha)/dt and g^2 = alpha^2 d(sigma^2/alpha^2)/dt.
pub trait Process: std::fmt::Debug + Send + Sync {
    /// Its name, as in `process.kind`.
    fn name(&self) -> &'static str;

    /// The last time: T of a discrete table (time is the state's number), the
    /// largest std of [`Edm`], 1 elsewhere unless configured.
    fn end(&self) -> f64;

    /// The earliest time a network is trained at, and the last a sampler visits
    /// before it jumps to the data.
    fn earliest(&self) -> f64;

    /// The pair at a time of `[0, end]`.
    fn pair(&self, time: f64) -> Pair;

    /// f at a time: minus infinity where the signal reaches 0.
    fn drift(&self, time: f64) -> f64;

    /// g^2 at a time: infinite where the signal reaches 0 in finite time.
    fn diffusion2(&self, time: f64) -> f64;

    /// What a network trained under this process is told at that time.
    fn label(&self, time: f64) -> f64;

    /// The time of that lambda = ln(alpha / sigma), held within `[0, end]`; an
    /// exact integer at a discrete table's own entries.
    fn time_of(&self, half_log_snr: f64) -> f64;

    /// T of a discrete chain.
    fn steps(&self) -> Option<usize> {
        None
    }

    /// Standard deviation of the normal that sampling starts from.
    fn prior_std(&self) -> f64;
}

/// A process that several parts of a program hold.
pub type SharedProcess = std::sync::Arc<dyn Process>;

/// Label of a time in [0, 1]: the range that sinusoidal embeddings are made for.
const LABELS: f64 = 1000.0;

/// ln(1 + e^x) without overflow or loss of digits.
pub(super) fn softplus(x: f64) -> f64 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}

/// q(x_s | x_t, x_0) = N(c_0 x_0 + c_x x_t, variance), s before t.
/// Ho et al. 2020, eq. 6 and 7; Kingma et al. 2021, eq. 25, for any pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// Factor of x_0.
    pub c_0: f64,
    /// Factor of x_t.
    pub c_x: f64,
    /// Its variance, DDPM's beta-tilde: `fixed_small`.
    pub variance: f64,
    /// Variance of the forward step from s to t, DDPM's beta: `fixed_large`.
    pub step_variance: f64,
}

impl Posterior {
    /// The posterior at `s` of a state at the noisier `t`, sigma_t > 0.
    pub fn between(s: Pair, t: Pair) -> Posterior {
        debug_assert!(t.std > 0.0, "the data has no posterior");
        // 1 - snr_t / snr_s, exact to rounding also where the two are close.
        let lost = -(2.0 * (t.half_log_snr() - s.half_log_snr())).exp_m1();
        let ratio = s.std / t.std;
        let step_variance = t.variance() * lost;
        Posterior {
            c_0: s.signal() * lost,
            c_x: (t.ln_signal - s.ln_signal).exp() * ratio * ratio,
            variance: step_variance * ratio * ratio,
            step_variance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posterior_reaches_the_data_exactly_and_without_noise() {
        let p = Posterior::between(Pair::DATA, Pair { ln_signal: -1.3, std: 0.7 });
        assert_eq!((p.c_0, p.c_x, p.variance), (1.0, 0.0, 0.0));
    }

    #[test]
    fn posterior_from_pure_noise_ignores_the_state() {
        let s = Pair::variance_preserving(-0.4);
        let t = Pair::variance_preserving(f64::NEG_INFINITY);
        let p = Posterior::between(s, t);
        assert_eq!(p.c_x, 0.0);
        assert!((p.c_0 - s.signal()).abs() < 1e-15);
        assert!((p.variance - s.variance()).abs() < 1e-15);
        assert!((p.step_variance - 1.0).abs() < 1e-15);
    }

    #[test]
    fn posterior_keeps_its_digits_between_close_times_of_little_noise() {
        // sigma = t: beta between t and t (1 + h) is t^2 ((1 + h)^2 - 1).
        let (t, h) = (1e-6, 1e-9);
        let s = Pair { ln_signal: 0.0, std: t };
        let u = Pair { ln_signal: 0.0, std: t * (1.0 + h) };
        let exact = t * t * (2.0 * h + h * h);
        let found = Posterior::between(s, u).step_variance;
        assert!((found / exact - 1.0).abs() < 1e-6, "{found} {exact}");
    }
}
