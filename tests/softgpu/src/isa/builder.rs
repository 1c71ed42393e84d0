//! Turns one PTX function into draft instructions: names to slots, literals to constants, labels to
//! positions. What each opcode means is in the sibling modules.

mod operands;

use std::collections::HashMap;

use super::lanes::NO_PRED;
use super::*;
use crate::ptx::PtxError;
use crate::ptx::ast::{self, Operand, Space, Stmt, Type};

pub(super) type Result<T, E = PtxError> = std::result::Result<T, E>;

/// Width class of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Pred,
    Narrow,
    Wide,
    Quad,
}

impl Width {
    fn of(ty: Type) -> Width {
        match ty {
            Type::Pred => Width::Pred,
            Type::B128 => Width::Quad,
            _ if ty.bytes() == 8 => Width::Wide,
            _ => Width::Narrow,
        }
    }
}

/// A virtual register: its place and its identity for the initialisation analysis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reg {
    /// Lane offset, or predicate index.
    pub place: u32,
    pub width: Width,
    /// Index into `FnBuilder::vregs`.
    pub id: u32,
}

struct RegGroup {
    ty: Type,
    count: Option<u32>,
    regs: HashMap<u32, Reg>,
}

/// A variable a name can stand for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Symbol {
    /// Address in global memory.
    Global(u64),
    /// Offset in shared memory.
    Shared(u32),
    /// Offset in the frame's local memory.
    Local(u32),
    /// Kernel parameter: offset.
    KernelParam(u32),
    /// Parameter of a device function or call: first word in `FnBuilder::words`, bytes.
    Words(u32, u32),
}

#[derive(Default)]
struct Scope<'a> {
    regs: HashMap<&'a str, RegGroup>,
    vars: HashMap<&'a str, Symbol>,
    labels: HashMap<&'a str, u32>,
    tables: HashMap<&'a str, Vec<&'a str>>,
}

/// A decoded instruction before layout.
pub(super) struct Draft {
    pub instr: Instr,
    pub class: Class,
    pub line: u32,
    pub source: (u32, u32),
    pub uses: Vec<u32>,
    pub defs: Vec<u32>,
    /// A plain move: carries uninitialised lanes along instead of reporting them.
    pub is_copy: bool,
}

/// Everything a function needs from the rest of the module.
pub(super) trait Env {
    /// A module-level variable.
    fn symbol(&mut self, name: &str) -> Option<Symbol>;
    /// Declares a function-level shared variable.
    fn shared(&mut self, var: &ast::Var<'_>) -> Result<Symbol>;
    /// Index of a device function in the program, and its formal places.
    fn callee(&mut self, name: &str) -> Option<(u32, Formals)>;
}

/// Lane offsets of the words of each formal parameter of a device function.
#[derive(Debug, Clone, Default)]
pub(super) struct Formals {
    pub params: Vec<Vec<u32>>,
    pub rets: Vec<Vec<u32>>,
}

/// Tables the instructions index; moved into the program at link time.
#[derive(Default)]
pub(super) struct Tables {
    pub mems: Vec<MemOp>,
    pub atoms: Vec<AtomOp>,
    pub copies: Vec<CpAsyncOp>,
    pub matrices: Vec<MatrixOp>,
    pub bars: Vec<BarOp>,
    pub shfls: Vec<ShflOp>,
    pub votes: Vec<VoteOp>,
    pub mmas: Vec<MmaOp>,
    pub param_loads: Vec<ParamLoad>,
    pub calls: Vec<CallSite>,
    pub builtins: Vec<BuiltinCall>,
    /// Branch tables by label id; patched at link time.
    pub tables: Vec<Vec<u32>>,
}

pub(super) struct FnBuilder<'a, 'e> {
    pub env: &'e mut dyn Env,
    pub tables: &'e mut Tables,
    pub function: Function,
    pub drafts: Vec<Draft>,
    /// Draft position of each label id.
    pub labels: Vec<u32>,
    /// Names of virtual registers.
    pub vregs: Vec<String>,
    /// Lane offsets of words of parameters of this function and of its calls.
    pub words: Vec<u32>,
    pub is_entry: bool,
    scopes: Vec<Scope<'a>>,
    consts: HashMap<(bool, u64), u32>,
    specials: HashMap<Special, u32>,
    carry: Option<Reg>,
    current: Option<ast::Instr<'a>>,
    source: (u32, u32),
    uses: Vec<u32>,
    defs: Vec<u32>,
}

/// A destination that may need widening or narrowing after the operation.
pub(super) struct Dst {
    pub place: u32,
    fix: Option<(Reg, u32, ExecFn)>,
}

impl<'a, 'e> FnBuilder<'a, 'e> {
    pub fn new(env: &'e mut dyn Env, tables: &'e mut Tables, name: &str, is_entry: bool) -> Self {
        FnBuilder {
            env,
            tables,
            function: Function { name: name.to_string(), ..Function::default() },
            drafts: Vec::new(),
            labels: Vec::new(),
            vregs: Vec::new(),
            words: Vec::new(),
            is_entry,
            scopes: vec![Scope::default()],
            consts: HashMap::new(),
            specials: HashMap::new(),
            carry: None,
            current: None,
            source: (0, 0),
            uses: Vec::new(),
            defs: Vec::new(),
        }
    }

