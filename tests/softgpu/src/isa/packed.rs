//! Arithmetic on f16, bf16 and their pairs. Sums and products go through f32, which is wide enough
//! for one correct rounding; fma goes through f64 rounded to odd.

use super::builder::{FnBuilder, Result};
use super::float::{max_nan, max_num, min_nan, min_num};
use super::lanes::{bin, tern, un};
use super::softfloat::*;
use super::*;
use crate::ptx::ast::{Operand, Type};

fn f16_fma(a: u32, b: u32, c: u32) -> u32 {
    let (a, b, c) = (f16_to_f32(a), f16_to_f32(b), f16_to_f32(c));
    f64_to_f16(fma_odd(f64::from(a), f64::from(b), f64::from(c)), Round::Nearest)
}

fn bf16_fma(a: u32, b: u32, c: u32) -> u32 {
    let (a, b, c) = (bf16_to_f32(a), bf16_to_f32(b), bf16_to_f32(c));
    f64_to_bf16(fma_odd(f64::from(a), f64::from(b), f64::from(c)), Round::Nearest)
}

/// bf16 product through f64: the f32 product may be subnormal and round twice.
fn bf16_mul(a: u32, b: u32) -> u32 {
    f64_to_bf16(f64::from(bf16_to_f32(a)) * f64::from(bf16_to_f32(b)), Round::Nearest)
}

/// The four instances (f16, f16x2, bf16, bf16x2) of an operation on bit patterns.
macro_rules! halves {
    ($ty:expr, un, |$a:ident| $f16:expr, $bf16:expr) => {
        match $ty {
            Type::F16 => un(|x: u32| {
                let f = |$a: u32| -> u32 { $f16 };
                f(x & 0xffff)
            }),
            Type::F16x2 => un(|x: u32| {
                let f = |$a: u32| -> u32 { $f16 };
                f(x & 0xffff) | f(x >> 16) << 16
            }),
            Type::BF16 => un(|x: u32| {
                let f = |$a: u32| -> u32 { $bf16 };
                f(x & 0xffff)
            }),
            _ => un(|x: u32| {
                let f = |$a: u32| -> u32 { $bf16 };
                f(x & 0xffff) | f(x >> 16) << 16
            }),
        }
    };
    ($ty:expr, bin, |$a:ident, $b:ident| $f16:expr, $bf16:expr) => {
        match $ty {
            Type::F16 => bin(|x: u32, y: u32| {
                let f = |$a: u32, $b: u32| -> u32 { $f16 };
                f(x & 0xffff, y & 0xffff)
            }),
            Type::F16x2 => bin(|x: u32, y: u32| {
                let f = |$a: u32, $b: u32| -> u32 { $f16 };
                f(x & 0xffff, y & 0xffff) | f(x >> 16, y >> 16) << 16
            }),
            Type::BF16 => bin(|x: u32, y: u32| {
                let f = |$a: u32, $b: u32| -> u32 { $bf16 };
                f(x & 0xffff, y & 0xffff)
            }),
            _ => bin(|x: u32, y: u32| {
                let f = |$a: u32, $b: u32| -> u32 { $bf16 };
                f(x & 0xffff, y & 0xffff) | f(x >> 16, y >> 16) << 16
            }),
        }
    };
    ($ty:expr, tern, |$a:ident, $b:ident, $c:ident| $f16:expr, $bf16:expr) => {
        match $ty {
            Type::F16 => tern(|x: u32, y: u32, z: u32| {
                let f = |$a: u32, $b: u32, $c: u32| -> u32 { $f16 };
                f(x & 0xffff, y & 0xffff, z & 0xffff)
            }),
            Type::F16x2 => tern(|x: u32, y: u32, z: u32| {
                let f = |$a: u32, $b: u32, $c: u32| -> u32 { $f16 };
                f(x & 0xffff, y & 0xffff, z & 0xffff) | f(x >> 16, y >> 16, z >> 16) << 16
            }),
            Type::BF16 => tern(|x: u32, y: u32, z: u32| {
                let f = |$a: u32, $b: u32, $c: u32| -> u32 { $bf16 };
                f(x & 0xffff, y & 0xffff, z & 0xffff)
            }),
            _ => tern(|x: u32, y: u32, z: u32| {
                let f = |$a: u32, $b: u32, $c: u32| -> u32 { $bf16 };
                f(x & 0xffff, y & 0xffff, z & 0xffff) | f(x >> 16, y >> 16, z >> 16) << 16
            }),
        }
    };
}

