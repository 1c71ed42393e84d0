//! Global memory: bounds, initialisation, races between blocks, coalescing.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::access::{gather, scatter};
use super::addresses::{Pattern, lanes, sectors};
use super::state::{Context, Fault, Warp};
use crate::finding::FindingKind;
use crate::isa::MemOp;
use crate::memory::{
    GLOBAL_BASE, bits,
    race::{self, Conflict},
};

impl Context<'_> {
    /// A bad global range: out of bounds, freed, or uninitialised.
    #[cold]
    pub fn global_fault(&self, warp: u32, lane: u32, address: u64, bytes: u64, pc: u32) -> Fault {
        let offset = address.wrapping_sub(GLOBAL_BASE);
        let outside = self.memory.offset(address, bytes).is_none();
        // SAFETY: only looked at when the range is inside the reserved space.
        let bad = unsafe {
            if outside {
                Some(offset)
            } else {
                bits::first_other(self.memory.addressable_bits(), offset, bytes, true)
            }
        };
        if let Some(bad) = bad {
            let (freed, text) = self.memory.describe(GLOBAL_BASE.wrapping_add(bad));
            let kind = if freed { FindingKind::UseAfterFree } else { FindingKind::OutOfBounds };
            return self.fault(kind, pc, warp, lane, format!("access of {bytes} bytes: {text}"));
        }
        let first = self.memory.first_uninitialised(address, bytes).unwrap_or(address);
        let (_, text) = self.memory.describe(first);
        let text = format!("read of {bytes} bytes, never written: {text}");
        self.fault(FindingKind::UninitialisedGlobal, pc, warp, lane, text)
    }

    /// Decides whether a conflict is a race: order made by fences and atomics excuses it.
    pub fn judge(
        &self,
        conflict: Conflict,
        warp: u32,
        lane: u32,
        address: u64,
        pc: u32,
        what: &str,
    ) -> Result<(), Fault> {
        let (_, place) = self.memory.describe(address);
        let (kind, text) = match conflict {
            Conflict::Write(b) if self.known.contains(&b) => return Ok(()),
            Conflict::Read(b) if self.known.contains(&b) => return Ok(()),
            Conflict::Reads if !self.known.is_empty() => return Ok(()),
            Conflict::Write(b) => (
                FindingKind::GlobalRace,
                format!("{what} what block {} writes in the same launch: {place}", b - 1),
            ),
            Conflict::Read(b) => (
                FindingKind::GlobalRace,
                format!("{what} what block {} reads in the same launch: {place}", b - 1),
            ),
            Conflict::Reads => (
                FindingKind::GlobalRace,
                format!("{what} what several blocks read in the same launch: {place}"),
            ),
            Conflict::ReadOnly => (
                FindingKind::ReadOnlyWritten,
                format!("ld.global.nc of data written in the same launch: {place}"),
            ),
        };
        Err(self.fault(kind, pc, warp, lane, text))
    }

    /// Race bookkeeping of one lane's global access.
    pub fn race_lane(
        &self,
        warp: u32,
        lane: u32,
        address: u64,
        bytes: u64,
        write: bool,
        by: race::Accessor,
        pc: u32,
    ) -> Result<(), Fault> {
        let offset = address - GLOBAL_BASE;
        for word in offset / 4..(offset + bytes).div_ceil(4) {
            let first = offset.max(word * 4) - word * 4;
            let end = (offset + bytes).min(word * 4 + 4) - word * 4;
            let mask = ((1u64 << end) - 1) & !((1 << first) - 1);
            // SAFETY: bounds were checked; the table has an entry a word.
            let (entry, old) = unsafe {
                let entry = self.memory.race_entries().add(word as usize);
                (entry, *entry)
            };
            let (new, conflict) =
                if write { race::write(old, by, mask) } else { race::read(old, by, mask) };
            // SAFETY: as above.
            unsafe { *entry = new };
            if let Some(conflict) = conflict {
                let what = if write { "writes" } else { "reads" };
                self.judge(conflict, warp, lane, GLOBAL_BASE + word * 4, pc, what)?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub fn load_global(
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
        let by = race::Accessor { strong: op.strong, read_only: op.read_only, ..self.accessor };
        let asked = bytes * u64::from(m.count_ones());
        let sectors_now = match shape {
            Pattern::Consecutive(..) | Pattern::Uniform => {
                let first = m.trailing_zeros();
                let n = if let Pattern::Consecutive(_, n) = shape { n } else { 1 };
                let start = a[first as usize];
                let len = u64::from(n) * bytes;
                let ok = match self.memory.offset(start, len) {
                    // SAFETY: offset says the range is inside the reserved space.
                    Some(o) => unsafe { bits::all_set(self.memory.init_bits(), o, len) },
                    None => false,
                };
                if !ok {
                    return Err(self.find_bad_lane(warp, a, m, bytes, true, pc));
                }
                let offset = start - GLOBAL_BASE;
                // SAFETY: the range is initialised, so it is inside an allocation.
                unsafe {
                    let aligned = (offset | len) & 3 == 0 && !op.strong;
                    let entry = self.memory.race_entries().add((offset / 4) as usize);
                    if !aligned || race::read_words(entry, (len / 4) as usize, by) {
                        for l in lanes(m) {
                            self.race_lane(warp.index, l as u32, a[l], bytes, false, by, pc)?;
                        }
                    }
                }
                (start + len - 1) / 32 - start / 32 + 1
            }
            Pattern::Scattered => {
                for l in lanes(m) {
                    let ok = match self.memory.offset(a[l], bytes) {
                        // SAFETY: as above.
                        Some(o) => unsafe { bits::all_set(self.memory.init_bits(), o, bytes) },
                        None => false,
                    };
                    if !ok {
                        return Err(self.global_fault(warp.index, l as u32, a[l], bytes, pc));
                    }
                    self.race_lane(warp.index, l as u32, a[l], bytes, false, by, pc)?;
                }
                sectors(a, m, bytes)
            }
        };
        if op.strong {
            self.note_strong(a, m, false);
        }
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.sectors += sectors_now;
        count.bytes += asked;
        if bytes == 16 {
            count.bytes_128 += asked;
        }
        // SAFETY: every active lane's range was checked; registers lie inside the frame.
        unsafe {
            let data = self.memory.data().cast_const().wrapping_sub(GLOBAL_BASE as usize);
            gather(r, op, data, a, m, shape);
        }
        Ok(())
    }

    #[cold]
    fn find_bad_lane(
        &self,
        warp: &Warp,
        a: &[u64; 32],
        m: u32,
        bytes: u64,
        read: bool,
        pc: u32,
    ) -> Fault {
        let map = if read { self.memory.init_bits() } else { self.memory.addressable_bits() };
        let bad = lanes(m).find(|&l| match self.memory.offset(a[l], bytes) {
            // SAFETY: the range is inside the reserved space.
            Some(o) => unsafe { !bits::all_set(map, o, bytes) },
            None => true,
        });
        let l = bad.unwrap_or(0);
        self.global_fault(warp.index, l as u32, a[l], bytes, pc)
    }

    #[inline(always)]
    pub fn store_global(
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
        let by = race::Accessor { strong: op.strong, ..self.accessor };
        let asked = bytes * u64::from(m.count_ones());
        let sectors_now;
        if let Pattern::Consecutive(first, n) = shape {
            let start = a[first as usize];
            let len = u64::from(n) * bytes;
            let ok = match self.memory.offset(start, len) {
                // SAFETY: offset says the range is inside the reserved space.
                Some(o) => unsafe { bits::all_set(self.memory.addressable_bits(), o, len) },
                None => false,
            };
            if !ok {
                return Err(self.find_bad_lane(warp, a, m, bytes, false, pc));
            }
            let offset = start - GLOBAL_BASE;
            // SAFETY: the range is inside an allocation.
            unsafe {
                let aligned = (offset | len) & 3 == 0 && !op.strong;
                let entry = self.memory.race_entries().add((offset / 4) as usize);
                if !aligned || race::write_words(entry, (len / 4) as usize, by) {
                    for l in lanes(m) {
                        self.race_lane(warp.index, l as u32, a[l], bytes, true, by, pc)?;
                    }
                }
                bits::put(self.memory.init_bits(), offset, len, true);
            }
            sectors_now = (start + len - 1) / 32 - start / 32 + 1;
        } else {
            for l in lanes(m) {
                let ok = match self.memory.offset(a[l], bytes) {
                    // SAFETY: as above.
                    Some(o) => unsafe { bits::all_set(self.memory.addressable_bits(), o, bytes) },
                    None => false,
                };
                if !ok {
                    return Err(self.global_fault(warp.index, l as u32, a[l], bytes, pc));
                }
                self.race_lane(warp.index, l as u32, a[l], bytes, true, by, pc)?;
                // SAFETY: the range is inside an allocation.
                unsafe { bits::put(self.memory.init_bits(), a[l] - GLOBAL_BASE, bytes, true) };
            }
            sectors_now = sectors(a, m, bytes);
        }
        if op.strong {
            self.note_strong(a, m, true);
        }
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.sectors += sectors_now;
        count.bytes += asked;
        if bytes == 16 {
            count.bytes_128 += asked;
        }
        // SAFETY: every active lane's range was checked.
        unsafe {
            let data = self.memory.data().wrapping_sub(GLOBAL_BASE as usize);
            scatter(r, op, data, a, m, shape);
        }
        Ok(())
    }
}
