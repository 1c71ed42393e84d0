//! Products of small strided matrices, for attention's blocks: `C = A B` or
//! `C += A B` by register tiles. Every element of C is one chain of
//! multiply-adds in the order of k, whatever the tile it falls into.
#![allow(unsafe_code)] // Tiles go through memory by pointers, checked once a product.

use super::isa::{Isa, multiversion};

/// A matrix inside a slice: element (i, j) at `start + i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Where it lies.
    pub data: &'a [f32],
    /// Its first element.
    pub start: usize,
    /// From one row to the next.
    pub row: usize,
    /// From one column to the next.
    pub column: usize,
}

/// A matrix that is written, with columns side by side. A pointer, because the
/// gaps between its rows may belong to other tasks.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its first element.
    pub start: *mut f32,
    /// From one row to the next.
    pub row: usize,
}

/// Index of the last element, for `rows` and `columns` of at least one.
fn last(start: usize, [row, column]: [usize; 2], [rows, columns]: [usize; 2]) -> usize {
    start + (rows - 1) * row + (columns - 1) * column
}

/// `C = A B`, or `C += A B` with `accumulate`; A is m x k, B is k x n with its
/// columns side by side.
///
/// # Safety
/// The m rows of n elements of C must be valid, and nothing else may use them
/// meanwhile.
pub unsafe fn multiply(
    isa: Isa,
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: Target,
    accumulate: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert_eq!(b.column, 1);
    assert!(last(a.start, [a.row, a.column], [m, k]) < a.data.len());
    assert!(last(b.start, [b.row, 1], [k, n]) < b.data.len());
    // SAFETY: by the assertions the pointers reach every element of a and b
    // inside their slices; c is the caller's promise.
    let operands = unsafe {
        Operands {
            k,
            a: a.data.as_ptr().add(a.start),
            a_row: a.row,
            a_column: a.column,
            b: b.data.as_ptr().add(b.start),
            b_row: b.row,
            c: c.start,
            c_row: c.row,
            accumulate,
        }
    };
    match isa {
        Isa::Avx512 => wide(isa, operands, m, n),
        Isa::Avx2 => middle(isa, operands, m, n),
        Isa::Portable => narrow(isa, operands, m, n),
    }
}

#[derive(Clone, Copy)]
struct Operands {
    k: usize,
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const f32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
}

multiversion! {
    /// 32 vector registers of sixteen: tiles of 8 x 32.
    fn wide(isa: Isa, o: Operands, m: usize, n: usize) {
        panels::<8, 32, true>(o, m, n);
    }
}

multiversion! {
    /// 16 vector registers of eight: tiles of 6 x 16.
    fn middle(isa: Isa, o: Operands, m: usize, n: usize) {
        panels::<6, 16, true>(o, m, n);
    }
}

/// Whether the portable target fuses; a fused multiply-add in software would
/// cost a hundred times the product.
const PORTABLE_FUSES: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

multiversion! {
    /// At least 16 vector registers of four: tiles of 4 x 8.
    fn narrow(isa: Isa, o: Operands, m: usize, n: usize) {
        panels::<4, 8, PORTABLE_FUSES>(o, m, n);
    }
}

/// Goes over C in panels of N columns, then of 8 and 1.
#[inline(always)]
fn panels<const M: usize, const N: usize, const FUSED: bool>(o: Operands, m: usize, n: usize) {
    let mut j = 0;
    while j + N <= n {
        rows::<M, N, FUSED>(o.column(j), m);
        j += N;
    }
    while j + 8 <= n {
        rows::<M, 8, FUSED>(o.column(j), m);
        j += 8;
    }
    while j < n {
        rows::<M, 1, FUSED>(o.column(j), m);
        j += 1;
    }
}

#[inline(always)]
fn rows<const M: usize, const N: usize, const FUSED: bool>(o: Operands, m: usize) {
    let mut i = 0;
    while i + M <= m {
        tile::<M, N, FUSED>(o.row(i));
        i += M;
    }
    while i + 2 <= m {
        tile::<2, N, FUSED>(o.row(i));
        i += 2;
    }
    if i < m {
        tile::<1, N, FUSED>(o.row(i));
    }
}

impl Operands {
    /// The same product from row i on.
    #[inline(always)]
    fn row(self, i: usize) -> Self {
        // SAFETY: callers stay below m, which `multiply` has checked.
        unsafe { Operands { a: self.a.add(i * self.a_row), c: self.c.add(i * self.c_row), ..self } }
    }

    /// The same product from column j on.
    #[inline(always)]
    fn column(self, j: usize) -> Self {
        // SAFETY: callers stay below n, which `multiply` has checked.
        unsafe { Operands { b: self.b.add(j), c: self.c.add(j), ..self } }
    }
}

#[inline(always)]
fn tile<const M: usize, const N: usize, const FUSED: bool>(o: Operands) {
    let mut acc = [[0f32; N]; M];
    // SAFETY: `rows` and `panels` keep the tile inside the matrices, which
    // `multiply` has checked; [f32; N] has the alignment of f32.
    unsafe {
        if o.accumulate {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = *o.c.add(i * o.c_row).cast::<[f32; N]>();
            }
        }
        for k in 0..o.k {
            let b = *o.b.add(k * o.b_row).cast::<[f32; N]>();
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = *o.a.add(i * o.a_row + k * o.a_column);
                for j in 0..N {
                    acc[j] = if FUSED { a.mul_add(b[j], acc[j]) } else { a * b[j] + acc[j] };
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            *o.c.add(i * o.c_row).cast::<[f32; N]>() = *acc;
        }
    }
}
