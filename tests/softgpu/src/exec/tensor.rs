//! Tensor-core arithmetic.
//!
//! The exact modes follow what the chips were measured to do (Khattak and Mikaitis): products are
//! exact; with C they are aligned to the largest exponent without normalising first; each magnitude
//! is truncated to 23 + n fraction bits; the integer sum is truncated to 24 bits. Longer k chains
//! blocks of the chip's length.
#![allow(unsafe_code)] // Registers are raw lane arrays.

use crate::isa::lanes::{Level, level};
use crate::isa::softfloat::{bf16_to_f32, f16_to_f32};
use crate::isa::{MmaOp, MmaType};
use crate::settings::MmaMode;

/// What differs between chips.
#[derive(Debug, Clone, Copy)]
struct Chip {
    /// Fraction bits beyond 23 that survive alignment.
    extra: i32,
    /// Least exponent of the alignment.
    floor: i32,
    /// Products summed at once, 16-bit types.
    block: usize,
}

const A100: Chip = Chip { extra: 1, floor: -132, block: 8 };
const H100: Chip = Chip { extra: 2, floor: -133, block: 16 };

/// One element of D = A B + C over all of k.
pub fn dot(a: &[f32], b: &[f32], c: f32, ty: MmaType, mode: MmaMode) -> f32 {
    let chip = match mode {
        MmaMode::Fast => {
            // Two chains, even and odd k, as the quick kernel sums.
            let mut s = [c, 0.0];
            for (k, (x, y)) in a.iter().zip(b).enumerate() {
                s[k & 1] = x.mul_add(*y, s[k & 1]);
            }
            return s[0] + s[1];
        }
        MmaMode::A100 => A100,
        MmaMode::H100 => H100,
    };
    let block = if ty == MmaType::TF32 { chip.block / 2 } else { chip.block };
    a.chunks(block).zip(b.chunks(block)).fold(c, |c, (a, b)| exact_block(a, b, c, chip))
}

/// Magnitude as integer and exponent of its lowest bit, and the exponent used for alignment (of
/// the leading bit as if normalised from the format, subnormals at their fixed exponent).
fn split(x: f32) -> (i64, i32) {
    let bits = x.to_bits();
    let e = (bits >> 23 & 0xff) as i32;
    let f = i64::from(bits & 0x7f_ffff);
    if e == 0 { (f, -126) } else { (f | 1 << 23, e - 127) }
}

/// One block: up to 16 products and C, on a chip.
fn exact_block(a: &[f32], b: &[f32], c: f32, chip: Chip) -> f32 {
    let special = |x: f32| !x.is_finite();
    if special(c) || a.iter().chain(b).any(|&x| special(x)) {
        let s: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
        let s = s + f64::from(c);
        return if s.is_nan() { f32::from_bits(0x7fff_ffff) } else { s as f32 };
    }
    // (negative, magnitude with 46 fraction bits, exponent)
    let mut terms = [(false, 0i64, i32::MIN); 17];
    let mut n = 0;
    for (&x, &y) in a.iter().zip(b) {
        if x == 0.0 || y == 0.0 {
            continue;
        }
        let ((mx, ex), (my, ey)) = (split(x), split(y));
        terms[n] = (x.is_sign_negative() != y.is_sign_negative(), mx * my, ex + ey);
        n += 1;
    }
    if c != 0.0 {
        let (m, e) = split(c);
        terms[n] = (c.is_sign_negative(), m << 23, e);
        n += 1;
    }
    let top = terms[..n].iter().map(|t| t.2).max().unwrap_or(i32::MIN);
    if n == 0 {
        return 0.0;
    }
    let top = top.max(chip.floor);
    // Truncation keeps 23 + extra fraction bits below the largest exponent.
    let mut sum = 0i64;
    for &(negative, magnitude, exponent) in &terms[..n] {
        let drop = (top - exponent) + 23 - chip.extra;
        let kept = if drop > 62 { 0 } else { magnitude >> drop };
        sum += if negative { -kept } else { kept };
    }
    pack(sum, top - 23 - chip.extra)
}

