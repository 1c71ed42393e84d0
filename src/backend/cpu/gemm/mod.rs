//! The micro-kernels under convolution and linear layers: a register block of
//! up to [`ROWS`] x [`COLUMNS`] sums, reduced along one axis in order.
//!
//! - [`gather_block`]: rows are given by pointers (pixels of an image, padding
//!   being a row of zeros), columns by a packed panel `[reduced, 32]` of
//!   weights. Forward and backward data; linear layers.
//! - [`outer_block`]: both operands are walked along pixels; rows are channels of
//!   one tensor, columns channels of the other. Backward weight.
//!
//! Each sum is one chain of fused multiply-adds in the same order on every
//! instruction set and for every block size: the bits of a result depend
//! neither on the machine nor on which block computed it.
//!
//! f32 only so far. The bf16 kernels (`vdpbf16ps`: pairs of the reduced axis
//! interleaved in the panel, f32 sums) belong in a `bf16.rs` beside `vector.rs`,
//! with the same two entry points and the same [`Tile`].
#![allow(unsafe_code)] // Vector intrinsics on raw rows; the drivers check the bounds.

mod vector;

use super::isa::Isa;
use vector::{Portable, Vector};

/// Rows of a block: 14 x 2 vectors of sums, 2 of weights and one broadcast fill
/// 31 of AVX-512's 32 registers.
pub(super) const ROWS: usize = 14;
/// Columns of a block and of a packed panel.
pub(super) const COLUMNS: usize = 32;

/// The sums of one block, row by row.
#[repr(align(64))]
pub(super) struct Tile(pub(super) [[f32; COLUMNS]; ROWS]);

impl Tile {
    pub(super) const ZERO: Tile = Tile([[0.0; COLUMNS]; ROWS]);
}

/// `len` steps of the reduction of [`gather_block`], with one pointer for each
/// row of the block.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// First row of the panel.
    pub(super) panel: usize,
    pub(super) len: usize,
    pub(super) rows: [*const f32; ROWS],
}

impl Segment {
    pub(super) const EMPTY: Segment = Segment { panel: 0, len: 0, rows: [std::ptr::null(); ROWS] };
}

/// `len` steps of the reduction of [`outer_block`].
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// The tensor that gives the rows.
    pub(super) rows: *const f32,
    /// The tensor that gives the columns.
    pub(super) columns: *const f32,
    pub(super) len: usize,
}

impl Run {
    pub(super) const EMPTY: Run = Run { rows: std::ptr::null(), columns: std::ptr::null(), len: 0 };
}

/// Both operands of [`outer_block`]: runs, the distance between their steps, and
/// the offset of this block's channels from the runs' pointers.
#[derive(Clone, Copy)]
pub(super) struct Runs<'a> {
    pub(super) runs: &'a [Run],
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
    pub(super) row_offset: usize,
    pub(super) column_offset: usize,
}

/// `tile[p][j] (+)= sum_k row_p[k] panel[k][j]`, `P` rows and `N` vectors of columns.
#[inline(always)]
unsafe fn gather<V: Vector, const P: usize, const N: usize>(
    segments: &[Segment],
    first_row: usize,
    panel: *const f32,
    first_column: usize,
    resume: bool,
    tile: &mut Tile,
) {
    // SAFETY: `gather_block` states what the pointers must cover; the caller has
    // the CPU features of V. Tile accesses stay inside: first_row + P <= ROWS,
    // first_column + N * LANES <= COLUMNS.
    unsafe {
        let mut sums = [[V::zero(); N]; P];
        if resume {
            for (p, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(tile.0[first_row + p].as_ptr().add(first_column + j * V::LANES));
                }
            }
        }
        for segment in segments {
            let mut rows = [std::ptr::null::<f32>(); P];
            rows.copy_from_slice(&segment.rows[first_row..first_row + P]);
            let mut weights = panel.add(segment.panel * COLUMNS + first_column);
            for k in 0..segment.len {
                let mut w = [V::zero(); N];
                for (j, w) in w.iter_mut().enumerate() {
                    *w = V::load(weights.add(j * V::LANES));
                }
                for p in 0..P {
                    let a = V::splat(*rows[p].add(k));
                    for j in 0..N {
                        sums[p][j] = V::fma(a, w[j], sums[p][j]);
                    }
                }
                weights = weights.add(COLUMNS);
            }
        }
        for (p, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(tile.0[first_row + p].as_mut_ptr().add(first_column + j * V::LANES));
            }
        }
    }
}

