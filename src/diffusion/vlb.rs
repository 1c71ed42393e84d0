//! The variational bound by terms: L_T, the steps' L_t, and L_0 by the
//! discretised Gaussian decoder (Ho et al. 2020, eq. 5 and 13; Nichol & Dhariwal
//! 2021, sec. 3.1). Everything is in nats for one element of the data.

use super::process::{Pair, Posterior, Process};
use crate::error::{Error, Result};

/// KL(N(a, e^ln_q) || N(b, e^ln_p)) with (a - b)^2 = `gap2`.
pub fn normal_kl(gap2: f64, ln_q: f64, ln_p: f64) -> f64 {
    // e^x - 1 - x, without cancellation where the variances are close.
    let x = ln_q - ln_p;
    let shape = if x.abs() < 1e-4 { 0.5 * x * x * (1.0 + x / 3.0) } else { x.exp_m1() - x };
    0.5 * (shape + gap2 * (-ln_p).exp())
}

/// L_T: KL(q(x_T | x_0) || N(0, prior_std^2)), `x0_2` = x_0^2.
pub fn prior(end: Pair, prior_std: f64, x0_2: f64) -> f64 {
    let signal = end.signal();
    normal_kl(signal * signal * x0_2, 2.0 * end.std.ln(), 2.0 * prior_std.ln())
}

/// L_t of one step of the reverse chain, from a state at t to one at s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of x_0 in the posterior mean: means differ by c_0 (x_0 - xhat_0).
    pub c_0: f64,
    /// ln(beta-tilde), the posterior's variance: minus infinity at the step to the data.
    pub ln_posterior: f64,
    /// The smaller variance of a model: as `ln_posterior`, but at the step to
    /// the data that of the step before (Ho et al. 2020's clipped variance).
    pub ln_small: f64,
    /// ln(beta), the larger variance of a model: that of the forward step.
    pub ln_large: f64,
}

impl Step {
    /// The step between two pairs; `ln_small` is not clipped.
    pub fn between(s: Pair, t: Pair) -> Step {
        let p = Posterior::between(s, t);
        let ln_posterior = p.variance.ln();
        Step { c_0: p.c_0, ln_posterior, ln_small: ln_posterior, ln_large: p.step_variance.ln() }
    }

    /// The step to state `i - 1` from state i = 1..=T of a discrete chain.
    pub fn of_chain(process: &dyn Process, i: usize) -> Step {
        let pair = |i: usize| process.pair(i as f64);
        let mut step = Step::between(pair(i - 1), pair(i));
        if i == 1 {
            step.ln_small = match process.steps() {
                Some(1) | None => step.ln_large,
                Some(_) => Step::between(pair(1), pair(2)).ln_posterior,
            };
        }
        step
    }

    /// ln(variance) of a network's output v for it (`learned_range`): v = -1 is
    /// the smaller, 1 the larger.
    pub fn ln_variance(&self, v: f64) -> f64 {
        let part = 0.5 * (v + 1.0);
        part * self.ln_large + (1.0 - part) * self.ln_small
    }

    /// L_t of a model of variance `e^ln_variance` with (x_0 - xhat_0)^2 = `gap2`.
    /// Not for the step to the data, which the [`Decoder`] scores.
    pub fn kl(&self, gap2: f64, ln_variance: f64) -> f64 {
        normal_kl(self.c_0 * self.c_0 * gap2, self.ln_posterior, ln_variance)
    }
}

/// -ln p(x_0 | mean, variance) of the decoder and its slopes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoded {
    /// Nats.
    pub nats: f64,
    /// By the mean.
    pub d_mean: f64,
    /// By ln(variance).
    pub d_ln_variance: f64,
}

/// The discretised Gaussian: the normal's mass in the bin of a level. Levels lie
/// 2 / (levels - 1) apart in [-1, 1]; the outer bins reach to infinity, so that
/// the masses sum to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoder {
    half: f64,
}

impl Decoder {
    /// For data of that many levels: 256 for bytes, 17 for the digits.
    ///
    /// # Errors
    /// Fewer than 2 levels.
    pub fn new(levels: usize) -> Result<Decoder> {
        match levels {
            0 | 1 => Err(Error::Usage(format!(
                "the decoder needs data of at least 2 levels, and this has {levels}"
            ))),
            _ => Ok(Decoder { half: 1.0 / (levels - 1) as f64 }),
        }
    }

    /// The decoder of bins of that half width.
    pub fn of_half_bin(half: f64) -> Decoder {
        Decoder { half }
    }

    /// Half the width of a bin.
    pub fn half_bin(&self) -> f64 {
        self.half
    }

