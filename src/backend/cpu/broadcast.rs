//! One vector an image, added to every position, and the sum that is its gradient.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use super::columns::{self, MAX_CHANNELS};
use super::isa::multiversion;
use super::pointwise::{Output, store};
use super::pool::{Parts, Pool};
use crate::ops::broadcast::PerImage;
use crate::plan::Mode;

/// Elements of one task.
const CHUNK: usize = 16 * 1024;

/// `y[n,s,c] = x[n,s,c] + e[n,c]`.
pub fn add_per_image(pool: &Pool, op: &PerImage, x: &[f32], e: &[f32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    let c = op.channels;
    let rows = (CHUNK / c.max(1)).max(1);
    let chunks = op.spatial.div_ceil(rows);
    let parts = Parts::new(y);
    pool.run(op.n * chunks, &|task| {
        let (image, from) = (task / chunks, task % chunks * rows);
        let len = rows.min(op.spatial - from) * c;
        let start = (image * op.spatial + from) * c;
        // SAFETY: the rows of a task are its own.
        let y = unsafe { parts.part(start, len) };
        add_rows(isa, &x[start..start + len], &e[image * c..(image + 1) * c], y, mode);
    });
}

#[inline(always)]
fn add_rows_as<const ADD: bool>(x: &[f32], e: &[f32], y: &mut [f32]) {
    for (y, x) in y.chunks_exact_mut(e.len()).zip(x.chunks_exact(e.len())) {
        for ((y, &x), &e) in y.iter_mut().zip(x).zip(e) {
            store::<ADD>(y, x + e);
        }
    }
}

multiversion! {
    fn add_rows(isa: Isa, x: &[f32], e: &[f32], y: &mut [f32], mode: Mode) {
        match mode {
            Mode::Write => add_rows_as::<false>(x, e, y),
            Mode::Add => add_rows_as::<true>(x, e, y),
        }
    }
}

/// `d_e[n,c] = sum_s d_y[n,s,c]`, positions in fixed chunks.
pub fn sum_per_image(pool: &Pool, op: &PerImage, d_y: &[f32], d_e: Output) {
    let (isa, (d_e, mode)) = (pool.isa(), d_e);
    let c = op.channels;
    let width = columns::width(op.n, c, 1, op.spatial, 0, pool.threads());
    let blocks = c.div_ceil(width);
    let parts = Parts::new(d_e);
    pool.run(op.n * blocks, &|task| {
        let (image, from) = (task / blocks, task % blocks * width);
        let width = width.min(c - from);
        let mut totals = [0f64; MAX_CHANNELS];
        let image_d_y = &d_y[image * op.spatial * c..(image + 1) * op.spatial * c];
        columns::sum(isa, image_d_y, c, from, &mut totals[..width]);
        // SAFETY: the channels of a task are its own.
        let d_e = unsafe { parts.part(image * c + from, width) };
        for (d_e, &total) in d_e.iter_mut().zip(&totals) {
            match mode {
                Mode::Write => *d_e = total as f32,
                Mode::Add => *d_e += total as f32,
            }
        }
    });
}
