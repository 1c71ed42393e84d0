//! Tensor-core arithmetic.
//!
//! The exact modes follow what the chips were measured to do (Khattak and Mikaitis): products are
//! exact; with C they are aligned to the largest exponent without normalising first; each magnitude
//! is truncated to 23 + n fraction bits; the integer sum is truncated to 24 bits. Longer k chains
//! blocks of the chip's length.
#![allow(unsafe_code)] // Registers are raw lane arrays.

use crate::isa::lanes::Leveled;
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
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32], c: f32, ty: MmaType, mode: MmaMode) -> f32 {
    let h100 = match mode {
        MmaMode::Fast => {
            // Two chains, even and odd k, as the quick kernel sums.
            let mut s = [c, 0.0];
            for (k, (x, y)) in a.iter().zip(b).enumerate() {
                s[k & 1] = x.mul_add(*y, s[k & 1]);
            }
            return s[0] + s[1];
        }
        MmaMode::A100 => false,
        MmaMode::H100 => true,
    };
    exact(&Parts::new(a), &Parts::new(b), a, b, c, ty, h100)
}

/// A row of A or column of B taken apart: signed mantissas with 23 fraction bits, exponents.
/// Subnormals keep the fixed exponent; a zero's is so low that it never decides the alignment.
#[derive(Clone, Copy)]
pub struct Parts {
    mantissa: [i64; 16],
    exponent: [i64; 16],
    finite: bool,
}

const ZERO_EXPONENT: i64 = -4096;

fn split(x: f32) -> (i64, i64) {
    let bits = x.to_bits();
    let e = i64::from(bits >> 23 & 0xff);
    let f = i64::from(bits & 0x7f_ffff);
    let (m, e) = if e == 0 { (f, -126) } else { (f | 1 << 23, e - 127) };
    (if bits >> 31 != 0 { -m } else { m }, if m == 0 { ZERO_EXPONENT } else { e })
}

impl Parts {
    /// Takes up to 16 values apart.
    pub fn new(x: &[f32]) -> Parts {
        let mut p = Parts { mantissa: [0; 16], exponent: [ZERO_EXPONENT; 16], finite: true };
        for (k, &v) in x.iter().enumerate().take(16) {
            (p.mantissa[k], p.exponent[k]) = split(v);
            p.finite &= v.is_finite();
        }
        p
    }
}

/// One element of D over the first `k` products, exact for the mode's chip; `a` and `b` are only
/// looked at for infinities and NaNs.
#[inline(always)]
pub fn exact(pa: &Parts, pb: &Parts, a: &[f32], b: &[f32], c: f32, ty: MmaType, h100: bool) -> f32 {
    let chip = if h100 { H100 } else { A100 };
    let block = if ty == MmaType::TF32 { chip.block / 2 } else { chip.block };
    let k = a.len();
    let mut sum = c;
    let mut at = 0;
    while at < k {
        let end = (at + block).min(k);
        sum = if pa.finite && pb.finite && sum.is_finite() {
            exact_block(pa, pb, at, end, sum, chip)
        } else {
            special_block(&a[at..end], &b[at..end], sum)
        };
        at = end;
    }
    sum
}

fn special_block(a: &[f32], b: &[f32], c: f32) -> f32 {
    let s: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    let s = s + f64::from(c);
    if s.is_nan() { f32::from_bits(0x7fff_ffff) } else { s as f32 }
}

/// One block of products and C, all finite.
#[inline(always)]
fn exact_block(a: &Parts, b: &Parts, from: usize, to: usize, c: f32, chip: Chip) -> f32 {
    let (cm, ce) = split(c);
    let mut top = ce.max(i64::from(chip.floor));
    for k in from..to {
        top = top.max(a.exponent[k] + b.exponent[k]);
    }
    // Products have 46 fraction bits; truncation keeps 23 + extra below the largest exponent.
    let keep = 23 - i64::from(chip.extra);
    let truncate = |m: i64, e: i64| {
        let drop = (top - e + keep).min(63);
        let magnitude = (m.unsigned_abs() >> drop) as i64;
        if m < 0 { -magnitude } else { magnitude }
    };
    let mut sum = truncate(cm << 23, ce);
    for k in from..to {
        sum += truncate(a.mantissa[k] * b.mantissa[k], a.exponent[k] + b.exponent[k]);
    }
    pack(sum, top as i32 - 23 - chip.extra)
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

/// m16n8k16 on 16-bit inputs with f32 sums: even and odd k in two chains. The operation's registers
/// lie inside the frame `r` starts.
pub struct FastK16<'a> {
    /// The frame.
    pub r: *mut u32,
    /// The operation.
    pub op: &'a MmaOp,
}

impl Leveled for FastK16<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run(self) {
        // SAFETY: forwarded.
        unsafe { fast_k16_body(self.r, self.op) }
    }
}

#[inline(always)]
unsafe fn fast_k16_body(r: *mut u32, op: &MmaOp) {
    // A stays in fragment order: element (m, k) is half k & 1 of lane 4 (m % 8) + k % 8 / 2 of
    // register m / 8 + 2 (k / 8). B becomes b[k][n].
    let mut b = [[0f32; 8]; 16];
    let mut a_lo = [[0f32; 32]; 4];
    let mut a_hi = [[0f32; 32]; 4];
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..2 {
            let (mut lo, mut hi) = ([0f32; 32], [0f32; 32]);
            widen(r.add(op.b[i] as usize), op.ty, &mut lo, &mut hi);
            for q in 0..4 {
                for n in 0..8 {
                    b[2 * q + 8 * i][n] = lo[4 * n + q];
                    b[2 * q + 8 * i + 1][n] = hi[4 * n + q];
                }
            }
        }
        for i in 0..4 {
            widen(r.add(op.a[i] as usize), op.ty, &mut a_lo[i], &mut a_hi[i]);
        }
        // D may be the registers of C in another order.
        let mut c = [[0f32; 32]; 4];
        for i in 0..4 {
            let from = r.add(op.c[i] as usize).cast();
            std::ptr::copy_nonoverlapping(from, c[i].as_mut_ptr(), 32);
        }
        for m in 0..16 {
            let (g, half) = (m % 8, m / 8);
            let mut even = [0f32; 8];
            let mut odd = [0f32; 8];
            for q in 0..4 {
                even[2 * q] = c[2 * half][4 * g + q];
                even[2 * q + 1] = c[2 * half + 1][4 * g + q];
            }
            for k in (0..16).step_by(2) {
                let (reg, lane) = (half + 2 * (k / 8), 4 * g + k % 8 / 2);
                let (x, y) = (a_lo[reg][lane], a_hi[reg][lane]);
                for n in 0..8 {
                    even[n] = x.mul_add(b[k][n], even[n]);
                    odd[n] = y.mul_add(b[k + 1][n], odd[n]);
                }
            }
            let even_d = r.add(op.d[2 * half] as usize + 4 * g).cast::<f32>();
            let odd_d = r.add(op.d[2 * half + 1] as usize + 4 * g).cast::<f32>();
            for q in 0..4 {
                *even_d.add(q) = even[2 * q] + odd[2 * q];
                *odd_d.add(q) = even[2 * q + 1] + odd[2 * q + 1];
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
