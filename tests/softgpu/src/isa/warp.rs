//! Warp-wide instructions: shuffles, votes, reductions, tensor cores.

use super::builder::{FnBuilder, Result};
use super::*;
use crate::ptx::ast::{Operand, Type};

impl<'a> FnBuilder<'a, '_> {
    /// Warp-wide instructions; false when the opcode is not one.
    pub fn decode_warp(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<bool> {
        match base {
            "shfl" => self.shfl(mods, ops)?,
            "vote" => self.vote(mods, ops)?,
            "match" => self.match_lanes(mods, ops)?,
            "redux" => self.redux(mods, ops)?,
            "activemask" => {
                let [d] = ops else { return Err(self.error("expected 1 operand")) };
                let dst = self.dst(d, Type::B32)?;
                self.push(Instr { d: dst.place, ..Self::blank(Op::ActiveMask) }, Class::Warp);
                self.finish(dst);
            }
            "elect" => {
                let [Operand::Pair(d, p), members] = ops else {
                    return Err(self.error("expected d|p and a member mask"));
                };
                let a = self.src(members, Type::B32)?;
                let place = self.dst(d, Type::B32)?.place;
                let e = self.pred_dst(p)?;
                self.push(Instr { d: place, a, e, ..Self::blank(Op::Elect) }, Class::Warp);
            }
            "mma" => self.mma(mods, ops)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn shfl(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let mode = match mods {
            ["sync", "up", "b32"] => ShflMode::Up,
            ["sync", "down", "b32"] => ShflMode::Down,
            ["sync", "bfly", "b32"] => ShflMode::Bfly,
            ["sync", "idx", "b32"] => ShflMode::Idx,
            _ => return Err(self.error("unsupported instruction")),
        };
        let [first, a, b, c, members] = ops else {
            return Err(self.error("expected 5 operands"));
        };
        let a = self.src(a, Type::B32)?;
        let b = self.src(b, Type::B32)?;
        let c = self.src(c, Type::B32)?;
        let members = self.src(members, Type::B32)?;
        let (d, p) = match first {
            Operand::Pair(d, p) => (self.dst(d, Type::B32)?.place, self.pred_dst(p)?),
            d => (self.dst(d, Type::B32)?.place, u32::MAX),
        };
        self.tables.shfls.push(ShflOp { mode, d, p, a, b, c, members });
        let index = self.tables.shfls.len() as u32 - 1;
        self.push(Self::blank(Op::Shfl(index)), Class::Warp);
        Ok(())
    }

    fn push_vote(&mut self, op: VoteOp, redux: bool) {
        self.tables.votes.push(op);
        let index = self.tables.votes.len() as u32 - 1;
        let op = match op.kind {
            _ if redux => Op::Redux(index),
            VoteKind::MatchAny32
            | VoteKind::MatchAny64
            | VoteKind::MatchAll32
            | VoteKind::MatchAll64 => Op::Match(index),
            _ => Op::Vote(index),
        };
        self.push(Self::blank(op), Class::Warp);
    }

    fn vote(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let kind = match mods {
            ["sync", "all", "pred"] => VoteKind::All,
            ["sync", "any", "pred"] => VoteKind::Any,
            ["sync", "uni", "pred"] => VoteKind::Uni,
            ["sync", "ballot", "b32"] => VoteKind::Ballot,
            _ => return Err(self.error("unsupported instruction")),
        };
        let [d, a, members] = ops else { return Err(self.error("expected 3 operands")) };
        let a = self.pred(a)?;
        let members = self.src(members, Type::B32)?;
        let d = if kind == VoteKind::Ballot {
            self.dst(d, Type::B32)?.place
        } else {
            self.pred_dst(d)?
        };
        self.push_vote(VoteOp { kind, d, p: u32::MAX, a, members }, false);
        Ok(())
    }

    fn match_lanes(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let (kind, ty) = match mods {
            ["any", "sync", "b32"] => (VoteKind::MatchAny32, Type::B32),
            ["any", "sync", "b64"] => (VoteKind::MatchAny64, Type::B64),
            ["all", "sync", "b32"] => (VoteKind::MatchAll32, Type::B32),
            ["all", "sync", "b64"] => (VoteKind::MatchAll64, Type::B64),
            _ => return Err(self.error("unsupported instruction")),
        };
        let [first, a, members] = ops else { return Err(self.error("expected 3 operands")) };
        let a = self.src(a, ty)?;
        let members = self.src(members, Type::B32)?;
        let (d, p) = match first {
            Operand::Pair(d, p) => (self.dst(d, Type::B32)?.place, self.pred_dst(p)?),
            d => (self.dst(d, Type::B32)?.place, u32::MAX),
        };
        self.push_vote(VoteOp { kind, d, p, a, members }, false);
        Ok(())
    }

    fn redux(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let kind = match mods {
            ["sync", "add", "u32" | "s32"] => VoteKind::RedAddU,
            ["sync", "min", "u32"] => VoteKind::RedMinU,
            ["sync", "max", "u32"] => VoteKind::RedMaxU,
            ["sync", "min", "s32"] => VoteKind::RedMinS,
            ["sync", "max", "s32"] => VoteKind::RedMaxS,
            ["sync", "and", "b32"] => VoteKind::RedAnd,
            ["sync", "or", "b32"] => VoteKind::RedOr,
            ["sync", "xor", "b32"] => VoteKind::RedXor,
            _ => return Err(self.error("unsupported instruction")),
        };
        let [d, a, members] = ops else { return Err(self.error("expected 3 operands")) };
        let a = self.src(a, Type::B32)?;
        let members = self.src(members, Type::B32)?;
        let d = self.dst(d, Type::B32)?.place;
        self.push_vote(VoteOp { kind, d, p: u32::MAX, a, members }, true);
        Ok(())
    }

    fn mma(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let (shape, types) = match mods {
            ["sync", "aligned", shape, "row", "col", types @ ..] if types.len() == 4 => {
                (*shape, types)
            }
            _ => return Err(self.error("unsupported instruction")),
        };
        let ty = match (types[1], types[2]) {
            ("f16", "f16") => MmaType::F16,
            ("bf16", "bf16") => MmaType::BF16,
            ("tf32", "tf32") => MmaType::TF32,
            _ => return Err(self.error("unsupported instruction")),
        };
        let k = match (shape, ty) {
            ("m16n8k16", MmaType::F16 | MmaType::BF16) => 16,
            ("m16n8k8", _) => 8,
            ("m16n8k4", MmaType::TF32) => 4,
            _ => return Err(self.error("unsupported instruction")),
        };
        let half = |t: &str| match t {
            "f16" if ty == MmaType::F16 => Some(true),
            "f32" => Some(false),
            _ => None,
        };
        let (Some(half_d), Some(half_c)) = (half(types[0]), half(types[3])) else {
            return Err(self.error("unsupported instruction"));
        };
        let words = k * if ty == MmaType::TF32 { 2 } else { 1 };
        let a_len = words as usize / 4;
        let b_len = words as usize / 8;
        let [d, a, b, c] = ops else { return Err(self.error("expected 4 operands")) };
        let list = |op: &Operand<'a>, n: usize| match op {
            Operand::Vector(v) if v.len() == n => Ok(v.clone()),
            one @ Operand::Name(_) if n == 1 => Ok(vec![one.clone()]),
            _ => Err(()),
        };
        let wrong = self.error("wrong number of registers");
        let a_ops = list(a, a_len).map_err(|()| wrong.clone())?;
        let b_ops = list(b, b_len).map_err(|()| wrong.clone())?;
        let c_ops = list(c, if half_c { 2 } else { 4 }).map_err(|()| wrong.clone())?;
        let d_ops = list(d, if half_d { 2 } else { 4 }).map_err(|()| wrong)?;
        let mut op = MmaOp { ty, k, half_c, half_d, d: [0; 4], a: [0; 4], b: [0; 2], c: [0; 4] };
        for (place, x) in op.a.iter_mut().zip(&a_ops) {
            *place = self.src(x, Type::B32)?;
        }
        for (place, x) in op.b.iter_mut().zip(&b_ops) {
            *place = self.src(x, Type::B32)?;
        }
        let acc = if half_c { Type::B32 } else { Type::F32 };
        for (place, x) in op.c.iter_mut().zip(&c_ops) {
            *place = self.src(x, acc)?;
        }
        for (place, x) in op.d.iter_mut().zip(&d_ops) {
            *place = self.dst(x, Type::B32)?.place;
        }
        self.tables.mmas.push(op);
        let index = self.tables.mmas.len() as u32 - 1;
        self.push(Self::blank(Op::Mma(index)), Class::Mma);
        Ok(())
    }
}
