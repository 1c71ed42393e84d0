//! f32 and f64 arithmetic and the approximate functions.

use super::builder::{FnBuilder, Result};
use super::lanes::{bin, tern, un};
use super::softfloat::*;
use super::*;
use crate::ptx::ast::{Operand, Type};

/// One operand, with the variants flush and saturate.
macro_rules! f1 {
    ($ftz:expr, $sat:expr, |$a:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => un(|$a: f32| $e),
            (true, false) => un(|x: f32| {
                let $a = flush(x);
                flush($e)
            }),
            (false, true) => un(|$a: f32| saturate($e)),
            (true, true) => un(|x: f32| {
                let $a = flush(x);
                saturate(flush($e))
            }),
        }
    };
}

macro_rules! f2 {
    ($ftz:expr, $sat:expr, |$a:ident, $b:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => bin(|$a: f32, $b: f32| $e),
            (true, false) => bin(|x: f32, y: f32| {
                let ($a, $b) = (flush(x), flush(y));
                flush($e)
            }),
            (false, true) => bin(|$a: f32, $b: f32| saturate($e)),
            (true, true) => bin(|x: f32, y: f32| {
                let ($a, $b) = (flush(x), flush(y));
                saturate(flush($e))
            }),
        }
    };
}

macro_rules! f3 {
    ($ftz:expr, $sat:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => tern(|$a: f32, $b: f32, $c: f32| $e),
            (true, false) => tern(|x: f32, y: f32, z: f32| {
                let ($a, $b, $c) = (flush(x), flush(y), flush(z));
                flush($e)
            }),
            (false, true) => tern(|$a: f32, $b: f32, $c: f32| saturate($e)),
            (true, true) => tern(|x: f32, y: f32, z: f32| {
                let ($a, $b, $c) = (flush(x), flush(y), flush(z));
                saturate(flush($e))
            }),
        }
    };
}

/// The rounding mode among the modifiers; to nearest when there is none.
pub(super) fn rounding(mods: &[&str]) -> Round {
    for m in mods {
        match *m {
            "rz" | "rzi" => return Round::Zero,
            "rm" | "rmi" => return Round::Down,
            "rp" | "rpi" => return Round::Up,
            _ => {}
        }
    }
    Round::Nearest
}

