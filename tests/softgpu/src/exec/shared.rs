//! Shared memory: bounds, initialisation, races between threads, bank conflicts.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::access::{MAX_LANE_BYTES, Site, gather, lane_bytes, scatter};
use super::addresses::{Reach, Run, lanes, wavefronts};
use super::pattern::{Pattern, Plan};
use super::state::{Context, Fault, Warp};
use crate::memory::{Access, Listed, Sharing, WordLanes};

/// Calls `$f` with the number of words, as a constant where lanes that stand alone have it, so that
/// their loops are unrolled.
macro_rules! by_words {
    ($words:expr, |$n:ident| $call:expr) => {
        match $words {
            1 => {
                let $n = 1;
                $call
            }
            4 => {
                let $n = 4;
                $call
            }
            $n => $call,
        }
    };
}

/// How a run's words belong to its lanes; none where it does not consist of whole words.
#[inline(always)]
fn word_lanes(run: &Run, bytes: u64) -> Option<WordLanes> {
    let first = run.lane;
    if bytes >= 4 {
        let sharing = if run.shared { Sharing::All } else { Sharing::None };
        return Some(WordLanes { first, shift: (bytes / 4).trailing_zeros(), step: 1, sharing });
    }
    let halves = bytes == 2 && !run.shared && (run.start | run.len) & 3 == 0;
    halves.then_some(WordLanes { first, shift: 0, step: 2, sharing: Sharing::Halves })
}

