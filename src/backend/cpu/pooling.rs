//! Largest or mean value of windows, forward and backward. Each row of the result
//! is one task; both passes gather, so that no two tasks write the same element.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use super::isa::multiversion;
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use crate::ops::pooling::{Pooling, Reduction};
use crate::plan::Mode;

/// Channels that are held in registers at once.
const LANES: usize = 32;

/// y from x.
pub fn pooling(pool: &Pool, op: &Pooling, x: &[f32], (y, mode): Output) {
    let [oh, ow] = op.output_size();
    let (image, row) = (op.h * op.w * op.c, ow * op.c);
    let parts = Parts::new(y);
    pool.run(op.n * oh, &|task| {
        let x = &x[task / oh * image..][..image];
        // SAFETY: the output row is this task's own.
        let y = unsafe { parts.part(task * row, row) };
        forward_row(pool.isa(), op, task % oh, x, y, mode);
    });
}

/// d_x from x and d_y.
pub fn pooling_backward(pool: &Pool, op: &Pooling, x: &[f32], d_y: &[f32], (d_x, mode): Output) {
    let [oh, ow] = op.output_size();
    let (image, row) = (op.h * op.w * op.c, op.w * op.c);
    let parts = Parts::new(d_x);
    pool.run(op.n * op.h, &|task| {
        let n = task / op.h;
        let (x, d_y) = (&x[n * image..][..image], &d_y[n * oh * ow * op.c..][..oh * ow * op.c]);
        // SAFETY: the row of the gradient is this task's own.
        let d_x = unsafe { parts.part(task * row, row) };
        backward_row(pool.isa(), op, task % op.h, x, d_y, d_x, mode);
    });
}

#[inline(always)]
fn put(to: &mut [f32], values: &[f32; LANES], mode: Mode) {
    for (to, &value) in to.iter_mut().zip(values) {
        *to = if mode == Mode::Add { *to + value } else { value };
    }
}

multiversion! {
    fn forward_row(isa: Isa, op: &Pooling, oy: usize, x: &[f32], y: &mut [f32], mode: Mode) {
        let rows = op.window(0, oy);
        for (ox, y) in y.chunks_exact_mut(op.c).enumerate() {
            let columns = op.window(1, ox);
            let count = (rows.len() * columns.len()) as f32;
            let (start, factor) = match op.reduction {
                Reduction::Max => (f32::NEG_INFINITY, 1.0),
                Reduction::Mean => (0.0, 1.0 / count),
            };
            for (block, y) in y.chunks_mut(LANES).enumerate() {
                let mut values = [start; LANES];
                for at in rows.clone().flat_map(|iy| columns.clone().map(move |ix| (iy, ix))) {
                    let from = (at.0 * op.w + at.1) * op.c + block * LANES;
                    let x = &x[from..from + y.len()];
                    match op.reduction {
                        // A NaN stays one.
                        Reduction::Max => values.iter_mut().zip(x).for_each(|(v, &x)| {
                            *v = if x > *v || x.is_nan() { x } else { *v };
                        }),
                        Reduction::Mean => values.iter_mut().zip(x).for_each(|(v, &x)| *v += x),
                    }
                }
                values.iter_mut().for_each(|v| *v *= factor);
                put(y, &values, mode);
            }
        }
    }
}

/// Outputs along an axis whose windows hold position i.
#[inline(always)]
fn holders(op: &Pooling, axis: usize, i: usize) -> std::ops::Range<usize> {
    let last = (i + op.padding) / op.stride;
    let first = (i + op.padding + 1).saturating_sub(op.kernel[axis]).div_ceil(op.stride);
    first..(last + 1).min(op.output_size()[axis])
}

multiversion! {
    fn backward_row(
        isa: Isa, op: &Pooling, iy: usize, x: &[f32], d_y: &[f32], d_x: &mut [f32], mode: Mode,
    ) {
        let ow = op.output_size()[1];
        let rows = holders(op, 0, iy);
        for (ix, d_x) in d_x.chunks_exact_mut(op.c).enumerate() {
            let columns = holders(op, 1, ix);
            for (block, d_x) in d_x.chunks_mut(LANES).enumerate() {
                let channel = block * LANES;
                let mut sums = [0f32; LANES];
                for (oy, ox) in
                    rows.clone().flat_map(|oy| columns.clone().map(move |ox| (oy, ox)))
                {
                    let d_y = &d_y[(oy * ow + ox) * op.c + channel..][..d_x.len()];
                    let (window_rows, window_columns) = (op.window(0, oy), op.window(1, ox));
                    match op.reduction {
                        Reduction::Mean => {
                            let share = 1.0 / (window_rows.len() * window_columns.len()) as f32;
                            sums.iter_mut().zip(d_y).for_each(|(s, &d)| *s += d * share);
                        }
                        Reduction::Max => {
                            let own = &x[(iy * op.w + ix) * op.c + channel..][..d_x.len()];
                            // 1 where no pixel before is as large and none after larger.
                            let mut is_first = [1f32; LANES];
                            for at in window_rows
                                .flat_map(|y| window_columns.clone().map(move |x| (y, x)))
                            {
                                let other = &x[(at.0 * op.w + at.1) * op.c + channel..];
                                let lanes = is_first.iter_mut().zip(own).zip(other);
                                if at < (iy, ix) {
                                    lanes.for_each(|((f, own), o)| *f *= f32::from(o < own));
                                } else {
                                    lanes.for_each(|((f, own), o)| *f *= f32::from(o <= own));
                                }
                            }
                            for ((s, &d), f) in sums.iter_mut().zip(d_y).zip(is_first) {
                                *s += d * f;
                            }
                        }
                    }
                }
                put(d_x, &sums, mode);
            }
        }
    }
}