/// `tile[p][j] = sum_i rows[i][p] columns[i][j]`, `P` rows and `N` vectors of columns.
#[inline(always)]
unsafe fn outer<V: Vector, const P: usize, const N: usize>(
    runs: Runs,
    first_row: usize,
    first_column: usize,
    columns: usize,
    tile: &mut Tile,
) {
    // SAFETY: `outer_block` states what the pointers must cover; the caller has
    // the CPU features of V. Masked loads touch valid columns only; tile
    // accesses stay inside as in `gather`.
    unsafe {
        let mut masks = [V::mask(0); N];
        for (j, mask) in masks.iter_mut().enumerate() {
            *mask = V::mask((columns - first_column).saturating_sub(j * V::LANES));
        }
        let mut sums = [[V::zero(); N]; P];
        for run in runs.runs {
            let mut a = run.rows.add(runs.row_offset + first_row);
            let mut b = run.columns.add(runs.column_offset + first_column);
            for _ in 0..run.len {
                let mut vectors = [V::zero(); N];
                // Steps are far apart in memory, where no hardware prefetcher follows.
                V::prefetch(a.wrapping_add(AHEAD * runs.row_stride));
                for j in 0..N {
                    V::prefetch(b.wrapping_add(AHEAD * runs.column_stride + j * V::LANES));
                    vectors[j] = V::load_masked(b.add(j * V::LANES), masks[j]);
                }
                for (p, row) in sums.iter_mut().enumerate() {
                    let a = V::splat(*a.add(p));
                    for j in 0..N {
                        row[j] = V::fma(a, vectors[j], row[j]);
                    }
                }
                // The pointers may end one step past their tensor.
                a = a.wrapping_add(runs.row_stride);
                b = b.wrapping_add(runs.column_stride);
            }
        }
        for (p, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(tile.0[first_row + p].as_mut_ptr().add(first_column + j * V::LANES));
            }
        }
    }
}

/// Steps by which [`outer`] asks for its operands in advance. Pixels a power of
/// two apart share few sets of the first-level cache: 16 steps of three or four
/// lines evict each other (84 against 90 to 100 GFLOP/s a core with 5 or 8).
const AHEAD: usize = 6;

/// Calls `$kernel::<P, N>` with P the run-time `$rows`.
macro_rules! with_rows {
    ($rows:expr, $n:literal, $kernel:ident $args:tt, $($p:literal)*) => {
        match $rows {
            $($p => $kernel::<$p, $n> $args,)*
            _ => unreachable!("more rows than a block has"),
        }
    };
}

