//! A block's shared memory with its shadow. Races are found with one vector clock a warp: every
//! access leaves (warp, lane, clock), a barrier orders what came before it, bar.warp.sync orders the
//! lanes of a warp.
#![allow(unsafe_code)] // Shared memory and its tables are raw reserved space of one worker.

use super::{Region, bits};
use crate::finding::FindingKind;
use crate::isa::lanes::{Level, level};
use crate::isa::{DYNAMIC_SHARED_BASE, SharedVar};

/// Bytes of address space of a block's shared memory.
const SPACE: u64 = DYNAMIC_SHARED_BASE as u64 + (256 << 10);

const CLOCK: u32 = 42;
const CLOCK_LIMIT: u32 = (1 << (64 - CLOCK)) - 4096;
// Writer entry: warp 0..5, lane 5..10, mask 10..14, strong 14, valid 15, clock 42..64.
const W_LANE: u32 = 5;
const W_MASK: u32 = 10;
const W_STRONG: u32 = 14;
const W_VALID: u64 = 1 << 15;
// Reader entry: warps 0..32, mask 32..36, lane 36..42 (32: several), clock 42..64.
const R_MASK: u32 = 32;
const R_LANE: u32 = 36;
const SEVERAL: u64 = 32;

/// Who accesses.
#[derive(Clone, Copy)]
pub struct Access<'c> {
    /// Warp of the block.
    pub warp: u32,
    /// The warp's vector clock.
    pub clocks: &'c [u32; 32],
    /// Least of the clocks: everything older is ordered before this access.
    pub safe: u32,
    /// Atomic or volatile.
    pub strong: bool,
}

impl Access<'_> {
    fn clock(&self) -> u32 {
        self.clocks[self.warp as usize]
    }
}

/// A refused access.
pub type SharedFault = (FindingKind, String);

/// Shared memory of the block a worker runs.
pub struct SharedMemory {
    data: Region,
    addressable: Region,
    initialised: Region,
    pending: Region,
    writers: Region,
    readers: Region,
    dynamic_bytes: u32,
    static_end: u32,
    /// Any cp.async destination outstanding.
    pub has_pending: bool,
    clock: u32,
}

impl SharedMemory {
    /// Space for one worker.
    pub fn new() -> Option<SharedMemory> {
        let space = SPACE as usize;
        Some(SharedMemory {
            data: Region::reserve(space)?,
            addressable: Region::reserve(space / 8)?,
            initialised: Region::reserve(space / 8)?,
            pending: Region::reserve(space / 8)?,
            writers: Region::reserve(space * 2)?,
            readers: Region::reserve(space * 2)?,
            dynamic_bytes: 0,
            static_end: 0,
            has_pending: false,
            clock: 1,
        })
    }

    /// Lays out a kernel's variables.
    pub fn configure(&mut self, vars: &[SharedVar], dynamic_bytes: u32) {
        let bits_ptr = self.addressable.ptr().cast::<u64>();
        self.static_end = vars.iter().map(|v| v.offset + v.bytes).max().unwrap_or(0);
        self.dynamic_bytes = dynamic_bytes;
        // SAFETY: the linker and the launch check keep every variable inside SPACE.
        unsafe {
            bits::put(bits_ptr, 0, SPACE, false);
            for v in vars {
                bits::put(bits_ptr, u64::from(v.offset), u64::from(v.bytes), true);
            }
            bits::put(bits_ptr, u64::from(DYNAMIC_SHARED_BASE), u64::from(dynamic_bytes), true);
        }
    }

