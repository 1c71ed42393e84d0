//! Operands: what a name, literal or predicate of an instruction stands for.

use super::super::lanes::{NO_PRED, un};
use super::super::*;
use super::{Dst, FnBuilder, Result, Symbol, Width};
use crate::ptx::ast::{Operand, Type};

impl<'a> FnBuilder<'a, '_> {
    /// Lane offset of a source operand of type `ty`.
    pub fn src(&mut self, op: &Operand<'a>, ty: Type) -> Result<u32> {
        let wide = ty.bytes() == 8;
        match op {
            Operand::Name(name) => {
                if let Some(which) = special_register(name) {
                    let place = self.special(which);
                    return Ok(if wide { self.widen(place) } else { place });
                }
                if *name == "WARP_SZ" {
                    return Ok(self.constant(wide, 32));
                }
                if name.starts_with("%reserved_smem_offset_") {
                    // Below the first variable, in the kibibyte the driver keeps.
                    return Ok(self.constant(wide, 512));
                }
                if let Some(reg) = self.find_reg(name) {
                    self.use_reg(reg);
                    return match (reg.width, wide) {
                        (Width::Narrow, false) | (Width::Wide, true) => Ok(reg.place),
                        (Width::Narrow, true) => Ok(self.widen(reg.place)),
                        (Width::Wide, false) => {
                            let d = self.alloc(1);
                            self.push_alu(un(|a: u64| a as u32), Class::Hidden, d, reg.place, 0, 0);
                            Ok(d)
                        }
                        _ => Err(self.error(format!("{name} has the wrong type here"))),
                    };
                }
                match self.find_symbol(name) {
                    Some(Symbol::Global(address)) => Ok(self.constant(wide, address)),
                    Some(Symbol::Shared(offset)) => Ok(self.constant(wide, u64::from(offset))),
                    Some(Symbol::KernelParam(offset)) => Ok(self.constant(wide, u64::from(offset))),
                    _ => Err(self.error(format!("unknown name {name}"))),
                }
            }
            Operand::Int(value) => {
                let bits = *value as u64;
                let bits = match ty.bytes() {
                    1 => bits & 0xff,
                    2 => bits & 0xffff,
                    4 => bits & 0xffff_ffff,
                    _ => bits,
                };
                if ty == Type::F32 || ty == Type::F64 {
                    return Err(self.error("integer literal for a float operand"));
                }
                Ok(self.constant(wide, bits))
            }
            Operand::F32(bits) if !wide => Ok(self.constant(false, u64::from(*bits))),
            Operand::F64(bits) if wide => Ok(self.constant(true, *bits)),
            Operand::F64(bits) if ty == Type::F32 => {
                Ok(self.constant(false, u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            _ => Err(self.error("unsupported operand")),
        }
    }

    fn widen(&mut self, place: u32) -> u32 {
        let d = self.alloc(2);
        self.push_alu(un(|a: u32| u64::from(a)), Class::Hidden, d, place, 0, 0);
        d
    }

    /// Place for a destination of type `ty`; call [`Self::finish`] after emitting.
    pub fn dst(&mut self, op: &Operand<'a>, ty: Type) -> Result<Dst> {
        let wide = ty.bytes() == 8;
        match op {
            Operand::Sink => {
                let place = self.alloc(if wide { 2 } else { 1 });
                Ok(Dst { place, fix: None })
            }
            Operand::Name(name) => {
                let reg = self.reg(name)?;
                match (reg.width, wide) {
                    (Width::Narrow, false) | (Width::Wide, true) => {
                        self.def_reg(reg);
                        Ok(Dst { place: reg.place, fix: None })
                    }
                    (Width::Wide, false) => {
                        let place = self.alloc(1);
                        let f = if ty.is_signed() {
                            un(|a: i32| i64::from(a))
                        } else {
                            un(|a: u32| u64::from(a))
                        };
                        Ok(Dst { place, fix: Some((reg, place, f)) })
                    }
                    (Width::Narrow, true) => {
                        let place = self.alloc(2);
                        Ok(Dst { place, fix: Some((reg, place, un(|a: u64| a as u32))) })
                    }
                    _ => Err(self.error(format!("{name} has the wrong type here"))),
                }
            }
            _ => Err(self.error("unsupported destination")),
        }
    }

    /// Emits the conversion a destination needs.
    pub fn finish(&mut self, dst: Dst) {
        if let Some((reg, from, f)) = dst.fix {
            self.def_reg(reg);
            self.push_alu(f, Class::Hidden, reg.place, from, 0, 0);
        }
    }

    /// Predicate operand: index * 2 + negated.
    pub fn pred(&mut self, op: &Operand<'a>) -> Result<u32> {
        let (name, negated) = match op {
            Operand::Name(name) => (name, 0),
            Operand::Not(name) => (name, 1),
            Operand::Int(v) => {
                // A literal predicate: an always-false predicate, negated when true.
                let reg = self.false_pred();
                return Ok(reg * 2 + u32::from(*v != 0));
            }
            _ => return Err(self.error("expected a predicate")),
        };
        let reg = self.reg(name)?;
        if reg.width != Width::Pred {
            return Err(self.error(format!("{name} is not a predicate")));
        }
        self.use_reg(reg);
        Ok(reg.place * 2 + negated)
    }

    /// A predicate that is never written, so always false.
    pub fn false_pred(&mut self) -> u32 {
        self.function.preds += 1;
        self.function.preds - 1
    }

    /// Predicate destination: index, or [`NO_PRED`] for `_`.
    pub fn pred_dst(&mut self, op: &Operand<'a>) -> Result<u32> {
        match op {
            Operand::Sink => Ok(NO_PRED),
            Operand::Name(name) => {
                let reg = self.reg(name)?;
                if reg.width != Width::Pred {
                    return Err(self.error(format!("{name} is not a predicate")));
                }
                self.def_reg(reg);
                Ok(reg.place)
            }
            _ => Err(self.error("expected a predicate")),
        }
    }
}

/// Special registers that are constant while a warp runs.
fn special_register(name: &str) -> Option<Special> {
    let axis = |suffix: &str| match suffix {
        "x" => Some(0u8),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((base, suffix)) = name.split_once('.') {
        let k = axis(suffix)?;
        return Some(match base {
            "%tid" => Special::Tid(k),
            "%ntid" => Special::NTid(k),
            "%ctaid" => Special::CtaId(k),
            "%nctaid" => Special::NCtaId(k),
            "%clusterid" => Special::CtaId(k),
            "%nclusterid" => Special::NCtaId(k),
            "%cluster_ctaid" => Special::Zero,
            "%cluster_nctaid" => Special::One,
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMaskEq,
        "%lanemask_lt" => Special::LaneMaskLt,
        "%lanemask_le" => Special::LaneMaskLe,
        "%lanemask_gt" => Special::LaneMaskGt,
        "%lanemask_ge" => Special::LaneMaskGe,
        "%dynamic_smem_size" => Special::DynamicSharedSize,
        "%total_smem_size" | "%aggr_smem_size" => Special::TotalSharedSize,
        "%envreg1" => Special::WorkspaceHigh,
        "%envreg2" => Special::WorkspaceLow,
        // Nothing is passed in the others, no counter was programmed, no graph launched this.
        "%current_graph_exec" => Special::Zero,
        _ if numbered(name, "%envreg", 32) || numbered(name, "%pm", 8) => Special::Zero,
        "%cluster_ctarank" => Special::Zero,
        "%cluster_nctarank" => Special::One,
        _ => return None,
    })
}

/// True for `prefix` followed by a number below `count`; the 64-bit names of counters too.
fn numbered(name: &str, prefix: &str, count: u32) -> bool {
    let digits = name.strip_prefix(prefix).map(|n| n.strip_suffix("_64").unwrap_or(n));
    digits.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < count)
}
