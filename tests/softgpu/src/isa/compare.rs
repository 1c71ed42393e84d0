//! setp, set, selp, slct.

use super::builder::{FnBuilder, Result};
use super::lanes::{bin, cmp, combine, sel, tern};
use super::softfloat::{bf16_to_f32, f16_to_f32, flush};
use super::*;
use crate::ptx::ast::{Operand, Type};

macro_rules! float_cmp {
    ($name:expr, $t:ty, |$x:ident| $e:expr) => {
        match $name {
            "eq" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) == f(y)
            }),
            "ne" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) < f(y) || f(x) > f(y)
            }),
            "lt" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) < f(y)
            }),
            "le" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) <= f(y)
            }),
            "gt" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) > f(y)
            }),
            "ge" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) >= f(y)
            }),
            "equ" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                !(f(x) < f(y) || f(x) > f(y))
            }),
            "neu" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) != f(y)
            }),
            "ltu" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                !(f(x) >= f(y))
            }),
            "leu" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                !(f(x) > f(y))
            }),
            "gtu" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                !(f(x) <= f(y))
            }),
            "geu" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                !(f(x) < f(y))
            }),
            "num" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                !f(x).is_nan() && !f(y).is_nan()
            }),
            "nan" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x).is_nan() || f(y).is_nan()
            }),
            _ => return None,
        }
    };
}

macro_rules! int_cmp {
    ($name:expr, $t:ty, |$x:ident| $e:expr) => {
        match $name {
            "eq" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) == f(y)
            }),
            "ne" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) != f(y)
            }),
            "lt" | "lo" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) < f(y)
            }),
            "le" | "ls" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) <= f(y)
            }),
            "gt" | "hi" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) > f(y)
            }),
            "ge" | "hs" => cmp(|x: $t, y: $t| {
                let f = |$x: $t| $e;
                f(x) >= f(y)
            }),
            _ => return None,
        }
    };
}

/// The comparison loop by name and type; none for a pair PTX does not have.
fn comparison(name: &str, ty: Type, ftz: bool) -> Option<ExecFn> {
    Some(match ty {
        Type::F32 if ftz => float_cmp!(name, f32, |x| flush(x)),
        Type::F32 => float_cmp!(name, f32, |x| x),
        Type::F64 => float_cmp!(name, f64, |x| x),
        Type::F16 => float_cmp!(name, u32, |x| f16_to_f32(x & 0xffff)),
        Type::BF16 => float_cmp!(name, u32, |x| bf16_to_f32(x & 0xffff)),
        Type::U16 | Type::B16 => int_cmp!(name, u32, |x| x as u16),
        Type::S16 => int_cmp!(name, u32, |x| x as i16),
        Type::U32 | Type::B32 => int_cmp!(name, u32, |x| x),
        Type::S32 => int_cmp!(name, i32, |x| x),
        Type::U64 | Type::B64 => int_cmp!(name, u64, |x| x),
        Type::S64 => int_cmp!(name, i64, |x| x),
        _ => return None,
    })
}

