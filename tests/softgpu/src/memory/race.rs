//! Races between blocks in global memory. Each aligned 4-byte word has one 64-bit entry: the last
//! writing block, the reading block (or "several"), which bytes, and the launch they belong to.
//! Entries of older launches count as empty, so nothing is cleared between launches.
//!
//! Two workers may update one entry at once; then one update is lost, which can hide a race but
//! never invents one: a finding needs an entry that a conflicting block really wrote.
#![allow(unsafe_code)] // The table spans reserved address space.

const BLOCK_BITS: u32 = 18;
const BLOCK: u64 = (1 << BLOCK_BITS) - 1;
/// The reader field when several blocks have read.
const MANY: u64 = BLOCK;
const WMASK: u32 = 18;
const STRONG: u32 = 22;
const READER: u32 = 23;
const RMASK: u32 = 41;
const WTOUCH: u32 = 45;
const RTOUCH: u32 = 49;
const EPOCH: u32 = 53;

/// Largest launch number an entry can hold.
pub const EPOCHS: u64 = (1 << (64 - EPOCH)) - 1;

/// The table's name for a block of a grid. Very large grids share names, which can hide a race.
pub fn block_name(index: u64) -> u64 {
    index % (BLOCK - 1) + 1
}

/// What an access conflicts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Another block wrote.
    Write(u64),
    /// Another block read.
    Read(u64),
    /// Several other blocks read.
    Reads,
    /// Read through the read-only path, written in this launch.
    ReadOnly,
}

/// Who accesses and how.
#[derive(Debug, Clone, Copy)]
pub struct Accessor {
    /// From [`block_name`].
    pub block: u64,
    /// Launch number, 1 ..= EPOCHS.
    pub epoch: u64,
    /// Atomic, volatile, relaxed, acquire or release.
    pub strong: bool,
    /// Through the read-only path.
    pub read_only: bool,
}

/// One word read: new entry and conflict.
#[inline(always)]
pub fn read(entry: u64, by: Accessor, mask: u64) -> (u64, Option<Conflict>) {
    let e = if entry >> EPOCH == by.epoch { entry } else { by.epoch << EPOCH };
    let writer = e & BLOCK;
    let overlap = e >> WMASK & mask != 0;
    let mut conflict = None;
    if writer != 0 && overlap {
        let both_strong = by.strong && e >> STRONG & 1 != 0;
        if writer != by.block && !both_strong {
            conflict = Some(Conflict::Write(writer));
        } else if by.read_only {
            conflict = Some(Conflict::ReadOnly);
        }
    }
    let touched = e | mask << RTOUCH;
    if by.strong {
        return (touched, conflict);
    }
    // An entry knows one reader, or bytes that several have read: two blocks that read a
    // half of the word each are no readers of each other's half.
    let before = e >> RMASK & 15;
    let (reader, bytes) = match e >> READER & BLOCK {
        reader if reader == 0 || reader == by.block => (by.block, before | mask),
        MANY => (MANY, before),
        _ if before & mask != 0 => (MANY, before & mask),
        _ => (by.block, mask),
    };
    let clear = BLOCK << READER | 15 << RMASK;
    ((touched & !clear) | reader << READER | bytes << RMASK, conflict)
}

/// One word written: new entry and conflict.
#[inline(always)]
pub fn write(entry: u64, by: Accessor, mask: u64) -> (u64, Option<Conflict>) {
    let e = if entry >> EPOCH == by.epoch { entry } else { by.epoch << EPOCH };
    let writer = e & BLOCK;
    let reader = e >> READER & BLOCK;
    let mut conflict = None;
    if reader != 0 && reader != by.block && e >> RMASK & mask & 15 != 0 {
        conflict = Some(if reader == MANY { Conflict::Reads } else { Conflict::Read(reader) });
    }
    if writer != 0 && writer != by.block && e >> WMASK & mask & 15 != 0 {
        let both_strong = by.strong && e >> STRONG & 1 != 0;
        if !both_strong {
            conflict = Some(Conflict::Write(writer));
        }
    }
    let clear = BLOCK | 15 << WMASK | 1 << STRONG;
    let strong = u64::from(by.strong) << STRONG;
    let own = if writer == by.block { e & (15 << WMASK) } else { 0 };
    let strong = if writer == by.block { strong & (e & 1 << STRONG) } else { strong };
    let new = (e & !clear) | by.block | own | mask << WMASK | strong | mask << WTOUCH;
    (new, conflict)
}

