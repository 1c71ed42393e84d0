//! Bitmaps over memory, one bit a byte, shared between workers. A bit range is tested or set word by
//! word; words that change partly are updated atomically, because two blocks may initialise
//! neighbouring bytes at once.
#![allow(unsafe_code)] // Bitmaps are raw because they span reserved address space.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[inline(always)]
fn mask(first: u64, count: u64) -> u64 {
    // count is 1..=64 and first + count <= 64.
    (u64::MAX >> (64 - count)) << first
}

/// True when bits `at .. at + len` are all set.
///
/// # Safety
/// `bits` covers the range.
#[inline(always)]
pub unsafe fn all_set(bits: *const u64, at: u64, len: u64) -> bool {
    let mut word = at / 64;
    let mut first = at % 64;
    let mut left = len;
    while left > 0 {
        let n = left.min(64 - first);
        let m = mask(first, n);
        // SAFETY: the caller's promise.
        let v = unsafe { (*bits.add(word as usize).cast::<AtomicU64>()).load(Relaxed) };
        if v & m != m {
            return false;
        }
        left -= n;
        first = 0;
        word += 1;
    }
    true
}

/// True when no bit of `at .. at + len` is set.
///
/// # Safety
/// `bits` covers the range.
#[inline(always)]
pub unsafe fn none_set(bits: *const u64, at: u64, len: u64) -> bool {
    let mut word = at / 64;
    let mut first = at % 64;
    let mut left = len;
    while left > 0 {
        let n = left.min(64 - first);
        // SAFETY: the caller's promise.
        let v = unsafe { (*bits.add(word as usize).cast::<AtomicU64>()).load(Relaxed) };
        if v & mask(first, n) != 0 {
            return false;
        }
        left -= n;
        first = 0;
        word += 1;
    }
    true
}

/// Sets or clears bits `at .. at + len`.
///
/// # Safety
/// `bits` covers the range.
#[inline(always)]
pub unsafe fn put(bits: *mut u64, at: u64, len: u64, on: bool) {
    let mut word = at / 64;
    let mut first = at % 64;
    let mut left = len;
    while left > 0 {
        let n = left.min(64 - first);
        let m = mask(first, n);
        // SAFETY: the caller's promise.
        let cell = unsafe { &*bits.add(word as usize).cast::<AtomicU64>() };
        let now = cell.load(Relaxed);
        if on && now & m != m {
            if m == u64::MAX {
                cell.store(m, Relaxed);
            } else {
                cell.fetch_or(m, Relaxed);
            }
        } else if !on && now & m != 0 {
            cell.fetch_and(!m, Relaxed);
        }
        left -= n;
        first = 0;
        word += 1;
    }
}

/// The first bit of the range that differs from `on`.
///
/// # Safety
/// `bits` covers the range.
pub unsafe fn first_other(bits: *const u64, at: u64, len: u64, on: bool) -> Option<u64> {
    (at..at + len).find(|&b| {
        // SAFETY: the caller's promise.
        let v = unsafe { *bits.add((b / 64) as usize) };
        (v >> (b % 64) & 1 != 0) != on
    })
}

/// Copies bits of one range to another, in address order (ranges must not overlap).
///
/// # Safety
/// `bits` covers both ranges.
pub unsafe fn copy(bits: *mut u64, from: u64, to: u64, len: u64) {
    let mut k = 0;
    while k < len {
        // SAFETY: the caller's promise.
        unsafe {
            let aligned = ((from + k) | (to + k)) & 63 == 0 && len - k >= 64;
            if aligned {
                *bits.add(((to + k) / 64) as usize) = *bits.add(((from + k) / 64) as usize);
                k += 64;
            } else {
                let on = all_set(bits, from + k, 1);
                put(bits, to + k, 1, on);
                k += 1;
            }
        }
    }
}
