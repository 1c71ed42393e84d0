//! atom and red. Lanes go one after another from a random one, as hardware promises no order.
#![allow(unsafe_code)] // Memory and registers are raw.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::addresses::{addresses, sectors, wavefronts};
use super::state::{AccessTable, Context, Fault, Warp};
use crate::finding::FindingKind;
use crate::isa::softfloat::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, nan32, nan64};
use crate::isa::{AtomKind, AtomOp, MemSpace};
use crate::memory::{GLOBAL_BASE, bits, race};
use crate::ptx::ast::Type;

fn pairs(old: u64, b: u64, f: impl Fn(u32, u32) -> u32) -> u64 {
    let lo = f(old as u32 & 0xffff, b as u32 & 0xffff);
    let hi = f(old as u32 >> 16, b as u32 >> 16);
    u64::from(lo | hi << 16)
}

/// The value an atomic leaves; none for a pair PTX does not have.
fn combine(op: &AtomOp, old: u64, b: u64, c: u64) -> Option<u64> {
    let bits = 8 * op.ty.bytes();
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let signed = |x: u64| {
        if bits == 64 { x as i64 } else { i64::from(x as u32 as i32) }
    };
    let f16_add = |x: u32, y: u32| f32_to_f16(f16_to_f32(x) + f16_to_f32(y));
    let bf16_add = |x: u32, y: u32| f32_to_bf16(bf16_to_f32(x) + bf16_to_f32(y));
    let f16_pick = |x: u32, y: u32, larger: bool| {
        let (p, q) = (f16_to_f32(x), f16_to_f32(y));
        if (p > q) == larger { x } else { y }
    };
    let bf16_pick = |x: u32, y: u32, larger: bool| {
        let (p, q) = (bf16_to_f32(x), bf16_to_f32(y));
        if (p > q) == larger { x } else { y }
    };
    let larger = op.kind == AtomKind::Max;
    Some(match (op.kind, op.ty) {
        (AtomKind::Add, Type::F32) => {
            u64::from(nan32(f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits())
        }
        (AtomKind::Add, Type::F64) => nan64(f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomKind::Add, Type::F16) => u64::from(f16_add(old as u32, b as u32)),
        (AtomKind::Add, Type::BF16) => u64::from(bf16_add(old as u32, b as u32)),
        (AtomKind::Add, Type::F16x2) => pairs(old, b, f16_add),
        (AtomKind::Add, Type::BF16x2) => pairs(old, b, bf16_add),
        (AtomKind::Min | AtomKind::Max, Type::F16x2) => {
            pairs(old, b, |x, y| f16_pick(x, y, larger))
        }
        (AtomKind::Min | AtomKind::Max, Type::BF16x2) => {
            pairs(old, b, |x, y| bf16_pick(x, y, larger))
        }
        (AtomKind::Exch, _) => b,
        (AtomKind::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (_, t) if t.is_float() => return None,
        (AtomKind::Add, _) => old.wrapping_add(b) & mask,
        (AtomKind::And, _) => old & b,
        (AtomKind::Or, _) => old | b,
        (AtomKind::Xor, _) => old ^ b,
        (AtomKind::Min, t) if t.is_signed() => {
            if signed(b) < signed(old) {
                b
            } else {
                old
            }
        }
        (AtomKind::Max, t) if t.is_signed() => {
            if signed(b) > signed(old) {
                b
            } else {
                old
            }
        }
        (AtomKind::Min, _) => old.min(b),
        (AtomKind::Max, _) => old.max(b),
        (AtomKind::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomKind::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    })
}

/// Applies `f` to the element of `bytes` at `p` atomically; returns the old value.
unsafe fn update(p: *mut u8, bytes: u32, f: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: the caller checked bounds and alignment; a 2-byte element's word lies in the same
    // aligned 4 bytes, which are inside the reserved space.
    unsafe {
        if bytes == 8 {
            let cell = &*p.cast::<AtomicU64>();
            let mut old = cell.load(SeqCst);
            while let Err(now) = cell.compare_exchange_weak(old, f(old), SeqCst, SeqCst) {
                old = now;
            }
            return old;
        }
        let shift = if bytes == 2 { (p as usize & 2) * 8 } else { 0 };
        let mask = if bytes == 2 { 0xffffu32 << shift } else { u32::MAX };
        let cell = &*p.wrapping_sub(shift / 8).cast::<AtomicU32>();
        let mut word = cell.load(SeqCst);
        loop {
            let old = u64::from((word & mask) >> shift);
            let new = (word & !mask) | ((f(old) as u32) << shift & mask);
            match cell.compare_exchange_weak(word, new, SeqCst, SeqCst) {
                Ok(_) => return old,
                Err(now) => word = now,
            }
        }
    }
}

impl Context<'_> {
    /// Executes an atom or red for the lanes of `m`.
    pub fn atomic(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        at: usize,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let op = self.program.atoms[k as usize];
        let bytes = u64::from(op.ty.bytes());
        // SAFETY: run_path passes the frame of the instruction.
        let mut a = unsafe { addresses(r, &op.addr) };
        let parts = self.resolve(op.space, &mut a, m);
        self.aligned(warp, &a, m, bytes, pc)?;
        let start = (self.random() & 31) as u32;
        let index = self.access_index(AccessTable::Atom, k);
        for (space, part) in parts.into_iter().filter(|p| p.1 != 0) {
            for step in 0..32 {
                let lane = (start + step) & 31;
                if part >> lane & 1 == 0 {
                    continue;
                }
                let place = match space {
                    MemSpace::Global => {
                        self.atomic_global(warp, a[lane as usize], bytes, lane, &op, pc)?
                    }
                    MemSpace::Shared => {
                        self.atomic_shared(warp, a[lane as usize], bytes, lane, pc)?
                    }
                    _ => {
                        let text = format!("atomic in local memory of path {at}");
                        return Err(self.fault(
                            FindingKind::InvalidOperand,
                            pc,
                            warp.index,
                            lane,
                            text,
                        ));
                    }
                };
                let wide = bytes == 8;
                // SAFETY: registers lie inside the frame; place was checked.
                unsafe {
                    let read = |slot: u32| {
                        if wide {
                            *r.add(slot as usize).cast::<u64>().add(lane as usize)
                        } else {
                            u64::from(*r.add((slot + lane) as usize))
                        }
                    };
                    let mask = if wide { u64::MAX } else { (1u64 << (8 * bytes)) - 1 };
                    let b = read(op.b) & mask;
                    let c = if op.kind == AtomKind::Cas { read(op.c) & mask } else { 0 };
                    if combine(&op, 0, b, c).is_none() {
                        let text = "this atomic has no such type".to_string();
                        return Err(self.fault(
                            FindingKind::InvalidOperand,
                            pc,
                            warp.index,
                            lane,
                            text,
                        ));
                    }
                    let old =
                        update(place, bytes as u32, |old| combine(&op, old, b, c).unwrap_or(old));
                    if op.d != u32::MAX {
                        if wide {
                            *r.add(op.d as usize).cast::<u64>().add(lane as usize) = old;
                        } else {
                            *r.add((op.d + lane) as usize) = old as u32;
                        }
                    }
                }
                if space == MemSpace::Global && self.orders(&op) {
                    // Only now: whoever came before has published before its own operation.
                    self.ordering.learn(a[lane as usize], &mut self.known);
                }
            }
            let asked = bytes * u64::from(part.count_ones());
            let count = &mut self.accesses[index];
            count.requests += 1;
            count.bytes += asked;
            if space == MemSpace::Shared {
                count.wavefronts += wavefronts(&a, part, bytes);
                count.ideal_wavefronts += asked.div_ceil(128);
            } else {
                count.sectors += sectors(&a, part, bytes);
            }
        }
        Ok(())
    }

    /// Whether an atomic of global memory orders blocks.
    fn orders(&self, op: &AtomOp) -> bool {
        op.device && (self.fenced || op.ordered)
    }

    fn atomic_global(
        &mut self,
        warp: &Warp,
        address: u64,
        bytes: u64,
        lane: u32,
        op: &AtomOp,
        pc: u32,
    ) -> Result<*mut u8, Fault> {
        let ok = match self.memory.offset(address, bytes) {
            // SAFETY: the range is inside the reserved space.
            Some(o) => unsafe { bits::all_set(self.memory.init_bits(), o, bytes) },
            None => false,
        };
        // An exchange does not look at the old value unless it returns it.
        let blind =
            op.kind == AtomKind::Exch && op.d == u32::MAX && self.memory.contains(address, bytes);
        if !ok && !blind {
            return Err(self.global_fault(warp.index, lane, address, bytes, pc));
        }
        let by = race::Accessor { strong: op.device, ..self.accessor };
        if self.orders(op) {
            self.ordering.publish(address, by.block, &self.known);
        }
        self.race_lane(warp.index, lane, address, bytes, false, by, pc)?;
        self.race_lane(warp.index, lane, address, bytes, true, by, pc)?;
        let offset = address - GLOBAL_BASE;
        // SAFETY: the range is inside an allocation.
        unsafe {
            bits::put(self.memory.init_bits(), offset, bytes, true);
            Ok(self.memory.data().add(offset as usize))
        }
    }

    fn atomic_shared(
        &mut self,
        warp: &Warp,
        address: u64,
        bytes: u64,
        lane: u32,
        pc: u32,
    ) -> Result<*mut u8, Fault> {
        let vars = &self.program.shared_vars;
        let by = self.shared_access(warp, true);
        self.shared
            .check_bounds(address, bytes, vars)
            .and_then(|()| self.shared.check_init(address, bytes, vars))
            .and_then(|()| self.shared.race_read(address, bytes, lane, by, vars))
            .and_then(|()| self.shared.race_write(address, bytes, lane, by, &[], vars))
            .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))?;
        Ok(self.shared.data().wrapping_add(address as usize))
    }
}
