//! ldmatrix, stmatrix and mma.sync.
#![allow(unsafe_code)] // Registers and shared memory are raw.

use super::addresses::{Reach, addresses, wavefronts};
use super::pattern::Pattern;
use super::state::{AccessTable, Context, Fault, Warp};
use super::tensor;
use crate::isa::lanes::{Leveled, at_level};
use crate::isa::softfloat::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::isa::{MatrixOp, MmaOp, MmaType, Op};
use crate::memory::{SHARED_WINDOW, Sharing, WordLanes};
use crate::settings::MmaMode;

/// The lane that reads part `part` of a row.
#[inline(always)]
fn reader(op: &MatrixOp, row: u32, part: u32) -> u32 {
    if op.trans { row / 2 + 8 * part } else { 4 * row + part }
}

/// An ldmatrix by all 32 lanes, compiled for every level.
struct LoadMatrix<'c, 'p, 'w> {
    context: &'c mut Context<'p>,
    warp: &'w Warp,
    r: *mut u32,
    op: &'p MatrixOp,
    reach: Reach<'w>,
    index: usize,
    pc: u32,
}

impl Leveled for LoadMatrix<'_, '_, '_> {
    type Out = Result<(), Fault>;

    #[inline(always)]
    unsafe fn run(self) -> Result<(), Fault> {
        let LoadMatrix { context, warp, r, op, reach, index, pc } = self;
        let by = context.shared_access(warp, false);
        let mut slot = context.patterns[index].take();
        let known = Pattern::recall(&mut slot, reach.a, reach.m, 3, || {
            wavefronts(reach.a, reach.m, reach.bytes)
        });
        let mut checked = false;
        if let Some(pattern) = slot.as_mut() {
            context.count_shared(index, &reach, pattern.count);
            if known {
                // Every lane that receives elements of a row has read it. Untransposed, lane
                // 4 row + part reads bytes 4 part..; transposed, eight lanes read two bytes each
                // and the first of them stands for its neighbours.
                let plan = pattern.plan(4, |lane, part| reader(op, lane & 7, part));
                checked = context.shared_plan_readable(plan, reach.a[0], by);
            }
        }
        context.patterns[index] = slot;
        for j in 0..op.count as usize {
            for row in if checked { 0..0 } else { 0..8 } {
                let at = reach.a[8 * j + row];
                let (first, second) = (reader(op, row as u32, 0), reader(op, row as u32, 1));
                let step = second - first;
                let lanes = WordLanes { first, shift: 0, step, sharing: Sharing::None };
                // SAFETY: what is readable lies inside the bounds.
                let quick = context.shared.is_readable(at, 16)
                    && unsafe { context.shared.read_words(at, 4, lanes, by) };
                if !quick {
                    context.check_row(warp, at, lanes, (8 * j + row) as u32, pc)?;
                }
            }
            // SAFETY: every row was checked; registers lie inside the frame.
            unsafe {
                let d = r.add(op.regs[j] as usize);
                let mut m = [[0u16; 8]; 8];
                for (row, out) in m.iter_mut().enumerate() {
                    let from = context.shared.data().add(reach.a[8 * j + row] as usize);
                    std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().cast(), 16);
                }
                if op.trans {
                    for t in 0..32 {
                        let (x, y) = (t / 4, 2 * (t % 4));
                        *d.add(t) = u32::from(m[y][x]) | u32::from(m[y + 1][x]) << 16;
                    }
                } else {
                    std::ptr::copy_nonoverlapping(m.as_ptr().cast(), d, 32);
                }
            }
        }
        Ok(())
    }
}

impl<'p> Context<'p> {
    /// ldmatrix or stmatrix by all 32 lanes: lanes 8j..8j+7 give the rows of matrix j; register j
    /// of lane t holds row t/4, elements 2(t%4) and the next, or the transpose of that.
    pub fn matrix(&mut self, warp: &mut Warp, r: *mut u32, k: u32, pc: u32) -> Result<(), Fault> {
        let op = &self.program.matrices[k as usize];
        let is_load = matches!(self.program.code[pc as usize].op, Op::LdMatrix(_));
        // SAFETY: run_path passes the frame of the instruction.
        let mut a = unsafe { addresses(r, &op.addr) };
        for x in &mut a {
            if *x >> 32 == SHARED_WINDOW >> 32 {
                *x -= SHARED_WINDOW;
            }
        }
        let rows = 8 * op.count;
        let mask = u32::MAX >> (32 - rows);
        let reach = self.aligned(warp, &a, mask, 16, pc)?;
        let index = self.access_index(AccessTable::Matrix, k);
        if is_load {
            // SAFETY: the frame is the instruction's.
            return unsafe {
                at_level(LoadMatrix { context: self, warp, r, op, reach, index, pc })
            };
        }
        self.count_shared(index, &reach, wavefronts(&a, mask, 16));
        for lane in 0..rows as usize {
            self.store_row(warp, r, op, lane, a[lane], pc)?;
        }
        Ok(())
    }

