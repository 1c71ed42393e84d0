//! Floating-point arithmetic of PTX that Rust's operators do not give: small formats, directed
//! rounding, canonical NaNs. Written without tables or calls so that lane loops vectorise.

/// Rounding modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
}

/// The NaN that f32 arithmetic returns.
#[inline(always)]
pub fn nan32(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

/// The NaN that f64 arithmetic returns.
#[inline(always)]
pub fn nan64(x: f64) -> f64 {
    if x.is_nan() { f64::from_bits(0x7ff8_0000_0000_0000) } else { x }
}

/// Subnormals to zero of the same sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0 { f32::from_bits(bits & 0x8000_0000) } else { x }
}

/// Clamps to [0, 1]; NaN becomes 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// f16 bits to f32, exactly.
#[inline(always)]
pub fn f16_to_f32(h: u32) -> f32 {
    let sign = (h & 0x8000) << 16;
    let magnitude = (h & 0x7fff) << 13;
    let special = magnitude >= 0x7c00 << 13;
    // Scaling by 2^112 renormalises subnormals in one multiplication.
    let finite = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let bits = if special { magnitude | 0x7f80_0000 } else { finite.to_bits() };
    f32::from_bits(bits | sign)
}

/// bf16 bits to f32.
#[inline(always)]
pub fn bf16_to_f32(h: u32) -> f32 {
    f32::from_bits(h << 16)
}

/// Drops `drop` low bits of `m` (a magnitude whose carry may run upward), rounding.
#[inline(always)]
fn round_bits(m: u64, drop: u32, round: Round, negative: bool) -> u64 {
    let kept = m >> drop;
    let rest = m & ((1u64 << drop) - 1);
    let half = 1u64 << (drop - 1);
    let up = match round {
        Round::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
    };
    kept + u64::from(up)
}

/// f64 to a smaller binary format with `exp_bits` and `man_bits`, as bits.
#[inline(always)]
fn narrow(x: f64, exp_bits: u32, man_bits: u32, nan: u32, round: Round) -> u32 {
    let bits = x.to_bits();
    let negative = bits >> 63 != 0;
    let sign = u32::from(negative) << (exp_bits + man_bits);
    let bias = (1i32 << (exp_bits - 1)) - 1;
    let inf = ((1u32 << exp_bits) - 1) << man_bits;
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let fraction = bits & ((1u64 << 52) - 1);
    if exponent == 1024 {
        return if fraction != 0 { nan } else { sign | inf };
    }
    if bits << 1 == 0 {
        return sign;
    }
    let full = if exponent == -1023 { fraction } else { fraction | 1 << 52 };
    let exponent = exponent.max(-1022);
    let least = 1 - bias;
    let magnitude = if exponent >= least {
        // The implicit bit adds one to the biased exponent, hence the -1.
        let kept = round_bits(full, 52 - man_bits, round, negative);
        kept + (((exponent + bias - 1) as u64) << man_bits)
    } else {
        let drop = (52 - man_bits as i32 + least - exponent).min(60) as u32;
        round_bits(full, drop, round, negative)
    };
    if magnitude >= u64::from(inf) {
        let overflow_to_max = match round {
            Round::Nearest => false,
            Round::Zero => true,
            Round::Down => !negative,
            Round::Up => negative,
        };
        return sign | if overflow_to_max { inf - 1 } else { inf };
    }
    sign | magnitude as u32
}

/// f64 to f16 bits.
#[inline(always)]
pub fn f64_to_f16(x: f64, round: Round) -> u32 {
    narrow(x, 5, 10, 0x7fff, round)
}

/// f64 to bf16 bits.
#[inline(always)]
pub fn f64_to_bf16(x: f64, round: Round) -> u32 {
    narrow(x, 8, 7, 0x7fff, round)
}

/// f64 to f32.
#[inline(always)]
pub fn f64_to_f32(x: f64, round: Round) -> f32 {
    match round {
        Round::Nearest => nan32(x as f32),
        _ => f32::from_bits(narrow(x, 8, 23, 0x7fff_ffff, round)),
    }
}

/// f32 to f16 bits, to nearest; branch-free for the lane loops.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let a = bits & 0x7fff_ffff;
    // Normal range: rebias, add half an ulp minus one plus the lowest kept bit.
    let normal = (a.wrapping_sub(0x3800_0000).wrapping_add(0xfff + ((a >> 13) & 1))) >> 13;
    // Subnormal range: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    let small = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let h = if a < 0x3880_0000 { small } else { normal };
    let h = if a >= 0x477f_f000 { 0x7c00 } else { h };
    if a > 0x7f80_0000 { 0x7fff } else { h | sign }
}

