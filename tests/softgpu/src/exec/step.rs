//! The warp loop: paths, branches, calls.
#![allow(unsafe_code)] // Lane loops work on raw frames.

use super::state::{Context, Fault, Wait, Warp};
use crate::finding::FindingKind;
use crate::isa::{CLOCK_HIGH, GUARD_NONE, Op};

/// What ended a stretch of instructions.
pub enum Stop {
    /// Turn used up, or another path must go first.
    Yield,
    /// Some block barrier was reached; it may now be complete.
    Barrier(u32),
}

impl Context<'_> {
    /// Runs a warp for a turn. Returns a barrier that may be complete.
    pub fn run_warp(&mut self, warp: &mut Warp, turn: &mut i64) -> Result<Option<u32>, Fault> {
        while *turn > 0 {
            let Some(at) = self.choose(warp) else { return Ok(None) };
            match self.run_path(warp, at, turn)? {
                Stop::Yield => {}
                Stop::Barrier(id) => return Ok(Some(id)),
            }
        }
        Ok(None)
    }

    /// The path to run: deepest call first, then the lowest instruction, so that lanes which
    /// branched apart meet again as early as they can. Now and then another, so that a path spinning
    /// on what a later one will do cannot starve it.
    fn choose(&mut self, warp: &mut Warp) -> Option<usize> {
        if warp.paths.len() == 1 {
            return (warp.paths[0].wait == Wait::None).then_some(0);
        }
        // Meet.
        let mut k = 0;
        while k < warp.paths.len() {
            let mut j = k + 1;
            while j < warp.paths.len() {
                let both = warp.paths[k].wait == Wait::None && warp.paths[j].wait == Wait::None;
                if both && warp.paths[k].meets(&warp.paths[j]) {
                    let other = warp.paths.swap_remove(j);
                    warp.paths[k].mask |= other.mask;
                } else {
                    j += 1;
                }
            }
            k += 1;
        }
        let ready: Vec<usize> =
            (0..warp.paths.len()).filter(|&k| warp.paths[k].wait == Wait::None).collect();
        if ready.len() > 1 && warp.hogged > 2048 {
            warp.hogged = 0;
            let draw = self.random() as usize;
            return Some(ready[draw % ready.len()]);
        }
        ready.into_iter().min_by_key(|&k| {
            let p = &warp.paths[k];
            (usize::MAX - p.frames.len(), p.pc)
        })
    }

    fn run_path(&mut self, warp: &mut Warp, at: usize, turn: &mut i64) -> Result<Stop, Fault> {
        let program = self.program;
        let code = &program.code[..];
        let mut pc = warp.paths[at].pc;
        let mut mask = warp.paths[at].mask;
        let depth = warp.paths[at].frames.len();
        // Stop where another ready path of the same depth waits to be met or passed.
        let limit = warp
            .paths
            .iter()
            .enumerate()
            .filter(|&(k, p)| {
                k != at && p.wait == Wait::None && p.frames.len() == depth && p.pc > pc
            })
            .map(|(_, p)| p.pc)
            .min()
            .unwrap_or(u32::MAX);
        let many = warp.paths.len() > 1;
        let mut dead = !warp.alive;
        // SAFETY: enter sized the frames this path runs in, and nothing here grows them except
        // calls, after which the loop is left.
        let mut r = unsafe { warp.regs().add(warp.paths[at].base as usize) };
        // SAFETY: the same of the predicates.
        let mut p = unsafe { warp.preds.as_mut_ptr().add(warp.paths[at].pred_base as usize) };
        let started = *turn;
        macro_rules! leave {
            ($pc:expr, $stop:expr) => {{
                warp.paths[at].pc = $pc;
                warp.paths[at].mask = mask;
                if many {
                    warp.hogged += (started - *turn) as u32;
                }
                return Ok($stop);
            }};
        }
        loop {
            if *turn <= 0 || pc >= limit {
                leave!(pc, Stop::Yield);
            }
            *turn -= 1;
            // SAFETY: every control transfer stays inside the program, which ends in an exit.
            let i = unsafe { code.get_unchecked(pc as usize) };
            // SAFETY: hits has an entry for every instruction.
            unsafe { *self.hits.get_unchecked_mut(pc as usize) += 1 };
            let mut m = mask;
            if i.guard != GUARD_NONE {
                // SAFETY: the decoder keeps predicate indices inside the frame.
                let g = unsafe { *p.add((i.guard >> 1) as usize) };
                m &= if i.guard & 1 != 0 { !g } else { g };
            }
            match i.op {
                Op::Alu(f) => {
                    if m != 0 {
                        // SAFETY: the frames are those the instruction was decoded for. Lanes that
                        // have exited or never existed may be written: nobody reads them.
                        unsafe { f(r, p, i, m | dead) };
                    }
                    pc += 1;
                }
                Op::Bra(target) => {
                    if m == mask {
                        pc = target;
                    } else if m == 0 {
                        pc += 1;
                    } else {
                        let mut taken = warp.paths[at].clone();
                        taken.pc = target;
                        taken.mask = m;
                        mask &= !m;
                        warp.paths.push(taken);
                        leave!(pc + 1, Stop::Yield);
                    }
                }
                Op::Ld(k) => {
                    if m != 0 {
                        // SAFETY: the frames are those the instruction was decoded for.
                        unsafe { self.transfer(warp, r, at, k, m, pc, false)? };
                    }
                    pc += 1;
                }
                Op::St(k) => {
                    if m != 0 {
                        // SAFETY: as above.
                        unsafe { self.transfer(warp, r, at, k, m, pc, true)? };
                    }
                    pc += 1;
                }
                Op::LdParam(k) => {
                    if m != 0 {
                        self.load_param(r, k, m | dead, warp.index, pc)?;
                    }
                    pc += 1;
                }
                Op::LocalBase => {
                    let value = u64::from(warp.paths[at].local_base).wrapping_add(i.imm as u64);
                    for l in (0..32).filter(|l| m >> l & 1 != 0) {
                        // SAFETY: the destination is a 64-bit slot of the frame.
                        unsafe { *r.add(i.d as usize).cast::<u64>().add(l) = value };
                    }
                    pc += 1;
                }
                Op::CheckInit => {
                    // SAFETY: tracked masks live among the frame's predicates.
                    let missing = m & !unsafe { *p.add(i.a as usize) };
                    if missing != 0 {
                        let function = warp.paths[at].function as usize;
                        let name = &program.tracked_names[function][i.a as usize];
                        let text = format!("register {name} is read before it is written");
                        let lane = missing.trailing_zeros();
                        return Err(self.fault(
                            FindingKind::UninitialisedRegister,
                            pc,
                            warp.index,
                            lane,
                            text,
                        ));
                    }
                    pc += 1;
                }
                Op::MarkInit => {
                    // SAFETY: as above.
                    unsafe { *p.add(i.d as usize) |= m };
                    pc += 1;
                }
                Op::CopyInit => {
                    // SAFETY: as above.
                    unsafe {
                        let from = *p.add(i.a as usize);
                        let d = p.add(i.d as usize);
                        *d = (*d & !m) | (from & m);
                    }
                    pc += 1;
                }
                Op::Nop => pc += 1,
                Op::Fence => {
                    if m != 0 {
                        self.fence();
                    }
                    pc += 1;
                }
                Op::Mma(k) => {
                    if m != 0 {
                        if m != u32::MAX && !self.gather(warp, at, pc, m, u32::MAX)? {
                            return Ok(Stop::Yield);
                        }
                        self.mma(r, k);
                    }
                    pc += 1;
                }
                Op::LdMatrix(k) | Op::StMatrix(k) => {
                    if m != 0 {
                        if m != u32::MAX && !self.gather(warp, at, pc, m, u32::MAX)? {
                            return Ok(Stop::Yield);
                        }
                        self.matrix(warp, r, k, pc)?;
                    }
                    pc += 1;
                }
                Op::Shfl(_)
                | Op::Vote(_)
                | Op::Match(_)
                | Op::Redux(_)
                | Op::BarWarp
                | Op::Elect => {
                    if m != 0 {
                        // SAFETY: as for lane loops.
                        let members = unsafe { self.members(r, i, m) };
                        if members & !m != 0 && !self.gather(warp, at, pc, m, members)? {
                            return Ok(Stop::Yield);
                        }
                        self.warp_op(warp, r, p, i, m, pc)?;
                    }
                    pc += 1;
                }
                Op::ActiveMask => {
                    for l in (0..32).filter(|l| m >> l & 1 != 0) {
                        // SAFETY: the destination is a slot of the frame.
                        unsafe { *r.add(i.d as usize + l) = m };
                    }
                    pc += 1;
                }
                Op::Clock => {
                    let now = self.hits[pc as usize].wrapping_mul(64);
                    for l in (0..32).filter(|l| m >> l & 1 != 0) {
                        // SAFETY: the destination is a slot of the width `imm` says.
                        unsafe {
                            match i.imm {
                                8 => *r.add(i.d as usize).cast::<u64>().add(l) = now,
                                CLOCK_HIGH => *r.add(i.d as usize + l) = (now >> 32) as u32,
                                _ => *r.add(i.d as usize + l) = now as u32,
                            }
                        }
                    }
                    pc += 1;
                }
                Op::Atom(k) => {
                    if m != 0 {
                        self.atomic(warp, r, at, k, m, pc)?;
                    }
                    pc += 1;
                }
                Op::CpAsync(k) => {
                    if m != 0 {
                        self.copy_async(warp, r, p, k, m, pc)?;
                    }
                    pc += 1;
                }
                Op::CpCommit => {
                    for l in (0..32).filter(|l| m >> l & 1 != 0) {
                        warp.commits[l] += 1;
                    }
                    pc += 1;
                }
                Op::CpWait => {
                    self.copy_wait(warp, m, i.imm)?;
                    pc += 1;
                }
                Op::Bar(k) => {
                    if m != 0 {
                        if m != mask {
                            let text =
                                "a guard keeps some lanes of the warp from the barrier".to_string();
                            let lane = m.trailing_zeros();
                            return Err(self.fault(
                                FindingKind::BarrierDivergence,
                                pc,
                                warp.index,
                                lane,
                                text,
                            ));
                        }
                        let aligned = program.bars[k as usize].aligned;
                        if aligned
                            && m != warp.exists
                            && !self.gather(warp, at, pc, m, warp.exists)?
                        {
                            return Ok(Stop::Yield);
                        }
                        let id = self.arrive(warp, r, p, k, m, pc)?;
                        if let Some(id) = id.1 {
                            warp.paths[at].wait = Wait::Barrier(id);
                        }
                        leave!(pc + 1, Stop::Barrier(id.0));
                    }
                    pc += 1;
                }
                Op::Call(k) => {
                    if m == 0 {
                        pc += 1;
                        continue;
                    }
                    if m != mask {
                        self.split(warp, at, pc, &mut mask, m);
                        leave!(pc, Stop::Yield);
                    }
                    self.call(warp, at, k, pc)?;
                    return self.left(warp, many, started - *turn);
                }
                Op::Ret => {
                    if m == 0 {
                        pc += 1;
                        continue;
                    }
                    if m != mask {
                        self.split(warp, at, pc, &mut mask, m);
                        leave!(pc, Stop::Yield);
                    }
                    self.ret(warp, at);
                    return self.left(warp, many, started - *turn);
                }
                Op::Brx(t) => {
                    if m != mask {
                        if m == 0 {
                            pc += 1;
                            continue;
                        }
                        self.split(warp, at, pc, &mut mask, m);
                        leave!(pc, Stop::Yield);
                    }
                    self.branch_table(warp, r, at, t, i.a, m, pc)?;
                    return self.left(warp, many, started - *turn);
                }
                Op::Exit => {
                    mask &= !m;
                    warp.alive &= !m;
                    dead = !warp.alive;
                    if mask == 0 {
                        warp.paths.swap_remove(at);
                        return Ok(Stop::Yield);
                    }
                    warp.paths[at].mask = mask;
                    pc += 1;
                }
                Op::Trap => {
                    if m != 0 {
                        let text = "trap".to_string();
                        return Err(self.fault(
                            FindingKind::Trap,
                            pc,
                            warp.index,
                            m.trailing_zeros(),
                            text,
                        ));
                    }
                    pc += 1;
                }
                Op::Builtin(k) => {
                    if m != 0 {
                        self.builtin(warp, r, k, m, pc)?;
                        // SAFETY: the frames did not move; recomputed for the borrow's sake.
                        r = unsafe { warp.regs().add(warp.paths[at].base as usize) };
                        // SAFETY: the same of the predicates.
                        p = unsafe {
                            warp.preds.as_mut_ptr().add(warp.paths[at].pred_base as usize)
                        };
                    }
                    pc += 1;
                }
            }
        }
    }

    fn left(&self, warp: &mut Warp, many: bool, steps: i64) -> Result<Stop, Fault> {
        if many {
            warp.hogged += steps as u32;
        }
        Ok(Stop::Yield)
    }

    /// Splits the guarded-off lanes away to the next instruction; the rest stays at `pc`, where the
    /// guard now holds for all.
    fn split(&self, warp: &mut Warp, at: usize, pc: u32, mask: &mut u32, m: u32) {
        let mut rest = warp.paths[at].clone();
        rest.pc = pc + 1;
        rest.mask = *mask & !m;
        warp.paths.push(rest);
        *mask = m;
    }

    /// A warp-wide instruction needs `members` but only `m` is here. True when they need not be
    /// waited for; otherwise the path waits, or has been joined with waiting lanes at the same
    /// place and starts the instruction again.
    fn gather(
        &mut self,
        warp: &mut Warp,
        at: usize,
        pc: u32,
        m: u32,
        members: u32,
    ) -> Result<bool, Fault> {
        let missing = members & !m;
        if missing == 0 {
            return Ok(true);
        }
        let lane = m.trailing_zeros();
        let gone = missing & !warp.alive;
        let off = missing & warp.paths[at].mask;
        if gone != 0 || off != 0 {
            let is_barrier = matches!(self.program.code[pc as usize].op, Op::Bar(_));
            let kind =
                if is_barrier { FindingKind::BarrierDivergence } else { FindingKind::MissingLanes };
            let text = if gone != 0 {
                format!("lanes 0x{gone:08x} are required here but have exited or never existed")
            } else {
                format!("lanes 0x{off:08x} are required here but their guard is false")
            };
            return Err(self.fault(kind, pc, warp.index, lane, text));
        }
        self.hits[pc as usize] -= 1;
        warp.paths[at].pc = pc;
        let here = warp.paths[at].clone();
        let mut joined = here.mask;
        let mut keep = Vec::with_capacity(warp.paths.len());
        for (k, path) in warp.paths.drain(..).enumerate() {
            if k != at && path.wait == Wait::Lanes && path.meets(&here) {
                joined |= path.mask;
            } else {
                keep.push(path);
            }
        }
        warp.paths = keep;
        if let Some(path) = warp.paths.iter_mut().find(|p| p.mask == here.mask) {
            path.wait = if joined == here.mask { Wait::Lanes } else { Wait::None };
            path.mask = joined;
        }
        Ok(false)
    }
}
