//! Bit fields, funnel shifts, three-input logic, byte permutation.

use super::super::builder::{FnBuilder, Result};
use super::super::lanes::{bin, tern};
use super::super::preds::lop3_any;
use super::super::*;
use crate::ptx::ast::{Operand, Type};

impl<'a> FnBuilder<'a, '_> {
    pub(super) fn funnel(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let f = match (mods.contains(&"l"), mods.contains(&"wrap")) {
            (true, true) => tern(|a: u32, b: u32, c: u32| {
                (((u64::from(b) << 32 | u64::from(a)) << (c & 31)) >> 32) as u32
            }),
            (true, false) => tern(|a: u32, b: u32, c: u32| {
                (((u64::from(b) << 32 | u64::from(a)) << c.min(32)) >> 32) as u32
            }),
            (false, true) => tern(|a: u32, b: u32, c: u32| {
                ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32
            }),
            (false, false) => tern(|a: u32, b: u32, c: u32| {
                ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
            }),
        };
        self.alu(f, Class::Integer, ops, Type::B32, &[Type::B32, Type::B32, Type::U32])
    }

    pub(super) fn bit_insert(&mut self, ops: &[Operand<'a>], ty: Type) -> Result<()> {
        if ops.len() != 5 {
            return Err(self.error("expected 5 operands"));
        }
        let wide = ty.bytes() == 8;
        let pos = self.src(&ops[3], Type::U32)?;
        let len = self.src(&ops[4], Type::U32)?;
        let mask = self.alloc(if wide { 2 } else { 1 });
        let shifted = self.alloc(if wide { 2 } else { 1 });
        let a = self.src(&ops[1], ty)?;
        let b = self.src(&ops[2], ty)?;
        let dst = self.dst(&ops[0], ty)?;
        if wide {
            let mask_of = bin(|p: u32, l: u32| {
                let (p, l) = (p & 0xff, l & 0xff);
                let ones = if l > 63 { u64::MAX } else { (1 << l) - 1 };
                if p > 63 { 0 } else { ones << p }
            });
            self.push_alu(mask_of, Class::Hidden, mask, pos, len, 0);
            let shift = bin(|a: u64, p: u32| if p & 0xff > 63 { 0 } else { a << (p & 0xff) });
            self.push_alu(shift, Class::Hidden, shifted, a, pos, 0);
            let merge = tern(|a: u64, b: u64, m: u64| (a & m) | (b & !m));
            self.push_alu(merge, Class::Integer, dst.place, shifted, b, mask);
        } else {
            let mask_of = bin(|p: u32, l: u32| mask_bits(p & 0xff, l & 0xff));
            self.push_alu(mask_of, Class::Hidden, mask, pos, len, 0);
            let shift = bin(|a: u32, p: u32| if p & 0xff > 31 { 0 } else { a << (p & 0xff) });
            self.push_alu(shift, Class::Hidden, shifted, a, pos, 0);
            let merge = tern(|a: u32, b: u32, m: u32| (a & m) | (b & !m));
            self.push_alu(merge, Class::Integer, dst.place, shifted, b, mask);
        }
        self.finish(dst);
        Ok(())
    }

    pub(super) fn lop3(&mut self, ops: &[Operand<'a>]) -> Result<()> {
        let Some(Operand::Int(table)) = ops.get(4) else {
            return Err(self.error("unsupported form of lop3"));
        };
        let table = *table as u8;
        // The usual tables get a loop of their own; the rest sums minterms.
        let f = match table {
            0xc0 => tern(|a: u32, b: u32, _c: u32| a & b),
            0x80 => tern(|a: u32, b: u32, c: u32| a & b & c),
            0xfe => tern(|a: u32, b: u32, c: u32| a | b | c),
            0x96 => tern(|a: u32, b: u32, c: u32| a ^ b ^ c),
            0xe8 => tern(|a: u32, b: u32, c: u32| (a & b) | (a & c) | (b & c)),
            0xca => tern(|a: u32, b: u32, c: u32| (a & b) | (!a & c)),
            0xea => tern(|a: u32, b: u32, c: u32| (a & b) | c),
            0xf8 => tern(|a: u32, b: u32, c: u32| a | (b & c)),
            0xa8 => tern(|a: u32, b: u32, c: u32| (a | b) & c),
            0x78 => tern(|a: u32, b: u32, c: u32| a ^ (b & c)),
            0x6c => tern(|a: u32, b: u32, c: u32| b ^ (a & c)),
            _ => {
                let places = [
                    self.src(&ops[1], Type::B32)?,
                    self.src(&ops[2], Type::B32)?,
                    self.src(&ops[3], Type::B32)?,
                ];
                let dst = self.dst(&ops[0], Type::B32)?;
                let draft = self.push_alu(
                    lop3_any,
                    Class::Integer,
                    dst.place,
                    places[0],
                    places[1],
                    places[2],
                );
                draft.instr.imm = i64::from(table);
                self.finish(dst);
                return Ok(());
            }
        };
        self.alu(f, Class::Integer, &ops[..4], Type::B32, &[Type::B32; 3])
    }

    pub(super) fn permute(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let f = match mods.first().copied() {
            Some("f4e") => tern(|a: u32, b: u32, c: u32| {
                ((u64::from(b) << 32 | u64::from(a)) >> (8 * (c & 3))) as u32
            }),
            Some("b4e") => tern(|a: u32, b: u32, c: u32| {
                let all = u64::from(b) << 32 | u64::from(a);
                let k = c & 3;
                (0..4)
                    .fold(0, |d, j| d | ((all >> (8 * ((k + 8 - j) & 7))) as u32 & 0xff) << (8 * j))
            }),
            Some("rc8") => {
                tern(|a: u32, _b: u32, c: u32| (a >> (8 * (c & 3)) & 0xff) * 0x0101_0101)
            }
            Some("ecl") => tern(|a: u32, _b: u32, c: u32| {
                let k = c & 3;
                (0..4).fold(0, |d, j| d | (a >> (8 * j.max(k)) & 0xff) << (8 * j))
            }),
            Some("ecr") => tern(|a: u32, _b: u32, c: u32| {
                let k = c & 3;
                (0..4).fold(0, |d, j| d | (a >> (8 * j.min(k)) & 0xff) << (8 * j))
            }),
            Some("rc16") => {
                tern(|a: u32, _b: u32, c: u32| (a >> (16 * (c & 1)) & 0xffff) * 0x1_0001)
            }
            _ => tern(|a: u32, b: u32, c: u32| {
                let all = u64::from(b) << 32 | u64::from(a);
                let mut d = 0u32;
                let mut j = 0;
                while j < 4 {
                    let s = c >> (4 * j);
                    let byte = (all >> (8 * (s & 7))) as u32 & 0xff;
                    let sign = (byte as i8 >> 7) as u32 & 0xff;
                    d |= if s & 8 != 0 { sign } else { byte } << (8 * j);
                    j += 1;
                }
                d
            }),
        };
        self.alu(f, Class::Integer, ops, Type::B32, &[Type::B32; 3])
    }
}

/// Position of the n-th set bit of `mask` from bit `base` on, upwards for positive n, downwards for
/// negative; n = 0 asks whether bit `base` itself is set. All ones when there is none.
pub(super) fn find_nth_set(mask: u32, base: u32, n: i32) -> u32 {
    let mut left = n.unsigned_abs().max(1);
    let mut at = i64::from(base);
    while (0..32).contains(&at) {
        left -= mask >> at & 1;
        if left == 0 {
            return at as u32;
        }
        if n == 0 {
            break;
        }
        at += i64::from(n.signum());
    }
    u32::MAX
}

pub(super) fn mask_bits(pos: u32, len: u32) -> u32 {
    let ones = if len > 31 { u32::MAX } else { (1 << len) - 1 };
    if pos > 31 { 0 } else { ones << pos }
}

/// Signed bit-field extraction of PTX: bits past the top repeat the sign.
pub(super) fn bfe_signed(a: i64, b: u32, c: u32, width: u32) -> i64 {
    let (pos, len) = (b & 0xff, c & 0xff);
    if len == 0 {
        return 0;
    }
    let top = (pos + len - 1).min(width - 1);
    let sign = -(a >> top & 1);
    let v = if pos > width - 1 { sign } else { a >> pos };
    if len >= 64 {
        return v;
    }
    let keep = (1i64 << len) - 1;
    let within = if pos + len > width { (1i64 << (width.saturating_sub(pos))) - 1 } else { keep };
    (v & within & keep) | (sign & !(within & keep))
}
