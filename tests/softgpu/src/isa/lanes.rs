//! Lane loops: one function per (shape, operation, instruction set), chosen when an instruction is
//! decoded. A shape is how many operands of which widths go in and what comes out; the operation is
//! a capture-free closure, so every pair becomes its own loop that LLVM vectorises.
#![allow(unsafe_code)] // Registers are raw lane arrays; see the SAFETY notes.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::{ExecFn, Instr};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// Vector instruction sets a lane loop is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Whatever the target guarantees.
    Base,
    /// AVX2, FMA, BMI (x86-64-v3).
    V3,
    /// AVX-512 F, BW, DQ, VL (x86-64-v4).
    V4,
}

/// The best level of this machine.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let v3 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let v4 = v3
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if v4 {
                return Level::V4;
            }
            if v3 {
                return Level::V3;
            }
        }
        Level::Base
    })
}

/// Work that is compiled for every level and run at the machine's best.
pub trait Leveled {
    /// What it returns.
    type Out;

    /// Does it. Implementations are `#[inline(always)]`, and so is what they call in their loops,
    /// so that it is compiled for the level it is called from.
    ///
    /// # Safety
    /// What the implementation says.
    unsafe fn run(self) -> Self::Out;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn run_v3<W: Leveled>(work: W) -> W::Out {
    // SAFETY: forwarded.
    unsafe { work.run() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_v4<W: Leveled>(work: W) -> W::Out {
    // SAFETY: forwarded.
    unsafe { work.run() }
}

/// Runs work compiled for this machine's level.
///
/// # Safety
/// As the work's `run`.
#[inline(always)]
pub unsafe fn at_level<W: Leveled>(work: W) -> W::Out {
    // SAFETY: the caller's promise; the level says the features are there.
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::V4 => run_v4(work),
            #[cfg(target_arch = "x86_64")]
            Level::V3 => run_v3(work),
            _ => work.run(),
        }
    }
}

/// Conjures the closure back from its type.
#[inline(always)]
fn revive<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "lane operations must not capture") };
    // SAFETY: F is zero-sized (checked above), so reading it touches no memory, and a value of it
    // existed: every caller got here through a function that took one.
    unsafe { NonNull::<F>::dangling().as_ptr().read() }
}

/// Writes the lanes of `m`.
///
/// # Safety
/// `d` points at 32 writable lanes of R.
#[inline(always)]
unsafe fn store<R: Copy>(d: *mut R, t: &[MaybeUninit<R>; LANES], m: u32) {
    // SAFETY: the caller's promise; every element of t has been written by the loops below.
    unsafe {
        if m == u32::MAX {
            std::ptr::copy_nonoverlapping(t.as_ptr().cast::<R>(), d, LANES);
        } else {
            for l in 0..LANES {
                let old = *d.add(l);
                let new = t[l].assume_init();
                *d.add(l) = if m >> l & 1 != 0 { new } else { old };
            }
        }
    }
}

#[inline(always)]
unsafe fn un_body<A: Copy, R: Copy, F: Fn(A) -> R + Copy>(r: *mut u32, i: &Instr, m: u32) {
    let f = revive::<F>();
    let mut t = [MaybeUninit::<R>::uninit(); LANES];
    // SAFETY: the decoder made every operand offset point at 32 lanes of the operand's width
    // inside the frame that `r` starts.
    unsafe {
        let a = r.add(i.a as usize).cast::<A>();
        for l in 0..LANES {
            t[l].write(f(*a.add(l)));
        }
        store(r.add(i.d as usize).cast::<R>(), &t, m);
    }
}