/// f32 to bf16 bits, to nearest.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// f32 to bf16 bits, toward zero.
#[inline(always)]
pub fn f32_to_bf16_rz(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { bits >> 16 }
}

/// f32 to tf32, ties away from zero (`rna`); the low 13 bits are zero.
#[inline(always)]
pub fn f32_to_tf32_rna(x: f32) -> u32 {
    let bits = x.to_bits();
    let exponent = bits & 0x7f80_0000;
    if exponent == 0x7f80_0000 {
        return if bits & 0x7f_ffff != 0 { 0x7fff_ffff } else { bits };
    }
    bits.wrapping_add(0x1000) & !0x1fff
}

/// f32 to tf32, ties to even.
#[inline(always)]
pub fn f32_to_tf32_rn(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0x7f80_0000 {
        return if bits & 0x7f_ffff != 0 { 0x7fff_ffff } else { bits };
    }
    bits.wrapping_add(0xfff + ((bits >> 13) & 1)) & !0x1fff
}

/// Sum and its exact error.
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let bb = s - a;
    (s, (a - (s - bb)) + (b - bb))
}

/// The f64 next to `s` whose last bit is odd, where `e` (the error of `s`) is not zero.
#[inline(always)]
pub fn to_odd(s: f64, e: f64) -> f64 {
    let bits = s.to_bits();
    if e == 0.0 || bits & 1 == 1 || !s.is_finite() {
        return s;
    }
    // Toward the exact value: away from zero when the error has the sign of the sum.
    let away = (e > 0.0) == (s > 0.0);
    f64::from_bits(if away { bits + 1 } else { bits - 1 })
}

/// a * b + c for operands of at most 26 bits each, rounded to odd: a later rounding to 24 bits or
/// fewer is then correct.
#[inline(always)]
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    let (s, e) = two_sum(a * b, c);
    to_odd(s, e)
}

/// Moves the to-nearest result one step where a directed mode asks for it; `error` has the sign of
/// exact - rn.
#[inline(always)]
fn direct32(rn: f32, error: f64, round: Round) -> f32 {
    if rn.is_nan() || error == 0.0 || error.is_nan() {
        return nan32(rn);
    }
    match round {
        Round::Nearest => rn,
        Round::Down if error < 0.0 => rn.next_down(),
        Round::Up if error > 0.0 => rn.next_up(),
        Round::Zero if rn > 0.0 && error < 0.0 => rn.next_down(),
        Round::Zero if rn < 0.0 && error > 0.0 => rn.next_up(),
        _ => rn,
    }
}

#[inline(always)]
fn direct64(rn: f64, error: f64, round: Round) -> f64 {
    if rn.is_nan() || error == 0.0 || error.is_nan() {
        return nan64(rn);
    }
    match round {
        Round::Nearest => rn,
        Round::Down if error < 0.0 => rn.next_down(),
        Round::Up if error > 0.0 => rn.next_up(),
        Round::Zero if rn > 0.0 && error < 0.0 => rn.next_down(),
        Round::Zero if rn < 0.0 && error > 0.0 => rn.next_up(),
        _ => rn,
    }
}

/// A zero sum of opposite operands is -0 only when rounding down.
#[inline(always)]
fn zero_sum32(x: f32, a: f64, b: f64, round: Round) -> f32 {
    if round == Round::Down
        && x == 0.0
        && a == -b
        && (a != 0.0 || a.is_sign_negative() != b.is_sign_negative())
    {
        -0.0
    } else {
        x
    }
}

/// a + b with any rounding.
#[inline(always)]
pub fn add32(a: f32, b: f32, round: Round) -> f32 {
    let rn = a + b;
    let (s, e) = two_sum(f64::from(a), f64::from(b));
    let error = (s - f64::from(rn)) + e;
    let error =
        if rn.is_infinite() && a.is_finite() && b.is_finite() { -f64::from(rn) } else { error };
    zero_sum32(direct32(rn, error, round), f64::from(a), f64::from(b), round)
}