/// Negative values to +0, NaN to the canonical NaN.
fn relu_bits(h: u32, inf: u32) -> u32 {
    if h & 0x7fff > inf {
        0x7fff
    } else if h & 0x8000 != 0 {
        0
    } else {
        h
    }
}

impl<'a> FnBuilder<'a, '_> {
    /// f16 and bf16 arithmetic; false when the opcode is not that.
    pub fn decode_packed(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
    ) -> Result<bool> {
        let Some(ty) = mods.last().and_then(|m| Type::from_name(m)) else { return Ok(false) };
        if !matches!(ty, Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2) {
            return Ok(false);
        }
        let nan = mods.contains(&"NaN");
        let (operands, f) = match base {
            "add" => (
                2,
                halves!(
                    ty,
                    bin,
                    |a, b| f32_to_f16(f16_to_f32(a) + f16_to_f32(b)),
                    f32_to_bf16(bf16_to_f32(a) + bf16_to_f32(b))
                ),
            ),
            "sub" => (
                2,
                halves!(
                    ty,
                    bin,
                    |a, b| f32_to_f16(f16_to_f32(a) - f16_to_f32(b)),
                    f32_to_bf16(bf16_to_f32(a) - bf16_to_f32(b))
                ),
            ),
            "mul" => (
                2,
                halves!(ty, bin, |a, b| f32_to_f16(f16_to_f32(a) * f16_to_f32(b)), bf16_mul(a, b)),
            ),
            "fma" => (3, halves!(ty, tern, |a, b, c| f16_fma(a, b, c), bf16_fma(a, b, c))),
            "min" if nan => (
                2,
                halves!(
                    ty,
                    bin,
                    |a, b| f32_to_f16(min_nan(f16_to_f32(a), f16_to_f32(b))),
                    f32_to_bf16(min_nan(bf16_to_f32(a), bf16_to_f32(b)))
                ),
            ),
            "max" if nan => (
                2,
                halves!(
                    ty,
                    bin,
                    |a, b| f32_to_f16(max_nan(f16_to_f32(a), f16_to_f32(b))),
                    f32_to_bf16(max_nan(bf16_to_f32(a), bf16_to_f32(b)))
                ),
            ),
            "min" => (
                2,
                halves!(
                    ty,
                    bin,
                    |a, b| f32_to_f16(min_num(f16_to_f32(a), f16_to_f32(b))),
                    f32_to_bf16(min_num(bf16_to_f32(a), bf16_to_f32(b)))
                ),
            ),
            "max" => (
                2,
                halves!(
                    ty,
                    bin,
                    |a, b| f32_to_f16(max_num(f16_to_f32(a), f16_to_f32(b))),
                    f32_to_bf16(max_num(bf16_to_f32(a), bf16_to_f32(b)))
                ),
            ),
            "neg" => (1, halves!(ty, un, |a| a ^ 0x8000, a ^ 0x8000)),
            "abs" => (1, halves!(ty, un, |a| a & 0x7fff, a & 0x7fff)),
            "ex2" => (
                1,
                halves!(
                    ty,
                    un,
                    |a| f32_to_f16(exp2_32(f16_to_f32(a))),
                    f32_to_bf16(exp2_32(bf16_to_f32(a)))
                ),
            ),
            "tanh" => (
                1,
                halves!(
                    ty,
                    un,
                    |a| f64_to_f16(f64::from(f16_to_f32(a)).tanh(), Round::Nearest),
                    f64_to_bf16(f64::from(bf16_to_f32(a)).tanh(), Round::Nearest)
                ),
            ),
            _ => return Ok(false),
        };
        let clamp = if mods.contains(&"relu") {
            Some(halves!(ty, un, |a| relu_bits(a, 0x7c00), relu_bits(a, 0x7f80)))
        } else if mods.contains(&"sat") {
            Some(halves!(
                ty,
                un,
                |a| f32_to_f16(saturate(f16_to_f32(a))),
                f32_to_bf16(saturate(bf16_to_f32(a)))
            ))
        } else {
            None
        };
        self.alu(f, Class::Half, ops, ty, &[ty; 3][..operands])?;
        if let Some(clamp) = clamp {
            let Some(Operand::Name(name)) = ops.first() else { return Ok(true) };
            let place = self.reg(name)?.place;
            self.push_alu(clamp, Class::Hidden, place, place, 0, 0);
        }
        Ok(true)
    }
}
