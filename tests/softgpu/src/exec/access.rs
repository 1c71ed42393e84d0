//! Loads and stores with all their checks.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::state::{AccessTable, Context, Fault, Warp};
use crate::finding::FindingKind;
use crate::isa::{Addr, MemOp, MemSpace};
use crate::memory::{
    Access, GLOBAL_BASE, LOCAL_WINDOW, SHARED_WINDOW, bits,
    race::{self, Conflict},
};

/// Largest access of one lane.
const MAX_LANE_BYTES: usize = 32;

fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| m >> l & 1 != 0)
}

/// How the active lanes' addresses lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Lane l at first + l * bytes, active lanes without gaps: (first active lane, lanes).
    Consecutive(u32, u32),
    /// All at the same address.
    Uniform,
    /// Anything else.
    Scattered,
}

/// Classifies addresses.
#[inline(always)]
pub fn pattern(a: &[u64; 32], m: u32, bytes: u64) -> Pattern {
    let first = m.trailing_zeros();
    let run = m >> first;
    let base = a[first as usize].wrapping_sub(u64::from(first) * bytes);
    if run & run.wrapping_add(1) == 0 {
        let mut off = 0u64;
        if m == u32::MAX {
            for (l, &x) in a.iter().enumerate() {
                off |= x ^ base.wrapping_add(l as u64 * bytes);
            }
        } else {
            for l in lanes(m) {
                off |= a[l] ^ base.wrapping_add(l as u64 * bytes);
            }
        }
        if off == 0 {
            return Pattern::Consecutive(first, run.count_ones());
        }
    }
    if lanes(m).all(|l| a[l] == a[first as usize]) { Pattern::Uniform } else { Pattern::Scattered }
}

/// Distinct 32-byte sectors of scattered accesses.
pub fn sectors(a: &[u64; 32], m: u32, bytes: u64) -> u64 {
    let mut list = [0u64; 64];
    let mut n = 0;
    for l in lanes(m) {
        for s in a[l] / 32..=(a[l] + bytes - 1) / 32 {
            if n == 0 || (list[n - 1] != s && !list[..n].contains(&s)) {
                if n == 64 {
                    return 64;
                }
                list[n] = s;
                n += 1;
            }
        }
    }
    n as u64
}

/// Passes over the banks for the lanes' accesses; 8-byte lanes go in halves, 16-byte in quarters.
pub fn wavefronts(a: &[u64; 32], m: u32, bytes: u64) -> u64 {
    let group = match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    let mut total = 0;
    for g in (0..32).step_by(group) {
        let mut words = [[0u64; 8]; 32];
        let mut depth = [0usize; 32];
        let mut most = 0;
        for l in (g..g + group).filter(|l| m >> l & 1 != 0) {
            for w in a[l] / 4..=(a[l] + bytes - 1) / 4 {
                let bank = (w & 31) as usize;
                let d = depth[bank];
                if d < 8 && !words[bank][..d].contains(&w) {
                    words[bank][d] = w;
                    depth[bank] = d + 1;
                    most = most.max(d + 1);
                } else if d >= 8 && !words[bank].contains(&w) {
                    depth[bank] = d + 1;
                    most = most.max(d + 1);
                }
            }
        }
        total += most as u64;
    }
    total
}