impl Context<'_> {
    /// The warp's standing in shared memory.
    #[inline(always)]
    pub fn shared_access<'w>(&self, warp: &'w Warp, strong: bool) -> Access<'w> {
        Access { warp: warp.index, clocks: &warp.clocks, safe: warp.safe, strong }
    }

    /// All checks of a read of a run's whole words; false when the check lane by lane has to look.
    #[inline(always)]
    fn shared_run_readable(&self, run: &Run, bytes: u64, by: Access<'_>) -> bool {
        let Some(lanes) = word_lanes(run, bytes) else { return false };
        self.shared.is_readable(run.start, run.len)
            && by_words!((run.len / 4) as usize, |n| {
                // SAFETY: what is readable lies inside the bounds.
                unsafe { self.shared.read_words(run.start, n, lanes, by) }
            })
    }

    /// As [`Self::shared_run_readable`], for writes. Marks no byte as written.
    #[inline(always)]
    fn shared_run_writable(&self, run: &Run, bytes: u64, by: Access<'_>) -> bool {
        let Some(lanes) = word_lanes(run, bytes) else { return false };
        !run.shared
            && self.shared.is_writable(run.start, run.len)
            && by_words!((run.len / 4) as usize, |n| {
                // SAFETY: what is writable lies inside the bounds.
                unsafe { self.shared.write_words(run.start, n, lanes, by) }
            })
    }

    /// As [`Self::shared_run_readable`], for all runs.
    #[inline(always)]
    fn shared_runs_readable(&self, reach: &Reach<'_>, by: Access<'_>) -> bool {
        for run in reach.runs() {
            if !self.shared_run_readable(&run, reach.bytes, by) {
                return false;
            }
        }
        true
    }

    /// As [`Self::shared_run_writable`], for all runs.
    #[inline(always)]
    pub fn shared_runs_writable(&self, reach: &Reach<'_>, by: Access<'_>) -> bool {
        for run in reach.runs() {
            if !self.shared_run_writable(&run, reach.bytes, by) {
                return false;
            }
        }
        true
    }

    /// As [`Self::shared_runs_readable`] for a plan at `origin`.
    #[inline(always)]
    pub fn shared_plan_readable(&self, plan: &Plan, origin: u64, by: Access<'_>) -> bool {
        for span in &plan.spans {
            let start = origin.wrapping_add(span.delta);
            if !self.shared.is_readable(start, 4 * span.words as u64) {
                return false;
            }
            let lanes = Listed(&plan.lanes[span.first..span.first + span.words]);
            let ok = by_words!(span.words, |n| {
                // SAFETY: what is readable lies inside the bounds.
                unsafe { self.shared.read_words(start, n, lanes, by) }
            });
            if !ok {
                return false;
            }
        }
        true
    }

    /// As [`Self::shared_plan_readable`], for writes.
    #[inline(always)]
    fn shared_plan_writable(&self, plan: &Plan, origin: u64, by: Access<'_>) -> bool {
        if plan.overlaps {
            return false;
        }
        for span in &plan.spans {
            let start = origin.wrapping_add(span.delta);
            if !self.shared.is_writable(start, 4 * span.words as u64) {
                return false;
            }
            let lanes = Listed(&plan.lanes[span.first..span.first + span.words]);
            let ok = by_words!(span.words, |n| {
                // SAFETY: what is writable lies inside the bounds.
                unsafe { self.shared.write_words(start, n, lanes, by) }
            });
            if !ok {
                return false;
            }
        }
        true
    }

    /// Passes over the banks and the quick check of an access, by its plan when the pattern is the
    /// last execution's, else by runs.
    #[inline(always)]
    fn shared_access_checked(
        &mut self,
        index: usize,
        reach: &Reach<'_>,
        by: Access<'_>,
        write: bool,
    ) -> (u64, bool) {
        let Reach { a, m, bytes, .. } = *reach;
        if by.strong {
            return (wavefronts(a, m, bytes), false);
        }
        if let Some(run) = reach.only_run()
            && (run.shared || run.lane == 0)
        {
            let ok = if write {
                self.shared_run_writable(&run, bytes, by)
            } else {
                self.shared_run_readable(&run, bytes, by)
            };
            return (if run.shared { 1 } else { run.len.div_ceil(128) }, ok);
        }
        let mut slot = self.patterns[index].take();
        // Moving all addresses by whole words only turns the banks.
        let known = Pattern::recall(&mut slot, a, m, 3, || wavefronts(a, m, bytes));
        let waves = slot.as_ref().map_or(0, |p| p.count);
        let ok = match slot.as_mut() {
            Some(pattern) if known && bytes >= 4 => {
                let plan = pattern.plan((bytes / 4) as u32, |lane, _| lane);
                let origin = a[(m.trailing_zeros() & 31) as usize];
                if write {
                    self.shared_plan_writable(plan, origin, by)
                } else {
                    self.shared_plan_readable(plan, origin, by)
                }
            }
            _ if write => self.shared_runs_writable(reach, by),
            _ => self.shared_runs_readable(reach, by),
        };
        self.patterns[index] = slot;
        (waves, ok)
    }

    #[inline(always)]
    pub fn load_shared(
        &mut self,
        warp: &Warp,
        site: &Site<'_>,
        a: &[u64; 32],
        m: u32,
    ) -> Result<(), Fault> {
        let Site { r, op, pc, index, .. } = *site;
        let reach = Reach::new(a, m, op.bytes());
        if reach.misaligned != 0 {
            return Err(self.misaligned(warp, &reach, pc));
        }
        let by = self.shared_access(warp, op.strong);
        let (waves, ok) = self.shared_access_checked(index, &reach, by, false);
        if !ok {
            self.check_shared_read(warp, &reach, by, pc)?;
        }
        self.count_shared(index, &reach, waves);
        // SAFETY: every active lane's range was checked.
        unsafe { gather(r, op, self.shared.data().cast_const(), &reach) };
        Ok(())
    }

    /// The checks of a read lane by lane: names the lane at fault.
    #[inline(never)]
    fn check_shared_read(
        &self,
        warp: &Warp,
        reach: &Reach<'_>,
        by: Access<'_>,
        pc: u32,
    ) -> Result<(), Fault> {
        let vars = &self.program.shared_vars;
        for l in lanes(reach.m) {
            let (at, lane) = (reach.a[l], l as u32);
            self.shared
                .check_bounds(at, reach.bytes, vars)
                .and_then(|()| self.shared.check_init(at, reach.bytes, vars))
                .and_then(|()| self.shared.race_read(at, reach.bytes, lane, by, vars))
                .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
        }
        Ok(())
    }

    #[inline(always)]
    pub fn store_shared(
        &mut self,
        warp: &Warp,
        site: &Site<'_>,
        a: &[u64; 32],
        m: u32,
    ) -> Result<(), Fault> {
        let Site { r, op, pc, index, .. } = *site;
        let reach = Reach::new(a, m, op.bytes());
        if reach.misaligned != 0 {
            return Err(self.misaligned(warp, &reach, pc));
        }
        let by = self.shared_access(warp, op.strong);
        let (waves, ok) = self.shared_access_checked(index, &reach, by, true);
        self.count_shared(index, &reach, waves);
        if !ok {
            return self.store_shared_by_lane(warp, site, &reach, by);
        }
        for run in reach.runs() {
            self.shared.mark_written(run.start, run.len);
        }
        // SAFETY: every active lane's range was checked.
        unsafe { scatter(r, op, self.shared.data(), &reach) };
        Ok(())
    }

    /// Each lane is written before the next is checked, so that two lanes storing different values
    /// to one place are noticed.
    #[inline(never)]
    fn store_shared_by_lane(
        &self,
        warp: &Warp,
        site: &Site<'_>,
        reach: &Reach<'_>,
        by: Access<'_>,
    ) -> Result<(), Fault> {
        let vars = &self.program.shared_vars;
        for l in lanes(reach.m) {
            let (at, lane) = (reach.a[l], l as u32);
            let mut new = [0u8; MAX_LANE_BYTES];
            // SAFETY: registers lie inside the frame.
            unsafe { lane_bytes(site.r, site.op, l, &mut new) };
            let new = &new[..reach.bytes as usize];
            self.shared
                .check_bounds(at, reach.bytes, vars)
                .and_then(|()| self.shared.race_write(at, reach.bytes, lane, by, new, vars))
                .and_then(|()| self.shared.note_write(at, reach.bytes, vars))
                .map_err(|(kind, text)| self.fault(kind, site.pc, warp.index, lane, text))?;
            // SAFETY: the bounds were checked.
            unsafe {
                let to = self.shared.data().add(at as usize);
                std::ptr::copy_nonoverlapping(new.as_ptr(), to, new.len());
            }
        }
        Ok(())
    }
}
