//! One vector an image, added to every position or multiplied with it, and the sums that are
//! its gradients.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use super::columns::{self, MAX_CHANNELS};
use super::isa::{Isa, multiversion};
use super::pointwise::{Output, store};
use super::pool::{Parts, Pool};
use crate::ops::broadcast::PerImage;
use crate::plan::Mode;

/// Elements of one task.
const CHUNK: usize = 16 * 1024;

/// `y[n,s,c] = x[n,s,c] + e[n,c]`.
pub fn add_per_image(pool: &Pool, op: &PerImage, x: &[f32], e: &[f32], y: Output) {
    per_image(pool, op, x, e, y, add_rows);
}

/// `y[n,s,c] = x[n,s,c] e[n,c]`.
pub fn scale_per_image(pool: &Pool, op: &PerImage, x: &[f32], e: &[f32], y: Output) {
    per_image(pool, op, x, e, y, scale_rows);
}

fn per_image(
    pool: &Pool,
    op: &PerImage,
    x: &[f32],
    e: &[f32],
    y: Output,
    rows_of: fn(Isa, &[f32], &[f32], &mut [f32], Mode),
) {
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
        rows_of(isa, &x[start..start + len], &e[image * c..(image + 1) * c], y, mode);
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

#[inline(always)]
fn scale_rows_as<const ADD: bool>(x: &[f32], e: &[f32], y: &mut [f32]) {
    for (y, x) in y.chunks_exact_mut(e.len()).zip(x.chunks_exact(e.len())) {
        for ((y, &x), &e) in y.iter_mut().zip(x).zip(e) {
            store::<ADD>(y, x * e);
        }
    }
}

multiversion! {
    fn scale_rows(isa: Isa, x: &[f32], e: &[f32], y: &mut [f32], mode: Mode) {
        match mode {
            Mode::Write => scale_rows_as::<false>(x, e, y),
            Mode::Add => scale_rows_as::<true>(x, e, y),
        }
    }
}

multiversion! {
    /// `totals[i] += sum_s a[s, from + i] b[s, from + i]` of rows of `c` channels.
    fn sum_products(isa: Isa, a: &[f32], b: &[f32], c: usize, from: usize, totals: &mut [f64]) {
        for (a, b) in a.chunks_exact(c).zip(b.chunks_exact(c)) {
            let products = a[from..].iter().zip(&b[from..]);
            for (total, (&a, &b)) in totals.iter_mut().zip(products) {
                *total += f64::from(a) * f64::from(b);
            }
        }
    }
}

/// `d_e[n,c] = sum_s d_y[n,s,c]`, positions in fixed chunks; with x, of the products with it.
pub fn sum_per_image(pool: &Pool, op: &PerImage, d_y: &[f32], x: Option<&[f32]>, d_e: Output) {
    let (isa, (d_e, mode)) = (pool.isa(), d_e);
    let c = op.channels;
    let width = columns::width(op.n, c, 1, op.spatial, 0, pool.threads());
    let blocks = c.div_ceil(width);
    let parts = Parts::new(d_e);
    pool.run(op.n * blocks, &|task| {
        let (image, from) = (task / blocks, task % blocks * width);
        let width = width.min(c - from);
        let mut totals = [0f64; MAX_CHANNELS];
        let of_image = image * op.spatial * c..(image + 1) * op.spatial * c;
        let (image_d_y, totals) = (&d_y[of_image.clone()], &mut totals[..width]);
        match x {
            Some(x) => sum_products(isa, image_d_y, &x[of_image], c, from, totals),
            None => columns::sum(isa, image_d_y, c, from, totals),
        }
        // SAFETY: the channels of a task are its own.
        let d_e = unsafe { parts.part(image * c + from, width) };
        for (d_e, &total) in d_e.iter_mut().zip(&*totals) {
            match mode {
                Mode::Write => *d_e = total as f32,
                Mode::Add => *d_e += total as f32,
            }
        }
    });
}