    /// Scores a level `x` in [-1, 1].
    pub fn score(&self, x: f64, mean: f64, ln_variance: f64) -> Decoded {
        let inverse = (-0.5 * ln_variance).exp();
        // A level stands on the grid to rounding: half a bin tells the outer ones.
        let upper =
            if x > 1.0 - self.half { f64::INFINITY } else { (x + self.half - mean) * inverse };
        let lower =
            if x < self.half - 1.0 { f64::NEG_INFINITY } else { (x - self.half - mean) * inverse };
        let mass = interval(lower, upper);
        Decoded {
            nats: -mass.ln,
            d_mean: (mass.at_upper - mass.at_lower) * inverse,
            d_ln_variance: 0.5 * (scaled(upper, mass.at_upper) - scaled(lower, mass.at_lower)),
        }
    }
}

/// x y, 0 at an infinite end where y is 0.
fn scaled(x: f64, y: f64) -> f64 {
    if y == 0.0 { 0.0 } else { x * y }
}

/// A standard normal's mass between two points, and its densities there over the
/// mass.
struct Mass {
    ln: f64,
    at_lower: f64,
    at_upper: f64,
}

fn interval(lower: f64, upper: f64) -> Mass {
    if lower + upper < 0.0 {
        let mirrored = interval(-upper, -lower);
        return Mass { at_lower: mirrored.at_upper, at_upper: mirrored.at_lower, ..mirrored };
    }
    let density = |x: f64| -0.5 * (x * x + (2.0 * std::f64::consts::PI).ln());
    let ln = if lower < -1.0 {
        // Most of the mass lies inside.
        (-upper_tail(-lower).exp() - upper_tail(upper).exp()).ln_1p()
    } else {
        let (near, far) = (upper_tail(lower), upper_tail(upper));
        near + (-(far - near).exp_m1()).ln()
    };
    Mass { ln, at_lower: (density(lower) - ln).exp(), at_upper: (density(upper) - ln).exp() }
}

/// ln of the standard normal's mass above x.
pub fn upper_tail(x: f64) -> f64 {
    if x == f64::INFINITY {
        return f64::NEG_INFINITY;
    }
    if x < 5.0 {
        return (0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2)).ln();
    }
    // Laplace's continued fraction of the density over the mass.
    let ratio = (1..=60).rev().fold(x, |tail, k| x + f64::from(k) / tail);
    -0.5 * (x * x + (2.0 * std::f64::consts::PI).ln()) - ratio.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_sum_to_one_at_every_width_and_number_of_levels() {
        for levels in [2, 17, 256] {
            let decoder = Decoder::new(levels).unwrap();
            for (mean, std) in [(0.3, 0.01), (-1.2, 0.5), (0.0, 1e-3), (0.9, 4.0), (5.0, 1.0)] {
                let ln_variance = 2.0 * f64::ln(std);
                let sum: f64 = (0..levels)
                    .map(|i| 2.0 * i as f64 / (levels - 1) as f64 - 1.0)
                    .map(|x| (-decoder.score(x, mean, ln_variance).nats).exp())
                    .sum();
                assert!((sum - 1.0).abs() < 1e-12, "{levels} {mean} {std}: {sum}");
            }
        }
        assert!(Decoder::new(1).is_err());
    }

    #[test]
    fn the_decoder_keeps_finite_scores_and_right_slopes_far_from_the_mean() {
        let decoder = Decoder::new(17).unwrap();
        for x in [-1.0, -0.875, 0.0, 0.5, 1.0] {
            for (mean, ln_variance) in [(0.1, -9.0), (-3.0, -9.0), (0.0, -2.0), (40.0, -4.0)] {
                let at = |m: f64, v: f64| decoder.score(x, m, v).nats;
                let found = decoder.score(x, mean, ln_variance);
                assert!(found.nats.is_finite() && found.nats >= 0.0);
                let h = 1e-5;
                let d_mean = (at(mean + h, ln_variance) - at(mean - h, ln_variance)) / (2.0 * h);
                let d_v = (at(mean, ln_variance + h) - at(mean, ln_variance - h)) / (2.0 * h);
                let close = |a: f64, b: f64| (a - b).abs() < 1e-5 * (1.0 + b.abs());
                assert!(close(found.d_mean, d_mean), "{x} {mean}: {found:?} {d_mean}");
                assert!(close(found.d_ln_variance, d_v), "{x} {mean}: {found:?} {d_v}");
            }
        }
    }

    #[test]
    fn tails_agree_where_the_two_formulas_meet() {
        let (below, above) = (upper_tail(5.0 - 1e-12), upper_tail(5.0 + 1e-12));
        assert!((below - above).abs() < 2e-11, "{below} {above}");
        // Abramowitz & Stegun, table 26.2: -log10 Q(10) = 23.11805.
        assert!((upper_tail(10.0) / -std::f64::consts::LN_10 - 23.11805).abs() < 5e-6);
    }

    #[test]
    fn kl_of_close_variances_keeps_its_digits() {
        assert_eq!(normal_kl(0.0, -3.0, -3.0), 0.0);
        let found = normal_kl(0.0, 1e-7, 0.0);
        assert!((found / 2.5e-15 - 1.0).abs() < 1e-6, "{found}");
        assert!((normal_kl(2.0, 0.0, 0.0) - 1.0).abs() < 1e-15);
    }
}
