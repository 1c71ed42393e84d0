//! cvt, mov, cvta and other moves.

use super::builder::{FnBuilder, Result, Symbol, Width};
use super::float::rounding;
use super::lanes::{bin, un};
use super::preds::pred_not;
use super::softfloat::*;
use super::*;
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::ptx::ast::{Operand, Type};

/// Rounds to an integer in floating point.
#[inline(always)]
fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// i128 to f32 or f64 bits' worth of precision with any rounding.
fn int_to_float(x: i128, f64_out: bool, round: Round) -> f64 {
    let nearest = if f64_out { x as f64 } else { f64::from(x as f32) };
    // Both formats hold every 64-bit integer's magnitude, so this is exact.
    let error = x - nearest as i128;
    let (down, up) = if f64_out {
        (nearest.next_down(), nearest.next_up())
    } else {
        (f64::from((nearest as f32).next_down()), f64::from((nearest as f32).next_up()))
    };
    match round {
        Round::Down if error < 0 => down,
        Round::Up if error > 0 => up,
        Round::Zero if error < 0 && x > 0 => down,
        Round::Zero if error > 0 && x < 0 => up,
        _ => nearest,
    }
}

macro_rules! by_round {
    ($round:expr, |$r:ident| $e:expr) => {
        match $round {
            Round::Nearest => {
                const $r: Round = Round::Nearest;
                $e
            }
            Round::Zero => {
                const $r: Round = Round::Zero;
                $e
            }
            Round::Down => {
                const $r: Round = Round::Down;
                $e
            }
            Round::Up => {
                const $r: Round = Round::Up;
                $e
            }
        }
    };
}

/// `Instr::imm` of a clock whose upper half is asked for; otherwise the bytes of the destination.
pub const CLOCK_HIGH: i64 = 0;

fn is_clock(name: &str) -> bool {
    matches!(
        name,
        "%clock"
            | "%clock_hi"
            | "%clock64"
            | "%globaltimer"
            | "%globaltimer_lo"
            | "%globaltimer_hi"
    )
}

