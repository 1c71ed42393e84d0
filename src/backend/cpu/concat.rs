//! Concatenation along channels: copies of row parts.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use super::isa::multiversion;
use super::pointwise::{Output, store};
use super::pool::{Parts, Pool};
use crate::ops::concat::Concat;
use crate::plan::Mode;

/// Elements of the wide side in one task.
const CHUNK: usize = 16 * 1024;

fn rows_per_task(op: &Concat) -> usize {
    (CHUNK / (op.c_a + op.c_b).max(1)).max(1)
}

/// `y[r] = [a[r], b[r]]`.
pub fn concat(pool: &Pool, op: &Concat, a: &[f32], b: &[f32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    let (c, rows) = (op.c_a + op.c_b, rows_per_task(op));
    let parts = Parts::new(y);
    pool.run(op.rows.div_ceil(rows), &|task| {
        let (from, to) = (task * rows, ((task + 1) * rows).min(op.rows));
        // SAFETY: the rows of a task are its own.
        let y = unsafe { parts.part(from * c, (to - from) * c) };
        for (r, y) in (from..to).zip(y.chunks_exact_mut(c)) {
            let (left, right) = y.split_at_mut(op.c_a);
            put(isa, &a[r * op.c_a..(r + 1) * op.c_a], left, mode);
            put(isa, &b[r * op.c_b..(r + 1) * op.c_b], right, mode);
        }
    });
}

/// Channels `from .. from + width` of d_y `[rows, c_a + c_b]`.
pub fn concat_backward(pool: &Pool, op: &Concat, d_y: &[f32], from: usize, d: Output) {
    let (isa, (d, mode)) = (pool.isa(), d);
    let (c, width, rows) = (op.c_a + op.c_b, d.len() / op.rows.max(1), rows_per_task(op));
    let parts = Parts::new(d);
    pool.run(op.rows.div_ceil(rows), &|task| {
        let (first, to) = (task * rows, ((task + 1) * rows).min(op.rows));
        // SAFETY: the rows of a task are its own.
        let d = unsafe { parts.part(first * width, (to - first) * width) };
        for (r, d) in (first..to).zip(d.chunks_exact_mut(width)) {
            put(isa, &d_y[r * c + from..r * c + from + width], d, mode);
        }
    });
}

multiversion! {
    fn put(isa: Isa, x: &[f32], y: &mut [f32], mode: Mode) {
        match mode {
            Mode::Write => y.copy_from_slice(x),
            Mode::Add => y.iter_mut().zip(x).for_each(|(y, &x)| store::<true>(y, x)),
        }
    }
}
