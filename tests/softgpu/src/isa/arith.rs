//! Integer arithmetic, logic and shifts.

mod bits;

use bits::{bfe_signed, find_nth_set, mask_bits};

use super::builder::{FnBuilder, Result};
use super::lanes::{bin, tern, un};
use super::preds::{pred_and, pred_not, pred_or, pred_xor};
use super::*;
use crate::ptx::ast::{Operand, Type};

/// The lane loop of a two-operand integer operation, by type.
macro_rules! int2 {
    ($ty:expr, |$a:ident, $b:ident| $u:expr, $s:expr) => {
        match $ty {
            Type::U16 | Type::B16 => bin(|x: u32, y: u32| {
                let ($a, $b) = (x as u16, y as u16);
                u32::from($u)
            }),
            Type::S16 => bin(|x: u32, y: u32| {
                let ($a, $b) = (x as i16, y as i16);
                u32::from($s as u16)
            }),
            Type::U32 | Type::B32 => bin(|$a: u32, $b: u32| $u),
            Type::S32 => bin(|$a: i32, $b: i32| $s),
            Type::U64 | Type::B64 => bin(|$a: u64, $b: u64| $u),
            Type::S64 => bin(|$a: i64, $b: i64| $s),
            _ => return Ok(false),
        }
    };
}

fn lanes16(x: u32, y: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(x as u16, y as u16)) | u32::from(f((x >> 16) as u16, (y >> 16) as u16)) << 16
}

fn int_type(mods: &[&str]) -> Option<Type> {
    Type::from_name(mods.last()?).filter(|t| !t.is_float())
}

