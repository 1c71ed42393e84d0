//! Global memory: allocations that are never reused while address space lasts, red zones between
//! them, and the shadow tables.
#![allow(unsafe_code)] // Device memory is raw bytes shared between workers, as on a device.

use std::collections::BTreeMap;

use super::{GLOBAL_BASE, Region, bits, race};

/// Red zone after every allocation, and the alignment of the next.
const ALIGN: u64 = 256;

/// Why an allocation or a free was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocError {
    /// More than the device has.
    OutOfMemory,
    /// Zero bytes, or not the start of an allocation.
    Invalid,
    /// Freed before.
    DoubleFree,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: u64,
    serial: u64,
}

/// Global memory with its shadow.
pub struct DeviceMemory {
    data: Region,
    addressable: Region,
    initialised: Region,
    races: Region,
    live: BTreeMap<u64, Block>,
    freed: BTreeMap<u64, Block>,
    next: u64,
    used: u64,
    peak: u64,
    limit: u64,
    serial: u64,
    epoch: u64,
}

impl DeviceMemory {
    /// Memory of `limit` bytes. Address space is reserved more generously, so that freed addresses
    /// are not handed out again soon.
    pub fn new(limit: u64) -> Option<DeviceMemory> {
        let mut space = (limit.saturating_mul(8)).clamp(1 << 30, 256 << 30);
        loop {
            let space_len = usize::try_from(space).ok()?;
            let parts = (
                Region::reserve(space_len),
                Region::reserve(space_len / 8),
                Region::reserve(space_len / 8),
                Region::reserve(space_len * 2),
            );
            if let (Some(data), Some(addressable), Some(initialised), Some(races)) = parts {
                return Some(DeviceMemory {
                    data,
                    addressable,
                    initialised,
                    races,
                    live: BTreeMap::new(),
                    freed: BTreeMap::new(),
                    next: ALIGN,
                    used: 0,
                    peak: 0,
                    limit,
                    serial: 0,
                    epoch: 0,
                });
            }
            if space <= limit || space <= 1 << 28 {
                return None;
            }
            space /= 2;
        }
    }