#[inline(always)]
unsafe fn bin_body<A: Copy, B: Copy, R: Copy, F: Fn(A, B) -> R + Copy>(
    r: *mut u32,
    i: &Instr,
    m: u32,
) {
    let f = revive::<F>();
    let mut t = [MaybeUninit::<R>::uninit(); LANES];
    // SAFETY: as in un_body.
    unsafe {
        let a = r.add(i.a as usize).cast::<A>();
        let b = r.add(i.b as usize).cast::<B>();
        for l in 0..LANES {
            t[l].write(f(*a.add(l), *b.add(l)));
        }
        store(r.add(i.d as usize).cast::<R>(), &t, m);
    }
}

#[inline(always)]
unsafe fn tern_body<A: Copy, B: Copy, C: Copy, R: Copy, F: Fn(A, B, C) -> R + Copy>(
    r: *mut u32,
    i: &Instr,
    m: u32,
) {
    let f = revive::<F>();
    let mut t = [MaybeUninit::<R>::uninit(); LANES];
    // SAFETY: as in un_body.
    unsafe {
        let a = r.add(i.a as usize).cast::<A>();
        let b = r.add(i.b as usize).cast::<B>();
        let c = r.add(i.c as usize).cast::<C>();
        for l in 0..LANES {
            t[l].write(f(*a.add(l), *b.add(l), *c.add(l)));
        }
        store(r.add(i.d as usize).cast::<R>(), &t, m);
    }
}

/// Comparison: lanes to a mask, combined with predicate `c` and written to predicates `d` and `e`.
#[inline(always)]
unsafe fn cmp_body<A: Copy, F: Fn(A, A) -> bool + Copy>(
    r: *mut u32,
    p: *mut u32,
    i: &Instr,
    m: u32,
) {
    let f = revive::<F>();
    // SAFETY: as in un_body; predicate indices are inside the frame that `p` starts.
    unsafe {
        let a = r.add(i.a as usize).cast::<A>();
        let b = r.add(i.b as usize).cast::<A>();
        let mut hit = [0u8; LANES];
        for l in 0..LANES {
            hit[l] = u8::from(f(*a.add(l), *b.add(l)));
        }
        write_predicates(p, i, pack(&hit), m);
    }
}

/// 32 bytes of 0 or 1 to a mask.
#[inline(always)]
pub fn pack(hit: &[u8; LANES]) -> u32 {
    let mut mask = 0u32;
    for (k, chunk) in hit.chunks_exact(8).enumerate() {
        let eight = u64::from_le_bytes([
            chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
        ]);
        // Gathers the low bit of each byte into the top byte.
        mask |= ((eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32) << (8 * k);
    }
    mask
}

/// How setp joins its comparison with a predicate; kept in `Instr::imm`.
pub mod combine {
    /// No third operand.
    pub const NONE: i64 = 0;
    /// and
    pub const AND: i64 = 1;
    /// or
    pub const OR: i64 = 2;
    /// xor
    pub const XOR: i64 = 3;
    /// Added when the third operand is negated.
    pub const NEGATE: i64 = 4;
}

/// No predicate here.
pub const NO_PRED: u32 = u32::MAX;

/// Writes a comparison's mask the way setp says.
///
/// # Safety
/// `p` starts the predicate frame the instruction was decoded for.
#[inline(always)]
pub unsafe fn write_predicates(p: *mut u32, i: &Instr, mask: u32, m: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut first = mask;
        let mut second = !mask;
        if i.imm != combine::NONE {
            let mut c = *p.add(i.c as usize);
            if i.imm & combine::NEGATE != 0 {
                c = !c;
            }
            (first, second) = match i.imm & 3 {
                combine::AND => (mask & c, !mask & c),
                combine::OR => (mask | c, !mask | c),
                _ => (mask ^ c, !mask ^ c),
            };
        }
        if i.d != NO_PRED {
            let d = p.add(i.d as usize);
            *d = (*d & !m) | (first & m);
        }
        if i.e != NO_PRED {
            let e = p.add(i.e as usize);
            *e = (*e & !m) | (second & m);
        }
    }
}