/// a * b with any rounding.
#[inline(always)]
pub fn mul32(a: f32, b: f32, round: Round) -> f32 {
    f64_to_f32(f64::from(a) * f64::from(b), round)
}

/// a * b + c with any rounding.
#[inline(always)]
pub fn fma32(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let (s, e) = two_sum(product, f64::from(c));
    if !s.is_finite() {
        return nan32(s as f32);
    }
    zero_sum32(f64_to_f32(to_odd(s, e), round), product, f64::from(c), round)
}

/// a / b with any rounding.
#[inline(always)]
pub fn div32(a: f32, b: f32, round: Round) -> f32 {
    let rn = a / b;
    if round == Round::Nearest || !a.is_finite() || !b.is_finite() || b == 0.0 {
        return nan32(rn);
    }
    let q = f64::from(a) / f64::from(b);
    let rest = f64::mul_add(-q, f64::from(b), f64::from(a));
    f64_to_f32(to_odd(q, if b < 0.0 { -rest } else { rest }), round)
}

/// Square root with any rounding.
#[inline(always)]
pub fn sqrt32(a: f32, round: Round) -> f32 {
    if round == Round::Nearest || !(a > 0.0 && a.is_finite()) {
        return nan32(a.sqrt());
    }
    let q = f64::from(a).sqrt();
    f64_to_f32(to_odd(q, f64::mul_add(-q, q, f64::from(a))), round)
}

/// a + b with any rounding.
#[inline(always)]
pub fn add64(a: f64, b: f64, round: Round) -> f64 {
    let rn = a + b;
    if rn.is_infinite() && a.is_finite() && b.is_finite() {
        return direct64(rn, -rn, round);
    }
    let x = direct64(rn, two_sum(a, b).1, round);
    if round == Round::Down && x == 0.0 && a == -b && a.is_sign_negative() != b.is_sign_negative() {
        return -0.0;
    }
    x
}

/// a * b with any rounding.
#[inline(always)]
pub fn mul64(a: f64, b: f64, round: Round) -> f64 {
    let rn = a * b;
    if rn.is_infinite() && a.is_finite() && b.is_finite() {
        return direct64(rn, -rn, round);
    }
    direct64(rn, a.mul_add(b, -rn), round)
}

/// a * b + c with any rounding (error by Boldo and Muller's ErrFma).
#[inline(always)]
pub fn fma64(a: f64, b: f64, c: f64, round: Round) -> f64 {
    let rn = a.mul_add(b, c);
    if round == Round::Nearest {
        return nan64(rn);
    }
    if rn.is_infinite() && a.is_finite() && b.is_finite() && c.is_finite() {
        return direct64(rn, -rn, round);
    }
    let u = a * b;
    let u2 = a.mul_add(b, -u);
    let (x, x2) = two_sum(c, u2);
    let (y, y2) = two_sum(u, x);
    let gamma = (y - rn) + y2;
    let (r2, r3) = two_sum(gamma, x2);
    direct64(rn, if r2 != 0.0 { r2 } else { r3 }, round)
}

/// a / b with any rounding.
#[inline(always)]
pub fn div64(a: f64, b: f64, round: Round) -> f64 {
    let rn = a / b;
    if !a.is_finite() || !b.is_finite() || b == 0.0 {
        return nan64(rn);
    }
    if rn.is_infinite() {
        return direct64(rn, -rn, round);
    }
    let rest = (-rn).mul_add(b, a);
    direct64(rn, if b < 0.0 { -rest } else { rest }, round)
}

/// Square root with any rounding.
#[inline(always)]
pub fn sqrt64(a: f64, round: Round) -> f64 {
    let rn = a.sqrt();
    if !(a > 0.0 && a.is_finite()) {
        return nan64(rn);
    }
    direct64(rn, (-rn).mul_add(rn, a), round)
}

/// 2^x, within half an ulp and a hair of f32, without a library call.
#[inline(always)]
pub fn exp2_32(x: f32) -> f32 {
    let clamped = x.clamp(-160.0, 160.0);
    let n = clamped.round_ties_even();
    let f = f64::from(clamped - n) * std::f64::consts::LN_2;
    // Taylor to degree 11: |f| <= 0.3466, remainder below 1e-14.
    let mut p = 1.0 / 39_916_800.0;
    for c in [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * f + c;
    }
    let scale = f64::from_bits(((1023 + n as i32) as u64) << 52);
    let y = (p * scale) as f32;
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { y }
}