impl<'a> FnBuilder<'a, '_> {
    /// Conversions and moves; false when the opcode is neither.
    pub fn decode_convert(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
    ) -> Result<bool> {
        match base {
            "cvt" => self.cvt(mods, ops)?,
            "mov" => {
                let ty = mods.last().and_then(|m| Type::from_name(m));
                let ty = ty.ok_or_else(|| self.error("missing type"))?;
                self.mov(ops, ty)?;
            }
            "cvta" => self.cvta(mods, ops)?,
            "isspacep" => {
                let a =
                    self.src(ops.get(1).ok_or_else(|| self.error("missing operand"))?, Type::U64)?;
                let d = self.pred_dst(&ops[0])?;
                let f = match mods.first().copied() {
                    Some("shared" | "shared::cta") => {
                        lanes::cmp(|a: u64, _| a >> 32 == SHARED_WINDOW >> 32)
                    }
                    Some("local") => lanes::cmp(|a: u64, _| a >> 32 == LOCAL_WINDOW >> 32),
                    Some("global") => lanes::cmp(|a: u64, _| a >= crate::memory::GLOBAL_BASE),
                    _ => return Err(self.error("unsupported space")),
                };
                self.push_alu(f, Class::Compare, d, a, a, 0);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn cvta(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        if ops.len() != 2 {
            return Err(self.error("expected 2 operands"));
        }
        let to = mods.contains(&"to");
        let shared = mods.iter().any(|m| m.starts_with("shared"));
        let f = match (shared, mods.contains(&"local"), to) {
            (true, _, false) => un(|a: u64| a.wrapping_add(SHARED_WINDOW)),
            (true, _, true) => un(|a: u64| a.wrapping_sub(SHARED_WINDOW)),
            (_, true, false) => un(|a: u64| a.wrapping_add(LOCAL_WINDOW)),
            (_, true, true) => un(|a: u64| a.wrapping_sub(LOCAL_WINDOW)),
            _ if mods.contains(&"param") => return Err(self.error("unsupported space")),
            _ => un(|a: u64| a),
        };
        if let Operand::Name(name) = &ops[1]
            && let Some(Symbol::Local(offset)) = self.find_symbol(name)
        {
            let dst = self.dst(&ops[0], Type::U64)?;
            let place = dst.place;
            let instr = Instr { d: place, imm: i64::from(offset), ..Self::blank(Op::LocalBase) };
            self.push(instr, Class::Move);
            self.push_alu(f, Class::Hidden, place, place, 0, 0);
            self.finish(dst);
            return Ok(());
        }
        self.alu(f, Class::Move, ops, Type::U64, &[Type::U64])
    }

    fn mov(&mut self, ops: &[Operand<'a>], ty: Type) -> Result<()> {
        if ops.len() != 2 {
            return Err(self.error("expected 2 operands"));
        }
        if ty == Type::Pred {
            let p = self.pred(&ops[1])?;
            let d = self.pred_dst(&ops[0])?;
            self.push_alu(pred_not, Class::Move, d, p ^ 1, 0, 0).is_copy = true;
            return Ok(());
        }
        match (&ops[0], &ops[1]) {
            (Operand::Vector(parts), _) => self.unpack(parts, &ops[1], ty),
            (_, Operand::Vector(parts)) => self.pack_parts(&ops[0], parts, ty),
            (_, Operand::Name(name) | Operand::Address(name, _))
                if matches!(self.find_symbol(name), Some(Symbol::Local(_))) =>
            {
                let Some(Symbol::Local(base)) = self.find_symbol(name) else { return Ok(()) };
                let extra = if let Operand::Address(_, o) = ops[1] { o } else { 0 };
                let dst = self.dst(&ops[0], Type::U64)?;
                let imm = i64::from(base).wrapping_add(extra);
                self.push(Instr { d: dst.place, imm, ..Self::blank(Op::LocalBase) }, Class::Move);
                self.finish(dst);
                Ok(())
            }
            (_, Operand::Name(name)) if is_clock(name) => {
                let dst = self.dst(&ops[0], ty)?;
                let high = name.ends_with("_hi");
                let imm = if high { CLOCK_HIGH } else { i64::from(ty.bytes()) };
                self.push(Instr { d: dst.place, imm, ..Self::blank(Op::Clock) }, Class::Move);
                self.finish(dst);
                Ok(())
            }
            (_, Operand::Address(name, offset)) => {
                let base = match self.find_symbol(name) {
                    Some(Symbol::Global(a)) => a,
                    Some(Symbol::Shared(o)) => u64::from(o),
                    Some(Symbol::KernelParam(o)) => u64::from(o),
                    _ => return Err(self.error(format!("unknown name {name}"))),
                };
                let op = Operand::Int((base as i64).wrapping_add(*offset));
                let int = if ty.bytes() == 8 { Type::B64 } else { Type::B32 };
                let f = if ty.bytes() == 8 { un(|a: u64| a) } else { un(|a: u32| a) };
                self.alu(f, Class::Move, &[ops[0].clone(), op], ty, &[int])
            }
            _ => {
                let f = if ty.bytes() == 8 { un(|a: u64| a) } else { un(|a: u32| a) };
                let sty = if matches!(ops[1], Operand::Int(_)) {
                    match ty.bytes() {
                        8 => Type::B64,
                        2 => Type::B16,
                        _ => Type::B32,
                    }
                } else {
                    ty
                };
                let first = self.drafts.len();
                self.alu(f, Class::Move, ops, ty, &[sty])?;
                if let [only] = &mut self.drafts[first..] {
                    only.is_copy = true;
                }
                Ok(())
            }
        }
    }

    /// `mov.b64 {a, b}, c`
    fn unpack(&mut self, parts: &[Operand<'a>], from: &Operand<'a>, ty: Type) -> Result<()> {
        let bytes = ty.bytes() / parts.len().max(1) as u32;
        if ty == Type::B128 {
            return self.move_quad(Some(parts), from, None);
        }
        let a = self.src(from, ty)?;
        let part_ty = match bytes {
            4 => Type::B32,
            2 => Type::B16,
            1 => Type::B8,
            _ => return Err(self.error("unsupported unpacking")),
        };
        // All parts are read before any is written: a part may be the source itself.
        let mut places = Vec::new();
        for (k, part) in parts.iter().enumerate() {
            if *part == Operand::Sink {
                continue;
            }
            let f = match (ty.bytes(), bytes, k) {
                (8, 4, 0) => un(|x: u64| x as u32),
                (8, 4, _) => un(|x: u64| (x >> 32) as u32),
                (8, 2, 0) => un(|x: u64| x as u32 & 0xffff),
                (8, 2, 1) => un(|x: u64| (x >> 16) as u32 & 0xffff),
                (8, 2, 2) => un(|x: u64| (x >> 32) as u32 & 0xffff),
                (8, 2, _) => un(|x: u64| (x >> 48) as u32),
                (4, 2, 0) => un(|x: u32| x & 0xffff),
                (4, 2, _) => un(|x: u32| x >> 16),
                (4, 1, 0) => un(|x: u32| x & 0xff),
                (4, 1, 1) => un(|x: u32| x >> 8 & 0xff),
                (4, 1, 2) => un(|x: u32| x >> 16 & 0xff),
                (4, 1, _) => un(|x: u32| x >> 24),
                (2, 1, 0) => un(|x: u32| x & 0xff),
                (2, 1, _) => un(|x: u32| x >> 8 & 0xff),
                _ => return Err(self.error("unsupported unpacking")),
            };
            let dst = self.dst(part, part_ty)?;
            let class = if k == 0 { Class::Move } else { Class::Hidden };
            places.push((f, class, dst));
        }
        for (f, class, dst) in places {
            self.push_alu(f, class, dst.place, a, 0, 0);
            self.finish(dst);
        }
        Ok(())
    }

    /// `mov.b64 c, {a, b}`
    fn pack_parts(&mut self, to: &Operand<'a>, parts: &[Operand<'a>], ty: Type) -> Result<()> {
        if ty == Type::B128 {
            return self.move_quad(None, to, Some(parts));
        }
        let bytes = ty.bytes() / parts.len().max(1) as u32;
        let part_ty = match bytes {
            4 => Type::B32,
            2 => Type::B16,
            1 => Type::B8,
            _ => return Err(self.error("unsupported packing")),
        };
        let mut places = Vec::new();
        for part in parts {
            places.push(self.src(part, part_ty)?);
        }
        let dst = self.dst(to, ty)?;
        match (ty.bytes(), parts.len()) {
            (8, 2) => {
                let f = bin(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32);
                self.push_alu(f, Class::Move, dst.place, places[0], places[1], 0);
            }
            (8, 4) => {
                let join = bin(|a: u32, b: u32| (a & 0xffff) | b << 16);
                let (lo, hi) = (self.alloc(1), self.alloc(1));
                self.push_alu(join, Class::Move, lo, places[0], places[1], 0);
                self.push_alu(join, Class::Hidden, hi, places[2], places[3], 0);
                let f = bin(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32);
                self.push_alu(f, Class::Hidden, dst.place, lo, hi, 0);
            }
            (4, 2) => {
                let f = bin(|a: u32, b: u32| (a & 0xffff) | b << 16);
                self.push_alu(f, Class::Move, dst.place, places[0], places[1], 0);
            }
            (4, 4) => {
                let join = bin(|a: u32, b: u32| (a & 0xff) | (b & 0xff) << 8);
                let (lo, hi) = (self.alloc(1), self.alloc(1));
                self.push_alu(join, Class::Move, lo, places[0], places[1], 0);
                self.push_alu(join, Class::Hidden, hi, places[2], places[3], 0);
                let f = bin(|a: u32, b: u32| a | b << 16);
                self.push_alu(f, Class::Hidden, dst.place, lo, hi, 0);
            }
            (2, 2) => {
                let f = bin(|a: u32, b: u32| (a & 0xff) | (b & 0xff) << 8);
                self.push_alu(f, Class::Move, dst.place, places[0], places[1], 0);
            }
            _ => return Err(self.error("unsupported packing")),
        }
        self.finish(dst);
        Ok(())
    }

    /// `mov.b128` between a 128-bit register and two 64-bit ones.
    fn move_quad(
        &mut self,
        out: Option<&[Operand<'a>]>,
        quad: &Operand<'a>,
        parts: Option<&[Operand<'a>]>,
    ) -> Result<()> {
        let Operand::Name(name) = quad else { return Err(self.error("unsupported mov")) };
        let reg = self.reg(name)?;
        let list = out.or(parts).unwrap_or(&[]);
        if reg.width != Width::Quad || list.len() != 2 {
            return Err(self.error("unsupported mov"));
        }
        let copy = un(|a: u64| a);
        for (k, part) in list.iter().enumerate() {
            let half = reg.place + 64 * k as u32;
            if out.is_some() {
                self.use_reg(reg);
                let dst = self.dst(part, Type::B64)?;
                self.push_alu(copy, Class::Move, dst.place, half, 0, 0);
                self.finish(dst);
            } else {
                let a = self.src(part, Type::B64)?;
                self.def_reg(reg);
                self.push_alu(copy, Class::Move, half, a, 0, 0);
            }
        }
        Ok(())
    }

    fn cvt(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let types: Vec<Type> = mods.iter().filter_map(|m| Type::from_name(m)).collect();
        let (Some(&dty), Some(&sty)) = (types.first(), types.last()) else {
            return Err(self.error("unsupported conversion"));
        };
        if types.len() != 2 {
            return Err(self.error("unsupported conversion"));
        }
        let round = rounding(mods);
        let ftz = mods.contains(&"ftz");
        let sat = mods.contains(&"sat");
        let relu = mods.contains(&"relu");
        let class = Class::Convert;
        // Pairs: the first source is the upper half.
        if matches!(dty, Type::F16x2 | Type::BF16x2) && sty == Type::F32 {
            let f = match (dty, round, relu) {
                (Type::F16x2, Round::Nearest, false) => {
                    bin(|a: f32, b: f32| f32_to_f16(a) << 16 | f32_to_f16(b))
                }
                (Type::F16x2, Round::Nearest, true) => {
                    bin(|a: f32, b: f32| f32_to_f16(relu32(a)) << 16 | f32_to_f16(relu32(b)))
                }
                (Type::F16x2, Round::Zero, false) => bin(|a: f32, b: f32| {
                    f64_to_f16(f64::from(a), Round::Zero) << 16
                        | f64_to_f16(f64::from(b), Round::Zero)
                }),
                (Type::BF16x2, Round::Nearest, false) => {
                    bin(|a: f32, b: f32| f32_to_bf16(a) << 16 | f32_to_bf16(b))
                }
                (Type::BF16x2, Round::Nearest, true) => {
                    bin(|a: f32, b: f32| f32_to_bf16(relu32(a)) << 16 | f32_to_bf16(relu32(b)))
                }
                (Type::BF16x2, Round::Zero, false) => {
                    bin(|a: f32, b: f32| f32_to_bf16_rz(a) << 16 | f32_to_bf16_rz(b))
                }
                _ => return Err(self.error("unsupported conversion")),
            };
            return self.alu(f, class, ops, Type::B32, &[Type::F32; 2]);
        }
        let direct = match (dty, sty) {
            (Type::TF32, Type::F32) => Some(if mods.contains(&"rna") {
                un(|a: f32| f32_to_tf32_rna(a))
            } else if round == Round::Nearest {
                un(|a: f32| f32_to_tf32_rn(a))
            } else {
                un(|a: u32| a & !0x1fff)
            }),
            (Type::F32, Type::F16) => Some(un(|a: u32| nan32(f16_to_f32(a & 0xffff)))),
            (Type::F32, Type::BF16) => Some(un(|a: u32| nan32(bf16_to_f32(a & 0xffff)))),
            (Type::F16, Type::F32) if round == Round::Nearest && !sat && !ftz && !relu => {
                Some(un(|a: f32| f32_to_f16(a)))
            }
            (Type::F16, Type::F32) if round == Round::Nearest && relu => {
                Some(un(|a: f32| f32_to_f16(relu32(a))))
            }
            (Type::BF16, Type::F32) if round == Round::Nearest && relu => {
                Some(un(|a: f32| f32_to_bf16(relu32(a))))
            }
            (Type::BF16, Type::F32) if round == Round::Nearest => Some(un(|a: f32| f32_to_bf16(a))),
            (Type::BF16, Type::F32) if round == Round::Zero => Some(un(|a: f32| f32_to_bf16_rz(a))),
            (Type::F64, Type::F32) if !ftz && !sat => Some(un(|a: f32| nan64(f64::from(a)))),
            (Type::F32, Type::S32) if round == Round::Nearest => Some(un(|a: i32| a as f32)),
            (Type::F32, Type::U32) if round == Round::Nearest => Some(un(|a: u32| a as f32)),
            (Type::F64, Type::S32) => Some(un(|a: i32| f64::from(a))),
            (Type::F64, Type::U32) => Some(un(|a: u32| f64::from(a))),
            (Type::S32, Type::F32) if round == Round::Zero && !ftz => Some(un(|a: f32| a as i32)),
            (Type::U32, Type::F32) if round == Round::Zero && !ftz => Some(un(|a: f32| a as u32)),
            _ if !dty.is_float() && !sty.is_float() && !sat => Some(resize(dty, sty)),
            _ => None,
        };
        if let Some(f) = direct {
            let sat_after = sat && dty == Type::F32;
            let d = int_like(dty);
            self.alu(f, class, ops, d, &[int_like(sty)])?;
            if sat_after {
                return Err(self.error("unsupported conversion"));
            }
            return Ok(());
        }
        self.cvt_general(mods, ops, dty, sty, round)
    }

    /// Conversion through a 64-bit intermediate that holds every source value exactly.
    fn cvt_general(
        &mut self,
        mods: &[&str],
        ops: &[Operand<'a>],
        dty: Type,
        sty: Type,
        round: Round,
    ) -> Result<()> {
        let ftz = mods.contains(&"ftz");
        let sat = mods.contains(&"sat");
        let integer_rounding = mods.iter().any(|m| matches!(*m, "rni" | "rzi" | "rmi" | "rpi"));
        if ops.len() != 2 {
            return Err(self.error("expected 2 operands"));
        }
        let a = self.src(&ops[1], int_like(sty))?;
        let mid = self.alloc(2);
        let widen = match sty {
            Type::F16 => un(|a: u32| f64::from(f16_to_f32(a & 0xffff))),
            Type::BF16 => un(|a: u32| f64::from(bf16_to_f32(a & 0xffff))),
            Type::F32 if ftz => un(|a: f32| f64::from(flush(a))),
            Type::F32 => un(|a: f32| f64::from(a)),
            Type::F64 => un(|a: f64| a),
            Type::U8 | Type::B8 => un(|a: u32| i64::from(a as u8)),
            Type::S8 => un(|a: u32| i64::from(a as i8)),
            Type::U16 | Type::B16 => un(|a: u32| i64::from(a as u16)),
            Type::S16 => un(|a: u32| i64::from(a as i16)),
            Type::U32 | Type::B32 => un(|a: u32| i64::from(a)),
            Type::S32 => un(|a: i32| i64::from(a)),
            Type::U64 | Type::S64 | Type::B64 => un(|a: u64| a),
            _ => return Err(self.error("unsupported conversion")),
        };
        self.push_alu(widen, Class::Hidden, mid, a, 0, 0);
        if sty.is_float() && dty.is_float() {
            if integer_rounding {
                let f = by_round!(round, |R| un(|x: f64| integral(x, R)));
                self.push_alu(f, Class::Hidden, mid, mid, 0, 0);
            }
            if sat {
                let f = un(|x: f64| if x > 0.0 { x.min(1.0) } else { 0.0 });
                self.push_alu(f, Class::Hidden, mid, mid, 0, 0);
            }
        }
        let narrow = match (sty.is_float(), dty) {
            (true, Type::F16) => by_round!(round, |R| un(|x: f64| f64_to_f16(x, R))),
            (true, Type::BF16) => by_round!(round, |R| un(|x: f64| f64_to_bf16(x, R))),
            (true, Type::F32) if ftz => by_round!(round, |R| un(|x: f64| flush(f64_to_f32(x, R)))),
            (true, Type::F32) => by_round!(round, |R| un(|x: f64| f64_to_f32(x, R))),
            (true, Type::F64) => un(|x: f64| nan64(x)),
            (true, Type::S8) => by_round!(round, |R| un(|x: f64| integral(x, R) as i8 as i32)),
            (true, Type::U8) => by_round!(round, |R| un(|x: f64| u32::from(integral(x, R) as u8))),
            (true, Type::S16) => {
                by_round!(round, |R| un(|x: f64| u32::from(integral(x, R) as i16 as u16)))
            }
            (true, Type::U16) => {
                by_round!(round, |R| un(|x: f64| u32::from(integral(x, R) as u16)))
            }
            (true, Type::S32) => by_round!(round, |R| un(|x: f64| integral(x, R) as i32)),
            (true, Type::U32) => by_round!(round, |R| un(|x: f64| integral(x, R) as u32)),
            (true, Type::S64) => by_round!(round, |R| un(|x: f64| integral(x, R) as i64)),
            (true, Type::U64) => by_round!(round, |R| un(|x: f64| integral(x, R) as u64)),
            (false, Type::F16) if sty == Type::U64 => {
                by_round!(round, |R| un(|x: u64| f64_to_f16(int_to_odd(i128::from(x)), R)))
            }
            (false, Type::F16) => {
                by_round!(round, |R| un(|x: i64| f64_to_f16(int_to_odd(i128::from(x)), R)))
            }
            (false, Type::BF16) if sty == Type::U64 => {
                by_round!(round, |R| un(|x: u64| f64_to_bf16(int_to_odd(i128::from(x)), R)))
            }
            (false, Type::BF16) => {
                by_round!(round, |R| un(|x: i64| f64_to_bf16(int_to_odd(i128::from(x)), R)))
            }
            (false, Type::F32) if sty == Type::U64 => {
                by_round!(round, |R| un(|x: u64| int_to_float(i128::from(x), false, R) as f32))
            }
            (false, Type::F32) => {
                by_round!(round, |R| un(|x: i64| int_to_float(i128::from(x), false, R) as f32))
            }
            (false, Type::F64) if sty == Type::U64 => {
                by_round!(round, |R| un(|x: u64| int_to_float(i128::from(x), true, R)))
            }
            (false, Type::F64) => {
                by_round!(round, |R| un(|x: i64| int_to_float(i128::from(x), true, R)))
            }
            (false, _) => {
                // Saturating integer conversion: clamp in 64 bits, then resize.
                let clamp = match (dty, sty == Type::U64) {
                    (Type::S8, false) => un(|x: i64| x.clamp(-128, 127)),
                    (Type::U8, false) => un(|x: i64| x.clamp(0, 255)),
                    (Type::S16, false) => un(|x: i64| x.clamp(-32768, 32767)),
                    (Type::U16, false) => un(|x: i64| x.clamp(0, 65535)),
                    (Type::S32, false) => {
                        un(|x: i64| x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)))
                    }
                    (Type::U32, false) => un(|x: i64| x.clamp(0, i64::from(u32::MAX))),
                    (Type::U64, false) => un(|x: i64| x.max(0)),
                    (Type::S8, true) => un(|x: u64| x.min(127)),
                    (Type::U8, true) => un(|x: u64| x.min(255)),
                    (Type::S16, true) => un(|x: u64| x.min(32767)),
                    (Type::U16, true) => un(|x: u64| x.min(65535)),
                    (Type::S32, true) => un(|x: u64| x.min(i32::MAX as u64)),
                    (Type::U32, true) => un(|x: u64| x.min(u64::from(u32::MAX))),
                    (Type::S64, true) => un(|x: u64| x.min(i64::MAX as u64)),
                    _ => un(|x: u64| x),
                };
                self.push_alu(clamp, Class::Hidden, mid, mid, 0, 0);
                resize(dty, Type::S64)
            }
            _ => return Err(self.error("unsupported conversion")),
        };
        let dst = self.dst(&ops[0], int_like(dty))?;
        self.push_alu(narrow, Class::Convert, dst.place, mid, 0, 0);
        self.finish(dst);
        Ok(())
    }
}

/// An integer as f64, inexact results rounded to odd so that a second rounding is correct.
fn int_to_odd(x: i128) -> f64 {
    let nearest = x as f64;
    to_odd(nearest, (x - nearest as i128) as f64)
}

fn relu32(x: f32) -> f32 {
    if x > 0.0 || x.is_nan() { x } else { 0.0 }
}

/// The register type that holds `ty` (16-bit floats are read as integers of their width).
fn int_like(ty: Type) -> Type {
    match ty {
        Type::F16 | Type::BF16 => Type::B16,
        Type::TF32 => Type::B32,
        _ => ty,
    }
}

/// Integer to integer without saturation. Narrow results are kept zero-extended to 16 bits, or
/// sign-extended to the register as cvt to s8 asks.
fn resize(dty: Type, sty: Type) -> ExecFn {
    macro_rules! to {
        ($s:ty, |$x:ident| $e:expr) => {
            match dty {
                Type::S8 => un(|$x: $s| ($e) as i8 as i32 as u32),
                Type::U8 | Type::B8 => un(|$x: $s| u32::from(($e) as u8)),
                Type::S16 | Type::U16 | Type::B16 => un(|$x: $s| u32::from(($e) as u16)),
                Type::S64 | Type::U64 | Type::B64 => un(|$x: $s| ($e) as i64),
                _ => un(|$x: $s| ($e) as u32),
            }
        };
    }
    match sty {
        Type::S8 => to!(u32, |x| x as i8),
        Type::U8 | Type::B8 => to!(u32, |x| x as u8),
        Type::S16 => to!(u32, |x| x as i16),
        Type::U16 | Type::B16 => to!(u32, |x| x as u16),
        Type::S32 => to!(i32, |x| x),
        Type::S64 | Type::U64 | Type::B64 => to!(u64, |x| x),
        _ => to!(u32, |x| x),
    }
}
