//! Loads and stores: which space, then between memory and registers.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::addresses::{Reach, addresses, lanes, sectors};
use super::pattern::Pattern;
use super::state::{AccessTable, Context, Fault, Warp};
use crate::finding::FindingKind;
use crate::isa::lanes::{Leveled, at_level};
use crate::isa::{MemOp, MemSpace};
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW};

/// Largest access of one lane.
pub const MAX_LANE_BYTES: usize = 32;

/// An executing load or store: whose registers, which lanes, where in the program and the counters.
#[derive(Clone, Copy)]
pub struct Site<'p> {
    /// The frame.
    pub r: *mut u32,
    /// The path's number in the warp.
    pub path: usize,
    /// The instruction.
    pub op: &'p MemOp,
    /// Its position.
    pub pc: u32,
    /// Its counter.
    pub index: usize,
}

/// A load or store of a warp, compiled for every level.
struct Transfer<'c, 'p, 'w> {
    context: &'c mut Context<'p>,
    warp: &'w mut Warp,
    site: &'w Site<'p>,
    m: u32,
    store: bool,
}

impl Leveled for Transfer<'_, '_, '_> {
    type Out = Result<(), Fault>;

    #[inline(always)]
    unsafe fn run(self) -> Result<(), Fault> {
        let Transfer { context, warp, site, m, store } = self;
        // SAFETY: run_path passes the frame of the instruction.
        let mut a = unsafe { addresses(site.r, &site.op.addr) };
        match (site.op.space, store) {
            (MemSpace::Global | MemSpace::Const, false) => context.load_global(warp, site, &a, m),
            (MemSpace::Global, true) => context.store_global(warp, site, &a, m),
            (MemSpace::Shared, false) => context.load_shared(warp, site, &a, m),
            (MemSpace::Shared, true) => context.store_shared(warp, site, &a, m),
            (space, _) => {
                for (space, part) in context.resolve(space, &mut a, m) {
                    if part != 0 {
                        context.transfer_in(warp, site, &a, part, space, store)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl<'p> Context<'p> {
    /// Splits generic addresses by window, making them relative: spaces and their lanes.
    #[inline(always)]
    pub fn resolve(&self, space: MemSpace, a: &mut [u64; 32], m: u32) -> [(MemSpace, u32); 3] {
        if space != MemSpace::Generic {
            let space = if space == MemSpace::Const { MemSpace::Global } else { space };
            return [(space, m), (space, 0), (space, 0)];
        }
        let (mut shared, mut local) = (0u32, 0u32);
        for (l, a) in a.iter_mut().enumerate() {
            let window = *a & !0xffff_ffff;
            let (in_shared, in_local) = (window == SHARED_WINDOW, window == LOCAL_WINDOW);
            shared |= u32::from(in_shared) << l;
            local |= u32::from(in_local) << l;
            *a = if in_shared | in_local { *a & 0xffff_ffff } else { *a };
        }
        [
            (MemSpace::Global, m & !shared & !local),
            (MemSpace::Shared, m & shared),
            (MemSpace::Local, m & local),
        ]
    }

    /// One space's part of a generic access, counted in the space it turned out to be in.
    #[inline(never)]
    fn transfer_in(
        &mut self,
        warp: &mut Warp,
        site: &Site<'p>,
        a: &[u64; 32],
        m: u32,
        space: MemSpace,
        store: bool,
    ) -> Result<(), Fault> {
        let n = self.accesses.len() / 3;
        let shared = &Site { index: site.index + n, ..*site };
        let local = &Site { index: site.index + 2 * n, ..*site };
        match (space, store) {
            (MemSpace::Shared, false) => self.load_shared(warp, shared, a, m),
            (MemSpace::Shared, true) => self.store_shared(warp, shared, a, m),
            (MemSpace::Local, false) => self.load_local(warp, local, a, m),
            (MemSpace::Local, true) => self.store_local(warp, local, a, m),
            (MemSpace::Param, _) => self.load_param_at(warp, site, a, m),
            (_, false) => self.load_global(warp, site, a, m),
            (_, true) => self.store_global(warp, site, a, m),
        }
    }

    /// Executes load or store `k` for the lanes of `m`.
    ///
    /// # Safety
    /// `r` starts the frame of path `path`, which the instruction was decoded for.
    pub unsafe fn transfer(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        path: usize,
        k: u32,
        m: u32,
        pc: u32,
        store: bool,
    ) -> Result<(), Fault> {
        let op = &self.program.mems[k as usize];
        let index = self.access_index(AccessTable::Mem, k);
        let site = &Site { r, path, op, pc, index };
        // SAFETY: the caller's promise.
        unsafe { at_level(Transfer { context: self, warp, site, m, store }) }
    }

    /// Surveys the active lanes' addresses; an error unless all are aligned to the access.
    #[inline(always)]
    pub fn aligned<'a>(
        &self,
        warp: &Warp,
        a: &'a [u64; 32],
        m: u32,
        bytes: u64,
        pc: u32,
    ) -> Result<Reach<'a>, Fault> {
        let reach = Reach::new(a, m, bytes);
        if reach.misaligned == 0 { Ok(reach) } else { Err(self.misaligned(warp, &reach, pc)) }
    }

    #[cold]
    pub fn misaligned(&self, warp: &Warp, reach: &Reach<'_>, pc: u32) -> Fault {
        let l = reach.misaligned.trailing_zeros();
        let text =
            format!("address 0x{:x} is not a multiple of {}", reach.a[l as usize], reach.bytes);
        self.fault(FindingKind::Misaligned, pc, warp.index, l, text)
    }

    /// Counts a request to global memory by the bytes its lanes asked for.
    #[inline(always)]
    pub fn count_global(&mut self, index: usize, reach: &Reach<'_>, asked: u64) {
        let Reach { a, m, bytes, .. } = *reach;
        let touched = match reach.only_run() {
            Some(run) => (run.start + run.len - 1) / 32 - run.start / 32 + 1,
            None if m == 0 => 0,
            None => {
                let slot = &mut self.patterns[index];
                Pattern::recall(slot, a, m, 31, || sectors(a, m, bytes));
                slot.as_ref().map_or(0, |p| p.count)
            }
        };
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.sectors += touched;
        count.bytes += asked;
        if bytes == 16 {
            count.bytes_128 += asked;
        }
    }

    /// Counts a request to shared memory.
    #[inline(always)]
    pub fn count_shared(&mut self, index: usize, reach: &Reach<'_>, waves: u64) {
        let Reach { m, bytes, .. } = *reach;
        let asked = bytes * u64::from(m.count_ones());
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.bytes += asked;
        count.wavefronts += waves;
        count.ideal_wavefronts += asked.div_ceil(128);
        if bytes == 16 {
            count.bytes_128 += asked;
        }
    }
}

/// Widens a loaded element.
#[inline(always)]
pub fn extend(value: u64, bytes: u32, signed: bool) -> u64 {
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
pub unsafe fn put_lane(r: *mut u32, op: &MemOp, lane: usize, from: *const u8) {
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
pub unsafe fn lane_bytes(r: *const u32, op: &MemOp, lane: usize, out: &mut [u8; MAX_LANE_BYTES]) {
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

/// One element of each active lane from memory to a register.
macro_rules! read_element {
    ($d:expr, $from:expr, $reach:expr, |$x:ident: $t:ty| $value:expr) => {
        if $reach.m == u32::MAX {
            for l in 0..32 {
                let $x = $from.wrapping_add($reach.a[l] as usize).cast::<$t>().read_unaligned();
                *$d.add(l) = $value;
            }
        } else {
            for l in lanes($reach.m) {
                let $x = $from.wrapping_add($reach.a[l] as usize).cast::<$t>().read_unaligned();
                *$d.add(l) = $value;
            }
        }
    };
}

/// One element of each active lane from a register to memory.
macro_rules! write_element {
    ($to:expr, $s:expr, $reach:expr, $t:ty) => {
        if $reach.m == u32::MAX {
            for l in 0..32 {
                let to = $to.wrapping_add($reach.a[l] as usize).cast::<$t>();
                to.write_unaligned(*$s.add(l) as $t);
            }
        } else {
            for l in lanes($reach.m) {
                let to = $to.wrapping_add($reach.a[l] as usize).cast::<$t>();
                to.write_unaligned(*$s.add(l) as $t);
            }
        }
    };
}

/// Memory to registers. `data` plus an address is the host place of that address.
///
/// # Safety
/// Every active lane's range was checked; the registers lie inside the frame.
#[inline(always)]
pub unsafe fn gather(r: *mut u32, op: &MemOp, data: *const u8, reach: &Reach<'_>) {
    let whole = reach.is_whole() && op.element == 4 && !op.wide;
    for k in 0..op.count as usize {
        if op.regs[k] == u32::MAX {
            continue;
        }
        let from = data.wrapping_add(k * op.element as usize);
        // SAFETY: the caller's promise.
        unsafe {
            let d = r.add(op.regs[k] as usize);
            let w = d.cast::<u64>();
            if whole {
                let from = from.wrapping_add(reach.a[0] as usize).cast::<u32>();
                match op.count {
                    1 => std::ptr::copy_nonoverlapping(from, d, 32),
                    2 => {
                        for l in 0..32 {
                            *d.add(l) = *from.add(2 * l);
                        }
                    }
                    4 => {
                        for l in 0..32 {
                            *d.add(l) = *from.add(4 * l);
                        }
                    }
                    n => {
                        for l in 0..32 {
                            *d.add(l) = *from.add(l * n as usize);
                        }
                    }
                }
                continue;
            }
            match (op.element, op.wide, op.signed) {
                (1, false, false) => read_element!(d, from, reach, |x: u8| u32::from(x)),
                (1, false, true) => read_element!(d, from, reach, |x: i8| i32::from(x) as u32),
                (2, false, false) => read_element!(d, from, reach, |x: u16| u32::from(x)),
                (2, false, true) => read_element!(d, from, reach, |x: i16| i32::from(x) as u32),
                (4, false, _) => read_element!(d, from, reach, |x: u32| x),
                (1, true, false) => read_element!(w, from, reach, |x: u8| u64::from(x)),
                (1, true, true) => read_element!(w, from, reach, |x: i8| i64::from(x) as u64),
                (2, true, false) => read_element!(w, from, reach, |x: u16| u64::from(x)),
                (2, true, true) => read_element!(w, from, reach, |x: i16| i64::from(x) as u64),
                (4, true, false) => read_element!(w, from, reach, |x: u32| u64::from(x)),
                (4, true, true) => read_element!(w, from, reach, |x: i32| i64::from(x) as u64),
                _ => read_element!(w, from, reach, |x: u64| x),
            }
        }
    }
}

/// Registers to memory.
///
/// # Safety
/// As [`gather`].
#[inline(always)]
pub unsafe fn scatter(r: *const u32, op: &MemOp, data: *mut u8, reach: &Reach<'_>) {
    let whole = reach.is_whole() && op.element == 4;
    for k in 0..op.count as usize {
        let to = data.wrapping_add(k * op.element as usize);
        // SAFETY: the caller's promise.
        unsafe {
            let s = r.add(op.regs[k] as usize);
            if whole {
                let to = to.wrapping_add(reach.a[0] as usize).cast::<u32>();
                match op.count {
                    1 => std::ptr::copy_nonoverlapping(s, to, 32),
                    2 => {
                        for l in 0..32 {
                            *to.add(2 * l) = *s.add(l);
                        }
                    }
                    4 => {
                        for l in 0..32 {
                            *to.add(4 * l) = *s.add(l);
                        }
                    }
                    n => {
                        for l in 0..32 {
                            *to.add(l * n as usize) = *s.add(l);
                        }
                    }
                }
                continue;
            }
            let w = s.cast::<u64>();
            match (op.element, op.wide) {
                (1, false) => write_element!(to, s, reach, u8),
                (2, false) => write_element!(to, s, reach, u16),
                (4, false) => write_element!(to, s, reach, u32),
                (1, true) => write_element!(to, w, reach, u8),
                (2, true) => write_element!(to, w, reach, u16),
                (4, true) => write_element!(to, w, reach, u32),
                _ => write_element!(to, w, reach, u64),
            }
        }
    }
}