    /// An error about the instruction being decoded.
    pub fn error(&self, message: impl Into<String>) -> PtxError {
        let (line, text) = self.current.as_ref().map_or((0, ""), |i| (i.line, i.text));
        PtxError::new(line, message, text)
    }

    /// Takes the next slots.
    pub fn alloc(&mut self, slots: u32) -> u32 {
        let place = self.function.slots * 32;
        self.function.slots += slots;
        place
    }

    fn alloc_reg(&mut self, width: Width, name: String) -> Reg {
        let id = self.vregs.len() as u32;
        self.vregs.push(name);
        let place = match width {
            Width::Pred => {
                self.function.preds += 1;
                self.function.preds - 1
            }
            Width::Narrow => self.alloc(1),
            Width::Wide => self.alloc(2),
            Width::Quad => self.alloc(4),
        };
        Reg { place, width, id }
    }

    /// Declares a variable of the outermost scope (formal parameters).
    pub fn declare(&mut self, name: &'a str, symbol: Symbol) {
        self.scopes[0].vars.insert(name, symbol);
    }

    /// Reserves words for a parameter and returns its symbol.
    pub fn param_words(&mut self, bytes: u64) -> Result<Symbol> {
        if bytes > 4096 {
            return Err(self.error("parameter too large"));
        }
        let first = self.words.len() as u32;
        for _ in 0..bytes.div_ceil(4).max(1) {
            let place = self.alloc(1);
            self.words.push(place);
        }
        Ok(Symbol::Words(first, bytes as u32))
    }