    /// Forgets the last block; returns the clock the new block's warps start at.
    pub fn start_block(&mut self, last_clock: u32) -> u32 {
        let init = self.initialised.ptr().cast::<u64>();
        let pending = self.pending.ptr().cast::<u64>();
        // SAFETY: both bitmaps cover SPACE.
        unsafe {
            for map in [init, pending] {
                bits::put(map, 0, u64::from(self.static_end), false);
                bits::put(
                    map,
                    u64::from(DYNAMIC_SHARED_BASE),
                    u64::from(self.dynamic_bytes),
                    false,
                );
            }
        }
        self.has_pending = false;
        self.clock = self.clock.max(last_clock) + 1;
        if self.clock > CLOCK_LIMIT {
            self.writers.discard(0, self.writers.len());
            self.readers.discard(0, self.readers.len());
            self.clock = 1;
        }
        self.clock
    }

    /// Remembers how far the clocks got, for the next launch on this worker.
    pub fn finish(&mut self, clock: u32) {
        self.clock = self.clock.max(clock);
    }

    /// Byte 0.
    #[inline(always)]
    pub fn data(&self) -> *mut u8 {
        self.data.ptr()
    }

    /// Describes an address for a message.
    fn describe(&self, at: u64, vars: &[SharedVar]) -> String {
        if at >= u64::from(DYNAMIC_SHARED_BASE) {
            let k = at - u64::from(DYNAMIC_SHARED_BASE);
            return format!("byte {k} of {} bytes of dynamic shared memory", self.dynamic_bytes);
        }
        match vars.iter().rev().find(|v| u64::from(v.offset) <= at) {
            Some(v) => format!(
                "byte {} of shared variable {} ({} bytes)",
                at - u64::from(v.offset),
                v.name,
                v.bytes
            ),
            None => format!("shared address 0x{at:x}"),
        }
    }

    /// Bounds of any access.
    #[inline(always)]
    pub fn check_bounds(&self, at: u64, bytes: u64, vars: &[SharedVar]) -> Result<(), SharedFault> {
        // SAFETY: the range is inside SPACE when the first test passes.
        let ok =
            at < SPACE - 256 && unsafe { bits::all_set(self.addressable.ptr().cast(), at, bytes) };
        if ok { Ok(()) } else { Err(self.bounds_fault(at, bytes, vars)) }
    }

    #[cold]
    fn bounds_fault(&self, at: u64, bytes: u64, vars: &[SharedVar]) -> SharedFault {
        let mut bad = at;
        if at < SPACE - 256 {
            // SAFETY: the range is inside SPACE.
            let first =
                unsafe { bits::first_other(self.addressable.ptr().cast(), at, bytes, true) };
            bad = first.unwrap_or(at);
        }
        (
            FindingKind::OutOfBounds,
            format!("access of {bytes} bytes reaches {}", self.describe(bad, vars)),
        )
    }

    /// Initialisation and pending copies, before a read. Bounds were checked.
    #[inline(always)]
    pub fn check_init(&self, at: u64, bytes: u64, vars: &[SharedVar]) -> Result<(), SharedFault> {
        // SAFETY: check_bounds accepted the range.
        unsafe {
            if self.has_pending && !bits::none_set(self.pending.ptr().cast(), at, bytes) {
                return Err(self.pending_fault(at, vars));
            }
            if !bits::all_set(self.initialised.ptr().cast(), at, bytes) {
                return Err(self.init_fault(at, bytes, vars));
            }
        }
        Ok(())
    }

    #[cold]
    fn pending_fault(&self, at: u64, vars: &[SharedVar]) -> SharedFault {
        let text = format!(
            "{} is the destination of a cp.async that was not waited for",
            self.describe(at, vars)
        );
        (FindingKind::AsyncCopyNotAwaited, text)
    }

    #[cold]
    fn init_fault(&self, at: u64, bytes: u64, vars: &[SharedVar]) -> SharedFault {
        // SAFETY: check_bounds accepted the range.
        let first = unsafe { bits::first_other(self.initialised.ptr().cast(), at, bytes, true) };
        let text = format!("read of {}, never written", self.describe(first.unwrap_or(at), vars));
        (FindingKind::UninitialisedShared, text)
    }