impl Context<'_> {
    /// Addresses of all lanes.
    ///
    /// # Safety
    /// `r` starts the frame the operand was decoded for.
    #[inline(always)]
    pub unsafe fn addresses(&self, r: *const u32, addr: &Addr) -> [u64; 32] {
        let mut a = [addr.offset as u64; 32];
        if !addr.absolute {
            // SAFETY: the caller's promise.
            unsafe {
                if addr.wide {
                    let reg = r.add(addr.reg as usize).cast::<u64>();
                    for (l, x) in a.iter_mut().enumerate() {
                        *x = (*reg.add(l)).wrapping_add(addr.offset as u64);
                    }
                } else {
                    let reg = r.add(addr.reg as usize);
                    for (l, x) in a.iter_mut().enumerate() {
                        *x = u64::from(*reg.add(l)).wrapping_add(addr.offset as u64) & 0xffff_ffff;
                    }
                }
            }
        }
        a
    }

    /// Splits generic addresses by window: (space, lanes), addresses made relative.
    pub fn resolve(&self, space: MemSpace, a: &mut [u64; 32], m: u32) -> Vec<(MemSpace, u32)> {
        if space != MemSpace::Generic {
            let space = if space == MemSpace::Const { MemSpace::Global } else { space };
            return vec![(space, m)];
        }
        let (mut shared, mut local) = (0u32, 0u32);
        for l in lanes(m) {
            match a[l] >> 32 {
                x if x == SHARED_WINDOW >> 32 => {
                    shared |= 1 << l;
                    a[l] -= SHARED_WINDOW;
                }
                x if x == LOCAL_WINDOW >> 32 => {
                    local |= 1 << l;
                    a[l] -= LOCAL_WINDOW;
                }
                _ => {}
            }
        }
        let global = m & !shared & !local;
        [(MemSpace::Global, global), (MemSpace::Shared, shared), (MemSpace::Local, local)]
            .into_iter()
            .filter(|s| s.1 != 0)
            .collect()
    }

    pub fn load(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        at: usize,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = self.program.mems[k as usize];
        // SAFETY: run_path passes the frame of the instruction.
        let mut a = unsafe { self.addresses(r, &op.addr) };
        let index = self.access_index(AccessTable::Mem, k);
        match op.space {
            MemSpace::Global | MemSpace::Const => self.load_global(warp, r, &op, &a, m, pc, index),
            MemSpace::Shared => self.load_shared(warp, r, &op, &a, m, pc, index),
            _ => {
                for (space, part) in self.resolve(op.space, &mut a, m) {
                    match space {
                        MemSpace::Shared => self.load_shared(warp, r, &op, &a, part, pc, index)?,
                        MemSpace::Local => {
                            self.load_local(warp, r, at, &op, &a, part, pc, index)?
                        }
                        MemSpace::Param => self.load_param_at(warp, r, &op, &a, part, pc)?,
                        _ => self.load_global(warp, r, &op, &a, part, pc, index)?,
                    }
                }
                Ok(())
            }
        }
    }

    pub fn store(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        at: usize,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = self.program.mems[k as usize];
        // SAFETY: run_path passes the frame of the instruction.
        let mut a = unsafe { self.addresses(r, &op.addr) };
        let index = self.access_index(AccessTable::Mem, k);
        match op.space {
            MemSpace::Global => self.store_global(warp, r, &op, &a, m, pc, index),
            MemSpace::Shared => self.store_shared(warp, r, &op, &a, m, pc, index),
            _ => {
                for (space, part) in self.resolve(op.space, &mut a, m) {
                    match space {
                        MemSpace::Shared => self.store_shared(warp, r, &op, &a, part, pc, index)?,
                        MemSpace::Local => {
                            self.store_local(warp, r, at, &op, &a, part, pc, index)?
                        }
                        _ => self.store_global(warp, r, &op, &a, part, pc, index)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Alignment of every active lane.
    #[inline(always)]
    pub fn check_aligned(
        &self,
        warp: &Warp,
        a: &[u64; 32],
        m: u32,
        bytes: u64,
        pc: u32,
    ) -> Result<(), Fault> {
        let mut low = 0;
        if m == u32::MAX {
            for &x in a {
                low |= x;
            }
        } else {
            for l in lanes(m) {
                low |= a[l];
            }
        }
        if low & (bytes - 1) == 0 { Ok(()) } else { Err(self.misaligned(warp, a, m, bytes, pc)) }
    }

    #[cold]
    fn misaligned(&self, warp: &Warp, a: &[u64; 32], m: u32, bytes: u64, pc: u32) -> Fault {
        let l = lanes(m).find(|&l| a[l] & (bytes - 1) != 0).unwrap_or(0);
        let text = format!("address 0x{:x} is not a multiple of {bytes}", a[l]);
        self.fault(FindingKind::Misaligned, pc, warp.index, l as u32, text)
    }

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
    fn load_global(
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
        self.check_aligned(warp, a, m, bytes, pc)?;
        let by = race::Accessor { strong: op.strong, read_only: op.read_only, ..self.accessor };
        let shape = pattern(a, m, bytes);
        let asked = bytes * u64::from(m.count_ones());
        let sectors_now;
        match shape {
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
                    let aligned = offset % 4 == 0 && len % 4 == 0 && !op.strong && !op.read_only;
                    let entry = self.memory.race_entries().add((offset / 4) as usize);
                    if !aligned || race::read_words(entry, (len / 4) as usize, by) {
                        for l in lanes(m) {
                            self.race_lane(warp.index, l as u32, a[l], bytes, false, by, pc)?;
                        }
                    }
                }
                sectors_now = (start + len - 1) / 32 - start / 32 + 1;
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
                sectors_now = sectors(a, m, bytes);
            }
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
    fn store_global(
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
        self.check_aligned(warp, a, m, bytes, pc)?;
        let by = race::Accessor { strong: op.strong, ..self.accessor };
        let shape = pattern(a, m, bytes);
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
                let aligned = offset % 4 == 0 && len % 4 == 0 && !op.strong;
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

    /// The warp's standing in shared memory.
    #[inline(always)]
    pub fn shared_access<'w>(&self, warp: &'w Warp, strong: bool) -> Access<'w> {
        Access { warp: warp.index, clocks: &warp.clocks, safe: warp.safe, strong }
    }

    #[inline(always)]
    fn load_shared(
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
        self.check_aligned(warp, a, m, bytes, pc)?;
        let shape = pattern(a, m, bytes);
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
    fn store_shared(
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
        self.check_aligned(warp, a, m, bytes, pc)?;
        let shape = pattern(a, m, bytes);
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

    fn local_range(
        &self,
        warp: &Warp,
        at: usize,
        lane: usize,
        address: u64,
        bytes: u64,
        pc: u32,
    ) -> Result<usize, Fault> {
        let path = &warp.paths[at];
        let function = &self.program.functions[path.function as usize];
        let end = u64::from(path.local_base + function.local_bytes);
        if address.checked_add(bytes).is_none_or(|e| e > end) {
            let text = format!(
                "access of {bytes} bytes at byte {} of {} bytes of local memory",
                address.wrapping_sub(u64::from(path.local_base)) as i64,
                function.local_bytes
            );
            return Err(self.fault(FindingKind::OutOfBounds, pc, warp.index, lane as u32, text));
        }
        Ok((warp.index as usize * 32 + lane) * self.local_stride as usize + address as usize)
    }

    fn load_local(
        &mut self,
        warp: &Warp,
        r: *mut u32,
        at: usize,
        op: &MemOp,
        a: &[u64; 32],
        m: u32,
        pc: u32,
        index: usize,
    ) -> Result<(), Fault> {
        let bytes = u64::from(op.element * op.count);
        self.check_aligned(warp, a, m, bytes, pc)?;
        for l in lanes(m) {
            let at = self.local_range(warp, at, l, a[l], bytes, pc)?;
            let range = at..at + bytes as usize;
            if self.local_init[range.clone()].contains(&0) {
                let text =
                    format!("read of {bytes} bytes of local memory at 0x{:x}, never written", a[l]);
                return Err(self.fault(
                    FindingKind::UninitialisedLocal,
                    pc,
                    warp.index,
                    l as u32,
                    text,
                ));
            }
            // SAFETY: registers lie inside the frame; the slice holds the lane's bytes.
            unsafe { put_lane(r, op, l, self.local[range].as_ptr()) };
        }
        self.count_local(index, m, bytes);
        Ok(())
    }

    fn store_local(
        &mut self,
        warp: &Warp,
        r: *mut u32,
        at: usize,
        op: &MemOp,
        a: &[u64; 32],
        m: u32,
        pc: u32,
        index: usize,
    ) -> Result<(), Fault> {
        let bytes = u64::from(op.element * op.count);
        self.check_aligned(warp, a, m, bytes, pc)?;
        for l in lanes(m) {
            let at = self.local_range(warp, at, l, a[l], bytes, pc)?;
            let mut new = [0u8; MAX_LANE_BYTES];
            // SAFETY: registers lie inside the frame.
            unsafe { lane_bytes(r, op, l, &mut new) };
            let range = at..at + bytes as usize;
            self.local_init[range.clone()].fill(1);
            self.local[range].copy_from_slice(&new[..bytes as usize]);
        }
        self.count_local(index, m, bytes);
        Ok(())
    }

    fn count_local(&mut self, index: usize, m: u32, bytes: u64) {
        // Local memory is interleaved by lane: each 4-byte word of a warp is four sectors.
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.bytes += bytes * u64::from(m.count_ones());
        count.sectors += 4 * bytes.div_ceil(4);
    }

    /// ld.param at a fixed place.
    pub fn load_param(
        &mut self,
        r: *mut u32,
        k: u32,
        m: u32,
        warp: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = self.program.param_loads[k as usize];
        let end = u64::from(op.offset) + u64::from(op.element * op.count);
        if end > self.params.len() as u64 {
            let text = format!("parameter byte {end} of {}", self.params.len());
            return Err(self.fault(FindingKind::OutOfBounds, pc, warp, 0, text));
        }
        for k in 0..op.count as usize {
            let at = op.offset as usize + k * op.element as usize;
            let mut raw = [0u8; 8];
            raw[..op.element as usize].copy_from_slice(&self.params[at..at + op.element as usize]);
            let value = extend(u64::from_le_bytes(raw), op.element, op.signed);
            if op.regs[k] == u32::MAX {
                continue;
            }
            // SAFETY: the destination lies inside the frame.
            unsafe {
                let d = r.add(op.regs[k] as usize);
                for l in lanes(m) {
                    if op.wide {
                        *d.cast::<u64>().add(l) = value;
                    } else {
                        *d.add(l) = value as u32;
                    }
                }
            }
        }
        Ok(())
    }

    /// ld.param through a register.
    fn load_param_at(
        &mut self,
        warp: &Warp,
        r: *mut u32,
        op: &MemOp,
        a: &[u64; 32],
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let bytes = u64::from(op.element * op.count);
        self.check_aligned(warp, a, m, bytes, pc)?;
        for l in lanes(m) {
            let end = a[l].saturating_add(bytes);
            if end > self.params.len() as u64 {
                let text = format!("parameter byte {end} of {}", self.params.len());
                return Err(self.fault(FindingKind::OutOfBounds, pc, warp.index, l as u32, text));
            }
            // SAFETY: the range was checked; registers lie inside the frame.
            unsafe { put_lane(r, op, l, self.params.as_ptr().add(a[l] as usize)) };
        }
        Ok(())
    }
}

/// Widens a loaded element.
#[inline(always)]
fn extend(value: u64, bytes: u32, signed: bool) -> u64 {
    if !signed || bytes == 8 {
        return value;
    }
    let shift = 64 - 8 * bytes;
    ((value << shift) as i64 >> shift) as u64
}

/// Moves one lane's elements from memory to registers.
///
/// # Safety
/// `from` holds the lane's bytes; the registers lie inside the frame.
unsafe fn put_lane(r: *mut u32, op: &MemOp, lane: usize, from: *const u8) {
    for k in 0..op.count as usize {
        if op.regs[k] == u32::MAX {
            continue;
        }
        // SAFETY: the caller's promise.
        unsafe {
            let p = from.add(k * op.element as usize);
            let value = match op.element {
                1 => u64::from(*p),
                2 => u64::from(p.cast::<u16>().read_unaligned()),
                4 => u64::from(p.cast::<u32>().read_unaligned()),
                _ => p.cast::<u64>().read_unaligned(),
            };
            let value = extend(value, op.element, op.signed);
            let d = r.add(op.regs[k] as usize);
            if op.wide {
                *d.cast::<u64>().add(lane) = value;
            } else {
                *d.add(lane) = value as u32;
            }
        }
    }
}

/// Collects the bytes one lane stores.
///
/// # Safety
/// The registers lie inside the frame.
unsafe fn lane_bytes(r: *const u32, op: &MemOp, lane: usize, out: &mut [u8; MAX_LANE_BYTES]) {
    let n = op.element as usize;
    for k in 0..op.count as usize {
        // SAFETY: the caller's promise.
        let value = unsafe {
            let s = r.add(op.regs[k] as usize);
            if op.wide { *s.cast::<u64>().add(lane) } else { u64::from(*s.add(lane)) }
        };
        out[k * n..k * n + n].copy_from_slice(&value.to_le_bytes()[..n]);
    }
}

/// Memory to registers. `data` plus an address is the host place of that address.
#[inline(always)]
unsafe fn gather(r: *mut u32, op: &MemOp, data: *const u8, a: &[u64; 32], m: u32, shape: Pattern) {
    // SAFETY: the caller checked every active lane's range.
    unsafe {
        let whole = m == u32::MAX && shape == Pattern::Consecutive(0, 32);
        if whole && op.element == 4 && !op.wide {
            let from = data.wrapping_add(a[0] as usize).cast::<u32>();
            let n = op.count as usize;
            for k in 0..n {
                if op.regs[k] == u32::MAX {
                    continue;
                }
                let d = r.add(op.regs[k] as usize);
                if n == 1 {
                    std::ptr::copy_nonoverlapping(from, d, 32);
                } else {
                    for l in 0..32 {
                        *d.add(l) = *from.add(l * n + k);
                    }
                }
            }
            return;
        }
        if whole && op.element == 2 && op.count == 1 && !op.wide && !op.signed {
            let from = data.wrapping_add(a[0] as usize).cast::<u16>();
            let d = r.add(op.regs[0] as usize);
            for l in 0..32 {
                *d.add(l) = u32::from(*from.add(l));
            }
            return;
        }
        for l in lanes(m) {
            put_lane(r, op, l, data.wrapping_add(a[l] as usize));
        }
    }
}

/// Registers to memory.
#[inline(always)]
unsafe fn scatter(r: *const u32, op: &MemOp, data: *mut u8, a: &[u64; 32], m: u32, shape: Pattern) {
    // SAFETY: the caller checked every active lane's range.
    unsafe {
        let whole = m == u32::MAX && shape == Pattern::Consecutive(0, 32);
        if whole && op.element == 4 {
            let to = data.wrapping_add(a[0] as usize).cast::<u32>();
            let n = op.count as usize;
            for k in 0..n {
                let s = r.add(op.regs[k] as usize);
                if n == 1 {
                    std::ptr::copy_nonoverlapping(s, to, 32);
                } else {
                    for l in 0..32 {
                        *to.add(l * n + k) = *s.add(l);
                    }
                }
            }
            return;
        }
        for l in lanes(m) {
            let mut bytes = [0u8; MAX_LANE_BYTES];
            lane_bytes(r, op, l, &mut bytes);
            let to = data.wrapping_add(a[l] as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, (op.element * op.count) as usize);
        }
    }
}