impl<'a> FnBuilder<'a, '_> {
    /// f32 and f64 instructions; false when the opcode is not one.
    pub fn decode_float(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<bool> {
        let Some(ty) = mods.last().and_then(|m| Type::from_name(m)) else { return Ok(false) };
        if base == "testp" {
            return self.test_property(mods, ops, ty).map(|()| true);
        }
        let operands = match base {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
            "fma" | "mad" => 3,
            "abs" | "neg" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => 1,
            _ => return Ok(false),
        };
        let (class, f) = match ty {
            Type::F32 => (Class::Float, self.f32_op(base, mods, ops.len())?),
            Type::F64 => (Class::Double, self.f64_op(base, mods)?),
            _ => return Ok(false),
        };
        let class = match base {
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "div" => {
                Class::Special
            }
            _ => class,
        };
        if base != "min" && base != "max" || ops.len() == 3 {
            self.alu(f, class, ops, ty, &[ty; 3][..operands])?;
        } else {
            self.alu(f, class, ops, ty, &[ty; 3])?;
        }
        Ok(true)
    }

    fn f32_op(&self, base: &str, mods: &[&str], operands: usize) -> Result<ExecFn> {
        let ftz = mods.contains(&"ftz");
        let sat = mods.contains(&"sat");
        let round = rounding(mods);
        let nan = mods.contains(&"NaN");
        Ok(match (base, round) {
            ("add", Round::Nearest) => f2!(ftz, sat, |a, b| nan32(a + b)),
            ("add", Round::Zero) => f2!(ftz, sat, |a, b| add32(a, b, Round::Zero)),
            ("add", Round::Down) => f2!(ftz, sat, |a, b| add32(a, b, Round::Down)),
            ("add", Round::Up) => f2!(ftz, sat, |a, b| add32(a, b, Round::Up)),
            ("sub", Round::Nearest) => f2!(ftz, sat, |a, b| nan32(a - b)),
            ("sub", Round::Zero) => f2!(ftz, sat, |a, b| add32(a, -b, Round::Zero)),
            ("sub", Round::Down) => f2!(ftz, sat, |a, b| add32(a, -b, Round::Down)),
            ("sub", Round::Up) => f2!(ftz, sat, |a, b| add32(a, -b, Round::Up)),
            ("mul", Round::Nearest) => f2!(ftz, sat, |a, b| nan32(a * b)),
            ("mul", Round::Zero) => f2!(ftz, sat, |a, b| mul32(a, b, Round::Zero)),
            ("mul", Round::Down) => f2!(ftz, sat, |a, b| mul32(a, b, Round::Down)),
            ("mul", Round::Up) => f2!(ftz, sat, |a, b| mul32(a, b, Round::Up)),
            ("fma" | "mad", Round::Nearest) => f3!(ftz, sat, |a, b, c| nan32(a.mul_add(b, c))),
            ("fma" | "mad", Round::Zero) => f3!(ftz, sat, |a, b, c| fma32(a, b, c, Round::Zero)),
            ("fma" | "mad", Round::Down) => f3!(ftz, sat, |a, b, c| fma32(a, b, c, Round::Down)),
            ("fma" | "mad", Round::Up) => f3!(ftz, sat, |a, b, c| fma32(a, b, c, Round::Up)),
            ("div", Round::Nearest) => f2!(ftz, sat, |a, b| nan32(a / b)),
            ("div", Round::Zero) => f2!(ftz, sat, |a, b| div32(a, b, Round::Zero)),
            ("div", Round::Down) => f2!(ftz, sat, |a, b| div32(a, b, Round::Down)),
            ("div", Round::Up) => f2!(ftz, sat, |a, b| div32(a, b, Round::Up)),
            ("rcp", Round::Nearest) => f1!(ftz, false, |a| nan32(1.0 / a)),
            ("rcp", Round::Zero) => f1!(ftz, false, |a| div32(1.0, a, Round::Zero)),
            ("rcp", Round::Down) => f1!(ftz, false, |a| div32(1.0, a, Round::Down)),
            ("rcp", Round::Up) => f1!(ftz, false, |a| div32(1.0, a, Round::Up)),
            ("sqrt", Round::Nearest) => f1!(ftz, false, |a| nan32(a.sqrt())),
            ("sqrt", Round::Zero) => f1!(ftz, false, |a| sqrt32(a, Round::Zero)),
            ("sqrt", Round::Down) => f1!(ftz, false, |a| sqrt32(a, Round::Down)),
            ("sqrt", Round::Up) => f1!(ftz, false, |a| sqrt32(a, Round::Up)),
            ("min", _) if operands == 4 && nan => {
                f3!(ftz, false, |a, b, c| min_nan(min_nan(a, b), c))
            }
            ("max", _) if operands == 4 && nan => {
                f3!(ftz, false, |a, b, c| max_nan(max_nan(a, b), c))
            }
            ("min", _) if operands == 4 => f3!(ftz, false, |a, b, c| min_num(min_num(a, b), c)),
            ("max", _) if operands == 4 => f3!(ftz, false, |a, b, c| max_num(max_num(a, b), c)),
            ("min" | "max", _) if mods.contains(&"xorsign") => {
                return Err(self.error("unsupported instruction"));
            }
            ("min", _) if nan => f2!(ftz, false, |a, b| min_nan(a, b)),
            ("max", _) if nan => f2!(ftz, false, |a, b| max_nan(a, b)),
            ("min", _) => f2!(ftz, false, |a, b| min_num(a, b)),
            ("max", _) => f2!(ftz, false, |a, b| max_num(a, b)),
            // PTX: d takes the sign of a and the magnitude of b.
            ("copysign", _) => bin(|a: u32, b: u32| (a & 0x8000_0000) | (b & 0x7fff_ffff)),
            ("abs", _) => f1!(ftz, false, |a| a.abs()),
            ("neg", _) => f1!(ftz, false, |a| -a),
            ("rsqrt", _) => f1!(ftz, false, |a| nan32((1.0 / f64::from(a).sqrt()) as f32)),
            ("sin", _) => f1!(ftz, false, |a| nan32(f64::from(a).sin() as f32)),
            ("cos", _) => f1!(ftz, false, |a| nan32(f64::from(a).cos() as f32)),
            ("lg2", _) => f1!(ftz, false, |a| nan32(f64::from(a).log2() as f32)),
            ("ex2", _) => f1!(ftz, false, |a| exp2_32(a)),
            ("tanh", _) => f1!(ftz, false, |a| nan32(f64::from(a).tanh() as f32)),
            _ => return Err(self.error("unsupported instruction")),
        })
    }

    fn f64_op(&self, base: &str, mods: &[&str]) -> Result<ExecFn> {
        Ok(match (base, rounding(mods)) {
            ("add", Round::Nearest) => bin(|a: f64, b: f64| nan64(a + b)),
            ("add", Round::Zero) => bin(|a: f64, b: f64| add64(a, b, Round::Zero)),
            ("add", Round::Down) => bin(|a: f64, b: f64| add64(a, b, Round::Down)),
            ("add", Round::Up) => bin(|a: f64, b: f64| add64(a, b, Round::Up)),
            ("sub", Round::Nearest) => bin(|a: f64, b: f64| nan64(a - b)),
            ("sub", Round::Zero) => bin(|a: f64, b: f64| add64(a, -b, Round::Zero)),
            ("sub", Round::Down) => bin(|a: f64, b: f64| add64(a, -b, Round::Down)),
            ("sub", Round::Up) => bin(|a: f64, b: f64| add64(a, -b, Round::Up)),
            ("mul", Round::Nearest) => bin(|a: f64, b: f64| nan64(a * b)),
            ("mul", Round::Zero) => bin(|a: f64, b: f64| mul64(a, b, Round::Zero)),
            ("mul", Round::Down) => bin(|a: f64, b: f64| mul64(a, b, Round::Down)),
            ("mul", Round::Up) => bin(|a: f64, b: f64| mul64(a, b, Round::Up)),
            ("fma" | "mad", Round::Nearest) => {
                tern(|a: f64, b: f64, c: f64| nan64(a.mul_add(b, c)))
            }
            ("fma" | "mad", Round::Zero) => {
                tern(|a: f64, b: f64, c: f64| fma64(a, b, c, Round::Zero))
            }
            ("fma" | "mad", Round::Down) => {
                tern(|a: f64, b: f64, c: f64| fma64(a, b, c, Round::Down))
            }
            ("fma" | "mad", Round::Up) => tern(|a: f64, b: f64, c: f64| fma64(a, b, c, Round::Up)),
            ("div", Round::Nearest) => bin(|a: f64, b: f64| nan64(a / b)),
            ("div", Round::Zero) => bin(|a: f64, b: f64| div64(a, b, Round::Zero)),
            ("div", Round::Down) => bin(|a: f64, b: f64| div64(a, b, Round::Down)),
            ("div", Round::Up) => bin(|a: f64, b: f64| div64(a, b, Round::Up)),
            ("rcp", Round::Nearest) if mods.contains(&"approx") => un(|a: f64| {
                // rcp.approx.ftz.f64 keeps the upper word only.
                f64::from_bits((1.0 / a).to_bits() & 0xffff_ffff_0000_0000)
            }),
            ("rcp", Round::Nearest) => un(|a: f64| nan64(1.0 / a)),
            ("rcp", Round::Zero) => un(|a: f64| div64(1.0, a, Round::Zero)),
            ("rcp", Round::Down) => un(|a: f64| div64(1.0, a, Round::Down)),
            ("rcp", Round::Up) => un(|a: f64| div64(1.0, a, Round::Up)),
            ("sqrt", Round::Nearest) => un(|a: f64| nan64(a.sqrt())),
            ("sqrt", Round::Zero) => un(|a: f64| sqrt64(a, Round::Zero)),
            ("sqrt", Round::Down) => un(|a: f64| sqrt64(a, Round::Down)),
            ("sqrt", Round::Up) => un(|a: f64| sqrt64(a, Round::Up)),
            ("rsqrt", _) => un(|a: f64| nan64(1.0 / a.sqrt())),
            ("min", _) => bin(|a: f64, b: f64| {
                let m = if a < b || (a == b && a.is_sign_negative()) { a } else { b };
                nan64(if a.is_nan() {
                    b
                } else if b.is_nan() {
                    a
                } else {
                    m
                })
            }),
            ("max", _) => bin(|a: f64, b: f64| {
                let m = if a > b || (a == b && a.is_sign_positive()) { a } else { b };
                nan64(if a.is_nan() {
                    b
                } else if b.is_nan() {
                    a
                } else {
                    m
                })
            }),
            ("copysign", _) => bin(|a: u64, b: u64| (a & 1 << 63) | (b & !(1 << 63))),
            ("abs", _) => un(|a: f64| a.abs()),
            ("neg", _) => un(|a: f64| -a),
            _ => return Err(self.error("unsupported instruction")),
        })
    }

    fn test_property(&mut self, mods: &[&str], ops: &[Operand<'a>], ty: Type) -> Result<()> {
        if ops.len() != 2 {
            return Err(self.error("expected 2 operands"));
        }
        let f = match (mods.first().copied().unwrap_or(""), ty) {
            ("finite", Type::F32) => lanes::cmp(|a: f32, _| a.is_finite()),
            ("infinite", Type::F32) => lanes::cmp(|a: f32, _| a.is_infinite()),
            ("number", Type::F32) => lanes::cmp(|a: f32, _| !a.is_nan()),
            ("notanumber", Type::F32) => lanes::cmp(|a: f32, _| a.is_nan()),
            ("normal", Type::F32) => lanes::cmp(|a: f32, _| a.is_normal()),
            ("subnormal", Type::F32) => lanes::cmp(|a: f32, _| a.is_subnormal()),
            ("finite", Type::F64) => lanes::cmp(|a: f64, _| a.is_finite()),
            ("infinite", Type::F64) => lanes::cmp(|a: f64, _| a.is_infinite()),
            ("number", Type::F64) => lanes::cmp(|a: f64, _| !a.is_nan()),
            ("notanumber", Type::F64) => lanes::cmp(|a: f64, _| a.is_nan()),
            ("normal", Type::F64) => lanes::cmp(|a: f64, _| a.is_normal()),
            ("subnormal", Type::F64) => lanes::cmp(|a: f64, _| a.is_subnormal()),
            _ => return Err(self.error("unsupported instruction")),
        };
        let a = self.src(&ops[1], ty)?;
        let d = self.pred_dst(&ops[0])?;
        self.push_alu(f, Class::Compare, d, a, a, 0);
        Ok(())
    }
}

/// The smaller operand; a NaN loses; -0 is below +0.
#[inline(always)]
pub(super) fn min_num(a: f32, b: f32) -> f32 {
    let m = if a < b || (a == b && a.is_sign_negative()) { a } else { b };
    nan32(if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        m
    })
}

/// The larger operand; a NaN loses.
#[inline(always)]
pub(super) fn max_num(a: f32, b: f32) -> f32 {
    let m = if a > b || (a == b && a.is_sign_positive()) { a } else { b };
    nan32(if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        m
    })
}

/// The smaller operand; a NaN wins.
#[inline(always)]
pub(super) fn min_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { min_num(a, b) }
}

/// The larger operand; a NaN wins.
#[inline(always)]
pub(super) fn max_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { max_num(a, b) }
}