    /// Pending copies, before a write; then the range counts as initialised.
    #[inline(always)]
    pub fn note_write(&self, at: u64, bytes: u64, vars: &[SharedVar]) -> Result<(), SharedFault> {
        // SAFETY: check_bounds accepted the range.
        unsafe {
            if self.has_pending && !bits::none_set(self.pending.ptr().cast(), at, bytes) {
                return Err(self.pending_fault(at, vars));
            }
            bits::put(self.initialised.ptr().cast(), at, bytes, true);
        }
        Ok(())
    }

    /// Marks or clears a cp.async destination.
    pub fn set_pending(&mut self, at: u64, bytes: u64, on: bool) {
        self.has_pending |= on;
        // SAFETY: check_bounds accepted the range.
        unsafe {
            bits::put(self.pending.ptr().cast(), at, bytes, on);
            if !on {
                bits::put(self.initialised.ptr().cast(), at, bytes, true);
            }
        }
    }

    /// True when any byte of the range awaits a copy.
    pub fn is_pending(&self, at: u64, bytes: u64) -> bool {
        // SAFETY: check_bounds accepted the range.
        unsafe { !bits::none_set(self.pending.ptr().cast(), at, bytes) }
    }

    #[cold]
    fn race(
        &self,
        what: &str,
        at: u64,
        warp: u32,
        lane: Option<u64>,
        vars: &[SharedVar],
    ) -> SharedFault {
        let who = match lane {
            Some(lane) => format!("warp {warp} lane {lane}"),
            None => format!("warp {warp}"),
        };
        let text =
            format!("{what} {} without a barrier after {who} touched it", self.describe(at, vars));
        (FindingKind::SharedRace, text)
    }

    /// Race check of one lane's read of `bytes` at `at`.
    #[inline(always)]
    pub fn race_read(
        &self,
        at: u64,
        bytes: u64,
        lane: u32,
        by: Access<'_>,
        vars: &[SharedVar],
    ) -> Result<(), SharedFault> {
        let me = u64::from(by.warp) | u64::from(lane) << W_LANE;
        for word in at / 4..(at + bytes).div_ceil(4) {
            let mask = word_mask(word, at, bytes);
            // SAFETY: check_bounds accepted the range; the tables have an entry a word.
            unsafe {
                let w = *self.writers.ptr().cast::<u64>().add(word as usize);
                if w >> CLOCK >= u64::from(by.safe)
                    && w & W_VALID != 0
                    && w >> W_MASK & mask & 15 != 0
                    && w & 0x3ff != me
                    && w >> CLOCK >= u64::from(by.clocks[(w & 31) as usize])
                    && !(by.strong && w >> W_STRONG & 1 != 0)
                {
                    let lane = w >> W_LANE & 31;
                    return Err(self.race("reads", word * 4, (w & 31) as u32, Some(lane), vars));
                }
                if by.strong {
                    continue;
                }
                let slot = self.readers.ptr().cast::<u64>().add(word as usize);
                *slot = merge_reader(*slot, lane, mask, by);
            }
        }
        Ok(())
    }

