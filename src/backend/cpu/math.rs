//! Elementary functions for vector loops: branch-free, the same IEEE operations
//! on every path, so that every instruction set gives the same bits.

/// e^x to about 1 ulp where it is a normal number: 0 below about -87.7,
/// infinity above 88.38, NaN stays NaN.
///
/// `x = k ln 2 + r`, `|r| <= ln 2 / 2`; `e^r` by a polynomial of degree 7 with
/// the coefficients of Cephes' `expf`. The bounds are chosen so that k = -127
/// and k = 128 make the bits of 0 and of infinity as 2^k.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons rather than min and max: those would turn NaN into a number.
    let x = if 88.8 < x { 88.8 } else { x };
    let x = if -88.2 > x { -88.2 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let k = shifted - ROUND;
    let r = k.mul_add(-LN2_HIGH, x);
    let r = k.mul_add(-LN2_LOW, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let power = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    p * f32::from_bits(power)
}

/// A nonlinearity and its derivative.
pub trait Function {
    /// f(x).
    fn value(x: f32) -> f32;
    /// f'(x).
    fn slope(x: f32) -> f32;
}

/// f(x) = x.
pub struct Identity;
/// x sigmoid(x).
pub struct Silu;
/// x Phi(x).
pub struct Gelu;
/// GELU with Phi(x) replaced by sigmoid(sqrt(8/pi) (x + 0.044715 x^3)), which
/// is what its tanh form says.
pub struct GeluTanh;
/// max(x, 0).
pub struct Relu;
/// x tanh(ln(1 + e^x)).
pub struct Mish;

/// Evaluates an expression with a type alias bound to the [`Function`] of an
/// `Option<Activation>`; `None` is the identity.
macro_rules! with_function {
    ($activation:expr, $f:ident => $body:expr) => {{
        use crate::backend::cpu::math;
        use crate::ops::pointwise::Activation;
        match $activation {
            None => {
                type $f = math::Identity;
                $body
            }
            Some(Activation::Silu) => {
                type $f = math::Silu;
                $body
            }
            Some(Activation::Gelu) => {
                type $f = math::Gelu;
                $body
            }
            Some(Activation::GeluTanh) => {
                type $f = math::GeluTanh;
                $body
            }
            Some(Activation::Relu) => {
                type $f = math::Relu;
                $body
            }
            Some(Activation::Mish) => {
                type $f = math::Mish;
                $body
            }
        }
    }};
}
pub(crate) use with_function;

/// (sigmoid(x), 1 - sigmoid(x)), both without cancellation.
#[inline(always)]
fn sigmoid_pair(x: f32) -> (f32, f32) {
    let e = exp(-x.abs());
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    if x < 0.0 { (small, large) } else { (large, small) }
}

/// Phi(-|x|) = erfc(|x| / sqrt 2) / 2, relative error below 4e-7 in the centre:
/// `t exp(-z^2 + P(t))`, `t = 1 / (1 + z/2)` (Press et al., Numerical Recipes, erfcc).
#[inline(always)]
fn normal_tail(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.5, 1.0);
    let p = 0.170_872_77f32;
    let p = p.mul_add(t, -0.822_152_23);
    let p = p.mul_add(t, 1.488_515_9);
    let p = p.mul_add(t, -1.135_204);
    let p = p.mul_add(t, 0.278_868_07);
    let p = p.mul_add(t, -0.186_288_06);
    let p = p.mul_add(t, 0.096_784_18);
    let p = p.mul_add(t, 0.374_091_96);
    let p = p.mul_add(t, 1.000_023_7);
    let p = p.mul_add(t, -1.265_512_2);
    0.5 * t * exp((-z).mul_add(z, p))
}

#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let tail = normal_tail(x);
    if x < 0.0 { tail } else { 1.0 - tail }
}

impl Function for Identity {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn slope(_: f32) -> f32 {
        1.0
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let (s, rest) = sigmoid_pair(x);
        s * x.mul_add(rest, 1.0)
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_cdf(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        const DENSITY_AT_0: f32 = 0.398_942_3;
        let density = DENSITY_AT_0 * exp(-0.5 * x * x);
        x.mul_add(density, normal_cdf(x))
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let u = GELU_SCALE * (GELU_CUBIC * x * x).mul_add(x, x);
        x / (1.0 + exp(-u))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        // Far out the slope is 0 or 1, and x^3 would overflow.
        let x = if x > 16.0 { 16.0 } else { x };
        let x = if x < -16.0 { -16.0 } else { x };
        let u = GELU_SCALE * (GELU_CUBIC * x * x).mul_add(x, x);
        let du = GELU_SCALE * (3.0 * GELU_CUBIC * x).mul_add(x, 1.0);
        let (s, rest) = sigmoid_pair(u);
        s * (x * du).mul_add(rest, 1.0)
    }
}

/// sqrt(8 / pi).
const GELU_SCALE: f32 = (std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2) as f32;
const GELU_CUBIC: f32 = 0.044_715;

impl Function for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // A comparison, so that NaN passes through.
        if x < 0.0 { 0.0 } else { x }
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

/// With e = e^x, tanh(ln(1 + e)) = m / (m + 2) for m = e (e + 2). Above 20 the
/// quotient is 1 in f32, and so is the slope.
#[inline(always)]
fn mish_m(x: f32) -> f32 {
    let e = exp(if x > 20.0 { 20.0 } else { x });
    e * (e + 2.0)
}

impl Function for Mish {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let m = mish_m(x);
        x * (m / (m + 2.0))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let x = if x > 20.0 { 20.0 } else { x };
        let m = mish_m(x);
        let q = 1.0 / (m + 2.0);
        // d tanh(softplus) = sigmoid(x) sech^2, sech^2 = 4 (m + 1) / (m + 2)^2.
        let (s, _) = sigmoid_pair(x);
        let sech2 = 4.0 * (m + 1.0) * q * q;
        (x * s).mul_add(sech2, m * q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let spacing =
            f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
        (f64::from(found) - exact).abs() / spacing
    }

    #[test]
    fn exp_is_within_one_ulp_of_f64_where_it_is_normal() {
        let mut worst = 0f64;
        for i in 0..2_000_000u32 {
            let x = -87.3 + 175.6 * (i as f32 / 2_000_000.0);
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst < 1.01, "{worst} ulp");
    }

    #[test]
    fn exp_of_extremes_is_zero_infinity_or_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [88.4, 88.8, 1e9, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        for x in [-87.8, -88.2, -1e9, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
        for payload in [0x7fc0_0000, 0x7fc5_a5a5, 0xffff_ffff] {
            assert!(exp(f32::from_bits(payload)).is_nan());
        }
    }
}