/// Splits `rows` into the fewest blocks of at most `most`, of sizes that differ
/// by at most one, and calls `f(first, count)` for each.
#[inline(always)]
fn balanced(rows: usize, most: usize, mut f: impl FnMut(usize, usize)) {
    let blocks = rows.div_ceil(most);
    for b in 0..blocks {
        let (from, to) = (b * rows / blocks, (b + 1) * rows / blocks);
        f(from, to - from);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::{__m256, __m512};

    // Every function here needs the target feature that its vector type does; the entry
    // points demand it of their caller.

    #[target_feature(enable = "avx512f")]
    unsafe fn gather_block_512<const P: usize, const N: usize>(
        segments: &[Segment],
        panel: *const f32,
        resume: bool,
        tile: &mut Tile,
    ) {
        // SAFETY: AVX-512F is this function's own feature; the caller answers for the rest.
        unsafe { gather::<__m512, P, N>(segments, 0, panel, 0, resume, tile) }
    }

    pub(super) unsafe fn gather_512(
        segments: &[Segment],
        rows: usize,
        panel: *const f32,
        columns: usize,
        resume: bool,
        tile: &mut Tile,
    ) {
        // SAFETY: the caller's promise of AVX-512F, and of what the blocks ask for.
        unsafe {
            if columns > 16 {
                with_rows!(rows, 2, gather_block_512(segments, panel, resume, tile), 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            } else {
                with_rows!(rows, 1, gather_block_512(segments, panel, resume, tile), 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn outer_block_512<const P: usize, const N: usize>(
        runs: Runs,
        columns: usize,
        tile: &mut Tile,
    ) {
        // SAFETY: AVX-512F is this function's own feature; the caller answers for the rest.
        unsafe { outer::<__m512, P, N>(runs, 0, 0, columns, tile) }
    }

    pub(super) unsafe fn outer_512(runs: Runs, rows: usize, columns: usize, tile: &mut Tile) {
        // SAFETY: the caller's promise of AVX-512F, and of what the blocks ask for.
        unsafe {
            if columns > 16 {
                with_rows!(rows, 2, outer_block_512(runs, columns, tile), 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            } else {
                with_rows!(rows, 1, outer_block_512(runs, columns, tile), 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn gather_block_256<const P: usize, const N: usize>(
        segments: &[Segment],
        first_row: usize,
        panel: *const f32,
        first_column: usize,
        resume: bool,
        tile: &mut Tile,
    ) {
        // SAFETY: AVX2 is this function's own feature; the caller answers for the rest.
        unsafe { gather::<__m256, P, N>(segments, first_row, panel, first_column, resume, tile) }
    }

    /// 6 x 16 blocks: 12 sums, 2 weights and a broadcast fill 15 of 16 registers.
    pub(super) unsafe fn gather_256(
        segments: &[Segment],
        rows: usize,
        panel: *const f32,
        columns: usize,
        resume: bool,
        tile: &mut Tile,
    ) {
        // SAFETY: the caller's promise of AVX2, and of what the blocks ask for.
        balanced(rows, 6, |first, count| unsafe {
            for column in (0..columns).step_by(16) {
                if columns - column > 8 {
                    with_rows!(count, 2, gather_block_256(segments, first, panel, column, resume, tile), 1 2 3 4 5 6)
                } else {
                    with_rows!(count, 1, gather_block_256(segments, first, panel, column, resume, tile), 1 2 3 4 5 6)
                }
            }
        });
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn outer_block_256<const P: usize, const N: usize>(
        runs: Runs,
        first_row: usize,
        first_column: usize,
        columns: usize,
        tile: &mut Tile,
    ) {
        // SAFETY: AVX2 is this function's own feature; the caller answers for the rest.
        unsafe { outer::<__m256, P, N>(runs, first_row, first_column, columns, tile) }
    }

    /// 5 x 16 blocks: one row less than `gather_256`, for the two masks.
    pub(super) unsafe fn outer_256(runs: Runs, rows: usize, columns: usize, tile: &mut Tile) {
        // SAFETY: the caller's promise of AVX2, and of what the blocks ask for.
        balanced(rows, 5, |first, count| unsafe {
            for column in (0..columns).step_by(16) {
                if columns - column > 8 {
                    with_rows!(count, 2, outer_block_256(runs, first, column, columns, tile), 1 2 3 4 5)
                } else {
                    with_rows!(count, 1, outer_block_256(runs, first, column, columns, tile), 1 2 3 4 5)
                }
            }
        });
    }
}

unsafe fn gather_portable(
    segments: &[Segment],
    rows: usize,
    panel: *const f32,
    columns: usize,
    resume: bool,
    tile: &mut Tile,
) {
    for row in 0..rows {
        for column in (0..columns).step_by(Portable::LANES) {
            // SAFETY: the contract of `gather_block`; no CPU feature is needed.
            unsafe {
                gather::<Portable, 1, 1>(segments, row, panel, column, resume, tile);
            }
        }
    }
}

unsafe fn outer_portable(runs: Runs, rows: usize, columns: usize, tile: &mut Tile) {
    for row in 0..rows {
        for column in (0..columns).step_by(Portable::LANES) {
            // SAFETY: the contract of `outer_block`; no CPU feature is needed.
            unsafe { outer::<Portable, 1, 1>(runs, row, column, columns, tile) }
        }
    }
}

/// `tile[p][j] = sum over segments, k of segment.rows[p][k] *
/// panel[segment.panel + k][j]`, continuing from the tile when `resume`.
///
/// # Safety
/// The CPU has the instruction set. `rows` is in 1..=ROWS and `columns` in
/// 1..=COLUMNS; the first `rows` pointers of each segment are readable for its
/// `len`; the panel has `COLUMNS` elements for each of its rows.
#[inline]
pub(super) unsafe fn gather_block(
    isa: Isa,
    segments: &[Segment],
    rows: usize,
    panel: *const f32,
    columns: usize,
    resume: bool,
    tile: &mut Tile,
) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::gather_512(segments, rows, panel, columns, resume, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::gather_256(segments, rows, panel, columns, resume, tile),
            _ => gather_portable(segments, rows, panel, columns, resume, tile),
        }
    }
}

/// `tile[p][j] = sum over runs, steps of rows[p] * columns[j]`.
///
/// # Safety
/// The CPU has the instruction set. `rows` is in 1..=ROWS and `columns` in
/// 1..=COLUMNS; at each step of each run, `rows` elements from the row offset
/// and `columns` elements from the column offset are readable.
#[inline]
pub(super) unsafe fn outer_block(
    isa: Isa,
    runs: Runs,
    rows: usize,
    columns: usize,
    tile: &mut Tile,
) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::outer_512(runs, rows, columns, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::outer_256(runs, rows, columns, tile),
            _ => outer_portable(runs, rows, columns, tile),
        }
    }
}
