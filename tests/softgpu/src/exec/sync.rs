//! Barriers, warp-wide exchanges, calls.
#![allow(unsafe_code)] // Registers are raw lane arrays.

use super::addresses::lanes;
use super::state::{Barrier, Context, Fault, Frame, Wait, Warp};
use crate::finding::FindingKind;
use crate::isa::{BarKind, Instr, Op, ShflMode, VoteKind};

/// Frames deeper than this are a runaway recursion.
const MAX_FRAMES: usize = 64;

/// Lanes of predicate operand `x` (index * 2 + negated).
unsafe fn pred(p: *const u32, x: u32) -> u32 {
    // SAFETY: the decoder keeps predicate indices inside the frame.
    let v = unsafe { *p.add((x >> 1) as usize) };
    if x & 1 != 0 { !v } else { v }
}

impl Context<'_> {
    /// Union of the member masks of the active lanes.
    ///
    /// # Safety
    /// `r` starts the frame the instruction was decoded for.
    pub unsafe fn members(&self, r: *const u32, i: &Instr, m: u32) -> u32 {
        let slot = match i.op {
            Op::Shfl(k) => self.program.shfls[k as usize].members,
            Op::Vote(k) | Op::Match(k) | Op::Redux(k) => self.program.votes[k as usize].members,
            _ => i.a,
        };
        // SAFETY: the caller's promise.
        lanes(m).fold(0, |all, l| all | unsafe { *r.add(slot as usize + l) })
    }

    /// Executes a warp-wide instruction whose members are all present.
    pub fn warp_op(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        p: *mut u32,
        i: &Instr,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        // SAFETY: slots and predicates of the instruction lie inside the frames.
        unsafe {
            let slot = match i.op {
                Op::Shfl(k) => self.program.shfls[k as usize].members,
                Op::Vote(k) | Op::Match(k) | Op::Redux(k) => self.program.votes[k as usize].members,
                _ => i.a,
            };
            for l in lanes(m) {
                if *r.add(slot as usize + l) >> l & 1 == 0 {
                    let text = format!(
                        "lane {l} executes this but is not in its own member mask 0x{:08x}",
                        *r.add(slot as usize + l)
                    );
                    return Err(self.fault(
                        FindingKind::MissingLanes,
                        pc,
                        warp.index,
                        l as u32,
                        text,
                    ));
                }
            }
            let masks = r.add(slot as usize);
            let first = *masks.add(m.trailing_zeros() as usize & 31);
            let differ = lanes(m).any(|l| *masks.add(l) != first);
            for l in lanes(if differ { m } else { 0 }) {
                // Groups may pass their own masks side by side; within a group they agree.
                let group = *masks.add(l) & m;
                if let Some(j) = lanes(group).find(|&j| *masks.add(j) & m != group) {
                    let text = format!(
                        "lane {l} names lane {j} in its member mask 0x{:08x}, lane {j} passes 0x{:08x}",
                        *masks.add(l),
                        *masks.add(j)
                    );
                    return Err(self.fault(
                        FindingKind::MissingLanes,
                        pc,
                        warp.index,
                        l as u32,
                        text,
                    ));
                }
            }
            match i.op {
                Op::BarWarp => {
                    let w = warp.index as usize;
                    warp.clocks[w] += 1;
                    self.clock = self.clock.max(warp.clocks[w]);
                    warp.update_safe(self.warps);
                }
                Op::Elect => {
                    for l in lanes(m) {
                        let leader = (*r.add(slot as usize + l)).trailing_zeros();
                        *r.add(i.d as usize + l) = leader;
                        if i.e != u32::MAX {
                            let e = p.add(i.e as usize);
                            *e = (*e & !(1 << l)) | u32::from(leader == l as u32) << l;
                        }
                    }
                }
                Op::Shfl(k) => return self.shuffle(warp, r, p, k, m, pc),
                Op::Vote(k) => self.vote(r, p, k, m),
                Op::Match(k) => self.match_lanes(r, p, k, m),
                Op::Redux(k) => self.redux(r, k, m),
                _ => {}
            }
        }
        Ok(())
    }

    unsafe fn shuffle(
        &mut self,
        warp: &Warp,
        r: *mut u32,
        p: *mut u32,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = self.program.shfls[k as usize];
        // SAFETY: slots lie inside the frame.
        unsafe {
            let mut value = [0u32; 32];
            std::ptr::copy_nonoverlapping(r.add(op.a as usize), value.as_mut_ptr(), 32);
            let mut result = value;
            let mut inside = 0u32;
            for l in lanes(m) {
                let b = *r.add(op.b as usize + l) & 31;
                let c = *r.add(op.c as usize + l);
                let segment = c >> 8 & 31;
                let clamp = c & 31;
                let lane = l as u32;
                let max = (lane & segment) | (clamp & !segment);
                let min = lane & segment;
                let (j, ok) = match op.mode {
                    ShflMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= max as i32),
                    ShflMode::Down => (lane + b, lane + b <= max),
                    ShflMode::Bfly => (lane ^ b, lane ^ b <= max),
                    ShflMode::Idx => {
                        let j = min | (b & !segment);
                        (j, j <= max)
                    }
                };
                let j = if ok { j } else { lane };
                if m >> j & 1 == 0 {
                    let text = format!("lane {l} reads lane {j}, which does not take part");
                    return Err(self.fault(FindingKind::MissingLanes, pc, warp.index, lane, text));
                }
                result[l] = value[j as usize];
                inside |= u32::from(ok) << l;
            }
            for l in lanes(m) {
                *r.add(op.d as usize + l) = result[l];
            }
            if op.p != u32::MAX {
                let d = p.add(op.p as usize);
                *d = (*d & !m) | (inside & m);
            }
        }
        Ok(())
    }

    unsafe fn vote(&self, r: *mut u32, p: *mut u32, k: u32, m: u32) {
        let op = self.program.votes[k as usize];
        // SAFETY: slots and predicates lie inside the frames.
        unsafe {
            let yes = pred(p, op.a) & m;
            for l in lanes(m) {
                let members = *r.add(op.members as usize + l);
                let mine = yes & members;
                let answer = match op.kind {
                    VoteKind::All => mine == members,
                    VoteKind::Any => mine != 0,
                    VoteKind::Uni => mine == 0 || mine == members,
                    _ => {
                        *r.add(op.d as usize + l) = mine;
                        continue;
                    }
                };
                if op.d != u32::MAX {
                    let d = p.add(op.d as usize);
                    *d = (*d & !(1 << l)) | u32::from(answer) << l;
                }
            }
        }
    }

    unsafe fn match_lanes(&self, r: *mut u32, p: *mut u32, k: u32, m: u32) {
        let op = self.program.votes[k as usize];
        // SAFETY: slots and predicates lie inside the frames.
        unsafe {
            let wide = matches!(op.kind, VoteKind::MatchAny64 | VoteKind::MatchAll64);
            let value = |l: usize| {
                if wide {
                    *r.add(op.a as usize).cast::<u64>().add(l)
                } else {
                    u64::from(*r.add(op.a as usize + l))
                }
            };
            let mut out = [0u32; 32];
            let mut all = 0u32;
            for l in lanes(m) {
                let members = *r.add(op.members as usize + l);
                let same =
                    lanes(members & m).filter(|&j| value(j) == value(l)).fold(0, |x, j| x | 1 << j);
                if matches!(op.kind, VoteKind::MatchAll32 | VoteKind::MatchAll64) {
                    if same == members {
                        out[l] = members;
                        all |= 1 << l;
                    }
                } else {
                    out[l] = same;
                }
            }
            for l in lanes(m) {
                *r.add(op.d as usize + l) = out[l];
            }
            if op.p != u32::MAX {
                let d = p.add(op.p as usize);
                *d = (*d & !m) | (all & m);
            }
        }
    }

    unsafe fn redux(&self, r: *mut u32, k: u32, m: u32) {
        let op = self.program.votes[k as usize];
        // SAFETY: slots lie inside the frame.
        unsafe {
            let mut value = [0u32; 32];
            std::ptr::copy_nonoverlapping(r.add(op.a as usize), value.as_mut_ptr(), 32);
            for l in lanes(m) {
                let members = *r.add(op.members as usize + l) & m;
                let list = lanes(members).map(|j| value[j]);
                let signed = lanes(members).map(|j| value[j] as i32);
                *r.add(op.d as usize + l) = match op.kind {
                    VoteKind::RedAddU => list.fold(0, u32::wrapping_add),
                    VoteKind::RedMinU => list.min().unwrap_or(0),
                    VoteKind::RedMaxU => list.max().unwrap_or(0),
                    VoteKind::RedMinS => signed.min().unwrap_or(0) as u32,
                    VoteKind::RedMaxS => signed.max().unwrap_or(0) as u32,
                    VoteKind::RedAnd => list.fold(u32::MAX, |a, b| a & b),
                    VoteKind::RedOr => list.fold(0, |a, b| a | b),
                    _ => list.fold(0, |a, b| a ^ b),
                };
            }
        }
    }

    /// Arrival at a block barrier. Returns its number, and again when the path must wait.
    pub fn arrive(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        p: *mut u32,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(u32, Option<u32>), Fault> {
        let op = self.program.bars[k as usize];
        let lane = m.trailing_zeros();
        // SAFETY: slots and predicates lie inside the frames.
        let (id, threads, yes) = unsafe {
            let id = *r.add((op.id + lane) as usize);
            let threads = if op.threads == u32::MAX {
                self.dims.threads()
            } else {
                *r.add((op.threads + lane) as usize)
            };
            let yes = if op.pred == u32::MAX { 0 } else { pred(p, op.pred) & m };
            (id, threads, yes)
        };
        if id > 15 {
            let text = format!("barrier number {id} is above 15");
            return Err(self.fault(FindingKind::InvalidOperand, pc, warp.index, lane, text));
        }
        if op.threads != u32::MAX
            && (threads == 0
                || threads % 32 != 0
                || threads > self.dims.threads().next_multiple_of(32))
        {
            let text =
                format!("barrier over {threads} threads in a block of {}", self.dims.threads());
            return Err(self.fault(FindingKind::InvalidOperand, pc, warp.index, lane, text));
        }
        let whole = op.threads == u32::MAX;
        let w = warp.index as usize;
        let count = if whole { m.count_ones() } else { 32 };
        let barrier = &mut self.barriers[id as usize];
        if barrier.expected == 0 {
            *barrier = Barrier {
                expected: threads,
                all: true,
                pc: whole.then_some(pc),
                ..Barrier::default()
            };
        } else if barrier.expected != threads {
            let text = format!(
                "barrier {id} is used for {} and for {threads} threads at once",
                barrier.expected
            );
            return Err(self.fault(FindingKind::BarrierDivergence, pc, warp.index, lane, text));
        } else if barrier.pc.is_some_and(|first| first != pc) {
            let first = barrier.pc.unwrap_or(0) as usize;
            let line = self.program.lines.get(first).copied().unwrap_or(0);
            let text = format!(
                "threads of the block meet barrier {id} at different places: others at ptx line {line}"
            );
            return Err(self.fault(FindingKind::BarrierDivergence, pc, warp.index, lane, text));
        }
        barrier.arrived += count;
        if op.kind != BarKind::Arrive {
            barrier.warps |= 1 << w;
        }
        barrier.count += yes.count_ones();
        barrier.all &= yes == m;
        barrier.any |= yes != 0;
        // What this warp did so far happens before the barrier.
        warp.clocks[w] += 1;
        for (j, &c) in barrier.joined.iter_mut().zip(&warp.clocks) {
            *j = (*j).max(c);
        }
        self.clock = self.clock.max(warp.clocks[w]);
        warp.update_safe(self.warps);
        if barrier.arrived > barrier.expected {
            let text = format!(
                "{} threads arrived at barrier {id}, which waits for {}",
                barrier.arrived, barrier.expected
            );
            return Err(self.fault(FindingKind::BarrierDivergence, pc, warp.index, lane, text));
        }
        Ok((id, (op.kind != BarKind::Arrive).then_some(id)))
    }

    /// Lets the waiting warps go when a barrier is complete.
    pub fn try_release(&mut self, warps: &mut [Warp], id: u32) {
        let barrier = self.barriers[id as usize];
        if barrier.expected == 0 || barrier.arrived < barrier.expected {
            return;
        }
        let whole = barrier.warps.count_ones() as usize == self.warps;
        let newest = barrier.joined.iter().copied().max().unwrap_or(0);
        for warp in &mut warps[..self.warps] {
            let mut released = false;
            for at in 0..warp.paths.len() {
                if warp.paths[at].wait != Wait::Barrier(id) {
                    continue;
                }
                warp.paths[at].wait = Wait::None;
                released = true;
                let path = warp.paths[at].clone();
                if let Op::Bar(k) = self.program.code[path.pc as usize - 1].op {
                    // SAFETY: the path's frame holds the barrier's destination.
                    unsafe {
                        self.barrier_result(warp, k, &barrier, path.mask, path.base, path.pred_base)
                    };
                }
            }
            if !released {
                continue;
            }
            if whole {
                warp.clocks = [newest; 32];
            } else {
                for (c, &j) in warp.clocks.iter_mut().zip(&barrier.joined) {
                    *c = (*c).max(j);
                }
            }
            warp.update_safe(self.warps);
        }
        self.clock = self.clock.max(newest);
        self.barriers[id as usize] = Barrier::default();
    }

    unsafe fn barrier_result(
        &self,
        warp: &mut Warp,
        k: u32,
        barrier: &Barrier,
        m: u32,
        base: u32,
        pred_base: u32,
    ) {
        let op = self.program.bars[k as usize];
        if op.d == u32::MAX {
            return;
        }
        match op.kind {
            BarKind::RedPopc => {
                for l in lanes(m) {
                    // SAFETY: the caller's promise.
                    unsafe { *warp.regs().add(base as usize + op.d as usize + l) = barrier.count };
                }
            }
            BarKind::RedAnd | BarKind::RedOr => {
                let yes = if op.kind == BarKind::RedAnd { barrier.all } else { barrier.any };
                let d = &mut warp.preds[(pred_base + op.d) as usize];
                *d = (*d & !m) | if yes { m } else { 0 };
            }
            _ => {}
        }
    }

    /// Enters a device function with the lanes of path `at`.
    pub fn call(&mut self, warp: &mut Warp, at: usize, k: u32, pc: u32) -> Result<(), Fault> {
        let site = &self.program.calls[k as usize];
        let path = warp.paths[at].clone();
        let caller = &self.program.functions[path.function as usize];
        let callee = &self.program.functions[site.callee as usize];
        let base = path.base + caller.slots * 32;
        let pred_base = path.pred_base + caller.preds;
        let local_base = (path.local_base + caller.local_bytes).next_multiple_of(16);
        let lane = path.mask.trailing_zeros();
        if path.frames.len() >= MAX_FRAMES || local_base + callee.local_bytes > self.local_stride {
            let text = format!("call of {} overflows the stack", callee.name);
            return Err(self.fault(FindingKind::CallDepth, pc, warp.index, lane, text));
        }
        self.enter(warp, site.callee, base, pred_base, path.mask);
        let r = warp.regs();
        for &(from, to) in &site.inputs {
            for l in lanes(path.mask) {
                // SAFETY: both words lie inside their frames, which enter sized.
                unsafe {
                    *r.add(base as usize + to as usize + l) =
                        *r.add(path.base as usize + from as usize + l);
                }
            }
        }
        for l in lanes(path.mask) {
            let first = (warp.index as usize * 32 + l) * self.local_stride as usize;
            let first = first + local_base as usize;
            self.local_init[first..first + callee.local_bytes as usize].fill(0);
        }
        let target = &mut warp.paths[at];
        target.frames.push(Frame {
            return_pc: pc + 1,
            base: path.base,
            pred_base: path.pred_base,
            local_base: path.local_base,
            function: path.function,
            site: k,
        });
        target.pc = callee.entry;
        target.base = base;
        target.pred_base = pred_base;
        target.local_base = local_base;
        target.function = site.callee;
        Ok(())
    }

    /// Returns from a device function with all lanes of path `at`.
    pub fn ret(&mut self, warp: &mut Warp, at: usize) {
        let Some(frame) = warp.paths[at].frames.pop() else { return };
        let (base, mask) = (warp.paths[at].base, warp.paths[at].mask);
        let r = warp.regs();
        for &(from, to) in &self.program.calls[frame.site as usize].outputs {
            for l in lanes(mask) {
                // SAFETY: both words lie inside their frames.
                unsafe {
                    *r.add(frame.base as usize + to as usize + l) =
                        *r.add(base as usize + from as usize + l);
                }
            }
        }
        let path = &mut warp.paths[at];
        path.pc = frame.return_pc;
        path.base = frame.base;
        path.pred_base = frame.pred_base;
        path.local_base = frame.local_base;
        path.function = frame.function;
    }

    /// brx.idx: lanes go where their index says.
    pub fn branch_table(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        at: usize,
        t: u32,
        slot: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let table = &self.program.tables[t as usize];
        let mut left = m;
        let path = warp.paths[at].clone();
        let mut first = true;
        while left != 0 {
            let lane = left.trailing_zeros();
            // SAFETY: the index slot lies inside the frame.
            let index = unsafe { *r.add((slot + lane) as usize) };
            let Some(&target) = table.get(index as usize) else {
                let text = format!("branch index {index} in a table of {}", table.len());
                return Err(self.fault(FindingKind::InvalidOperand, pc, warp.index, lane, text));
            };
            let same = lanes(left)
                // SAFETY: as above.
                .filter(|&l| unsafe { *r.add(slot as usize + l) } == index)
                .fold(0u32, |x, l| x | 1 << l);
            left &= !same;
            let mut next = path.clone();
            next.pc = target;
            next.mask = same;
            if first {
                warp.paths[at] = next;
                first = false;
            } else {
                warp.paths.push(next);
            }
        }
        Ok(())
    }
}