/// sum * 2^exponent truncated to f32.
fn pack(sum: i64, exponent: i32) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let negative = sum < 0;
    let m = sum.unsigned_abs();
    let length = 64 - m.leading_zeros() as i32;
    // Exponent of the leading bit.
    let e = exponent + length - 1;
    let sign = u32::from(negative) << 31;
    if e > 127 {
        return f32::from_bits(sign | 0x7f80_0000);
    }
    let lowest = (e - 23).max(-149);
    let shift = lowest - exponent;
    let mantissa = if shift >= 64 {
        0
    } else if shift >= 0 {
        m >> shift
    } else {
        m << -shift
    };
    let bits = if e >= -126 {
        ((e + 127) as u32) << 23 | (mantissa as u32 & 0x7f_ffff)
    } else {
        mantissa as u32
    };
    f32::from_bits(sign | bits)
}

/// m16n8k16 on 16-bit inputs with f32 sums: even and odd k in two chains.
///
/// # Safety
/// The operation's registers lie inside the frame `r` starts.
pub unsafe fn fast_k16(r: *mut u32, op: &MmaOp) {
    // SAFETY: the caller's promise; features are checked before they are used.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if level() != Level::Base {
            return fast_k16_v3(r, op);
        }
        fast_k16_body(r, op);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
unsafe fn fast_k16_v3(r: *mut u32, op: &MmaOp) {
    // SAFETY: forwarded.
    unsafe { fast_k16_body(r, op) }
}

#[inline(always)]
unsafe fn fast_k16_body(r: *mut u32, op: &MmaOp) {
    // b[k][n], a[m][k]
    let mut b = [[0f32; 8]; 16];
    let mut a = [[0f32; 16]; 16];
    let mut c = [[0f32; 8]; 16];
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..2 {
            let w = r.add(op.b[i] as usize);
            let (mut lo, mut hi) = ([0f32; 32], [0f32; 32]);
            widen(w, op.ty, &mut lo, &mut hi);
            for t in 0..32 {
                b[2 * (t % 4) + 8 * i][t / 4] = lo[t];
                b[2 * (t % 4) + 8 * i + 1][t / 4] = hi[t];
            }
        }
        for i in 0..4 {
            let w = r.add(op.a[i] as usize);
            let (mut lo, mut hi) = ([0f32; 32], [0f32; 32]);
            widen(w, op.ty, &mut lo, &mut hi);
            for t in 0..32 {
                let (row, col) = (t / 4 + 8 * (i & 1), 2 * (t % 4) + 8 * (i >> 1));
                a[row][col] = lo[t];
                a[row][col + 1] = hi[t];
            }
            let w = r.add(op.c[i] as usize).cast::<f32>();
            for t in 0..32 {
                c[t / 4 + 8 * (i >> 1)][2 * (t % 4) + (i & 1)] = *w.add(t);
            }
        }
        for (row, out) in a.iter().zip(c.iter_mut()) {
            let mut odd = [0f32; 8];
            for k in (0..16).step_by(2) {
                for n in 0..8 {
                    out[n] = row[k].mul_add(b[k][n], out[n]);
                    odd[n] = row[k + 1].mul_add(b[k + 1][n], odd[n]);
                }
            }
            for n in 0..8 {
                out[n] += odd[n];
            }
        }
        for i in 0..4 {
            let w = r.add(op.d[i] as usize).cast::<f32>();
            for t in 0..32 {
                *w.add(t) = c[t / 4 + 8 * (i >> 1)][2 * (t % 4) + (i & 1)];
            }
        }
    }
}

#[inline(always)]
unsafe fn widen(w: *const u32, ty: MmaType, lo: &mut [f32; 32], hi: &mut [f32; 32]) {
    // SAFETY: w starts 32 lanes.
    unsafe {
        if ty == MmaType::BF16 {
            for t in 0..32 {
                lo[t] = bf16_to_f32(*w.add(t) & 0xffff);
                hi[t] = bf16_to_f32(*w.add(t) >> 16);
            }
        } else {
            for t in 0..32 {
                lo[t] = f16_to_f32(*w.add(t) & 0xffff);
                hi[t] = f16_to_f32(*w.add(t) >> 16);
            }
        }
    }
}
