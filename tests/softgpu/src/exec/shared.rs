//! Shared memory: bounds, initialisation, races between threads, bank conflicts.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::access::{MAX_LANE_BYTES, gather, lane_bytes, scatter};
use super::addresses::{Pattern, lanes, wavefronts};
use super::state::{Context, Fault, Warp};
use crate::isa::MemOp;
use crate::memory::Access;

impl Context<'_> {
    /// The warp's standing in shared memory.
    #[inline(always)]
    pub fn shared_access<'w>(&self, warp: &'w Warp, strong: bool) -> Access<'w> {
        Access { warp: warp.index, clocks: &warp.clocks, safe: warp.safe, strong }
    }

    #[inline(always)]
    pub fn load_shared(
        &mut self,
        warp: &Warp,
        r: *mut u32,
        op: &MemOp,
        a: &[u64; 32],
        m: u32,
        pc: u32,
        index: usize,
    ) -> Result<(), Fault> {
        let bytes = u64::from(op.element * op.count);
        let shape = self.aligned_pattern(warp, a, m, bytes, pc)?;
        let vars = &self.program.shared_vars;
        let by = self.shared_access(warp, op.strong);
        let asked = bytes * u64::from(m.count_ones());
        let mut fast = false;
        let mut waves = 1;
        if let Pattern::Consecutive(0, n) = shape {
            let (start, len) = (a[0], u64::from(n) * bytes);
            if bytes >= 4
                && !op.strong
                && self.shared.check_bounds(start, len, vars).is_ok()
                && self.shared.check_init(start, len, vars).is_ok()
            {
                let shift = (bytes / 4).trailing_zeros();
                fast = self.shared.race_read_span(start, (len / 4) as usize, shift, by);
                waves = len.div_ceil(128);
            }
        }
        if !fast {
            for l in lanes(m) {
                let lane = l as u32;
                self.shared
                    .check_bounds(a[l], bytes, vars)
                    .and_then(|()| self.shared.check_init(a[l], bytes, vars))
                    .and_then(|()| self.shared.race_read(a[l], bytes, lane, by, vars))
                    .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
            }
            waves = if shape == Pattern::Uniform { 1 } else { wavefronts(a, m, bytes) };
        }
        self.count_shared(index, asked, waves, bytes);
        // SAFETY: every active lane's range was checked.
        unsafe { gather(r, op, self.shared.data().cast_const(), a, m, shape) };
        Ok(())
    }

    /// Counts a shared-memory request.
    pub fn count_shared(&mut self, index: usize, asked: u64, waves: u64, bytes: u64) {
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.bytes += asked;
        count.wavefronts += waves;
        count.ideal_wavefronts += asked.div_ceil(128);
        if bytes == 16 {
            count.bytes_128 += asked;
        }
    }

    #[inline(always)]
    pub fn store_shared(
        &mut self,
        warp: &Warp,
        r: *mut u32,
        op: &MemOp,
        a: &[u64; 32],
        m: u32,
        pc: u32,
        index: usize,
    ) -> Result<(), Fault> {
        let bytes = u64::from(op.element * op.count);
        let shape = self.aligned_pattern(warp, a, m, bytes, pc)?;
        let vars = &self.program.shared_vars;
        let by = self.shared_access(warp, op.strong);
        let asked = bytes * u64::from(m.count_ones());
        let mut waves = 1;
        if let Pattern::Consecutive(0, n) = shape {
            let (start, len) = (a[0], u64::from(n) * bytes);
            if bytes >= 4 && !op.strong && self.shared.check_bounds(start, len, vars).is_ok() {
                let shift = (bytes / 4).trailing_zeros();
                if self.shared.race_write_span(start, (len / 4) as usize, shift, by)
                    && self.shared.note_write(start, len, vars).is_ok()
                {
                    self.count_shared(index, asked, len.div_ceil(128), bytes);
                    // SAFETY: the range was checked.
                    unsafe { scatter(r, op, self.shared.data(), a, m, shape) };
                    return Ok(());
                }
            }
        }
        for l in lanes(m) {
            let lane = l as u32;
            let mut new = [0u8; MAX_LANE_BYTES];
            // SAFETY: registers lie inside the frame; each lane is written before the next is
            // checked, so that two lanes storing different values to one place are noticed.
            unsafe {
                lane_bytes(r, op, l, &mut new);
                let new = &new[..bytes as usize];
                self.shared
                    .check_bounds(a[l], bytes, vars)
                    .and_then(|()| self.shared.race_write(a[l], bytes, lane, by, new, vars))
                    .and_then(|()| self.shared.note_write(a[l], bytes, vars))
                    .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
                let to = self.shared.data().add(a[l] as usize);
                std::ptr::copy_nonoverlapping(new.as_ptr(), to, new.len());
            }
        }
        if shape != Pattern::Uniform {
            waves = wavefronts(a, m, bytes);
        }
        self.count_shared(index, asked, waves, bytes);
        Ok(())
    }
}
