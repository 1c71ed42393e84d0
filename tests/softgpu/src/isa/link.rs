//! Module to programs: one per kernel, with the device functions it calls appended.

use std::collections::HashMap;
use std::sync::Arc;

use super::builder::{Draft, Env, FnBuilder, Formals, Result, Symbol, Tables};
use super::init::{analyse, live_words};
use super::*;
use crate::ptx::PtxError;
use crate::ptx::ast::{self, Space};

/// Where a module-level variable was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedVar {
    /// Device address.
    pub address: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// First byte of static shared memory: the driver keeps the bytes below for itself.
pub const SHARED_BASE: u32 = 1024;

/// Dynamic shared memory starts here, far above any static variable.
pub const DYNAMIC_SHARED_BASE: u32 = 128 << 10;

/// Gap between shared variables, a multiple of 32 banks so that bank conflicts stay what they are.
const SHARED_GAP: u32 = 128;

struct Linker<'m, 'a> {
    module: &'m ast::Module<'a>,
    vars: &'m HashMap<String, LoadedVar>,
    shared: HashMap<String, u32>,
    shared_vars: Vec<SharedVar>,
    nominal: u32,
    gaps: u32,
    functions: Vec<(&'m ast::Func<'a>, Formals)>,
    too_much_shared: bool,
}

impl<'m, 'a> Linker<'m, 'a> {
    fn place_shared(&mut self, var: &ast::Var<'_>) -> u32 {
        let offset = self.nominal.next_multiple_of(var.align.max(1));
        let bytes = u32::try_from(var.bytes).unwrap_or(u32::MAX).min(DYNAMIC_SHARED_BASE);
        self.nominal = offset + bytes;
        let physical = SHARED_BASE + offset + self.gaps;
        self.gaps += SHARED_GAP;
        if physical + bytes > DYNAMIC_SHARED_BASE {
            self.too_much_shared = true;
        }
        self.shared_vars.push(SharedVar { name: var.name.to_string(), offset: physical, bytes });
        physical
    }
}

impl Env for Linker<'_, '_> {
    fn symbol(&mut self, name: &str) -> Option<Symbol> {
        if let Some(var) = self.vars.get(name) {
            return Some(Symbol::Global(var.address));
        }
        if let Some(&offset) = self.shared.get(name) {
            return Some(Symbol::Shared(offset));
        }
        let module = self.module;
        let var = module.vars.iter().find(|v| v.space == Space::Shared && v.name == name)?;
        let offset = if var.bytes == 0 { DYNAMIC_SHARED_BASE } else { self.place_shared(var) };
        self.shared.insert(name.to_string(), offset);
        Some(Symbol::Shared(offset))
    }

    fn shared(&mut self, var: &ast::Var<'_>) -> Result<Symbol> {
        if var.bytes == 0 {
            return Ok(Symbol::Shared(DYNAMIC_SHARED_BASE));
        }
        // Mangled names make function-level shared variables unique; a variable of a function
        // that two kernels call is placed once in each kernel's program.
        if let Some(&offset) = self.shared.get(var.name) {
            return Ok(Symbol::Shared(offset));
        }
        let offset = self.place_shared(var);
        self.shared.insert(var.name.to_string(), offset);
        Ok(Symbol::Shared(offset))
    }

    fn callee(&mut self, name: &str) -> Option<(u32, Formals)> {
        if let Some(k) = self.functions.iter().position(|f| f.0.name == name) {
            return Some((k as u32, self.functions[k].1.clone()));
        }
        let module = self.module;
        let func =
            module.funcs.iter().find(|f| f.name == name && !f.is_entry && f.body.is_some())?;
        // The builder refuses parameters of this size; here they would only exhaust memory.
        if func.params.iter().chain(&func.rets).any(|v| v.bytes > 4096) {
            return None;
        }
        let mut next = 0;
        let mut places = |vars: &[ast::Var<'_>]| {
            vars.iter()
                .map(|v| {
                    (0..v.bytes.div_ceil(4).max(1))
                        .map(|_| {
                            next += 32;
                            next - 32
                        })
                        .collect()
                })
                .collect::<Vec<Vec<u32>>>()
        };
        // The same order in which the callee's builder reserves its first slots.
        let params = places(&func.params);
        let rets = places(&func.rets);
        let formals = Formals { params, rets };
        self.functions.push((func, formals.clone()));
        Some((self.functions.len() as u32 - 1, formals))
    }
}

/// Decodes every kernel of a module. `vars` holds the addresses of its global and constant
/// variables.
pub fn link(
    module: &ast::Module<'_>,
    text: &str,
    vars: &HashMap<String, LoadedVar>,
) -> Result<Vec<Program>> {
    let lines = Arc::new(text.lines().map(str::to_string).collect::<Vec<_>>());
    let files = Arc::new(module.files.clone());
    module
        .funcs
        .iter()
        .filter(|f| f.is_entry && f.body.is_some())
        .map(|f| link_kernel(module, f, vars, &lines, &files))
        .collect()
}