    /// The checks of one row lane by lane: names the lane that gave its address.
    #[inline(never)]
    fn check_row(
        &self,
        warp: &Warp,
        at: u64,
        lanes: WordLanes,
        lane: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let vars = &self.program.shared_vars;
        let by = self.shared_access(warp, false);
        self.shared
            .check_bounds(at, 16, vars)
            .and_then(|()| self.shared.check_init(at, 16, vars))
            .and_then(|()| {
                (0..4).try_for_each(|part| {
                    let reader = lanes.first + part as u32 * lanes.step;
                    self.shared.race_read(at + 4 * part, 4, reader, by, vars)
                })
            })
            .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane, text))
    }

    fn store_row(
        &self,
        warp: &Warp,
        r: *mut u32,
        op: &MatrixOp,
        lane: usize,
        at: u64,
        pc: u32,
    ) -> Result<(), Fault> {
        let vars = &self.program.shared_vars;
        let by = self.shared_access(warp, false);
        let mut bytes = [0u8; 16];
        for e in 0..8 {
            // SAFETY: registers lie inside the frame.
            let h = unsafe { element(r, op.regs[lane / 8], lane % 8, e, op.trans) };
            bytes[2 * e..2 * e + 2].copy_from_slice(&h.to_le_bytes());
        }
        self.shared
            .check_bounds(at, 16, vars)
            .and_then(|()| self.shared.race_write(at, 16, lane as u32, by, &bytes, vars))
            .and_then(|()| self.shared.note_write(at, 16, vars))
            .map_err(|(kind, text)| self.fault(kind, pc, warp.index, lane as u32, text))?;
        // SAFETY: bounds were checked.
        unsafe {
            let to = self.shared.data().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, 16);
        }
        Ok(())
    }

    /// mma.sync by all 32 lanes.
    pub fn mma(&mut self, r: *mut u32, k: u32) {
        let op = self.program.mmas[k as usize];
        // SAFETY: run_path passes the frame of the instruction.
        unsafe {
            match self.mma {
                MmaMode::Fast
                    if op.ty != MmaType::TF32 && op.k == 16 && !op.half_c && !op.half_d =>
                {
                    at_level(tensor::FastK16 { r, op: &op });
                }
                mode => at_level(General { r, op: &op, mode }),
            }
        }
    }
}

/// Element `e` of row `row` of the matrix spread over a register.
unsafe fn element(r: *const u32, reg: u32, row: usize, e: usize, trans: bool) -> u16 {
    let (x, y) = if trans { (e, row) } else { (row, e) };
    let lane = 4 * x + y / 2;
    // SAFETY: the caller's promise.
    let word = unsafe { *r.add(reg as usize + lane) };
    (word >> (16 * (y % 2))) as u16
}

/// An mma of any shape and mode, compiled for every level. The operation's registers lie inside the
/// frame `r` starts.
struct General<'a> {
    r: *mut u32,
    op: &'a MmaOp,
    mode: MmaMode,
}

impl Leveled for General<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run(self) {
        // SAFETY: forwarded.
        unsafe { general(self.r, self.op, self.mode) }
    }
}

/// Any shape and mode, element by element.
#[inline(always)]
unsafe fn general(r: *mut u32, op: &MmaOp, mode: MmaMode) {
    let k = op.k as usize;
    let mut a = [[0f32; 16]; 16];
    let mut b = [[0f32; 16]; 8];
    let mut c = [[0f32; 8]; 16];
    // SAFETY: registers lie inside the frame.
    unsafe {
        for t in 0..32 {
            let (g, q) = (t / 4, t % 4);
            if op.ty == MmaType::TF32 {
                for i in 0..k / 2 {
                    let word = *r.add(op.a[i] as usize + t);
                    a[g + 8 * (i & 1)][q + 4 * (i >> 1)] = f32::from_bits(word & !0x1fff);
                }
                for i in 0..k / 4 {
                    let word = *r.add(op.b[i] as usize + t);
                    b[g][q + 4 * i] = f32::from_bits(word & !0x1fff);
                }
            } else {
                let to =
                    |h: u32| if op.ty == MmaType::BF16 { bf16_to_f32(h) } else { f16_to_f32(h) };
                for i in 0..k / 4 {
                    let word = *r.add(op.a[i] as usize + t);
                    let (row, col) = (g + 8 * (i & 1), 2 * q + 8 * (i >> 1));
                    a[row][col] = to(word & 0xffff);
                    a[row][col + 1] = to(word >> 16);
                }
                for i in 0..k / 8 {
                    let word = *r.add(op.b[i] as usize + t);
                    b[g][2 * q + 8 * i] = to(word & 0xffff);
                    b[g][2 * q + 8 * i + 1] = to(word >> 16);
                }
            }
            for i in 0..4 {
                let value = if op.half_c {
                    f16_to_f32(*r.add(op.c[i / 2] as usize + t) >> (16 * (i & 1)) & 0xffff)
                } else {
                    f32::from_bits(*r.add(op.c[i] as usize + t))
                };
                c[g + 8 * (i >> 1)][2 * q + (i & 1)] = value;
            }
        }
        // What only the exact modes look at.
        let apart = if mode == MmaMode::Fast { 0 } else { k };
        let rows = a.map(|x| tensor::Parts::new(&x[..apart]));
        let columns = b.map(|x| tensor::Parts::new(&x[..apart]));
        for t in 0..32 {
            let (g, q) = (t / 4, t % 4);
            let mut out = [0f32; 4];
            for (i, o) in out.iter_mut().enumerate() {
                let (row, col) = (g + 8 * (i >> 1), 2 * q + (i & 1));
                let (x, y, z) = (&a[row][..k], &b[col][..k], c[row][col]);
                *o = if mode == MmaMode::Fast {
                    tensor::dot(x, y, z, op.ty, mode)
                } else {
                    let h100 = mode == MmaMode::H100;
                    tensor::exact(&rows[row], &columns[col], x, y, z, op.ty, h100)
                };
            }
            if op.half_d {
                for i in 0..2 {
                    *r.add(op.d[i] as usize + t) =
                        f32_to_f16(out[2 * i]) | f32_to_f16(out[2 * i + 1]) << 16;
                }
            } else {
                for i in 0..4 {
                    *r.add(op.d[i] as usize + t) = out[i].to_bits();
                }
            }
        }
    }
}
