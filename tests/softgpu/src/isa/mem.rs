//! Loads, stores, atomics, asynchronous copies, matrix loads.

use super::builder::{FnBuilder, Result, Symbol, Width};
use super::lanes::{bin, un};
use super::*;
use crate::ptx::ast::{Operand, Type};

impl<'a> FnBuilder<'a, '_> {
    /// Memory instructions; false when the opcode is not one.
    pub fn decode_memory(
        &mut self,
        base: &str,
        mods: &[&str],
        ops: &[Operand<'a>],
    ) -> Result<bool> {
        match base {
            "ld" | "ldu" => self.load(mods, ops)?,
            "st" => self.store(mods, ops)?,
            "atom" | "red" => self.atomic(base, mods, ops)?,
            "cp" => self.cp_async(mods, ops)?,
            "ldmatrix" | "stmatrix" => self.matrix(base, mods, ops)?,
            "prefetch" | "prefetchu" => {
                self.push(Self::blank(Op::Nop), Class::Move);
            }
            "membar" | "fence" => {
                // A block's own order is made by its barriers: a fence for the block adds none.
                let op = if mods.contains(&"cta") { Op::Nop } else { Op::Fence };
                self.push(Self::blank(op), Class::Sync);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn space(&self, mods: &[&str]) -> Result<MemSpace> {
        for m in mods {
            return Ok(match *m {
                "global" => MemSpace::Global,
                "shared" | "shared::cta" => MemSpace::Shared,
                "local" => MemSpace::Local,
                "const" => MemSpace::Const,
                "param" | "param::entry" | "param::func" => MemSpace::Param,
                "shared::cluster" => return Err(self.error("unsupported state space")),
                _ => continue,
            });
        }
        Ok(MemSpace::Generic)
    }

    fn class_of(space: MemSpace) -> Class {
        match space {
            MemSpace::Shared => Class::Shared,
            MemSpace::Local => Class::Local,
            MemSpace::Param => Class::Param,
            _ => Class::Global,
        }
    }

    /// Resolves an address operand.
    pub fn addr(&mut self, op: &Operand<'a>) -> Result<Addr> {
        let Operand::Address(name, offset) = op else {
            return Err(self.error("expected an address"));
        };
        let absolute = |offset| Addr { reg: 0, wide: true, absolute: true, offset };
        if name.is_empty() {
            return Ok(absolute(*offset));
        }
        match self.find_symbol(name) {
            Some(Symbol::Global(base)) => return Ok(absolute((base as i64).wrapping_add(*offset))),
            Some(Symbol::Shared(base)) => {
                return Ok(absolute(i64::from(base).wrapping_add(*offset)));
            }
            Some(Symbol::KernelParam(base)) => {
                return Ok(absolute(i64::from(base).wrapping_add(*offset)));
            }
            Some(Symbol::Local(base)) => {
                let reg = self.alloc(2);
                let instr = Instr { d: reg, imm: i64::from(base), ..Self::blank(Op::LocalBase) };
                self.push(instr, Class::Hidden);
                return Ok(Addr { reg, wide: true, absolute: false, offset: *offset });
            }
            Some(Symbol::Words(..)) => return Err(self.error("address of a call parameter")),
            None => {}
        }
        let reg = self.reg(name)?;
        self.use_reg(reg);
        match reg.width {
            Width::Wide => {
                Ok(Addr { reg: reg.place, wide: true, absolute: false, offset: *offset })
            }
            Width::Narrow => {
                Ok(Addr { reg: reg.place, wide: false, absolute: false, offset: *offset })
            }
            _ => Err(self.error("address register has the wrong type")),
        }
    }

    fn vector<'o>(op: &'o Operand<'a>) -> &'o [Operand<'a>] {
        match op {
            Operand::Vector(list) => list,
            one => std::slice::from_ref(one),
        }
    }

    fn shape(&self, mods: &[&str], list: &[Operand<'a>]) -> Result<Type> {
        let ty = mods.last().and_then(|m| Type::from_name(m));
        let ty = ty.ok_or_else(|| self.error("missing type"))?;
        let count = mods
            .iter()
            .find_map(|m| match *m {
                "v2" => Some(2),
                "v4" => Some(4),
                "v8" => Some(8),
                _ => None,
            })
            .unwrap_or(1);
        if count != list.len() || ty == Type::B128 || ty == Type::Pred {
            return Err(self.error("unsupported vector"));
        }
        Ok(ty)
    }

    fn load(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        if ops.len() != 2 {
            return Err(self.error("expected 2 operands"));
        }
        let space = self.space(mods)?;
        let list = Self::vector(&ops[0]);
        let ty = self.shape(mods, list)?;
        if let Operand::Address(name, offset) = &ops[1]
            && let Some(Symbol::Words(first, bytes)) = self.find_symbol(name)
        {
            for (k, part) in list.iter().enumerate() {
                let at = offset.wrapping_add(i64::from(ty.bytes()) * k as i64);
                self.load_words(part, ty, first, bytes, at)?;
            }
            return Ok(());
        }
        let addr = self.addr(&ops[1])?;
        let wide = self.registers_wide(list)?;
        if ty.bytes() == 8 && !wide {
            return Err(self.error("register too narrow"));
        }
        let mut regs = [u32::MAX; 8];
        for (k, part) in list.iter().enumerate() {
            if *part != Operand::Sink {
                regs[k] = self.dst(part, if wide { Type::B64 } else { Type::B32 })?.place;
            }
        }
        let (element, count, signed) = (ty.bytes(), list.len() as u32, ty.is_signed());
        let class = Self::class_of(space);
        if space == MemSpace::Param && addr.absolute {
            let load = ParamLoad { offset: addr.offset as u32, element, count, signed, wide, regs };
            self.tables.param_loads.push(load);
            let index = self.tables.param_loads.len() as u32 - 1;
            self.push(Self::blank(Op::LdParam(index)), class);
            return Ok(());
        }
        let block_only = space == MemSpace::Global && mods.contains(&"cta");
        let strong = !block_only
            && mods.iter().any(|m| matches!(*m, "volatile" | "relaxed" | "acquire" | "mmio"));
        let read_only = mods.contains(&"nc");
        let op = MemOp { space, addr, element, count, signed, wide, regs, strong, read_only };
        self.tables.mems.push(op);
        let index = self.tables.mems.len() as u32 - 1;
        self.push(Self::blank(Op::Ld(index)), class);
        if mods.contains(&"acquire") && !mods.contains(&"cta") {
            self.push(Self::blank(Op::Fence), Class::Hidden);
        }
        Ok(())
    }

    fn registers_wide(&mut self, list: &[Operand<'a>]) -> Result<bool> {
        let mut wide = None;
        for part in list {
            if let Operand::Name(name) = part {
                let this = match self.reg(name)?.width {
                    Width::Wide => true,
                    Width::Narrow => false,
                    _ => return Err(self.error("register has the wrong type")),
                };
                if wide.is_some_and(|w| w != this) {
                    return Err(self.error("registers of different widths"));
                }
                wide = Some(this);
            }
        }
        Ok(wide.unwrap_or(false))
    }

    fn store(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        if ops.len() != 2 {
            return Err(self.error("expected 2 operands"));
        }
        let space = self.space(mods)?;
        let list = Self::vector(&ops[1]);
        let ty = self.shape(mods, list)?;
        if let Operand::Address(name, offset) = &ops[0]
            && let Some(Symbol::Words(first, bytes)) = self.find_symbol(name)
        {
            for (k, part) in list.iter().enumerate() {
                let at = offset.wrapping_add(i64::from(ty.bytes()) * k as i64);
                self.store_words(part, ty, first, bytes, at)?;
            }
            return Ok(());
        }
        if matches!(space, MemSpace::Param | MemSpace::Const) {
            return Err(self.error("store to a read-only space"));
        }
        let release = mods.contains(&"release") && !mods.contains(&"cta");
        if release {
            self.push(Self::blank(Op::Fence), Class::Hidden);
        }
        let addr = self.addr(&ops[0])?;
        let wide = ty.bytes() == 8;
        let reg_ty = match ty {
            Type::F16 | Type::BF16 => Type::B16,
            _ => ty,
        };
        let mut regs = [u32::MAX; 8];
        for (k, part) in list.iter().enumerate() {
            regs[k] = self.src(part, reg_ty)?;
        }
        let block_only = space == MemSpace::Global && mods.contains(&"cta");
        let strong = !block_only
            && mods.iter().any(|m| matches!(*m, "volatile" | "relaxed" | "release" | "mmio"));
        let (element, count) = (ty.bytes(), list.len() as u32);
        let op = MemOp {
            space,
            addr,
            element,
            count,
            signed: false,
            wide,
            regs,
            strong,
            read_only: false,
        };
        self.tables.mems.push(op);
        let index = self.tables.mems.len() as u32 - 1;
        self.push(Self::blank(Op::St(index)), Self::class_of(space));
        Ok(())
    }

    /// Words of a call parameter that hold `bytes` at `at`.
    fn word(&self, first: u32, size: u32, at: i64, bytes: u32) -> Result<(u32, u32)> {
        let inside =
            at >= 0 && at + i64::from(bytes) <= i64::from(size) && at % i64::from(bytes) == 0;
        if !inside {
            return Err(self.error("access outside the parameter"));
        }
        Ok((first + at as u32 / 4, at as u32 % 4 * 8))
    }

    fn load_words(
        &mut self,
        part: &Operand<'a>,
        ty: Type,
        first: u32,
        size: u32,
        at: i64,
    ) -> Result<()> {
        if *part == Operand::Sink {
            return Ok(());
        }
        let (w, shift) = self.word(first, size, at, ty.bytes())?;
        let lo = self.words[w as usize];
        let int = match ty {
            Type::F16 | Type::BF16 => Type::B16,
            _ => ty,
        };
        let dst = self.dst(part, int)?;
        if ty.bytes() == 8 {
            let hi = self.words[w as usize + 1];
            let f = bin(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32);
            self.push_alu(f, Class::Param, dst.place, lo, hi, 0);
        } else {
            let f = match (ty.bytes(), ty.is_signed(), shift) {
                (4, ..) => un(|a: u32| a),
                (2, false, 0) => un(|a: u32| a & 0xffff),
                (2, false, _) => un(|a: u32| a >> 16),
                (2, true, 0) => un(|a: u32| i32::from(a as i16)),
                (2, true, _) => un(|a: u32| a as i32 >> 16),
                (_, false, 0) => un(|a: u32| a & 0xff),
                (_, false, 8) => un(|a: u32| a >> 8 & 0xff),
                (_, false, 16) => un(|a: u32| a >> 16 & 0xff),
                (_, false, _) => un(|a: u32| a >> 24),
                (_, true, 0) => un(|a: u32| i32::from(a as i8)),
                (_, true, 8) => un(|a: u32| i32::from((a >> 8) as i8)),
                (_, true, 16) => un(|a: u32| i32::from((a >> 16) as i8)),
                (_, true, _) => un(|a: u32| a as i32 >> 24),
            };
            self.push_alu(f, Class::Param, dst.place, lo, 0, 0);
        }
        self.finish(dst);
        Ok(())
    }

    fn store_words(
        &mut self,
        part: &Operand<'a>,
        ty: Type,
        first: u32,
        size: u32,
        at: i64,
    ) -> Result<()> {
        let (w, shift) = self.word(first, size, at, ty.bytes())?;
        let lo = self.words[w as usize];
        let int = match ty {
            Type::F16 | Type::BF16 => Type::B16,
            _ => ty,
        };
        let a = self.src(part, int)?;
        match (ty.bytes(), shift) {
            (8, _) => {
                let hi = self.words[w as usize + 1];
                self.push_alu(un(|a: u64| a as u32), Class::Param, lo, a, 0, 0);
                self.push_alu(un(|a: u64| (a >> 32) as u32), Class::Hidden, hi, a, 0, 0);
            }
            (4, _) => {
                self.push_alu(un(|a: u32| a), Class::Param, lo, a, 0, 0);
            }
            (2, 0) => {
                let f = bin(|old: u32, a: u32| (old & 0xffff_0000) | (a & 0xffff));
                self.push_alu(f, Class::Param, lo, lo, a, 0);
            }
            (2, _) => {
                let f = bin(|old: u32, a: u32| (old & 0xffff) | a << 16);
                self.push_alu(f, Class::Param, lo, lo, a, 0);
            }
            (_, 0) => {
                let f = bin(|old: u32, a: u32| (old & !0xff) | (a & 0xff));
                self.push_alu(f, Class::Param, lo, lo, a, 0);
            }
            (_, 8) => {
                let f = bin(|old: u32, a: u32| (old & !0xff00) | (a & 0xff) << 8);
                self.push_alu(f, Class::Param, lo, lo, a, 0);
            }
            (_, 16) => {
                let f = bin(|old: u32, a: u32| (old & !0xff_0000) | (a & 0xff) << 16);
                self.push_alu(f, Class::Param, lo, lo, a, 0);
            }
            _ => {
                let f = bin(|old: u32, a: u32| (old & 0xff_ffff) | a << 24);
                self.push_alu(f, Class::Param, lo, lo, a, 0);
            }
        }
        Ok(())
    }

    fn atomic(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let space = self.space(mods)?;
        let ty = mods.last().and_then(|m| Type::from_name(m));
        let ty = ty.ok_or_else(|| self.error("missing type"))?;
        let kind = mods
            .iter()
            .find_map(|m| {
                Some(match *m {
                    "add" => AtomKind::Add,
                    "min" => AtomKind::Min,
                    "max" => AtomKind::Max,
                    "and" => AtomKind::And,
                    "or" => AtomKind::Or,
                    "xor" => AtomKind::Xor,
                    "exch" => AtomKind::Exch,
                    "cas" => AtomKind::Cas,
                    "inc" => AtomKind::Inc,
                    "dec" => AtomKind::Dec,
                    _ => return None,
                })
            })
            .ok_or_else(|| self.error("unsupported atomic"))?;
        let has_d = base == "atom";
        let at = usize::from(has_d);
        let wanted = at + 2 + usize::from(kind == AtomKind::Cas);
        let vector = mods.iter().any(|m| matches!(*m, "v2" | "v4" | "v8"));
        if ops.len() != wanted || vector || ty == Type::B128 {
            return Err(self.error("unsupported atomic"));
        }
        let device = !mods.contains(&"cta");
        let ordered =
            device && mods.iter().any(|m| matches!(*m, "acquire" | "release" | "acq_rel"));
        let addr = self.addr(&ops[at])?;
        let int = match ty {
            Type::F16 | Type::BF16 => Type::B16,
            _ => ty,
        };
        let b = self.src(&ops[at + 1], int)?;
        let c = if kind == AtomKind::Cas { self.src(&ops[at + 2], int)? } else { 0 };
        let mut d = u32::MAX;
        if has_d && ops[0] != Operand::Sink {
            d = self.dst(&ops[0], int)?.place;
        }
        self.tables.atoms.push(AtomOp { space, addr, kind, ty, d, b, c, device, ordered });
        let index = self.tables.atoms.len() as u32 - 1;
        self.push(Self::blank(Op::Atom(index)), Class::Atomic);
        Ok(())
    }

    fn cp_async(&mut self, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        if mods.first() != Some(&"async") {
            return Err(self.error("unsupported instruction"));
        }
        match mods.get(1).copied() {
            Some("commit_group") => {
                self.push(Self::blank(Op::CpCommit), Class::AsyncCopy);
            }
            Some("wait_group") => {
                let Some(Operand::Int(n)) = ops.first() else {
                    return Err(self.error("expected a literal"));
                };
                self.push(Instr { imm: *n, ..Self::blank(Op::CpWait) }, Class::AsyncCopy);
            }
            Some("wait_all") => {
                // Also waits for copies that were never committed: marked by a negative count.
                self.push(Instr { imm: -1, ..Self::blank(Op::CpWait) }, Class::AsyncCopy);
            }
            Some("ca" | "cg") => {
                if ops.len() < 3 {
                    return Err(self.error("expected 3 operands"));
                }
                let Operand::Int(bytes) = ops[2] else {
                    return Err(self.error("expected a literal size"));
                };
                let allowed: &[i64] = if mods[1] == "cg" { &[16] } else { &[4, 8, 16] };
                if !allowed.contains(&bytes) {
                    return Err(self.error("unsupported copy size"));
                }
                let dst = self.addr(&ops[0])?;
                let src = self.addr(&ops[1])?;
                let mut src_size = u32::MAX;
                let mut ignore = u32::MAX;
                if let Some(extra) = ops.get(3) {
                    let is_pred = match extra {
                        Operand::Name(n) => self.reg(n).is_ok_and(|r| r.width == Width::Pred),
                        Operand::Not(_) => true,
                        _ => false,
                    };
                    if is_pred {
                        ignore = self.pred(extra)?;
                    } else {
                        src_size = self.src(extra, Type::U32)?;
                    }
                }
                let bytes = bytes as u32;
                self.tables.copies.push(CpAsyncOp { dst, src, bytes, src_size, ignore });
                let index = self.tables.copies.len() as u32 - 1;
                self.push(Self::blank(Op::CpAsync(index)), Class::AsyncCopy);
            }
            _ => return Err(self.error("unsupported instruction")),
        }
        Ok(())
    }

    fn matrix(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let is_load = base == "ldmatrix";
        if ops.len() != 2 || !mods.contains(&"m8n8") || mods.last() != Some(&"b16") {
            return Err(self.error("unsupported instruction"));
        }
        let count = if mods.contains(&"x4") {
            4
        } else if mods.contains(&"x2") {
            2
        } else {
            1
        };
        let (list, address) = if is_load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let list = Self::vector(list).to_vec();
        if list.len() != count as usize {
            return Err(self.error("wrong number of registers"));
        }
        let space = self.space(mods)?;
        let addr = self.addr(address)?;
        let mut regs = [0; 4];
        for (k, part) in list.iter().enumerate() {
            regs[k] =
                if is_load { self.dst(part, Type::B32)?.place } else { self.src(part, Type::B32)? };
        }
        let trans = mods.contains(&"trans");
        self.tables.matrices.push(MatrixOp { addr, space, count, trans, regs });
        let index = self.tables.matrices.len() as u32 - 1;
        let op = if is_load { Op::LdMatrix(index) } else { Op::StMatrix(index) };
        self.push(Self::blank(op), Class::Matrix);
        Ok(())
    }
}
