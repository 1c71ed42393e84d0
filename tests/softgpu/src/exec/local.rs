//! Local memory and kernel parameters.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use super::access::{MAX_LANE_BYTES, Site, extend, lane_bytes, put_lane};
use super::addresses::lanes;
use super::state::{Context, Fault, Warp};
use crate::finding::FindingKind;

impl Context<'_> {
    fn local_range(
        &self,
        warp: &Warp,
        at: usize,
        lane: usize,
        address: u64,
        bytes: u64,
        pc: u32,
    ) -> Result<usize, Fault> {
        let path = &warp.paths[at];
        let function = &self.program.functions[path.function as usize];
        let end = u64::from(path.local_base + function.local_bytes);
        if address.checked_add(bytes).is_none_or(|e| e > end) {
            let text = format!(
                "access of {bytes} bytes at byte {} of {} bytes of local memory",
                address.wrapping_sub(u64::from(path.local_base)) as i64,
                function.local_bytes
            );
            return Err(self.fault(FindingKind::OutOfBounds, pc, warp.index, lane as u32, text));
        }
        Ok((warp.index as usize * 32 + lane) * self.local_stride as usize + address as usize)
    }

    pub fn load_local(
        &mut self,
        warp: &Warp,
        site: &Site<'_>,
        a: &[u64; 32],
        m: u32,
    ) -> Result<(), Fault> {
        let Site { r, path, op, pc, index } = *site;
        let bytes = op.bytes();
        self.aligned(warp, a, m, bytes, pc)?;
        for l in lanes(m) {
            let at = self.local_range(warp, path, l, a[l], bytes, pc)?;
            let range = at..at + bytes as usize;
            // Unoptimised code copies structures whole, padding and unset members with them.
            if !self.program.debug && self.local_init[range.clone()].contains(&0) {
                let text =
                    format!("read of {bytes} bytes of local memory at 0x{:x}, never written", a[l]);
                return Err(self.fault(
                    FindingKind::UninitialisedLocal,
                    pc,
                    warp.index,
                    l as u32,
                    text,
                ));
            }
            // SAFETY: registers lie inside the frame; the slice holds the lane's bytes.
            unsafe { put_lane(r, op, l, self.local[range].as_ptr()) };
        }
        self.count_local(index, m, bytes);
        Ok(())
    }

    pub fn store_local(
        &mut self,
        warp: &Warp,
        site: &Site<'_>,
        a: &[u64; 32],
        m: u32,
    ) -> Result<(), Fault> {
        let Site { r, path, op, pc, index } = *site;
        let bytes = op.bytes();
        self.aligned(warp, a, m, bytes, pc)?;
        for l in lanes(m) {
            let at = self.local_range(warp, path, l, a[l], bytes, pc)?;
            let mut new = [0u8; MAX_LANE_BYTES];
            // SAFETY: registers lie inside the frame.
            unsafe { lane_bytes(r, op, l, &mut new) };
            let range = at..at + bytes as usize;
            self.local_init[range.clone()].fill(1);
            self.local[range].copy_from_slice(&new[..bytes as usize]);
        }
        self.count_local(index, m, bytes);
        Ok(())
    }

    fn count_local(&mut self, index: usize, m: u32, bytes: u64) {
        // Local memory is interleaved by lane: each 4-byte word of a warp is four sectors.
        let count = &mut self.accesses[index];
        count.requests += 1;
        count.bytes += bytes * u64::from(m.count_ones());
        count.sectors += 4 * bytes.div_ceil(4);
    }

    /// ld.param at a fixed place.
    pub fn load_param(
        &mut self,
        r: *mut u32,
        k: u32,
        m: u32,
        warp: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = self.program.param_loads[k as usize];
        let end = u64::from(op.offset) + u64::from(op.element * op.count);
        if end > self.params.len() as u64 {
            let text = format!("parameter byte {end} of {}", self.params.len());
            return Err(self.fault(FindingKind::OutOfBounds, pc, warp, 0, text));
        }
        for k in 0..op.count as usize {
            let at = op.offset as usize + k * op.element as usize;
            let mut raw = [0u8; 8];
            raw[..op.element as usize].copy_from_slice(&self.params[at..at + op.element as usize]);
            let value = extend(u64::from_le_bytes(raw), op.element, op.signed);
            if op.regs[k] == u32::MAX {
                continue;
            }
            // SAFETY: the destination lies inside the frame.
            unsafe {
                let d = r.add(op.regs[k] as usize);
                for l in lanes(m) {
                    if op.wide {
                        *d.cast::<u64>().add(l) = value;
                    } else {
                        *d.add(l) = value as u32;
                    }
                }
            }
        }
        Ok(())
    }

    /// ld.param through a register.
    pub fn load_param_at(
        &mut self,
        warp: &Warp,
        site: &Site<'_>,
        a: &[u64; 32],
        m: u32,
    ) -> Result<(), Fault> {
        let Site { r, op, pc, .. } = *site;
        let bytes = op.bytes();
        self.aligned(warp, a, m, bytes, pc)?;
        for l in lanes(m) {
            let end = a[l].saturating_add(bytes);
            if end > self.params.len() as u64 {
                let text = format!("parameter byte {end} of {}", self.params.len());
                return Err(self.fault(FindingKind::OutOfBounds, pc, warp.index, l as u32, text));
            }
            // SAFETY: the range was checked; registers lie inside the frame.
            unsafe { put_lane(r, op, l, self.params.as_ptr().add(a[l] as usize)) };
        }
        Ok(())
    }
}