impl<'a> FnBuilder<'a, '_> {
    /// Integer instructions; false when the opcode is not one.
    pub fn decode_arith(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<bool> {
        let Some(ty) = int_type(mods) else { return Ok(false) };
        let class = Class::Integer;
        let carry_out = mods.contains(&"cc");
        if matches!(base, "addc" | "subc" | "madc") || (carry_out && base != "cvt") {
            return self.carry_chain(base, mods, ops, ty, carry_out);
        }
        let f = match base {
            "add" if mods.contains(&"sat") => bin(|a: i32, b: i32| a.saturating_add(b)),
            "sub" if mods.contains(&"sat") => bin(|a: i32, b: i32| a.saturating_sub(b)),
            "add" if matches!(ty, Type::U16x2 | Type::S16x2) => {
                bin(|a: u32, b: u32| lanes16(a, b, u16::wrapping_add))
            }
            "min" if ty == Type::U16x2 => bin(|a: u32, b: u32| lanes16(a, b, |x, y| x.min(y))),
            "max" if ty == Type::U16x2 => bin(|a: u32, b: u32| lanes16(a, b, |x, y| x.max(y))),
            "min" if ty == Type::S16x2 => {
                bin(|a: u32, b: u32| lanes16(a, b, |x, y| (x as i16).min(y as i16) as u16))
            }
            "max" if ty == Type::S16x2 => {
                bin(|a: u32, b: u32| lanes16(a, b, |x, y| (x as i16).max(y as i16) as u16))
            }
            "add" => int2!(ty, |a, b| a.wrapping_add(b), a.wrapping_add(b)),
            "sub" => int2!(ty, |a, b| a.wrapping_sub(b), a.wrapping_sub(b)),
            "min" if mods.contains(&"relu") => bin(|a: i32, b: i32| a.min(b).max(0)),
            "max" if mods.contains(&"relu") => bin(|a: i32, b: i32| a.max(b).max(0)),
            "min" => int2!(ty, |a, b| a.min(b), a.min(b)),
            "max" => int2!(ty, |a, b| a.max(b), a.max(b)),
            // Division by zero is unspecified in PTX; the hardware gives all ones.
            "div" => int2!(
                ty,
                |a, b| if b == 0 { !b } else { a.wrapping_div(b) },
                if b == 0 { !b } else { a.wrapping_div(b) }
            ),
            "rem" => int2!(
                ty,
                |a, b| if b == 0 { a } else { a.wrapping_rem(b) },
                if b == 0 { a } else { a.wrapping_rem(b) }
            ),
            "mul" if mods.contains(&"wide") => return self.mul_wide(ops, ty).map(|()| true),
            "mul" if mods.contains(&"hi") => mul_hi(ty),
            "mul" => int2!(ty, |a, b| a.wrapping_mul(b), a.wrapping_mul(b)),
            "mul24" => match ty {
                Type::S32 => bin(|a: i32, b: i32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8)),
                _ => bin(|a: u32, b: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
            },
            "mad" => return self.mad(mods, ops, ty).map(|()| true),
            "mad24" => match ty {
                Type::S32 => {
                    let f = tern(|a: i32, b: i32, c: i32| {
                        (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c)
                    });
                    return self.alu(f, class, ops, ty, &[ty; 3]).map(|()| true);
                }
                _ => {
                    let f = tern(|a: u32, b: u32, c: u32| {
                        (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c)
                    });
                    return self.alu(f, class, ops, ty, &[ty; 3]).map(|()| true);
                }
            },
            "and" | "or" | "xor" | "not" if ty == Type::Pred => {
                return self.pred_logic(base, ops).map(|()| true);
            }
            "and" => int2!(ty, |a, b| a & b, a & b),
            "or" => int2!(ty, |a, b| a | b, a | b),
            "xor" => int2!(ty, |a, b| a ^ b, a ^ b),
            "shl" => {
                let f = match ty.bytes() {
                    2 => bin(|a: u32, b: u32| if b > 15 { 0 } else { (a << b) & 0xffff }),
                    4 => bin(|a: u32, b: u32| if b > 31 { 0 } else { a << b }),
                    _ => bin(|a: u64, b: u32| if b > 63 { 0 } else { a << b }),
                };
                return self.alu(f, class, ops, ty, &[ty, Type::U32]).map(|()| true);
            }
            "shr" => {
                let f = match ty {
                    Type::U16 | Type::B16 => {
                        bin(|a: u32, b: u32| if b > 15 { 0 } else { (a & 0xffff) >> b })
                    }
                    Type::S16 => bin(|a: u32, b: u32| u32::from(((a as i16) >> b.min(15)) as u16)),
                    Type::U32 | Type::B32 => bin(|a: u32, b: u32| if b > 31 { 0 } else { a >> b }),
                    Type::S32 => bin(|a: i32, b: u32| a >> b.min(31)),
                    Type::S64 => bin(|a: i64, b: u32| a >> b.min(63)),
                    _ => bin(|a: u64, b: u32| if b > 63 { 0 } else { a >> b }),
                };
                return self.alu(f, class, ops, ty, &[ty, Type::U32]).map(|()| true);
            }
            "shf" => return self.funnel(mods, ops).map(|()| true),
            "neg" | "abs" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" => {
                return self.int_unary(base, mods, ops, ty).map(|()| true);
            }
            "bfe" => {
                let f = match ty {
                    Type::U32 => tern(|a: u32, b: u32, c: u32| {
                        let (pos, len) = (b & 0xff, c & 0xff);
                        let v = if pos > 31 { 0 } else { a >> pos };
                        if len > 31 { v } else { v & ((1 << len) - 1) }
                    }),
                    Type::S32 => {
                        tern(|a: i32, b: u32, c: u32| bfe_signed(i64::from(a), b, c, 32) as i32)
                    }
                    Type::U64 => tern(|a: u64, b: u32, c: u32| {
                        let (pos, len) = (b & 0xff, c & 0xff);
                        let v = if pos > 63 { 0 } else { a >> pos };
                        if len > 63 { v } else { v & ((1 << len) - 1) }
                    }),
                    Type::S64 => tern(|a: i64, b: u32, c: u32| bfe_signed(a, b, c, 64)),
                    _ => return Ok(false),
                };
                return self.alu(f, class, ops, ty, &[ty, Type::U32, Type::U32]).map(|()| true);
            }
            "bfi" => return self.bit_insert(ops, ty).map(|()| true),
            "bmsk" => {
                let clamp = mods.contains(&"clamp");
                let f = if clamp {
                    bin(|a: u32, b: u32| mask_bits(a, b))
                } else {
                    bin(|a: u32, b: u32| mask_bits(a & 31, b & 31))
                };
                return self.alu(f, class, ops, ty, &[Type::U32; 2]).map(|()| true);
            }
            "fns" => {
                let f = tern(find_nth_set);
                let types = [Type::B32, Type::B32, Type::S32];
                return self.alu(f, class, ops, Type::B32, &types).map(|()| true);
            }
            "lop3" => return self.lop3(ops).map(|()| true),
            "prmt" => return self.permute(mods, ops).map(|()| true),
            "sad" => {
                let f = match ty {
                    Type::S32 => tern(|a: i32, b: i32, c: u32| c.wrapping_add(a.abs_diff(b))),
                    Type::U32 => tern(|a: u32, b: u32, c: u32| c.wrapping_add(a.abs_diff(b))),
                    Type::S64 => tern(|a: i64, b: i64, c: u64| c.wrapping_add(a.abs_diff(b))),
                    Type::U64 => tern(|a: u64, b: u64, c: u64| c.wrapping_add(a.abs_diff(b))),
                    _ => return Ok(false),
                };
                return self.alu(f, class, ops, ty, &[ty; 3]).map(|()| true);
            }
            "dp4a" | "dp2a" => return self.dot(base, mods, ops).map(|()| true),
            _ => return Ok(false),
        };
        self.alu(f, class, ops, ty, &[ty, ty])?;
        Ok(true)
    }

    fn mul_wide(&mut self, ops: &[Operand<'a>], ty: Type) -> Result<()> {
        let (f, to) = match ty {
            Type::U16 => (bin(|a: u32, b: u32| (a & 0xffff) * (b & 0xffff)), Type::U32),
            Type::S16 => {
                (bin(|a: u32, b: u32| i32::from(a as i16) * i32::from(b as i16)), Type::S32)
            }
            Type::S32 => (bin(|a: i32, b: i32| i64::from(a) * i64::from(b)), Type::S64),
            _ => (bin(|a: u32, b: u32| u64::from(a) * u64::from(b)), Type::U64),
        };
        self.alu(f, Class::Integer, ops, to, &[ty, ty])
    }

    fn mad(&mut self, mods: &[&str], ops: &[Operand<'a>], ty: Type) -> Result<()> {
        if mods.contains(&"wide") {
            let (f, to) = match ty {
                Type::U16 => (
                    tern(|a: u32, b: u32, c: u32| ((a & 0xffff) * (b & 0xffff)).wrapping_add(c)),
                    Type::U32,
                ),
                Type::S16 => (
                    tern(|a: u32, b: u32, c: i32| {
                        (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c)
                    }),
                    Type::S32,
                ),
                Type::S32 => (
                    tern(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)),
                    Type::S64,
                ),
                _ => (
                    tern(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
                    Type::U64,
                ),
            };
            return self.alu(f, Class::Integer, ops, to, &[ty, ty, to]);
        }
        let hi = mods.contains(&"hi");
        let f = match (ty.bytes(), hi) {
            (2, false) => tern(|a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c) & 0xffff),
            (4, false) => tern(|a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
            (8, false) => tern(|a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
            (4, true) if ty.is_signed() => tern(|a: i32, b: i32, c: i32| {
                ((i64::from(a) * i64::from(b)) >> 32).wrapping_add(i64::from(c)) as i32
            }),
            (4, true) => tern(|a: u32, b: u32, c: u32| {
                (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
            }),
            (8, true) if ty.is_signed() => tern(|a: i64, b: i64, c: i64| {
                (((i128::from(a) * i128::from(b)) >> 64) as i64).wrapping_add(c)
            }),
            (8, true) => tern(|a: u64, b: u64, c: u64| {
                (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)
            }),
            _ => return Err(self.error("unsupported mad")),
        };
        self.alu(f, Class::Integer, ops, ty, &[ty; 3])
    }

    /// add.cc, addc, sub.cc, subc, mad.cc, madc: the flag is a hidden 0-or-1 register.
    fn carry_chain(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
        ty: Type,
        carry_out: bool,
    ) -> Result<bool> {
        let carry = self.carry();
        let wide = ty.bytes() == 8;
        let multiply = matches!(base, "mad" | "madc");
        let subtract = matches!(base, "sub" | "subc");
        let carry_in = matches!(base, "addc" | "subc" | "madc");
        if ops.len() != if multiply { 4 } else { 3 } {
            return Err(self.error("wrong number of operands"));
        }
        let mut a = self.src(&ops[1], ty)?;
        let mut b = self.src(&ops[2], ty)?;
        if multiply {
            let c = self.src(&ops[3], ty)?;
            let f = match (wide, mods.contains(&"hi"), ty.is_signed()) {
                (false, false, _) => bin(|a: u32, b: u32| a.wrapping_mul(b)),
                (true, false, _) => bin(|a: u64, b: u64| a.wrapping_mul(b)),
                (false, true, false) => mul_hi(Type::U32),
                (false, true, true) => mul_hi(Type::S32),
                (true, true, false) => mul_hi(Type::U64),
                (true, true, true) => mul_hi(Type::S64),
            };
            let product = self.alloc(if wide { 2 } else { 1 });
            self.push_alu(f, Class::Hidden, product, a, b, 0);
            a = product;
            b = c;
        }
        let flag = if carry_in {
            self.use_reg(carry);
            carry.place
        } else {
            self.constant(false, 0)
        };
        let new_flag = self.alloc(1);
        if carry_out {
            // With borrow, the flag is 1 when a borrow occurred.
            let f = match (wide, subtract) {
                (false, false) => tern(|a: u32, b: u32, c: u32| {
                    ((u64::from(a) + u64::from(b) + u64::from(c)) >> 32) as u32
                }),
                (true, false) => tern(|a: u64, b: u64, c: u32| {
                    ((u128::from(a) + u128::from(b) + u128::from(c)) >> 64) as u32
                }),
                (false, true) => tern(|a: u32, b: u32, c: u32| {
                    u32::from(u64::from(a) < u64::from(b) + u64::from(c))
                }),
                (true, true) => tern(|a: u64, b: u64, c: u32| {
                    u32::from(u128::from(a) < u128::from(b) + u128::from(c))
                }),
            };
            self.push_alu(f, Class::Hidden, new_flag, a, b, flag);
        }
        let f = match (wide, subtract) {
            (false, false) => tern(|a: u32, b: u32, c: u32| a.wrapping_add(b).wrapping_add(c)),
            (true, false) => {
                tern(|a: u64, b: u64, c: u32| a.wrapping_add(b).wrapping_add(u64::from(c)))
            }
            (false, true) => tern(|a: u32, b: u32, c: u32| a.wrapping_sub(b).wrapping_sub(c)),
            (true, true) => {
                tern(|a: u64, b: u64, c: u32| a.wrapping_sub(b).wrapping_sub(u64::from(c)))
            }
        };
        let dst = self.dst(&ops[0], ty)?;
        self.push_alu(f, Class::Integer, dst.place, a, b, flag);
        self.finish(dst);
        if carry_out {
            self.def_reg(carry);
            self.push_alu(un(|a: u32| a), Class::Hidden, carry.place, new_flag, 0, 0);
        }
        Ok(true)
    }

    fn int_unary(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
        ty: Type,
    ) -> Result<()> {
        if ty == Type::Pred {
            return self.pred_logic(base, ops);
        }
        let (f, to) = match (base, ty.bytes()) {
            ("neg", 2) => (un(|a: u32| a.wrapping_neg() & 0xffff), ty),
            ("neg", 4) => (un(|a: u32| a.wrapping_neg()), ty),
            ("neg", _) => (un(|a: u64| a.wrapping_neg()), ty),
            ("abs", 2) => (un(|a: u32| u32::from((a as i16).unsigned_abs())), ty),
            ("abs", 4) => (un(|a: i32| a.unsigned_abs()), ty),
            ("abs", _) => (un(|a: i64| a.unsigned_abs()), ty),
            ("not", 2) => (un(|a: u32| !a & 0xffff), ty),
            ("not", 4) => (un(|a: u32| !a), ty),
            ("not", _) => (un(|a: u64| !a), ty),
            ("cnot", 2) => (un(|a: u32| u32::from(a & 0xffff == 0)), ty),
            ("cnot", 4) => (un(|a: u32| u32::from(a == 0)), ty),
            ("cnot", _) => (un(|a: u64| u64::from(a == 0)), ty),
            ("popc", 4) => (un(|a: u32| a.count_ones()), Type::U32),
            ("popc", _) => (un(|a: u64| a.count_ones()), Type::U32),
            ("clz", 4) => (un(|a: u32| a.leading_zeros()), Type::U32),
            ("clz", _) => (un(|a: u64| a.leading_zeros()), Type::U32),
            ("brev", 4) => (un(|a: u32| a.reverse_bits()), ty),
            ("brev", _) => (un(|a: u64| a.reverse_bits()), ty),
            ("bfind", _) => {
                let f = match (ty, mods.contains(&"shiftamt")) {
                    (Type::U32, false) => un(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
                    (Type::U32, true) => {
                        un(|a: u32| if a == 0 { u32::MAX } else { a.leading_zeros() })
                    }
                    (Type::S32, false) => {
                        un(|a: i32| 31u32.wrapping_sub((a ^ (a >> 31)).leading_zeros()))
                    }
                    (Type::S32, true) => un(|a: i32| {
                        let v = a ^ (a >> 31);
                        if v == 0 { u32::MAX } else { v.leading_zeros() }
                    }),
                    (Type::U64, false) => un(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
                    (Type::U64, true) => {
                        un(|a: u64| if a == 0 { u32::MAX } else { a.leading_zeros() })
                    }
                    (_, false) => un(|a: i64| 63u32.wrapping_sub((a ^ (a >> 63)).leading_zeros())),
                    (_, true) => un(|a: i64| {
                        let v = a ^ (a >> 63);
                        if v == 0 { u32::MAX } else { v.leading_zeros() }
                    }),
                };
                (f, Type::U32)
            }
            _ => return Err(self.error("unsupported type")),
        };
        self.alu(f, Class::Integer, ops, to, &[ty])
    }

    fn pred_logic(&mut self, base: &str, ops: &[Operand<'a>]) -> Result<()> {
        let a = self.pred(ops.get(1).ok_or_else(|| self.error("missing operand"))?)?;
        let b = if base == "not" {
            0
        } else {
            self.pred(ops.get(2).ok_or_else(|| self.error("missing operand"))?)?
        };
        let d = self.pred_dst(&ops[0])?;
        let f: ExecFn = match base {
            "and" => pred_and,
            "or" => pred_or,
            "xor" => pred_xor,
            _ => pred_not,
        };
        if d != lanes::NO_PRED {
            self.push_alu(f, Class::Integer, d, a, b, 0);
        }
        Ok(())
    }

    fn dot(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        fn byte(x: u32, j: u32, signed: bool) -> i32 {
            let b = (x >> (8 * j)) as u8;
            if signed { i32::from(b as i8) } else { i32::from(b) }
        }
        fn half(x: u32, j: u32, signed: bool) -> i32 {
            let h = (x >> (16 * j)) as u16;
            if signed { i32::from(h as i16) } else { i32::from(h) }
        }
        macro_rules! signs {
            ($a:expr, $b:expr, |$x:ident, $y:ident, $c:ident, $sa:ident, $sb:ident| $body:expr) => {
                match ($a, $b) {
                    (false, false) => tern(|$x: u32, $y: u32, $c: i32| {
                        const $sa: bool = false;
                        const $sb: bool = false;
                        $body
                    }),
                    (false, true) => tern(|$x: u32, $y: u32, $c: i32| {
                        const $sa: bool = false;
                        const $sb: bool = true;
                        $body
                    }),
                    (true, false) => tern(|$x: u32, $y: u32, $c: i32| {
                        const $sa: bool = true;
                        const $sb: bool = false;
                        $body
                    }),
                    (true, true) => tern(|$x: u32, $y: u32, $c: i32| {
                        const $sa: bool = true;
                        const $sb: bool = true;
                        $body
                    }),
                }
            };
        }
        let n = mods.len();
        let signed = |k: usize| mods.get(n.wrapping_sub(k)).is_some_and(|m| *m == "s32");
        let (sa, sb) = (signed(2), signed(1));
        let f = match (base, mods.contains(&"hi")) {
            ("dp4a", _) => signs!(sa, sb, |x, y, c, SA, SB| (0..4)
                .fold(c, |s, j| s.wrapping_add(byte(x, j, SA) * byte(y, j, SB)))),
            (_, false) => signs!(sa, sb, |x, y, c, SA, SB| (0..2)
                .fold(c, |s, j| s.wrapping_add(half(x, j, SA).wrapping_mul(byte(y, j, SB))))),
            (_, true) => signs!(sa, sb, |x, y, c, SA, SB| (0..2)
                .fold(c, |s, j| s.wrapping_add(half(x, j, SA).wrapping_mul(byte(y, j + 2, SB))))),
        };
        self.alu(f, Class::Integer, ops, Type::B32, &[Type::B32; 3])
    }
}

fn mul_hi(ty: Type) -> ExecFn {
    match ty {
        Type::U16 => bin(|a: u32, b: u32| ((a & 0xffff) * (b & 0xffff)) >> 16),
        Type::S16 => bin(|a: u32, b: u32| {
            ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u32 & 0xffff
        }),
        Type::S32 => bin(|a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32),
        Type::S64 => bin(|a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64),
        Type::U64 => bin(|a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        _ => bin(|a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32),
    }
}
