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
// Writer entry: warp 0..5, lane 5..10, mask 10..14, strong 14, valid 15, pair 16, clock 42..64.
// A pair: the lane wrote the lower half, the next lane the upper half.
const W_LANE: u32 = 5;
const W_MASK: u32 = 10;
const W_STRONG: u32 = 14;
const W_VALID: u64 = 1 << 15;
const W_PAIR: u64 = 1 << 16;
/// Warp, lane and pair: who wrote.
const W_WHO: u64 = 0x3ff | W_PAIR;
// Reader entry: warps 0..32, mask 32..36, lane 36..42 (32: several; 33 + l: l the lower half, l + 1
// the upper half), clock 42..64.
const R_MASK: u32 = 32;
const R_LANE: u32 = 36;
const SEVERAL: u64 = 32;
const PAIR: u64 = 33;
const LOWER: u64 = 0b0011;
const UPPER: u64 = 0b1100;

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

    /// A write to bytes `mask` that is neither lane `lane`'s of this warp nor ordered before.
    #[inline(always)]
    fn clashes_with_writer(&self, w: u64, lane: u64, mask: u64) -> bool {
        let second = w & W_PAIR != 0 && mask & LOWER == 0;
        let whole = w & W_PAIR != 0 && mask & LOWER != 0 && mask & UPPER != 0;
        let writer = (w >> W_LANE & 31) + u64::from(second);
        let mine = w & 31 == u64::from(self.warp) && writer == lane && !whole;
        w >> W_MASK & mask & 15 != 0
            && w >> CLOCK >= u64::from(self.safe)
            && w & W_VALID != 0
            && !mine
            && w >> CLOCK >= u64::from(self.clocks[(w & 31) as usize])
            && !(self.strong && w >> W_STRONG & 1 != 0)
    }

    /// A warp with a read of bytes `mask` that is neither lane `lane`'s of this warp nor ordered
    /// before.
    #[inline(always)]
    fn clashing_reader(&self, r: u64, lane: u64, mask: u64) -> Option<u32> {
        if r >> CLOCK < u64::from(self.safe) || r >> R_MASK & mask & 15 == 0 {
            return None;
        }
        let reader = r >> R_LANE & 63;
        let own = reader == lane
            || (mask & UPPER == 0 && reader == PAIR + lane)
            || (mask & LOWER == 0 && lane > 0 && reader + 1 == PAIR + lane);
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
    /// Who shares a word.
    pub sharing: Sharing,
}

/// Who shares a word of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    None,
    /// All lanes access all words.
    All,
    /// The lane has the lower half, the next lane the upper half.
    Halves,
}

impl WordLanes {
    #[inline(always)]
    fn lane(&self, word: usize) -> u64 {
        u64::from(self.first + (word as u32 >> self.shift) * self.step)
    }
}

/// Names for the lanes that access each word of a range.
pub trait Names: Copy {
    /// As a reader entry names them.
    fn reader(&self, word: usize) -> u64;

    /// As a writer entry names them; several lanes' name is nobody's.
    fn writer(&self, word: usize, warp: u32) -> u64;

    /// The lanes of a word and which bytes are theirs.
    fn parts(&self, word: usize) -> [(u64, u64); 2];
}

/// One number a word: the lane, or 32 for several.
#[derive(Clone, Copy)]
pub struct Listed<'a>(pub &'a [u8]);

impl Names for Listed<'_> {
    #[inline(always)]
    fn reader(&self, word: usize) -> u64 {
        u64::from(self.0[word])
    }

    #[inline(always)]
    fn writer(&self, word: usize, warp: u32) -> u64 {
        u64::from(warp) | self.reader(word) << W_LANE
    }

    #[inline(always)]
    fn parts(&self, word: usize) -> [(u64, u64); 2] {
        [(self.reader(word), 15), (0, 0)]
    }
}

impl Names for WordLanes {
    #[inline(always)]
    fn reader(&self, word: usize) -> u64 {
        match self.sharing {
            Sharing::None => self.lane(word),
            Sharing::All => SEVERAL,
            Sharing::Halves => PAIR + self.lane(word),
        }
    }

    #[inline(always)]
    fn writer(&self, word: usize, warp: u32) -> u64 {
        let lane = match self.sharing {
            Sharing::None => self.lane(word) << W_LANE,
            Sharing::All => SEVERAL << W_LANE,
            Sharing::Halves => self.lane(word) << W_LANE | W_PAIR,
        };
        u64::from(warp) | lane
    }

