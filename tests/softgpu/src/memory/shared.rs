//! A block's shared memory: what is addressable, initialised, awaited from cp.async. Races are in
//! [`super::clocks`].
#![allow(unsafe_code)] // Shared memory and its tables are raw reserved space of one worker.

use super::clocks::CLOCK_LIMIT;
use super::{Region, bits};
use crate::finding::FindingKind;
use crate::isa::{DYNAMIC_SHARED_BASE, SharedVar};

/// Bytes of address space of a block's shared memory.
const SPACE: u64 = DYNAMIC_SHARED_BASE as u64 + (256 << 10);

/// Most bytes one warp accesses at once.
const MOST_BYTES: u64 = 1024;

/// A refused access.
pub type SharedFault = (FindingKind, String);

/// Shared memory of the block a worker runs.
pub struct SharedMemory {
    data: Region,
    addressable: Region,
    initialised: Region,
    pending: Region,
    pub(super) writers: Region,
    pub(super) readers: Region,
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
        // Nothing beyond the layout may look initialised.
        self.forget();
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

    /// Nothing of the layout is initialised or pending.
    fn forget(&mut self) {
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
    }

    /// Forgets the last block; returns the clock the new block's warps start at.
    pub fn start_block(&mut self, last_clock: u32) -> u32 {
        self.forget();
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
    pub(super) fn describe(&self, at: u64, vars: &[SharedVar]) -> String {
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
        let ok = at < SPACE - MOST_BYTES
            && unsafe { bits::all_set(self.addressable.ptr().cast(), at, bytes) };
        if ok { Ok(()) } else { Err(self.bounds_fault(at, bytes, vars)) }
    }

    #[cold]
    fn bounds_fault(&self, at: u64, bytes: u64, vars: &[SharedVar]) -> SharedFault {
        let mut bad = at;
        if at < SPACE - MOST_BYTES {
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
    #[inline(always)]
    pub fn is_pending(&self, at: u64, bytes: u64) -> bool {
        // SAFETY: check_bounds accepted the range.
        unsafe { !bits::none_set(self.pending.ptr().cast(), at, bytes) }
    }

    /// True when the whole range may be read: written before and not awaited. What is initialised
    /// is also inside the bounds.
    #[inline(always)]
    pub fn is_readable(&self, at: u64, bytes: u64) -> bool {
        // SAFETY: the range is inside SPACE when the first test passes.
        at < SPACE - MOST_BYTES
            && unsafe {
                bits::all_set(self.initialised.ptr().cast(), at, bytes)
                    && !(self.has_pending && self.is_pending(at, bytes))
            }
    }

    /// True when the whole range may be written.
    #[inline(always)]
    pub fn is_writable(&self, at: u64, bytes: u64) -> bool {
        // SAFETY: the range is inside SPACE when the first test passes.
        at < SPACE - MOST_BYTES
            && unsafe { bits::all_set(self.addressable.ptr().cast(), at, bytes) }
            && !(self.has_pending && self.is_pending(at, bytes))
    }

    /// Marks a range as written.
    #[inline(always)]
    pub fn mark_written(&self, at: u64, bytes: u64) {
        // SAFETY: is_writable accepted the range.
        unsafe { bits::put(self.initialised.ptr().cast(), at, bytes, true) };
    }
}
