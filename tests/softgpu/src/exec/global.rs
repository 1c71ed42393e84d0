//! Global memory: bounds, initialisation, races between blocks, coalescing.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::access::{Site, gather, scatter};
use super::addresses::{Reach, lanes};
use super::state::{Context, Fault, Warp};
use crate::finding::FindingKind;
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
            let mask = race::word_mask(word, offset, bytes);
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

    /// Bounds, initialisation and races of a read by runs of neighbouring lanes; false when a lane
    /// may be at fault.
    #[inline(always)]
    pub fn readable_runs(&self, reach: &Reach<'_>, by: race::Accessor) -> bool {
        let (init, entries) = (self.memory.init_bits(), self.memory.race_entries());
        for run in reach.runs() {
            let Some(o) = self.memory.offset(run.start, run.len) else { return false };
            // SAFETY: offset says the range is inside the reserved space.
            let ok = unsafe {
                bits::all_set(init, o, run.len) && race::read_range(entries, o, run.len, by)
            };
            if !ok {
                return false;
            }
        }
        true
    }

    /// As [`Self::readable_runs`], for a write, which initialises.
    #[inline(always)]
    fn writable_runs(&self, reach: &Reach<'_>, by: race::Accessor) -> bool {
        let (bounds, entries) = (self.memory.addressable_bits(), self.memory.race_entries());
        for run in reach.runs() {
            let Some(o) = self.memory.offset(run.start, run.len) else { return false };
            // SAFETY: offset says the range is inside the reserved space.
            unsafe {
                if !bits::all_set(bounds, o, run.len) || !race::write_range(entries, o, run.len, by)
                {
                    return false;
                }
                bits::put(self.memory.init_bits(), o, run.len, true);
            }
        }
        true
    }

    /// The same checks lane by lane: names the lane at fault, or finds that order excuses it.
    #[cold]
    pub fn check_lanes(
        &self,
        warp: u32,
        reach: &Reach<'_>,
        write: bool,
        by: race::Accessor,
        pc: u32,
    ) -> Result<(), Fault> {
        let map = if write { self.memory.addressable_bits() } else { self.memory.init_bits() };
        for l in lanes(reach.m) {
            let (address, lane) = (reach.a[l], l as u32);
            let ok = match self.memory.offset(address, reach.bytes) {
                // SAFETY: the range is inside the reserved space.
                Some(o) => unsafe { bits::all_set(map, o, reach.bytes) },
                None => false,
            };
            if !ok {
                return Err(self.global_fault(warp, lane, address, reach.bytes, pc));
            }
            self.race_lane(warp, lane, address, reach.bytes, write, by, pc)?;
            if write {
                let offset = address - GLOBAL_BASE;
                // SAFETY: the range is inside an allocation.
                unsafe { bits::put(self.memory.init_bits(), offset, reach.bytes, true) };
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub fn load_global(
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
        let by = race::Accessor { strong: op.strong, read_only: op.read_only, ..self.accessor };
        if !self.readable_runs(&reach, by) {
            self.check_lanes(warp.index, &reach, false, by, pc)?;
        }
        if op.strong {
            self.note_strong(a, m, false);
        }
        self.count_global(index, &reach, op.bytes() * u64::from(m.count_ones()));
        // SAFETY: every active lane's range was checked; registers lie inside the frame.
        unsafe {
            let data = self.memory.data().cast_const().wrapping_sub(GLOBAL_BASE as usize);
            gather(r, op, data, &reach);
        }
        Ok(())
    }

    #[inline(always)]
    pub fn store_global(
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
        let by = race::Accessor { strong: op.strong, ..self.accessor };
        if !self.writable_runs(&reach, by) {
            self.check_lanes(warp.index, &reach, true, by, pc)?;
        }
        if op.strong {
            self.note_strong(a, m, true);
        }
        self.count_global(index, &reach, op.bytes() * u64::from(m.count_ones()));
        // SAFETY: every active lane's range was checked; registers lie inside the frame.
        unsafe {
            let data = self.memory.data().wrapping_sub(GLOBAL_BASE as usize);
            scatter(r, op, data, &reach);
        }
        Ok(())
    }
}