fn link_kernel(
    module: &ast::Module<'_>,
    kernel: &ast::Func<'_>,
    vars: &HashMap<String, LoadedVar>,
    text: &Arc<Vec<String>>,
    files: &Arc<Vec<(u32, String)>>,
) -> Result<Program> {
    let mut linker = Linker {
        module,
        vars,
        shared: HashMap::new(),
        shared_vars: Vec::new(),
        nominal: 0,
        gaps: 0,
        functions: vec![(kernel, Formals::default())],
        too_much_shared: false,
    };
    let mut params = Vec::new();
    let mut param_bytes = 0u32;
    for p in &kernel.params {
        let bytes = u32::try_from(p.bytes).ok().filter(|&b| b <= 32_764);
        let bytes = bytes.ok_or_else(|| PtxError::new(p.line, "parameter too large", p.name))?;
        let offset = param_bytes.next_multiple_of(p.align.max(1));
        params.push(Param { offset, bytes });
        param_bytes = offset + bytes;
    }
    let mut program = Program {
        name: kernel.name.to_string(),
        code: Vec::new(),
        debug: module.debug,
        lines: Vec::new(),
        source: Vec::new(),
        classes: Vec::new(),
        text: text.clone(),
        files: files.clone(),
        functions: Vec::new(),
        params,
        param_bytes,
        shared_bytes: 0,
        shared_vars: Vec::new(),
        dynamic_shared: DYNAMIC_SHARED_BASE,
        max_threads: kernel.max_threads.map(|m| (m, kernel.exact_threads)),
        registers: 0,
        mems: Vec::new(),
        atoms: Vec::new(),
        copies: Vec::new(),
        matrices: Vec::new(),
        bars: Vec::new(),
        shfls: Vec::new(),
        votes: Vec::new(),
        mmas: Vec::new(),
        param_loads: Vec::new(),
        calls: Vec::new(),
        builtins: Vec::new(),
        tables: Vec::new(),
        tracked_names: Vec::new(),
    };
    let mut tables = Tables::default();
    let mut at = 0;
    while at < linker.functions.len() {
        let func = linker.functions[at].0;
        add_function(&mut program, &mut linker, &mut tables, func)?;
        at += 1;
    }
    if linker.too_much_shared {
        return Err(PtxError::new(kernel.line, "uses too much shared data", kernel.name));
    }
    program.shared_bytes = linker.nominal;
    program.shared_vars = linker.shared_vars;
    program.mems = tables.mems;
    program.atoms = tables.atoms;
    program.copies = tables.copies;
    program.matrices = tables.matrices;
    program.bars = tables.bars;
    program.shfls = tables.shfls;
    program.votes = tables.votes;
    program.mmas = tables.mmas;
    program.param_loads = tables.param_loads;
    program.calls = tables.calls;
    program.builtins = tables.builtins;
    program.tables = tables.tables;
    Ok(program)
}

fn add_function<'a>(
    program: &mut Program,
    linker: &mut Linker<'_, 'a>,
    tables: &mut Tables,
    func: &ast::Func<'a>,
) -> Result<()> {
    let first_table = tables.tables.len();
    let mut builder = FnBuilder::new(linker, tables, func.name, func.is_entry);
    if func.is_entry {
        for (var, param) in func.params.iter().zip(program.params.clone()) {
            builder.declare(var.name, Symbol::KernelParam(param.offset));
        }
    } else {
        for var in func.params.iter().chain(&func.rets) {
            let symbol = builder.param_words(var.bytes)?;
            builder.declare(var.name, symbol);
        }
    }
    builder.scope(func.body.as_deref().unwrap_or(&[]))?;
    let end = if func.is_entry { Op::Exit } else { Op::Ret };
    builder.push(FnBuilder::blank(end), Class::Hidden);
    let FnBuilder { mut function, drafts, labels, vregs, .. } = builder;

    let registers = live_words(&drafts, &labels, &tables.tables);
    program.registers = program.registers.max((registers + 8).next_multiple_of(8).min(255));
    let plan = analyse(&drafts, &labels, &tables.tables, vregs.len());
    let tracked_base = function.preds;
    let mut names = vec![String::new(); function.preds as usize];
    let mut index_of = HashMap::new();
    for &v in &plan.tracked {
        index_of.insert(v, tracked_base + names.len() as u32 - tracked_base);
        names.push(vregs[v as usize].clone());
    }
    function.tracked = plan.tracked.len() as u32;
    function.preds += function.tracked;

    let entry = program.code.len() as u32;
    function.entry = entry;
    let mut position = Vec::with_capacity(drafts.len() + 1);
    for (k, draft) in drafts.iter().enumerate() {
        position.push(program.code.len() as u32);
        for &v in &draft.uses {
            if plan.check[k].contains(&v) {
                let a = index_of[&v];
                emit(program, draft, Instr { a, ..FnBuilder::blank(Op::CheckInit) }, Class::Hidden);
            }
        }
        emit(program, draft, draft.instr, draft.class);
        for &v in &draft.defs {
            let Some(&d) = index_of.get(&v) else { continue };
            let source = draft.uses.first().and_then(|u| index_of.get(u)).copied();
            let instr = match source {
                Some(a) if draft.is_copy => Instr { d, a, ..FnBuilder::blank(Op::CopyInit) },
                _ => Instr { d, ..FnBuilder::blank(Op::MarkInit) },
            };
            emit(program, draft, instr, Class::Hidden);
        }
    }
    position.push(program.code.len() as u32);
    let resolve = |id: u32| {
        labels
            .get(id as usize)
            .and_then(|&at| position.get(at as usize))
            .copied()
            .ok_or_else(|| PtxError::new(func.line, "unresolved label", func.name))
    };
    for instr in &mut program.code[entry as usize..] {
        if let Op::Bra(target) = &mut instr.op {
            *target = resolve(*target)?;
        }
    }
    for table in &mut tables.tables[first_table..] {
        for target in table {
            *target = resolve(*target)?;
        }
    }
    program.functions.push(function);
    program.tracked_names.push(names);
    Ok(())
}

fn emit(program: &mut Program, draft: &Draft, instr: Instr, class: Class) {
    program.code.push(Instr { guard: draft.instr.guard, ..instr });
    program.lines.push(draft.line);
    program.source.push(draft.source);
    program.classes.push(class);
}
