//! cp.async: issued copies land when they are waited for (late) or at once (eager); until the wait
//! the destination is out of bounds for everyone.
#![allow(unsafe_code)] // Memory and registers are raw.

use super::addresses::{Reach, addresses, lanes};
use super::state::{AccessTable, Context, Fault, PendingCopies, Warp};
use crate::finding::FindingKind;
use crate::isa::lanes::{Leveled, at_level};
use crate::isa::{CpAsyncOp, MemSpace};
use crate::memory::{GLOBAL_BASE, SHARED_WINDOW};

/// The issue of a cp.async by a warp, compiled for every level.
struct Issue<'c, 'p, 'w> {
    context: &'c mut Context<'p>,
    warp: &'w mut Warp,
    op: &'p CpAsyncOp,
    copy: PendingCopies,
    index: usize,
}

impl Leveled for Issue<'_, '_, '_> {
    type Out = Result<(), Fault>;

    #[inline(always)]
    unsafe fn run(self) -> Result<(), Fault> {
        let Issue { context, warp, op, copy, index } = self;
        let bytes = u64::from(op.bytes);
        let dst = context.aligned(warp, &copy.dst, copy.lanes, bytes, copy.pc)?;
        let reading = lanes(copy.lanes).fold(0, |m, l| m | u32::from(copy.take[l] != 0) << l);
        let src = context.aligned(warp, &copy.src, reading, bytes, copy.pc)?;
        let part = lanes(reading).any(|l| copy.take[l] != op.bytes);
        // The bytes may change at any moment from here to the wait, so whoever touched them last
        // must be ordered before the issue.
        let by = context.shared_access(warp, false);
        let quick = !part
            && context.shared_runs_writable(&dst, by)
            && context.readable_runs(&src, context.accessor);
        if !quick {
            context.check_copy(warp, &copy, bytes)?;
        }
        for run in dst.runs() {
            context.shared.set_pending(run.start, run.len, true);
        }
        if context.eager_copies {
            for l in lanes(copy.lanes) {
                // SAFETY: both ranges were checked.
                unsafe { context.move_bytes(&copy, l) };
            }
        }
        let asked = lanes(reading).map(|l| u64::from(copy.take[l])).sum();
        context.count_global(index, &src, asked);
        warp.copies.push(copy);
        Ok(())
    }
}

/// The end of a cp.async for the lanes `due`, compiled for every level.
struct Land<'c, 'p, 'w> {
    context: &'c mut Context<'p>,
    warp: &'w Warp,
    copy: &'w PendingCopies,
    due: u32,
}

impl Leveled for Land<'_, '_, '_> {
    type Out = Result<(), Fault>;

    #[inline(always)]
    unsafe fn run(self) -> Result<(), Fault> {
        let Land { context, warp, copy, due } = self;
        let dst = Reach::new(&copy.dst, due, u64::from(copy.bytes));
        if !context.eager_copies {
            for l in lanes(due) {
                let take = u64::from(copy.take[l]);
                if take != 0 && !context.memory.contains(copy.src[l], take) {
                    let (lane, pc) = (l as u32, copy.pc);
                    return Err(context.global_fault(warp.index, lane, copy.src[l], take, pc));
                }
                // SAFETY: the destination was checked at issue, the source just now.
                unsafe { context.move_bytes(copy, l) };
            }
        }
        for run in dst.runs() {
            context.shared.set_pending(run.start, run.len, false);
        }
        // The write happens for others when its thread has waited.
        let by = context.shared_access(warp, false);
        if context.shared_runs_writable(&dst, by) {
            return Ok(());
        }
        let vars = &context.program.shared_vars;
        for l in lanes(due) {
            context
                .shared
                .race_write(copy.dst[l], dst.bytes, l as u32, by, &[], vars)
                .map_err(|(kind, text)| context.fault(kind, copy.pc, warp.index, l as u32, text))?;
        }
        Ok(())
    }
}

