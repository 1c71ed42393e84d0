//! Loads and stores: which space, then between memory and registers.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::addresses::{Pattern, addresses, lanes, pattern};
use super::state::{AccessTable, Context, Fault, Warp};
use crate::finding::FindingKind;
use crate::isa::{MemOp, MemSpace};
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW};

/// Largest access of one lane.
pub const MAX_LANE_BYTES: usize = 32;

impl Context<'_> {
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
        let mut a = unsafe { addresses(r, &op.addr) };
        let index = self.access_index(AccessTable::Mem, k);
        match op.space {
            MemSpace::Global | MemSpace::Const => self.load_global(warp, r, &op, &a, m, pc, index),
            MemSpace::Shared => self.load_shared(warp, r, &op, &a, m, pc, index),
            _ => {
                // Generic accesses are counted in the space they turn out to be in.
                let n = self.accesses.len() / 3;
                for (space, part) in self.resolve(op.space, &mut a, m) {
                    match space {
                        MemSpace::Shared => {
                            self.load_shared(warp, r, &op, &a, part, pc, index + n)?
                        }
                        MemSpace::Local => {
                            self.load_local(warp, r, at, &op, &a, part, pc, index + 2 * n)?
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
        let mut a = unsafe { addresses(r, &op.addr) };
        let index = self.access_index(AccessTable::Mem, k);
        match op.space {
            MemSpace::Global => self.store_global(warp, r, &op, &a, m, pc, index),
            MemSpace::Shared => self.store_shared(warp, r, &op, &a, m, pc, index),
            _ => {
                // Generic accesses are counted in the space they turn out to be in.
                let n = self.accesses.len() / 3;
                for (space, part) in self.resolve(op.space, &mut a, m) {
                    match space {
                        MemSpace::Shared => {
                            self.store_shared(warp, r, &op, &a, part, pc, index + n)?
                        }
                        MemSpace::Local => {
                            self.store_local(warp, r, at, &op, &a, part, pc, index + 2 * n)?
                        }
                        _ => self.store_global(warp, r, &op, &a, part, pc, index)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Pattern of the active lanes' addresses; an error unless all are aligned to the access.
    #[inline(always)]
    pub fn aligned_pattern(
        &self,
        warp: &Warp,
        a: &[u64; 32],
        m: u32,
        bytes: u64,
        pc: u32,
    ) -> Result<Pattern, Fault> {
        let (shape, aligned) = pattern(a, m, bytes, bytes);
        if aligned { Ok(shape) } else { Err(self.misaligned(warp, a, m, bytes, pc)) }
    }

    #[cold]
    fn misaligned(&self, warp: &Warp, a: &[u64; 32], m: u32, bytes: u64, pc: u32) -> Fault {
        let l = lanes(m).find(|&l| a[l] & (bytes - 1) != 0).unwrap_or(0);
        let text = format!("address 0x{:x} is not a multiple of {bytes}", a[l]);
        self.fault(FindingKind::Misaligned, pc, warp.index, l as u32, text)
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

/// Memory to registers. `data` plus an address is the host place of that address.
#[inline(always)]
pub unsafe fn gather(
    r: *mut u32,
    op: &MemOp,
    data: *const u8,
    a: &[u64; 32],
    m: u32,
    shape: Pattern,
) {
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
pub unsafe fn scatter(
    r: *const u32,
    op: &MemOp,
    data: *mut u8,
    a: &[u64; 32],
    m: u32,
    shape: Pattern,
) {
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
