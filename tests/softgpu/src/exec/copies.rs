//! cp.async: issued copies land when they are waited for (late) or at once (eager); until the wait
//! the destination is out of bounds for everyone.
#![allow(unsafe_code)] // Memory and registers are raw.

use super::addresses::{addresses, lanes, sectors};
use super::state::{AccessTable, Context, Fault, PendingCopy, Warp};
use crate::finding::FindingKind;
use crate::isa::MemSpace;
use crate::memory::{GLOBAL_BASE, SHARED_WINDOW, bits};

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
        let op = self.program.copies[k as usize];
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
            debug_assert!(space == MemSpace::Global && part == m);
        }
        let bytes = u64::from(op.bytes);
        self.aligned_pattern(warp, &dst, m, bytes, pc)?;
        let vars = &self.program.shared_vars;
        let mut read = 0u32;
        let mut asked = 0;
        for l in lanes(m) {
            let lane = l as u32;
            // SAFETY: the size register lies inside the frame.
            let mut take = if op.src_size == u32::MAX {
                op.bytes
            } else {
                unsafe { *r.add(op.src_size as usize + l) }
            };
            if take > op.bytes {
                let text = format!("source size {take} is above the copy's {}", op.bytes);
                return Err(self.fault(FindingKind::AsyncCopyMisuse, pc, warp.index, lane, text));
            }
            if ignore >> l & 1 != 0 {
                take = 0;
            }
            self.shared
                .check_bounds(dst[l], bytes, vars)
                .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
            if self.shared.is_pending(dst[l], bytes) {
                let text = "the destination already awaits another cp.async".to_string();
                return Err(self.fault(FindingKind::AsyncCopyMisuse, pc, warp.index, lane, text));
            }
            // The bytes may change at any moment from here to the wait, so whoever touched them
            // last must be ordered before the issue.
            let by = self.shared_access(warp, false);
            let mut marker = [0u8; 16];
            marker[0] = 1;
            self.shared
                .race_write(dst[l], bytes, lane, by, &marker[..bytes as usize], vars)
                .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
            if take > 0 {
                read |= 1 << l;
                asked += u64::from(take);
                if src[l] % bytes != 0 {
                    let text = format!("source 0x{:x} is not a multiple of {bytes}", src[l]);
                    return Err(self.fault(FindingKind::Misaligned, pc, warp.index, lane, text));
                }
                self.check_source(warp, lane, src[l], u64::from(take), pc)?;
            }
            self.shared.set_pending(dst[l], bytes, true);
            let copy = PendingCopy {
                lane,
                group: warp.commits[l],
                dst: dst[l] as u32,
                src: src[l],
                bytes: op.bytes,
                from_source: take,
                pc,
            };
            if self.eager_copies {
                // SAFETY: both ranges were checked.
                unsafe { self.move_bytes(&copy) };
            }
            warp.copies.push(copy);
        }
        let index = self.access_index(AccessTable::Copy, k);
        let sectors_now = if read == 0 { 0 } else { sectors(&src, read, bytes) };
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.bytes += asked;
        count.sectors += sectors_now;
        if bytes == 16 {
            count.bytes_128 += asked;
        }
        Ok(())
    }

    fn check_source(
        &mut self,
        warp: &Warp,
        lane: u32,
        address: u64,
        bytes: u64,
        pc: u32,
    ) -> Result<(), Fault> {
        let ok = match self.memory.offset(address, bytes) {
            // SAFETY: the range is inside the reserved space.
            Some(o) => unsafe { bits::all_set(self.memory.init_bits(), o, bytes) },
            None => false,
        };
        if !ok {
            return Err(self.global_fault(warp.index, lane, address, bytes, pc));
        }
        self.race_lane(warp.index, lane, address, bytes, false, self.accessor, pc)
    }

    /// Does the copy; bytes past the source size are zero.
    ///
    /// # Safety
    /// Both ranges lie inside their memories.
    unsafe fn move_bytes(&self, copy: &PendingCopy) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.shared.data().add(copy.dst as usize);
            let n = copy.from_source as usize;
            if n > 0 {
                let from = self.memory.data().add((copy.src - GLOBAL_BASE) as usize);
                std::ptr::copy_nonoverlapping(from, to, n);
            }
            std::ptr::write_bytes(to.add(n), 0, copy.bytes as usize - n);
        }
    }

    /// cp.async.wait_group `allowed`, or wait_all for a negative number.
    pub fn copy_wait(&mut self, warp: &mut Warp, m: u32, allowed: i64) -> Result<(), Fault> {
        let mut left = Vec::with_capacity(warp.copies.len());
        for copy in std::mem::take(&mut warp.copies) {
            let l = copy.lane as usize;
            let commits = i64::from(warp.commits[l]);
            let due = m >> l & 1 != 0
                && (allowed < 0 || i64::from(copy.group) < (commits - allowed).min(commits));
            if !due {
                left.push(copy);
                continue;
            }
            if !self.eager_copies {
                let source_ok = copy.from_source == 0
                    || self.memory.contains(copy.src, u64::from(copy.from_source));
                if !source_ok {
                    return Err(self.global_fault(
                        warp.index,
                        copy.lane,
                        copy.src,
                        u64::from(copy.from_source),
                        copy.pc,
                    ));
                }
                // SAFETY: the destination was checked at issue, the source just now.
                unsafe { self.move_bytes(&copy) };
            }
            self.shared.set_pending(u64::from(copy.dst), u64::from(copy.bytes), false);
            // The write happens for others when its thread has waited.
            let by = self.shared_access(warp, false);
            let vars = &self.program.shared_vars;
            self.shared
                .race_write(u64::from(copy.dst), u64::from(copy.bytes), copy.lane, by, &[], vars)
                .map_err(|(kind, text)| self.fault(kind, copy.pc, warp.index, copy.lane, text))?;
        }
        warp.copies = left;
        Ok(())
    }
}