    #[inline(always)]
    fn parts(&self, word: usize) -> [(u64, u64); 2] {
        match self.sharing {
            Sharing::None => [(self.lane(word), 15), (0, 0)],
            Sharing::All => [(SEVERAL, 15), (0, 0)],
            Sharing::Halves => [(self.lane(word), LOWER), (self.lane(word) + 1, UPPER)],
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
        for word in at / 4..(at + bytes).div_ceil(4) {
            let mask = word_mask(word, at, bytes);
            // SAFETY: check_bounds accepted the range; the tables have an entry a word.
            unsafe {
                let w = *self.writers.ptr().cast::<u64>().add(word as usize);
                if by.clashes_with_writer(w, u64::from(lane), mask) {
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
        for word in at / 4..(at + bytes).div_ceil(4) {
            let mask = word_mask(word, at, bytes);
            // SAFETY: check_bounds accepted the range; the tables have an entry a word.
            unsafe {
                let r = *self.readers.ptr().cast::<u64>().add(word as usize);
                if let Some(x) = by.clashing_reader(r, u64::from(lane), mask) {
                    return Err(self.race("writes", word * 4, x, None, vars));
                }
                let slot = self.writers.ptr().cast::<u64>().add(word as usize);
                let w = *slot;
                if by.clashes_with_writer(w, u64::from(lane), mask) {
                    let old =
                        std::slice::from_raw_parts(self.data().add(at as usize), bytes as usize);
                    if old != new {
                        let lane = w >> W_LANE & 31;
                        let warp = (w & 31) as u32;
                        return Err(self.race("writes", word * 4, warp, Some(lane), vars));
                    }
                }
                *slot = merge_writer(w, lane, mask, by);
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
    pub unsafe fn read_words(&self, at: u64, n: usize, lanes: impl Names, by: Access<'_>) -> bool {
        let (safe, clock) = (u64::from(by.safe), u64::from(by.clock()));
        let me = 1u64 << by.warp;
        let mut bad = 0u64;
        // SAFETY: the caller's promise; the tables have an entry a word.
        unsafe {
            let w = self.writers.ptr().cast::<u64>().add((at / 4) as usize);
            let r = self.readers.ptr().cast::<u64>().add((at / 4) as usize);
            for k in 0..n {
                let lane = lanes.reader(k);
                let e = *w.add(k);
                bad |= u64::from(e >> CLOCK >= safe)
                    & u64::from(e & W_WHO != lanes.writer(k, by.warp));
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
                for (lane, mask) in lanes.parts(k) {
                    if by.clashes_with_writer(*w.add(k), lane, mask) {
                        return false;
                    }
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
    pub unsafe fn write_words(&self, at: u64, n: usize, lanes: impl Names, by: Access<'_>) -> bool {
        let (safe, clock) = (u64::from(by.safe), u64::from(by.clock()));
        let me = 1u64 << by.warp;
        let mut bad = 0u64;
        // SAFETY: the caller's promise; the tables have an entry a word.
        unsafe {
            let w = self.writers.ptr().cast::<u64>().add((at / 4) as usize);
            let r = self.readers.ptr().cast::<u64>().add((at / 4) as usize);
            for k in 0..n {
                let e = *w.add(k);
                bad |= u64::from(e >> CLOCK >= safe)
                    & u64::from(e & W_WHO != lanes.writer(k, by.warp));
                let old = *r.add(k);
                let own = (old & 0xffff_ffff == me) & (old >> R_LANE & 63 == lanes.reader(k));
                bad |= u64::from(old >> CLOCK >= safe) & u64::from(!own);
            }
            if bad != 0 {
                for k in 0..n {
                    for (lane, mask) in lanes.parts(k) {
                        if by.clashes_with_writer(*w.add(k), lane, mask)
                            || by.clashing_reader(*r.add(k), lane, mask).is_some()
                        {
                            return false;
                        }
                    }
                }
            }
            for k in 0..n {
                *w.add(k) = lanes.writer(k, by.warp) | 15 << W_MASK | W_VALID | clock << CLOCK;
            }
            true
        }
    }
}

/// The entry after lane `lane` wrote bytes `mask`. One other writer of the word is remembered: the
/// lane before, where it wrote the lower half and this one the upper, at the same clock.
#[inline(always)]
fn merge_writer(w: u64, lane: u32, mask: u64, by: Access<'_>) -> u64 {
    let (warp, lane) = (u64::from(by.warp), u64::from(lane));
    let clock = u64::from(by.clock());
    let same_warp = w & W_VALID != 0 && w & 31 == warp;
    let writer = w >> W_LANE & 31;
    let now = same_warp && w >> CLOCK == clock && w >> W_STRONG & 1 == 0 && !by.strong;
    let first = writer == lane && mask & UPPER == 0;
    let second = writer + 1 == lane && mask & LOWER == 0;
    let pair =
        now && if w & W_PAIR != 0 { first || second } else { second && w >> W_MASK & UPPER == 0 };
    if pair {
        return w | W_PAIR | mask << W_MASK;
    }
    let recent = w >> CLOCK >= u64::from(by.safe);
    let alone = same_warp && w & W_PAIR == 0 && writer == lane;
    let own = if recent && alone { w & (15 << W_MASK) } else { 0 };
    let strong = u64::from(by.strong) << W_STRONG;
    warp | lane << W_LANE | own | mask << W_MASK | strong | W_VALID | clock << CLOCK
}

/// The entry after lane `lane` read bytes `mask`; a lower and an upper half read by neighbours stay
/// apart.
#[inline(always)]
fn merge_reader(r: u64, lane: u32, mask: u64, by: Access<'_>) -> u64 {
    let me = 1u64 << by.warp;
    let (lane, clock) = (u64::from(lane), u64::from(by.clock()));
    if r >> CLOCK < u64::from(by.safe) {
        return me | mask << R_MASK | lane << R_LANE | clock << CLOCK;
    }
    let reader = r >> R_LANE & 63;
    let upper_half = mask & LOWER == 0;
    let lane = if r & 0xffff_ffff != me {
        SEVERAL
    } else if reader == lane
        || (mask & UPPER == 0 && reader == PAIR + lane)
        || (upper_half && reader + 1 == PAIR + lane)
    {
        reader
    } else if upper_half && reader + 1 == lane && r >> R_MASK & UPPER == 0 {
        PAIR + reader
    } else {
        SEVERAL
    };
    let clock = clock.max(r >> CLOCK);
    (r & 0xf_ffff_ffff) | me | mask << R_MASK | lane << R_LANE | clock << CLOCK
}