    /// Bytes in use, including rounding.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Most bytes ever in use.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Bytes the device has.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Reserves `bytes`, uninitialised.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, AllocError> {
        if bytes == 0 {
            return Err(AllocError::Invalid);
        }
        let rounded = bytes.checked_next_multiple_of(ALIGN).ok_or(AllocError::OutOfMemory)?;
        if rounded > self.limit.saturating_sub(self.used) {
            return Err(AllocError::OutOfMemory);
        }
        let offset = self.place(rounded + ALIGN).ok_or(AllocError::OutOfMemory)?;
        self.used += rounded;
        self.peak = self.peak.max(self.used);
        self.serial += 1;
        self.live.insert(offset, Block { bytes, serial: self.serial });
        // SAFETY: place returned a range inside the reserved space.
        unsafe {
            bits::put(self.addressable_bits(), offset, bytes, true);
        }
        Ok(GLOBAL_BASE + offset)
    }

    fn place(&mut self, span: u64) -> Option<u64> {
        let end = self.data.len() as u64;
        if self.next + span <= end {
            let offset = self.next;
            self.next += span;
            return Some(offset);
        }
        // Address space used up: reuse the first gap that is long enough.
        let mut at = ALIGN;
        let mut found = None;
        for (&offset, block) in &self.live {
            if offset >= at + span {
                found = Some(at);
                break;
            }
            at = offset + block.bytes.next_multiple_of(ALIGN) + ALIGN;
        }
        let offset = found.or((at + span <= end).then_some(at))?;
        self.freed.retain(|&o, b| o + b.bytes <= offset || o >= offset + span);
        Some(offset)
    }

    /// Frees an allocation by its first address.
    pub fn free(&mut self, address: u64) -> Result<(), AllocError> {
        let offset = address.wrapping_sub(GLOBAL_BASE);
        let Some(block) = self.live.remove(&offset) else {
            let freed = self.freed.contains_key(&offset);
            return Err(if freed { AllocError::DoubleFree } else { AllocError::Invalid });
        };
        self.used -= block.bytes.next_multiple_of(ALIGN);
        // SAFETY: the range belonged to the allocation.
        unsafe {
            bits::put(self.addressable_bits(), offset, block.bytes, false);
            bits::put(self.init_bits(), offset, block.bytes, false);
        }
        self.data.discard(offset as usize, block.bytes as usize);
        self.races.discard(offset as usize * 2, block.bytes as usize * 2);
        self.freed.insert(offset, block);
        if self.freed.len() > 1 << 16 {
            self.freed.pop_first();
        }
        Ok(())
    }

    /// Live allocations: address, bytes, serial number.
    pub fn allocations(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.live.iter().map(|(&o, b)| (GLOBAL_BASE + o, b.bytes, b.serial))
    }

    /// Starts a launch: its number for the race table.
    pub fn next_epoch(&mut self) -> u64 {
        if self.epoch == race::EPOCHS {
            self.epoch = 0;
            self.races.discard(0, self.races.len());
        }
        self.epoch += 1;
        self.epoch
    }

    /// Offset of an address; none when it is below global memory or beyond it.
    #[inline(always)]
    pub fn offset(&self, address: u64, bytes: u64) -> Option<u64> {
        let offset = address.wrapping_sub(GLOBAL_BASE);
        (offset < self.data.len() as u64 - bytes.min(1 << 20)).then_some(offset)
    }

    /// Byte 0 of the data.
    #[inline(always)]
    pub fn data(&self) -> *mut u8 {
        self.data.ptr()
    }

    /// One bit a byte: may be accessed.
    #[inline(always)]
    pub fn addressable_bits(&self) -> *mut u64 {
        self.addressable.ptr().cast()
    }

    /// One bit a byte: has been written.
    #[inline(always)]
    pub fn init_bits(&self) -> *mut u64 {
        self.initialised.ptr().cast()
    }

    /// Race entries, one a 4-byte word.
    #[inline(always)]
    pub fn race_entries(&self) -> *mut u64 {
        self.races.ptr().cast()
    }

    /// True when the whole range is addressable.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        let offset = address.wrapping_sub(GLOBAL_BASE);
        let space = self.data.len() as u64;
        offset < space
            && bytes <= space - offset
            // SAFETY: the range lies inside the reserved space.
            && unsafe { bits::all_set(self.addressable_bits(), offset, bytes) }
    }

    /// Copies host bytes in.
    pub fn write(&self, address: u64, src: &[u8]) -> bool {
        if !self.contains(address, src.len() as u64) {
            return false;
        }
        let offset = address - GLOBAL_BASE;
        // SAFETY: contains checked the range; the host slice is valid.
        unsafe {
            let to = self.data().add(offset as usize);
            std::ptr::copy_nonoverlapping(src.as_ptr(), to, src.len());
            bits::put(self.init_bits(), offset, src.len() as u64, true);
        }
        true
    }

    /// Copies bytes out.
    pub fn read(&self, address: u64, dst: &mut [u8]) -> bool {
        if !self.contains(address, dst.len() as u64) {
            return false;
        }
        let offset = address - GLOBAL_BASE;
        // SAFETY: as in write.
        unsafe {
            let from = self.data().add(offset as usize);
            std::ptr::copy_nonoverlapping(from, dst.as_mut_ptr(), dst.len());
        }
        true
    }

    /// Copies within the device; the initialised bits travel along.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        if !self.contains(from, bytes) || !self.contains(to, bytes) {
            return false;
        }
        let (f, t) = (from - GLOBAL_BASE, to - GLOBAL_BASE);
        // SAFETY: both ranges were checked; copy allows overlap.
        unsafe {
            std::ptr::copy(
                self.data().add(f as usize),
                self.data().add(t as usize),
                bytes as usize,
            );
            bits::copy(self.init_bits(), f, t, bytes);
        }
        true
    }

    /// Fills with a byte.
    pub fn fill(&self, address: u64, value: u8, bytes: u64) -> bool {
        if !self.contains(address, bytes) {
            return false;
        }
        let offset = address - GLOBAL_BASE;
        // SAFETY: contains checked the range.
        unsafe {
            std::ptr::write_bytes(self.data().add(offset as usize), value, bytes as usize);
            bits::put(self.init_bits(), offset, bytes, true);
        }
        true
    }

    /// First uninitialised byte of a range, if any.
    pub fn first_uninitialised(&self, address: u64, bytes: u64) -> Option<u64> {
        let offset = address.wrapping_sub(GLOBAL_BASE);
        // SAFETY: callers pass ranges that `contains` accepted.
        unsafe {
            if bits::all_set(self.init_bits(), offset, bytes) {
                return None;
            }
            bits::first_other(self.init_bits(), offset, bytes, true).map(|o| GLOBAL_BASE + o)
        }
    }

    /// Where an address lies, in words: inside, past or before which allocation; whether it was
    /// freed.
    pub fn describe(&self, address: u64) -> (bool, String) {
        let offset = address.wrapping_sub(GLOBAL_BASE);
        if address < GLOBAL_BASE || offset >= self.data.len() as u64 {
            return (false, format!("0x{address:x} is not a device address"));
        }
        let inside = |map: &BTreeMap<u64, Block>| {
            map.range(..=offset)
                .next_back()
                .filter(|(o, b)| offset < *o + b.bytes)
                .map(|(&o, &b)| (o, b))
        };
        if let Some((o, b)) = inside(&self.live) {
            let text = format!(
                "0x{address:x} is byte {} of {} in allocation {}",
                offset - o,
                b.bytes,
                b.serial
            );
            return (false, text);
        }
        if let Some((o, b)) = inside(&self.freed) {
            let text = format!(
                "0x{address:x} is byte {} of allocation {} ({} bytes), which was freed",
                offset - o,
                b.serial,
                b.bytes
            );
            return (true, text);
        }
        let before = self.live.range(..=offset).next_back();
        let after = self.live.range(offset..).next();
        let text = match (before, after) {
            (Some((&o, b)), next)
                if next.is_none_or(|(&n, _)| offset - (o + b.bytes) <= n - offset) =>
            {
                format!(
                    "0x{address:x} is {} bytes past the end of allocation {} ({} bytes)",
                    offset - (o + b.bytes),
                    b.serial,
                    b.bytes
                )
            }
            (_, Some((&n, b))) => format!(
                "0x{address:x} is {} bytes before allocation {} ({} bytes)",
                n - offset,
                b.serial,
                b.bytes
            ),
            _ => format!("0x{address:x} belongs to no allocation"),
        };
        (false, text)
    }

    /// Bytes read and written during launch `epoch`, each counted once.
    pub fn unique_bytes(&self, epoch: u64) -> (u64, u64) {
        let mut total = (0, 0);
        for (&offset, block) in &self.live {
            for w in offset / 4..(offset + block.bytes).div_ceil(4) {
                // SAFETY: the entries of a live allocation lie inside the table.
                let entry = unsafe { *self.race_entries().add(w as usize) };
                let (r, wr) = race::touched(entry, epoch);
                total.0 += u64::from(r);
                total.1 += u64::from(wr);
            }
        }
        total
    }
}
