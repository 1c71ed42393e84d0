//! Zero-filled address space reserved from the operating system and committed on first touch.
#![allow(unsafe_code)] // mmap has no safe wrapper here.

use std::ptr;

/// A private anonymous mapping.
pub struct Region {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: a Region is plain memory owned by this value; all access goes through raw pointers whose
// users state their own rules.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `bytes`; none when the system refuses.
    pub fn reserve(bytes: usize) -> Option<Region> {
        let bytes = bytes.max(4096);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing else.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (base != libc::MAP_FAILED).then(|| Region { base: base.cast(), bytes })
    }

    /// First byte.
    pub fn ptr(&self) -> *mut u8 {
        self.base
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Makes a page-aligned inner part read as zero again and gives its memory back.
    pub fn discard(&self, offset: usize, bytes: usize) {
        let first = offset.next_multiple_of(4096);
        let end = (offset + bytes).min(self.bytes) / 4096 * 4096;
        if first < end {
            // SAFETY: the range lies inside this private anonymous mapping.
            unsafe {
                libc::madvise(self.base.add(first).cast(), end - first, libc::MADV_DONTNEED);
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by reserve and is unmapped once.
        unsafe {
            libc::munmap(self.base.cast(), self.bytes);
        }
    }
}
