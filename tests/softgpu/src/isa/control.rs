//! Branches, calls and barriers.

use super::builder::{FnBuilder, Result, Symbol};
use super::*;
use crate::ptx::ast::{Operand, Type};

impl<'a> FnBuilder<'a, '_> {
    /// Control flow and barriers; false when the opcode is neither. Branch targets hold label ids
    /// until the program is laid out.
    pub fn decode_control(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
    ) -> Result<bool> {
        match base {
            "bra" => {
                let [Operand::Name(name)] = ops else { return Err(self.error("expected a label")) };
                let id = self.label(name)?;
                self.push(Self::blank(Op::Bra(id)), Class::Control);
            }
            "brx" => {
                let [index, Operand::Name(name)] = ops else {
                    return Err(self.error("expected an index and a table"));
                };
                let ids = self.branch_table(name)?;
                let a = self.src(index, Type::U32)?;
                self.tables.tables.push(ids);
                let table = self.tables.tables.len() as u32 - 1;
                self.push(Instr { a, ..Self::blank(Op::Brx(table)) }, Class::Control);
            }
            "call" => self.call(ops)?,
            "ret" => {
                let op = if self.is_entry { Op::Exit } else { Op::Ret };
                self.push(Self::blank(op), Class::Control);
            }
            "exit" => {
                self.push(Self::blank(Op::Exit), Class::Control);
            }
            "trap" | "brkpt" => {
                self.push(Self::blank(Op::Trap), Class::Control);
            }
            "nanosleep" | "pmevent" | "griddepcontrol" | "setmaxnreg" => {
                self.push(Self::blank(Op::Nop), Class::Control);
            }
            "bar" | "barrier" => self.barrier(base, mods, ops)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn names(list: &[Operand<'a>]) -> Vec<&'a str> {
        list.iter()
            .filter_map(|op| if let Operand::Name(n) = op { Some(*n) } else { None })
            .collect()
    }

    fn call(&mut self, ops: &[Operand<'a>]) -> Result<()> {
        let (rets, rest) = match ops {
            [Operand::List(rets), rest @ ..] => (Self::names(rets), rest),
            rest => (Vec::new(), rest),
        };
        let (name, args) = match rest {
            [Operand::Name(name)] => (*name, Vec::new()),
            [Operand::Name(name), Operand::List(args)] => (*name, Self::names(args)),
            _ => return Err(self.error("unsupported form of call")),
        };
        let args = self.param_places(&args)?;
        let rets = self.param_places(&rets)?;
        let builtin = match name {
            "vprintf" => Some(Builtin::Vprintf),
            "__assertfail" => Some(Builtin::AssertFail),
            _ => None,
        };
        if let Some(kind) = builtin {
            let rets = rets.into_iter().flatten().collect();
            self.tables.builtins.push(BuiltinCall { kind, args, rets });
            let index = self.tables.builtins.len() as u32 - 1;
            self.push(Self::blank(Op::Builtin(index)), Class::Control);
            return Ok(());
        }
        let Some((callee, formals)) = self.env.callee(name) else {
            return Err(self.error(format!("call of {name}, which has no body here")));
        };
        let fits = |actual: &[Vec<u32>], formal: &[Vec<u32>]| {
            actual.len() == formal.len()
                && actual.iter().zip(formal).all(|(a, f)| a.len() == f.len())
        };
        if !fits(&args, &formals.params) || !fits(&rets, &formals.rets) {
            return Err(self.error("arguments do not match the function"));
        }
        let flat = |v: &[Vec<u32>]| v.iter().flatten().copied().collect::<Vec<_>>();
        let inputs = flat(&args).into_iter().zip(flat(&formals.params)).collect();
        let outputs = flat(&formals.rets).into_iter().zip(flat(&rets)).collect();
        self.tables.calls.push(CallSite { callee, inputs, outputs });
        let index = self.tables.calls.len() as u32 - 1;
        self.push(Self::blank(Op::Call(index)), Class::Control);
        Ok(())
    }

    fn param_places(&mut self, names: &[&'a str]) -> Result<Vec<Vec<u32>>> {
        let mut out = Vec::new();
        for name in names {
            match self.find_symbol(name) {
                Some(Symbol::Words(first, bytes)) => {
                    let n = bytes.div_ceil(4).max(1);
                    out.push(self.words[first as usize..(first + n) as usize].to_vec());
                }
                _ => return Err(self.error(format!("unknown parameter {name}"))),
            }
        }
        Ok(out)
    }

    fn barrier(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        if mods.contains(&"cluster") {
            return Err(self.error("unsupported instruction"));
        }
        if mods.first() == Some(&"warp") {
            let [members] = ops else { return Err(self.error("expected a member mask")) };
            let a = self.src(members, Type::B32)?;
            self.push(Instr { a, ..Self::blank(Op::BarWarp) }, Class::Sync);
            return Ok(());
        }
        let aligned = base == "bar" || mods.contains(&"aligned");
        let kind = if mods.contains(&"arrive") {
            BarKind::Arrive
        } else if mods.contains(&"red") {
            match mods {
                m if m.contains(&"popc") => BarKind::RedPopc,
                m if m.contains(&"and") => BarKind::RedAnd,
                _ => BarKind::RedOr,
            }
        } else {
            BarKind::Sync
        };
        let mut d = u32::MAX;
        let mut pred = u32::MAX;
        let mut rest = ops;
        if !matches!(kind, BarKind::Sync | BarKind::Arrive) {
            let [first, middle @ .., last] = ops else {
                return Err(self.error("expected at least 3 operands"));
            };
            pred = self.pred(last)?;
            d = if kind == BarKind::RedPopc {
                self.dst(first, Type::U32)?.place
            } else {
                self.pred_dst(first)?
            };
            rest = middle;
        }
        let id = match rest.first() {
            Some(op) => self.src(op, Type::U32)?,
            None => return Err(self.error("expected a barrier")),
        };
        let threads = match rest.get(1) {
            Some(op) => self.src(op, Type::U32)?,
            None => u32::MAX,
        };
        self.tables.bars.push(BarOp { kind, aligned, id, threads, d, pred });
        let index = self.tables.bars.len() as u32 - 1;
        self.push(Self::blank(Op::Bar(index)), Class::Sync);
        Ok(())
    }
}