/// Bytes of word `word` inside `at .. at + bytes`, as a mask.
#[inline(always)]
pub fn word_mask(word: u64, at: u64, bytes: u64) -> u64 {
    let first = at.max(word * 4) - word * 4;
    let end = (at + bytes).min(word * 4 + 4) - word * 4;
    ((1 << end) - 1) & !((1 << first) - 1)
}

/// Reads of bytes `at .. at + bytes`: false when something may conflict and must be looked at word
/// by word.
///
/// # Safety
/// `entries` has an entry for every word of the range.
#[inline(always)]
pub unsafe fn read_range(entries: *mut u64, at: u64, bytes: u64, by: Accessor) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if (at | bytes) & 3 == 0 && !by.strong {
            return read_words(entries.add((at / 4) as usize), (bytes / 4) as usize, by);
        }
        for word in at / 4..(at + bytes).div_ceil(4) {
            let entry = entries.add(word as usize);
            let (new, conflict) = read(*entry, by, word_mask(word, at, bytes));
            if conflict.is_some() {
                return false;
            }
            *entry = new;
        }
        true
    }
}

/// As [`read_range`], for writes.
///
/// # Safety
/// As [`read_range`].
#[inline(always)]
pub unsafe fn write_range(entries: *mut u64, at: u64, bytes: u64, by: Accessor) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if (at | bytes) & 3 == 0 && !by.strong {
            return write_words(entries.add((at / 4) as usize), (bytes / 4) as usize, by);
        }
        for word in at / 4..(at + bytes).div_ceil(4) {
            let entry = entries.add(word as usize);
            let (new, conflict) = write(*entry, by, word_mask(word, at, bytes));
            if conflict.is_some() {
                return false;
            }
            *entry = new;
        }
        true
    }
}

/// Whole words read by ordinary loads.
#[inline(always)]
unsafe fn read_words(p: *mut u64, n: usize, by: Accessor) -> bool {
    let mut bad = 0u64;
    let fresh = by.epoch << EPOCH;
    let set = 15 << RMASK | 15 << RTOUCH;
    // Through the read-only path not even the block's own stores may be read.
    let allowed = if by.read_only { 0 } else { by.block };
    for k in 0..n {
        // SAFETY: the caller promises n entries.
        unsafe {
            let entry = *p.add(k);
            let e = if entry >> EPOCH == by.epoch { entry } else { fresh };
            let writer = e & BLOCK;
            bad |= u64::from(writer != 0) & u64::from(writer != allowed);
            let reader = e >> READER & BLOCK;
            let reader = if (reader == 0) | (reader == by.block) { by.block } else { MANY };
            *p.add(k) = (e & !(BLOCK << READER)) | reader << READER | set;
        }
    }
    bad == 0
}

/// Whole words written by ordinary stores. Entries in conflict are left as they were, for the
/// word-by-word check to see.
#[inline(always)]
unsafe fn write_words(p: *mut u64, n: usize, by: Accessor) -> bool {
    let mut bad = 0u64;
    let fresh = by.epoch << EPOCH;
    let clear = BLOCK | 15 << WMASK | 1 << STRONG;
    let set = by.block | 15 << WMASK | 15 << WTOUCH;
    for k in 0..n {
        // SAFETY: the caller promises n entries.
        let entry = unsafe { *p.add(k) };
        let e = if entry >> EPOCH == by.epoch { entry } else { fresh };
        let writer = e & BLOCK;
        let reader = e >> READER & BLOCK;
        bad |= u64::from(writer != 0) & u64::from(writer != by.block);
        bad |= u64::from(reader != 0) & u64::from(reader != by.block);
    }
    if bad != 0 {
        return false;
    }
    for k in 0..n {
        // SAFETY: as above.
        unsafe {
            let entry = *p.add(k);
            let e = if entry >> EPOCH == by.epoch { entry } else { fresh };
            *p.add(k) = (e & !clear) | set;
        }
    }
    true
}

/// Bytes of an entry that were read and written in launch `epoch`.
pub fn touched(entry: u64, epoch: u64) -> (u32, u32) {
    if entry >> EPOCH != epoch {
        return (0, 0);
    }
    ((entry >> RTOUCH & 15).count_ones(), (entry >> WTOUCH & 15).count_ones())
}
