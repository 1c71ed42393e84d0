//! Operations on predicates, and the one lane loop that needs its immediate.
#![allow(unsafe_code)] // Registers and predicates are raw frames.

use super::Instr;

/// lop3 with any table (in `imm`).
pub(super) unsafe fn lop3_any(r: *mut u32, _p: *mut u32, i: &Instr, m: u32) {
    // SAFETY: operand offsets are inside the frame, as for every lane loop.
    unsafe {
        for l in (0..32).filter(|l| m >> l & 1 != 0) {
            let a = *r.add(i.a as usize + l);
            let b = *r.add(i.b as usize + l);
            let c = *r.add(i.c as usize + l);
            let mut d = 0;
            for k in 0..8u32 {
                if i.imm >> k & 1 != 0 {
                    let x = if k & 4 != 0 { a } else { !a };
                    let y = if k & 2 != 0 { b } else { !b };
                    let z = if k & 1 != 0 { c } else { !c };
                    d |= x & y & z;
                }
            }
            *r.add(i.d as usize + l) = d;
        }
    }
}

/// Lanes of predicate operand `x` (index * 2 + negated).
///
/// # Safety
/// `p` starts the predicate frame.
#[inline(always)]
unsafe fn read_pred(p: *mut u32, x: u32) -> u32 {
    // SAFETY: the caller's promise.
    let v = unsafe { *p.add((x >> 1) as usize) };
    if x & 1 != 0 { !v } else { v }
}

macro_rules! pred_op {
    ($name:ident, |$a:ident, $b:ident| $e:expr) => {
        pub(super) unsafe fn $name(_r: *mut u32, p: *mut u32, i: &Instr, m: u32) {
            // SAFETY: predicate indices are inside the frame.
            unsafe {
                let $a = read_pred(p, i.a);
                let $b = read_pred(p, i.b);
                let d = p.add(i.d as usize);
                *d = (*d & !m) | ($e & m);
            }
        }
    };
}

pred_op!(pred_and, |a, b| a & b);
pred_op!(pred_or, |a, b| a | b);
pred_op!(pred_xor, |a, b| a ^ b);

/// Copy or negation of one predicate.
pub(super) unsafe fn pred_not(_r: *mut u32, p: *mut u32, i: &Instr, m: u32) {
    // SAFETY: predicate indices are inside the frame.
    unsafe {
        let a = !read_pred(p, i.a);
        let d = p.add(i.d as usize);
        *d = (*d & !m) | (a & m);
    }
}
