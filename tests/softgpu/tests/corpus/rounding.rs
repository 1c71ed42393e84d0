//! Correct rounding by integers: the reference for every directed mode.

/// To nearest even, toward zero, up, down.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Near,
    Zero,
    Up,
    Down,
}

pub const MODES: [Mode; 4] = [Mode::Near, Mode::Zero, Mode::Up, Mode::Down];

/// Rounds `v * 2^-scale` (plus something smaller than one unit of v when `sticky`) to `p` bits.
pub fn round(v: i128, scale: i32, sticky: bool, p: u32, mode: Mode) -> f64 {
    if v == 0 && !sticky {
        return 0.0;
    }
    let negative = v < 0;
    let m = v.unsigned_abs();
    let length = 128 - m.leading_zeros();
    let drop = length.saturating_sub(p);
    let kept = m >> drop;
    let rest = if drop == 0 { 0 } else { m & ((1 << drop) - 1) };
    let half = if drop == 0 { 1 } else { 1u128 << (drop - 1) };
    let inexact = rest != 0 || sticky;
    let up = match mode {
        Mode::Near => drop > 0 && (rest > half || (rest == half && (sticky || kept & 1 == 1))),
        Mode::Zero => false,
        Mode::Up => inexact && !negative,
        Mode::Down => inexact && negative,
    };
    let x = (kept + u128::from(up)) as f64 * 2f64.powi(drop as i32 - scale);
    if negative { -x } else { x }
}

/// x * 2^scale as an integer; x must be such a multiple.
pub fn fixed(x: f64, scale: i32) -> i128 {
    let v = x * 2f64.powi(scale);
    assert_eq!(v, v.trunc());
    v as i128
}

/// a / b and sqrt(|c|) in a mode, p bits; operands are multiples of 2^-scale.
pub fn divide(a: f64, b: f64, scale: i32, p: u32, mode: Mode) -> f64 {
    let (x, y) = (fixed(a, scale), fixed(b, scale));
    let (q, r) = ((x.abs() << 60) / y.abs(), (x.abs() << 60) % y.abs());
    let negative = (x < 0) != (y < 0);
    let magnitude_mode = match (mode, negative) {
        (Mode::Up, true) => Mode::Down,
        (Mode::Down, true) => Mode::Up,
        (m, _) => m,
    };
    let m = round(q, 60, r != 0, p, magnitude_mode);
    if negative { -m } else { m }
}

pub fn root(c: f64, scale: i32, p: u32, mode: Mode) -> f64 {
    let shift = 60 + (scale & 1);
    let v = (fixed(c.abs(), scale) << shift) as u128;
    let q = v.isqrt();
    round(q as i128, (scale + shift) / 2, q * q != v, p, mode)
}