impl Context<'_> {
    /// Issues a cp.async.
    pub fn copy_async(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        p: *mut u32,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = &self.program.copies[k as usize];
        // SAFETY: run_path passes the frames of the instruction.
        let (mut dst, mut src, ignore) = unsafe {
            let ignore = if op.ignore == u32::MAX {
                0
            } else {
                let v = *p.add((op.ignore >> 1) as usize);
                if op.ignore & 1 != 0 { !v } else { v }
            };
            (addresses(r, &op.dst), addresses(r, &op.src), ignore)
        };
        for d in &mut dst {
            if *d >> 32 == SHARED_WINDOW >> 32 {
                *d -= SHARED_WINDOW;
            }
        }
        for (space, part) in self.resolve(MemSpace::Global, &mut src, m) {
            debug_assert!(space == MemSpace::Global && (part == m || part == 0));
        }
        let mut take = [op.bytes; 32];
        for l in lanes(m) {
            if op.src_size != u32::MAX {
                // SAFETY: the size register lies inside the frame.
                take[l] = unsafe { *r.add(op.src_size as usize + l) };
            }
            if take[l] > op.bytes {
                let text = format!("source size {} is above the copy's {}", take[l], op.bytes);
                let kind = FindingKind::AsyncCopyMisuse;
                return Err(self.fault(kind, pc, warp.index, l as u32, text));
            }
            if ignore >> l & 1 != 0 {
                take[l] = 0;
            }
        }
        let index = self.access_index(AccessTable::Copy, k);
        let group = warp.commits;
        let copy = PendingCopies { lanes: m, group, dst, src, bytes: op.bytes, take, pc };
        // SAFETY: Issue checks what it touches.
        unsafe { at_level(Issue { context: self, warp, op, copy, index }) }
    }

    /// The checks of an issue lane by lane: names the lane at fault.
    #[inline(never)]
    fn check_copy(&self, warp: &Warp, copy: &PendingCopies, bytes: u64) -> Result<(), Fault> {
        let vars = &self.program.shared_vars;
        let by = self.shared_access(warp, false);
        let mut taken = Vec::new();
        for l in lanes(copy.lanes) {
            let (at, lane, pc) = (copy.dst[l], l as u32, copy.pc);
            self.shared
                .check_bounds(at, bytes, vars)
                .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
            if self.shared.is_pending(at, bytes) || taken.contains(&at) {
                let text = "the destination already awaits another cp.async".to_string();
                return Err(self.fault(FindingKind::AsyncCopyMisuse, pc, warp.index, lane, text));
            }
            taken.push(at);
            // Not even storing what is already there is let pass.
            self.shared
                .race_write(at, bytes, lane, by, &[], vars)
                .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
            let take = u64::from(copy.take[l]);
            if take > 0 {
                let mut a = [0; 32];
                a[l] = copy.src[l];
                let source = Reach::new(&a, 1 << l, take);
                self.check_lanes(warp.index, &source, false, self.accessor, pc)?;
            }
        }
        Ok(())
    }

    /// Does the copy of a lane; bytes past the source size are zero.
    ///
    /// # Safety
    /// Both ranges lie inside their memories.
    #[inline(always)]
    unsafe fn move_bytes(&self, copy: &PendingCopies, lane: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.shared.data().add(copy.dst[lane] as usize);
            let (n, bytes) = (copy.take[lane] as usize, copy.bytes as usize);
            let offset = copy.src[lane].wrapping_sub(GLOBAL_BASE) as usize;
            let from = self.memory.data().wrapping_add(offset);
            if n == 16 {
                std::ptr::copy_nonoverlapping(from, to, 16);
            } else {
                if n > 0 {
                    std::ptr::copy_nonoverlapping(from, to, n);
                }
                std::ptr::write_bytes(to.add(n), 0, bytes - n);
            }
        }
    }

    /// cp.async.wait_group `allowed`, or wait_all for a negative number.
    pub fn copy_wait(&mut self, warp: &mut Warp, m: u32, allowed: i64) -> Result<(), Fault> {
        let mut copies = std::mem::take(&mut warp.copies);
        for copy in &mut copies {
            let due = lanes(m & copy.lanes)
                .filter(|&l| {
                    let commits = i64::from(warp.commits[l]);
                    allowed < 0 || i64::from(copy.group[l]) < (commits - allowed).min(commits)
                })
                .fold(0, |due, l| due | 1 << l);
            if due != 0 {
                copy.lanes &= !due;
                // SAFETY: Land checks what it touches.
                unsafe { at_level(Land { context: self, warp, copy, due })? };
            }
        }
        copies.retain(|c| c.lanes != 0);
        warp.copies = copies;
        Ok(())
    }
}