/// `d = predicate c ? a : b`.
#[inline(always)]
unsafe fn sel_body<A: Copy>(r: *mut u32, p: *mut u32, i: &Instr, m: u32) {
    let mut t = [MaybeUninit::<A>::uninit(); LANES];
    // SAFETY: as in cmp_body.
    unsafe {
        let mask = *p.add(i.c as usize) ^ (i.imm as u32);
        let a = r.add(i.a as usize).cast::<A>();
        let b = r.add(i.b as usize).cast::<A>();
        for l in 0..LANES {
            let (x, y) = (*a.add(l), *b.add(l));
            t[l].write(if mask >> l & 1 != 0 { x } else { y });
        }
        store(r.add(i.d as usize).cast::<A>(), &t, m);
    }
}

macro_rules! levels {
    ($pick:ident, $base:ident, $v3:ident, $v4:ident, $body:ident, [$($g:ident),*], $f:ident: $bound:path) => {
        unsafe fn $base<$($g: Copy,)* $f: $bound + Copy>(r: *mut u32, _p: *mut u32, i: &Instr, m: u32) {
            // SAFETY: forwarded.
            unsafe { $body::<$($g,)* $f>(r, i, m) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        unsafe fn $v3<$($g: Copy,)* $f: $bound + Copy>(r: *mut u32, _p: *mut u32, i: &Instr, m: u32) {
            // SAFETY: forwarded.
            unsafe { $body::<$($g,)* $f>(r, i, m) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn $v4<$($g: Copy,)* $f: $bound + Copy>(r: *mut u32, _p: *mut u32, i: &Instr, m: u32) {
            // SAFETY: forwarded.
            unsafe { $body::<$($g,)* $f>(r, i, m) }
        }
        /// The lane loop of this shape for the operation, for this machine.
        pub fn $pick<$($g: Copy,)* $f: $bound + Copy>(_: $f) -> ExecFn {
            match level() {
                #[cfg(target_arch = "x86_64")]
                Level::V4 => $v4::<$($g,)* $f>,
                #[cfg(target_arch = "x86_64")]
                Level::V3 => $v3::<$($g,)* $f>,
                _ => $base::<$($g,)* $f>,
            }
        }
    };
}

levels!(un, un_base, un_v3, un_v4, un_body, [A, R], F: Fn(A) -> R);
levels!(bin, bin_base, bin_v3, bin_v4, bin_body, [A, B, R], F: Fn(A, B) -> R);
levels!(tern, tern_base, tern_v3, tern_v4, tern_body, [A, B, C, R], F: Fn(A, B, C) -> R);

unsafe fn cmp_base<A: Copy, F: Fn(A, A) -> bool + Copy>(
    r: *mut u32,
    p: *mut u32,
    i: &Instr,
    m: u32,
) {
    // SAFETY: forwarded.
    unsafe { cmp_body::<A, F>(r, p, i, m) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn cmp_v3<A: Copy, F: Fn(A, A) -> bool + Copy>(r: *mut u32, p: *mut u32, i: &Instr, m: u32) {
    // SAFETY: forwarded.
    unsafe { cmp_body::<A, F>(r, p, i, m) }
}

/// The comparison loop for the operation.
pub fn cmp<A: Copy, F: Fn(A, A) -> bool + Copy>(_: F) -> ExecFn {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::V4 | Level::V3 => cmp_v3::<A, F>,
        _ => cmp_base::<A, F>,
    }
}

unsafe fn sel_base<A: Copy>(r: *mut u32, p: *mut u32, i: &Instr, m: u32) {
    // SAFETY: forwarded.
    unsafe { sel_body::<A>(r, p, i, m) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn sel_v4<A: Copy>(r: *mut u32, p: *mut u32, i: &Instr, m: u32) {
    // SAFETY: forwarded.
    unsafe { sel_body::<A>(r, p, i, m) }
}

/// The selection loop for lanes of A.
pub fn sel<A: Copy>() -> ExecFn {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::V4 => sel_v4::<A>,
        _ => sel_base::<A>,
    }
}