    /// Race check of one lane's write; `new` are the bytes about to be written, so that threads
    /// storing what is already there are let pass.
    #[inline(always)]
    pub fn race_write(
        &self,
        at: u64,
        bytes: u64,
        lane: u32,
        by: Access<'_>,
        new: &[u8],
        vars: &[SharedVar],
    ) -> Result<(), SharedFault> {
        let me = u64::from(by.warp) | u64::from(lane) << W_LANE;
        for word in at / 4..(at + bytes).div_ceil(4) {
            let mask = word_mask(word, at, bytes);
            // SAFETY: check_bounds accepted the range; the tables have an entry a word.
            unsafe {
                let r = *self.readers.ptr().cast::<u64>().add(word as usize);
                if r >> CLOCK >= u64::from(by.safe) && r >> R_MASK & mask & 15 != 0 {
                    let own = r >> R_LANE & 63 == u64::from(lane);
                    let mut warps = r as u32;
                    while warps != 0 {
                        let x = warps.trailing_zeros();
                        warps &= warps - 1;
                        let ordered = r >> CLOCK < u64::from(by.clocks[x as usize]);
                        let mine = x == by.warp && own;
                        if !ordered && !mine {
                            return Err(self.race("writes", word * 4, x, None, vars));
                        }
                    }
                }
                let slot = self.writers.ptr().cast::<u64>().add(word as usize);
                let w = *slot;
                let recent = w >> CLOCK >= u64::from(by.safe) && w & W_VALID != 0;
                if recent
                    && w >> W_MASK & mask & 15 != 0
                    && w & 0x3ff != me
                    && w >> CLOCK >= u64::from(by.clocks[(w & 31) as usize])
                    && !(by.strong && w >> W_STRONG & 1 != 0)
                {
                    let old =
                        std::slice::from_raw_parts(self.data().add(at as usize), bytes as usize);
                    if old != new {
                        let lane = w >> W_LANE & 31;
                        return Err(self.race(
                            "writes",
                            word * 4,
                            (w & 31) as u32,
                            Some(lane),
                            vars,
                        ));
                    }
                }
                let own = if recent && w & 0x3ff == me { w & (15 << W_MASK) } else { 0 };
                *slot = me
                    | own
                    | mask << W_MASK
                    | u64::from(by.strong) << W_STRONG
                    | W_VALID
                    | u64::from(by.clock()) << CLOCK;
            }
        }
        Ok(())
    }

    /// Fast race check of a warp reading consecutive words, `1 << shift` words a lane, from lane 0
    /// on. True when all is well; false when the slow check has to look.
    #[inline(always)]
    pub fn race_read_span(&self, at: u64, words: usize, shift: u32, by: Access<'_>) -> bool {
        // SAFETY: check_bounds accepted the range; levels are checked before use.
        unsafe {
            let w = self.writers.ptr().cast::<u64>().add((at / 4) as usize);
            let r = self.readers.ptr().cast::<u64>().add((at / 4) as usize);
            #[cfg(target_arch = "x86_64")]
            match level() {
                Level::V4 => return read_span_v4(w, r, words, shift, by.warp, by.clock(), by.safe),
                Level::V3 => return read_span_v3(w, r, words, shift, by.warp, by.clock(), by.safe),
                Level::Base => {}
            }
            read_span_body(w, r, words, shift, by.warp, by.clock(), by.safe)
        }
    }

    /// As [`Self::race_read_span`], for writes.
    #[inline(always)]
    pub fn race_write_span(&self, at: u64, words: usize, shift: u32, by: Access<'_>) -> bool {
        // SAFETY: as above.
        unsafe {
            let w = self.writers.ptr().cast::<u64>().add((at / 4) as usize);
            let r = self.readers.ptr().cast::<u64>().add((at / 4) as usize);
            #[cfg(target_arch = "x86_64")]
            match level() {
                Level::V4 => {
                    return write_span_v4(w, r, words, shift, by.warp, by.clock(), by.safe);
                }
                Level::V3 => {
                    return write_span_v3(w, r, words, shift, by.warp, by.clock(), by.safe);
                }
                Level::Base => {}
            }
            write_span_body(w, r, words, shift, by.warp, by.clock(), by.safe)
        }
    }
}

/// Bytes of `word` inside the access.
#[inline(always)]
fn word_mask(word: u64, at: u64, bytes: u64) -> u64 {
    let first = at.max(word * 4) - word * 4;
    let end = (at + bytes).min(word * 4 + 4) - word * 4;
    ((1 << end) - 1) & !((1 << first) - 1)
}

#[inline(always)]
fn merge_reader(r: u64, lane: u32, mask: u64, by: Access<'_>) -> u64 {
    let me = 1u64 << by.warp;
    let clock = u64::from(by.clock());
    if r >> CLOCK < u64::from(by.safe) {
        return me | mask << R_MASK | u64::from(lane) << R_LANE | clock << CLOCK;
    }
    let same = r & 0xffff_ffff == me && r >> R_LANE & 63 == u64::from(lane);
    let lane = if same { u64::from(lane) } else { SEVERAL };
    let clock = clock.max(r >> CLOCK);
    (r & 0xf_ffff_ffff) | me | mask << R_MASK | lane << R_LANE | clock << CLOCK
}

