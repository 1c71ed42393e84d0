//! Shared memory: bounds, initialisation, races between threads, bank conflicts.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::access::{MAX_LANE_BYTES, Site, gather, lane_bytes, scatter};
use super::addresses::{Reach, lanes};
use super::state::{Context, Fault, Warp};
use crate::memory::{Access, WordLanes};

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

impl Context<'_> {
    /// The warp's standing in shared memory.
    #[inline(always)]
    pub fn shared_access<'w>(&self, warp: &'w Warp, strong: bool) -> Access<'w> {
        Access { warp: warp.index, clocks: &warp.clocks, safe: warp.safe, strong }
    }

    /// All checks of a read of whole words by runs of neighbouring lanes; false when the check lane
    /// by lane has to look.
    #[inline(always)]
    fn shared_runs_readable(&self, reach: &Reach<'_>, by: Access<'_>) -> bool {
        if reach.bytes < 4 || by.strong {
            return false;
        }
        let shift = (reach.bytes / 4).trailing_zeros();
        for run in reach.runs() {
            let lanes = WordLanes { first: run.lane, shift, step: 1, several: run.shared };
            if !self.shared.is_readable(run.start, run.len) {
                return false;
            }
            let ok = by_words!((run.len / 4) as usize, |n| {
                // SAFETY: what is readable lies inside the bounds.
                unsafe { self.shared.read_words(run.start, n, lanes, by) }
            });
            if !ok {
                return false;
            }
        }
        true
    }

    /// As [`Self::shared_runs_readable`], for writes. Marks no byte as written.
    #[inline(always)]
    pub fn shared_runs_writable(&self, reach: &Reach<'_>, by: Access<'_>) -> bool {
        if reach.bytes < 4 || by.strong {
            return false;
        }
        let shift = (reach.bytes / 4).trailing_zeros();
        for run in reach.runs() {
            let lanes = WordLanes { first: run.lane, shift, step: 1, several: false };
            if run.shared || !self.shared.is_writable(run.start, run.len) {
                return false;
            }
            let ok = by_words!((run.len / 4) as usize, |n| {
                // SAFETY: what is writable lies inside the bounds.
                unsafe { self.shared.write_words(run.start, n, lanes, by) }
            });
            if !ok {
                return false;
            }
        }
        true
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
        if !self.shared_runs_readable(&reach, by) {
            self.check_shared_read(warp, &reach, by, pc)?;
        }
        self.count_shared(index, &reach);
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
        self.count_shared(index, &reach);
        if !self.shared_runs_writable(&reach, by) {
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
