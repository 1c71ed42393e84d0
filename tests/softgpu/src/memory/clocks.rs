//! Races between threads of a block in shared memory, found with one vector clock a warp: every
//! access leaves (warp, lane, clock), a barrier orders what came before it, bar.warp.sync orders the
//! lanes of a warp.
#![allow(unsafe_code)] // The tables are raw reserved space of one worker.

use super::race::word_mask;
use super::shared::{SharedFault, SharedMemory};
use crate::finding::FindingKind;
use crate::isa::SharedVar;

const CLOCK: u32 = 42;
/// Clocks start again, with empty tables, before they reach this.
pub const CLOCK_LIMIT: u32 = (1 << (64 - CLOCK)) - 4096;
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
    #[inline(always)]
    fn clock(&self) -> u32 {
        self.clocks[self.warp as usize]
    }

    /// A write that is neither this thread's (`me`) nor ordered before the access.
    #[inline(always)]
    fn clashes_with_writer(&self, w: u64, me: u64) -> bool {
        w >> CLOCK >= u64::from(self.safe)
            && w & W_VALID != 0
            && w & 0x3ff != me
            && w >> CLOCK >= u64::from(self.clocks[(w & 31) as usize])
            && !(self.strong && w >> W_STRONG & 1 != 0)
    }

    /// A warp with a read that is neither lane `lane`'s of this warp nor ordered before.
    #[inline(always)]
    fn clashing_reader(&self, r: u64, lane: u64) -> Option<u32> {
        if r >> CLOCK < u64::from(self.safe) {
            return None;
        }
        let own = r >> R_LANE & 63 == lane;
        let mut warps = r as u32;
        while warps != 0 {
            let x = warps.trailing_zeros();
            warps &= warps - 1;
            let ordered = r >> CLOCK < u64::from(self.clocks[x as usize]);
            if !(ordered || x == self.warp && own) {
                return Some(x);
            }
        }
        None
    }
}

/// Which lane accesses each word of a range.
#[derive(Clone, Copy)]
pub struct WordLanes {
    /// Of the first word.
    pub first: u32,
    /// `1 << shift` words belong to one lane.
    pub shift: u32,
    /// From one lane to the next.
    pub step: u32,
    /// All lanes access all words.
    pub several: bool,
}

impl WordLanes {
    #[inline(always)]
    fn of(&self, word: usize) -> u64 {
        if self.several {
            SEVERAL
        } else {
            u64::from(self.first + (word as u32 >> self.shift) * self.step)
        }
    }
}

impl SharedMemory {
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
                if w >> W_MASK & mask & 15 != 0 && by.clashes_with_writer(w, me) {
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
                if r >> R_MASK & mask & 15 != 0
                    && let Some(x) = by.clashing_reader(r, u64::from(lane))
                {
                    return Err(self.race("writes", word * 4, x, None, vars));
                }
                let slot = self.writers.ptr().cast::<u64>().add(word as usize);
                let w = *slot;
                if w >> W_MASK & mask & 15 != 0 && by.clashes_with_writer(w, me) {
                    let old =
                        std::slice::from_raw_parts(self.data().add(at as usize), bytes as usize);
                    if old != new {
                        let lane = w >> W_LANE & 31;
                        let warp = (w & 31) as u32;
                        return Err(self.race("writes", word * 4, warp, Some(lane), vars));
                    }
                }
                let recent = w >> CLOCK >= u64::from(by.safe) && w & W_VALID != 0;
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

    /// Race check of whole words read at once. True when all is well; false when the slow check has
    /// to look.
    ///
    /// # Safety
    /// The range lies inside the bounds.
    #[inline(always)]
    pub unsafe fn read_words(&self, at: u64, n: usize, lanes: WordLanes, by: Access<'_>) -> bool {
        let (safe, clock) = (u64::from(by.safe), u64::from(by.clock()));
        let (warp, me) = (u64::from(by.warp), 1u64 << by.warp);
        let mut bad = 0u64;
        // SAFETY: the caller's promise; the tables have an entry a word.
        unsafe {
            let w = self.writers.ptr().cast::<u64>().add((at / 4) as usize);
            let r = self.readers.ptr().cast::<u64>().add((at / 4) as usize);
            for k in 0..n {
                let lane = lanes.of(k);
                let e = *w.add(k);
                // Several lanes' name is nobody's.
                let mine = warp | lane << W_LANE;
                bad |= u64::from(e >> CLOCK >= safe) & u64::from(e & 0x3ff != mine);
                let old = *r.add(k);
                let fresh = old >> CLOCK < safe;
                let same = (old & 0xffff_ffff == me) & (old >> R_LANE & 63 == lane);
                let merged = if fresh | same { lane } else { SEVERAL };
                let warps = if fresh { me } else { old & 0xffff_ffff | me };
                let c = if old >> CLOCK > clock { old >> CLOCK } else { clock };
                *r.add(k) = warps | 15 << R_MASK | merged << R_LANE | c << CLOCK;
            }
            if bad == 0 {
                return true;
            }
            for k in 0..n {
                if by.clashes_with_writer(*w.add(k), warp | lanes.of(k) << W_LANE) {
                    return false;
                }
            }
            true
        }
    }

    /// As [`Self::read_words`], for writes; words in conflict keep their entries.
    ///
    /// # Safety
    /// As [`Self::read_words`].
    #[inline(always)]
    pub unsafe fn write_words(&self, at: u64, n: usize, lanes: WordLanes, by: Access<'_>) -> bool {
        let (safe, clock) = (u64::from(by.safe), u64::from(by.clock()));
        let (warp, me) = (u64::from(by.warp), 1u64 << by.warp);
        let mut bad = 0u64;
        // SAFETY: the caller's promise; the tables have an entry a word.
        unsafe {
            let w = self.writers.ptr().cast::<u64>().add((at / 4) as usize);
            let r = self.readers.ptr().cast::<u64>().add((at / 4) as usize);
            for k in 0..n {
                let lane = lanes.of(k);
                let e = *w.add(k);
                let mine = warp | lane << W_LANE;
                bad |= u64::from(e >> CLOCK >= safe) & u64::from(e & 0x3ff != mine);
                let old = *r.add(k);
                let own = (old & 0xffff_ffff == me) & (old >> R_LANE & 63 == lane);
                bad |= u64::from(old >> CLOCK >= safe) & u64::from(!own);
            }
            if bad != 0 {
                for k in 0..n {
                    let lane = lanes.of(k);
                    if by.clashes_with_writer(*w.add(k), warp | lane << W_LANE)
                        || by.clashing_reader(*r.add(k), lane).is_some()
                    {
                        return false;
                    }
                }
            }
            for k in 0..n {
                *w.add(k) = warp | lanes.of(k) << W_LANE | 15 << W_MASK | W_VALID | clock << CLOCK;
            }
            true
        }
    }
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