#[inline(always)]
unsafe fn read_span_body(
    w: *mut u64,
    r: *mut u64,
    n: usize,
    shift: u32,
    warp: u32,
    clock: u32,
    safe: u32,
) -> bool {
    let (safe, clock) = (u64::from(safe), u64::from(clock));
    let me = 1u64 << warp;
    let mut bad = 0u64;
    for k in 0..n {
        let lane = (k >> shift) as u64;
        // SAFETY: the caller checked the range.
        unsafe {
            let e = *w.add(k);
            let mine = u64::from(warp) | lane << W_LANE;
            bad |= u64::from(e >> CLOCK >= safe) & u64::from(e & 0x3ff != mine);
            let old = *r.add(k);
            let fresh = old >> CLOCK < safe;
            let same = (old & 0xffff_ffff == me) & (old >> R_LANE & 63 == lane);
            let merged_lane = if fresh | same { lane } else { SEVERAL };
            let warps = if fresh { me } else { old & 0xffff_ffff | me };
            let c = if old >> CLOCK > clock { old >> CLOCK } else { clock };
            *r.add(k) = warps | 15 << R_MASK | merged_lane << R_LANE | c << CLOCK;
        }
    }
    bad == 0
}

#[inline(always)]
unsafe fn write_span_body(
    w: *mut u64,
    r: *mut u64,
    n: usize,
    shift: u32,
    warp: u32,
    clock: u32,
    safe: u32,
) -> bool {
    let (safe, clock) = (u64::from(safe), u64::from(clock));
    let me = 1u64 << warp;
    let mut bad = 0u64;
    for k in 0..n {
        let lane = (k >> shift) as u64;
        // SAFETY: the caller checked the range.
        unsafe {
            let e = *w.add(k);
            let mine = u64::from(warp) | lane << W_LANE;
            bad |= u64::from(e >> CLOCK >= safe) & u64::from(e & 0x3ff != mine);
            let old = *r.add(k);
            let own = (old & 0xffff_ffff == me) & (old >> R_LANE & 63 == lane);
            bad |= u64::from(old >> CLOCK >= safe) & u64::from(!own);
        }
    }
    if bad != 0 {
        return false;
    }
    for k in 0..n {
        let lane = (k >> shift) as u64;
        // SAFETY: as above.
        unsafe {
            *w.add(k) = u64::from(warp) | lane << W_LANE | 15 << W_MASK | W_VALID | clock << CLOCK;
        }
    }
    true
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn read_span_v3(
    w: *mut u64,
    r: *mut u64,
    n: usize,
    shift: u32,
    warp: u32,
    clock: u32,
    safe: u32,
) -> bool {
    // SAFETY: forwarded.
    unsafe { read_span_body(w, r, n, shift, warp, clock, safe) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn read_span_v4(
    w: *mut u64,
    r: *mut u64,
    n: usize,
    shift: u32,
    warp: u32,
    clock: u32,
    safe: u32,
) -> bool {
    // SAFETY: forwarded.
    unsafe { read_span_body(w, r, n, shift, warp, clock, safe) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn write_span_v3(
    w: *mut u64,
    r: *mut u64,
    n: usize,
    shift: u32,
    warp: u32,
    clock: u32,
    safe: u32,
) -> bool {
    // SAFETY: forwarded.
    unsafe { write_span_body(w, r, n, shift, warp, clock, safe) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write_span_v4(
    w: *mut u64,
    r: *mut u64,
    n: usize,
    shift: u32,
    warp: u32,
    clock: u32,
    safe: u32,
) -> bool {
    // SAFETY: forwarded.
    unsafe { write_span_body(w, r, n, shift, warp, clock, safe) }
}