    /// Decodes statements into drafts.
    pub fn scope(&mut self, body: &[Stmt<'a>]) -> Result<()> {
        self.scopes.push(Scope::default());
        for stmt in body {
            match stmt {
                Stmt::Label(name) => {
                    let id = self.labels.len() as u32;
                    self.labels.push(u32::MAX);
                    self.top().labels.insert(name, id);
                }
                Stmt::BranchTargets(name, targets) => {
                    self.top().tables.insert(name, targets.clone());
                }
                _ => {}
            }
        }
        for stmt in body {
            self.stmt(stmt)?;
        }
        self.scopes.pop();
        Ok(())
    }

    fn top(&mut self) -> &mut Scope<'a> {
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    fn stmt(&mut self, stmt: &Stmt<'a>) -> Result<()> {
        match stmt {
            Stmt::Reg { ty, name, count } => {
                let group = RegGroup { ty: *ty, count: *count, regs: HashMap::new() };
                self.top().regs.insert(name, group);
            }
            Stmt::Var(var) => {
                let symbol = match var.space {
                    Space::Local => {
                        let align = var.align.max(1);
                        let offset = self.function.local_bytes.next_multiple_of(align);
                        if var.bytes > 1 << 19 {
                            return Err(PtxError::new(
                                var.line,
                                "local variable too large",
                                var.name,
                            ));
                        }
                        self.function.local_bytes = offset + var.bytes as u32;
                        Symbol::Local(offset)
                    }
                    Space::Shared => self.env.shared(var)?,
                    Space::Param => self.param_words(var.bytes)?,
                    Space::Global | Space::Const => self.env.symbol(var.name).ok_or_else(|| {
                        PtxError::new(var.line, "variable of this space in a function", var.name)
                    })?,
                };
                self.top().vars.insert(var.name, symbol);
            }
            Stmt::Label(name) => {
                let at = self.drafts.len() as u32;
                let id = self.top().labels[name];
                self.labels[id as usize] = at;
            }
            Stmt::Scope(body) => self.scope(body)?,
            Stmt::Loc { file, line } => self.source = (*file, *line),
            Stmt::BranchTargets(..) => {}
            Stmt::Instr(instr) => self.instr(instr)?,
        }
        Ok(())
    }

    fn instr(&mut self, instr: &ast::Instr<'a>) -> Result<()> {
        self.current = Some(instr.clone());
        let first = self.drafts.len();
        let mut parts = instr.opcode.split('.');
        let base = parts.next().unwrap_or("");
        let mods: Vec<&str> = parts.collect();
        let guard = match instr.guard {
            Some((negated, name)) => {
                let reg = self.reg(name)?;
                if reg.width != Width::Pred {
                    return Err(self.error("guard is not a predicate"));
                }
                Some((reg.place * 2 + u32::from(negated), reg.id))
            }
            None => None,
        };
        self.decode(base, &mods, &instr.operands)?;
        if let Some((guard, id)) = guard {
            for draft in &mut self.drafts[first..] {
                draft.instr.guard = guard;
                draft.uses.push(id);
            }
        }
        Ok(())
    }

    fn decode(&mut self, base: &str, mods: &[&str], ops: &[Operand<'a>]) -> Result<()> {
        let done = self.decode_arith(base, mods, ops)?
            || self.decode_float(base, mods, ops)?
            || self.decode_packed(base, mods, ops)?
            || self.decode_compare(base, mods, ops)?
            || self.decode_convert(base, mods, ops)?
            || self.decode_memory(base, mods, ops)?
            || self.decode_control(base, mods, ops)?
            || self.decode_warp(base, mods, ops)?;
        if done { Ok(()) } else { Err(self.error("unsupported instruction")) }
    }

    /// The register a name stands for.
    pub fn reg(&mut self, name: &str) -> Result<Reg> {
        self.find_reg(name).ok_or_else(|| self.error(format!("unknown register {name}")))
    }

    fn find_reg(&mut self, name: &str) -> Option<Reg> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(name.len() - digits);
        for s in (0..self.scopes.len()).rev() {
            if let Some(group) = self.scopes[s].regs.get(name)
                && group.count.is_none()
            {
                return Some(self.group_reg(s, name, 0, name));
            }
            if let Some(group) = self.scopes[s].regs.get(prefix)
                && let Some(count) = group.count
                && let Ok(n) = number.parse::<u32>()
                && n < count
            {
                return Some(self.group_reg(s, prefix, n, name));
            }
        }
        None
    }

    fn group_reg(&mut self, scope: usize, key: &str, n: u32, name: &str) -> Reg {
        let group = &self.scopes[scope].regs[key];
        if let Some(&reg) = group.regs.get(&n) {
            return reg;
        }
        let reg = self.alloc_reg(Width::of(group.ty), name.to_string());
        if let Some(group) = self.scopes[scope].regs.get_mut(key) {
            group.regs.insert(n, reg);
        }
        reg
    }

    /// What a variable's name stands for.
    pub fn find_symbol(&mut self, name: &str) -> Option<Symbol> {
        for scope in self.scopes.iter().rev() {
            if let Some(&symbol) = scope.vars.get(name) {
                return Some(symbol);
            }
        }
        self.env.symbol(name)
    }

    /// Label id by name.
    pub fn label(&mut self, name: &str) -> Result<u32> {
        for scope in self.scopes.iter().rev() {
            if let Some(&id) = scope.labels.get(name) {
                return Ok(id);
            }
        }
        Err(self.error(format!("unknown label {name}")))
    }

    /// Label ids of a branch table.
    pub fn branch_table(&mut self, name: &str) -> Result<Vec<u32>> {
        let names = self
            .scopes
            .iter()
            .rev()
            .find_map(|s| s.tables.get(name).cloned())
            .ok_or_else(|| self.error(format!("unknown branch table {name}")))?;
        names.into_iter().map(|n| self.label(n)).collect()
    }

    /// Slot of a constant.
    pub fn constant(&mut self, wide: bool, bits: u64) -> u32 {
        if let Some(&place) = self.consts.get(&(wide, bits)) {
            return place;
        }
        let place = self.alloc(if wide { 2 } else { 1 });
        if wide {
            self.function.consts_wide.push((place, bits));
        } else {
            self.function.consts.push((place, bits as u32));
        }
        self.consts.insert((wide, bits), place);
        place
    }

    /// Slot of a special register.
    pub fn special(&mut self, which: Special) -> u32 {
        if let Some(&place) = self.specials.get(&which) {
            return place;
        }
        let place = self.alloc(1);
        self.function.specials.push((place, which));
        self.specials.insert(which, place);
        place
    }

    /// Records that the current instruction reads `reg`.
    pub fn use_reg(&mut self, reg: Reg) {
        self.uses.push(reg.id);
    }

    /// Records that the current instruction writes `reg`.
    pub fn def_reg(&mut self, reg: Reg) {
        self.defs.push(reg.id);
    }

    /// The hidden carry flag, as a 0-or-1 register.
    pub fn carry(&mut self) -> Reg {
        if let Some(reg) = self.carry {
            return reg;
        }
        let reg = self.alloc_reg(Width::Narrow, "carry flag".to_string());
        self.carry = Some(reg);
        reg
    }

    /// Appends a draft that carries the uses and defs recorded so far.
    pub fn push(&mut self, instr: Instr, class: Class) -> &mut Draft {
        let line = self.current.as_ref().map_or(0, |i| i.line);
        self.drafts.push(Draft {
            instr,
            class,
            line,
            source: self.source,
            uses: std::mem::take(&mut self.uses),
            defs: std::mem::take(&mut self.defs),
            is_copy: false,
        });
        let last = self.drafts.len() - 1;
        &mut self.drafts[last]
    }

    /// An instruction with no operands yet.
    pub fn blank(op: Op) -> Instr {
        Instr { op, guard: GUARD_NONE, d: 0, a: 0, b: 0, c: 0, e: NO_PRED, imm: 0 }
    }

    /// Appends a lane loop on places.
    pub fn push_alu(
        &mut self,
        f: ExecFn,
        class: Class,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    ) -> &mut Draft {
        let instr = Instr { d, a, b, c, ..Self::blank(Op::Alu(f)) };
        self.push(instr, class)
    }

    /// Decodes `d, a, b, c` operands of the given types and appends the lane loop.
    pub fn alu(
        &mut self,
        f: ExecFn,
        class: Class,
        ops: &[Operand<'a>],
        dty: Type,
        sty: &[Type],
    ) -> Result<()> {
        if ops.len() != sty.len() + 1 {
            return Err(self.error(format!("expected {} operands", sty.len() + 1)));
        }
        let mut places = [0; 3];
        for (k, &ty) in sty.iter().enumerate() {
            places[k] = self.src(&ops[k + 1], ty)?;
        }
        let dst = self.dst(&ops[0], dty)?;
        self.push_alu(f, class, dst.place, places[0], places[1], places[2]);
        self.finish(dst);
        Ok(())
    }
}