impl<'a> FnBuilder<'a, '_> {
    /// Comparison and selection; false when the opcode is neither.
    pub fn decode_compare(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
    ) -> Result<bool> {
        let Some(ty) = mods.last().and_then(|m| Type::from_name(m)) else { return Ok(false) };
        match base {
            "setp" => self.setp(mods, ops, ty)?,
            "set" => self.set(mods, ops, ty)?,
            "selp" => {
                if ops.len() != 4 {
                    return Err(self.error("expected 4 operands"));
                }
                let a = self.src(&ops[1], ty)?;
                let b = self.src(&ops[2], ty)?;
                let p = self.pred(&ops[3])?;
                let dst = self.dst(&ops[0], ty)?;
                let f = if ty.bytes() == 8 { sel::<u64>() } else { sel::<u32>() };
                let draft = self.push_alu(f, Class::Compare, dst.place, a, b, p >> 1);
                draft.instr.imm = if p & 1 != 0 { -1 } else { 0 };
                self.finish(dst);
            }
            "slct" => {
                let dty = mods
                    .iter()
                    .find_map(|m| Type::from_name(m))
                    .ok_or_else(|| self.error("missing type"))?;
                let f = match (dty.bytes() == 8, ty) {
                    (false, Type::S32) => tern(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
                    (false, _) => tern(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
                    (true, Type::S32) => tern(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
                    (true, _) => tern(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
                };
                self.alu(f, Class::Compare, ops, dty, &[dty, dty, ty])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn setp(&mut self, mods: &[&str], ops: &[Operand<'a>], ty: Type) -> Result<()> {
        if !(3..=4).contains(&ops.len()) {
            return Err(self.error("expected 3 or 4 operands"));
        }
        let ftz = mods.contains(&"ftz");
        let name = mods.first().copied().unwrap_or("");
        if matches!(ty, Type::F16x2 | Type::BF16x2) {
            return self.setp_pair(name, ops, ty);
        }
        let f = comparison(name, ty, ftz).ok_or_else(|| self.error("unsupported comparison"))?;
        let mut imm = combine::NONE;
        let mut c = 0;
        if let Some(third) = ops.get(3) {
            imm = match mods.get(1).copied() {
                Some("and") => combine::AND,
                Some("or") => combine::OR,
                Some("xor") => combine::XOR,
                _ => return Err(self.error("missing boolean operation")),
            };
            let p = self.pred(third)?;
            c = p >> 1;
            imm |= if p & 1 != 0 { combine::NEGATE } else { 0 };
        }
        let a = self.src(&ops[1], ty)?;
        let b = self.src(&ops[2], ty)?;
        let (d, e) = match &ops[0] {
            Operand::Pair(p, q) => (self.pred_dst(p)?, self.pred_dst(q)?),
            p => (self.pred_dst(p)?, lanes::NO_PRED),
        };
        let draft = self.push_alu(f, Class::Compare, d, a, b, c);
        draft.instr.imm = imm;
        draft.instr.e = e;
        Ok(())
    }

    fn setp_pair(&mut self, name: &str, ops: &[Operand<'a>], ty: Type) -> Result<()> {
        let (Operand::Pair(p, q), 3) = (&ops[0], ops.len()) else {
            return Err(self.error("unsupported form of setp"));
        };
        let one = if ty == Type::F16x2 { Type::F16 } else { Type::BF16 };
        let f = comparison(name, one, false).ok_or_else(|| self.error("unsupported comparison"))?;
        let a = self.src(&ops[1], Type::B32)?;
        let b = self.src(&ops[2], Type::B32)?;
        let d = self.pred_dst(p)?;
        self.push_alu(f, Class::Compare, d, a, b, 0);
        let (hi_a, hi_b) = (self.alloc(1), self.alloc(1));
        let high = lanes::un(|x: u32| x >> 16);
        self.push_alu(high, Class::Hidden, hi_a, a, 0, 0);
        self.push_alu(high, Class::Hidden, hi_b, b, 0, 0);
        let e = self.pred_dst(q)?;
        self.push_alu(f, Class::Hidden, e, hi_a, hi_b, 0);
        Ok(())
    }

    fn set(&mut self, mods: &[&str], ops: &[Operand<'a>], ty: Type) -> Result<()> {
        if ops.len() != 3 {
            return Err(self.error("unsupported form of set"));
        }
        let dty = mods
            .len()
            .checked_sub(2)
            .and_then(|k| Type::from_name(mods[k]))
            .ok_or_else(|| self.error("missing type"))?;
        let name = mods.first().copied().unwrap_or("");
        let a = self.src(&ops[1], ty)?;
        let b = self.src(&ops[2], ty)?;
        let yes = match dty {
            Type::F32 => 1f32.to_bits(),
            Type::F16 => 0x3c00,
            Type::BF16 => 0x3f80,
            Type::F16x2 | Type::BF16x2 => {
                let (one, bits) =
                    if ty == Type::F16x2 { (Type::F16, 0x3c00) } else { (Type::BF16, 0x3f80) };
                let f = comparison(name, one, false)
                    .ok_or_else(|| self.error("unsupported comparison"))?;
                return self.set_pair(f, a, b, bits, &ops[0]);
            }
            Type::U32 | Type::S32 if matches!(ty, Type::F16x2 | Type::BF16x2) => {
                let one = if ty == Type::F16x2 { Type::F16 } else { Type::BF16 };
                let f = comparison(name, one, false)
                    .ok_or_else(|| self.error("unsupported comparison"))?;
                return self.set_pair(f, a, b, 0xffff, &ops[0]);
            }
            Type::U16 | Type::S16 => 0xffff,
            _ => u32::MAX,
        };
        let ftz = mods.contains(&"ftz");
        let f = comparison(name, ty, ftz).ok_or_else(|| self.error("unsupported comparison"))?;
        let p = self.false_pred();
        self.push_alu(f, Class::Compare, p, a, b, 0);
        let yes = self.constant(false, u64::from(yes));
        let no = self.constant(false, 0);
        let dst = self.dst(&ops[0], dty)?;
        self.push_alu(sel::<u32>(), Class::Hidden, dst.place, yes, no, p);
        self.finish(dst);
        Ok(())
    }

    fn set_pair(&mut self, f: ExecFn, a: u32, b: u32, yes: u32, d: &Operand<'a>) -> Result<()> {
        let high = lanes::un(|x: u32| x >> 16);
        let yes = self.constant(false, u64::from(yes));
        let no = self.constant(false, 0);
        let p = self.false_pred();
        let (lo, hi, hi_a, hi_b) = (self.alloc(1), self.alloc(1), self.alloc(1), self.alloc(1));
        self.push_alu(f, Class::Compare, p, a, b, 0);
        self.push_alu(sel::<u32>(), Class::Hidden, lo, yes, no, p);
        self.push_alu(high, Class::Hidden, hi_a, a, 0, 0);
        self.push_alu(high, Class::Hidden, hi_b, b, 0, 0);
        self.push_alu(f, Class::Hidden, p, hi_a, hi_b, 0);
        self.push_alu(sel::<u32>(), Class::Hidden, hi, yes, no, p);
        let dst = self.dst(d, Type::B32)?;
        let join = bin(|l: u32, h: u32| l | h << 16);
        self.push_alu(join, Class::Hidden, dst.place, lo, hi, 0);
        self.finish(dst);
        Ok(())
    }
}
