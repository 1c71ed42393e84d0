//! Elementwise kernels: each is one loop over a chunk, compiled per [`Isa`].
#![allow(unsafe_code)] // Tasks write disjoint chunks of one slice.

use super::isa::multiversion;
use super::math::{Function, with_function};
use super::pool::{Parts, Pool};
use crate::ops::pointwise::{Activate, Activation, Add, Scale, ScaleRows};
use crate::plan::Mode;

/// Elements of one task: 32 KiB an operand, so that three fit in a second-level
/// cache and the pool has work to balance.
const CHUNK: usize = 8192;

/// Runs `f(from, part of y)` over chunks of y.
pub(super) fn for_chunks(
    pool: &Pool,
    y: &mut [f32],
    chunk: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    let len = y.len();
    let parts = Parts::new(y);
    pool.run(len.div_ceil(chunk), &|i| {
        let from = i * chunk;
        // SAFETY: chunk i belongs to task i alone.
        let y = unsafe { parts.part(from, chunk.min(len - from)) };
        f(from, y);
    });
}

/// Runs `f(image, from, part of y)` over chunks of each image of y `[n, len]`.
pub(super) fn for_image_chunks(
    pool: &Pool,
    n: usize,
    len: usize,
    chunk: usize,
    y: &mut [f32],
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let chunks = len.div_ceil(chunk);
    let parts = Parts::new(y);
    pool.run(n * chunks, &|task| {
        let (image, from) = (task / chunks, task % chunks * chunk);
        // SAFETY: each task has its own image and chunk.
        let y = unsafe { parts.part(image * len + from, chunk.min(len - from)) };
        f(image, from, y);
    });
}

/// `*y = v` or `*y += v`; `ADD` is constant in every loop.
#[inline(always)]
pub(super) fn store<const ADD: bool>(y: &mut f32, v: f32) {
    *y = if ADD { *y + v } else { v };
}

/// Output of an elementwise op and how it is written.
pub type Output<'a> = (&'a mut [f32], Mode);

/// `y = f(x)`.
pub fn activate(pool: &Pool, op: &Activate, x: &[f32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    for_chunks(pool, y, CHUNK, |from, y| {
        activate_chunk(isa, op.activation, &x[from..from + y.len()], y, mode);
    });
}

/// `d_x = f'(x) d_y`.
pub fn activate_backward(pool: &Pool, op: &Activate, x: &[f32], d_y: &[f32], d_x: Output) {
    let (isa, (d_x, mode)) = (pool.isa(), d_x);
    for_chunks(pool, d_x, CHUNK, |from, d_x| {
        let part = from..from + d_x.len();
        activate_backward_chunk(isa, op.activation, &x[part.clone()], &d_y[part], d_x, mode);
    });
}

/// `y = (a + b) scale`.
pub fn add(pool: &Pool, op: &Add, a: &[f32], b: &[f32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    for_chunks(pool, y, CHUNK, |from, y| {
        let part = from..from + y.len();
        add_chunk(isa, op.scale, &a[part.clone()], &b[part], y, mode);
    });
}

/// `y = x scale + offset`.
pub fn scale(pool: &Pool, op: &Scale, x: &[f32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    for_chunks(pool, y, CHUNK, |from, y| {
        scale_chunk(isa, op.scale, op.offset, &x[from..from + y.len()], y, mode);
    });
}

/// `y[n] = x[n] s[n, column]`, or divided by it.
pub fn scale_rows(pool: &Pool, op: &ScaleRows, x: &[f32], s: &[f32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    let chunks = op.len.div_ceil(CHUNK);
    let parts = Parts::new(y);
    pool.run(op.n * chunks, &|task| {
        let (image, from) = (task / chunks, task % chunks * CHUNK);
        let (start, len) = (image * op.len + from, CHUNK.min(op.len - from));
        // SAFETY: each task has its own image and chunk.
        let y = unsafe { parts.part(start, len) };
        let x = &x[start..start + len];
        let factor = s[image * op.columns + op.column];
        if op.divide {
            divide_chunk(isa, factor, x, y, mode);
        } else {
            scale_chunk(isa, factor, 0.0, x, y, mode);
        }
    });
}

#[inline(always)]
fn map<F: Function, const ADD: bool>(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        store::<ADD>(y, F::value(x));
    }
}

#[inline(always)]
fn map_as<F: Function>(x: &[f32], y: &mut [f32], mode: Mode) {
    match mode {
        Mode::Write => map::<F, false>(x, y),
        Mode::Add => map::<F, true>(x, y),
    }
}

multiversion! {
    fn activate_chunk(isa: Isa, activation: Activation, x: &[f32], y: &mut [f32], mode: Mode) {
        with_function!(Some(activation), F => map_as::<F>(x, y, mode));
    }
}

#[inline(always)]
fn slope<F: Function, const ADD: bool>(x: &[f32], d_y: &[f32], d_x: &mut [f32]) {
    for ((d_x, &x), &d_y) in d_x.iter_mut().zip(x).zip(d_y) {
        store::<ADD>(d_x, F::slope(x) * d_y);
    }
}

#[inline(always)]
fn slope_as<F: Function>(x: &[f32], d_y: &[f32], d_x: &mut [f32], mode: Mode) {
    match mode {
        Mode::Write => slope::<F, false>(x, d_y, d_x),
        Mode::Add => slope::<F, true>(x, d_y, d_x),
    }
}

multiversion! {
    fn activate_backward_chunk(
        isa: Isa, activation: Activation, x: &[f32], d_y: &[f32], d_x: &mut [f32], mode: Mode,
    ) {
        with_function!(Some(activation), F => slope_as::<F>(x, d_y, d_x, mode));
    }
}

#[inline(always)]
fn add_as<const ADD: bool>(scale: f32, a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        store::<ADD>(y, (a + b) * scale);
    }
}

multiversion! {
    fn add_chunk(isa: Isa, scale: f32, a: &[f32], b: &[f32], y: &mut [f32], mode: Mode) {
        match mode {
            Mode::Write => add_as::<false>(scale, a, b, y),
            Mode::Add => add_as::<true>(scale, a, b, y),
        }
    }
}

#[inline(always)]
fn scale_as<const ADD: bool>(scale: f32, offset: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        store::<ADD>(y, x.mul_add(scale, offset));
    }
}

multiversion! {
    fn scale_chunk(isa: Isa, scale: f32, offset: f32, x: &[f32], y: &mut [f32], mode: Mode) {
        match mode {
            Mode::Write if scale == 1.0 && offset == 0.0 => y.copy_from_slice(x),
            Mode::Write => scale_as::<false>(scale, offset, x, y),
            Mode::Add => scale_as::<true>(scale, offset, x, y),
        }
    }
}

#[inline(always)]
fn divide_as<const ADD: bool>(divisor: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        store::<ADD>(y, x / divisor);
    }
}

multiversion! {
    fn divide_chunk(isa: Isa, divisor: f32, x: &[f32], y: &mut [f32], mode: Mode) {
        match mode {
            Mode::Write => divide_as::<false>(divisor, x, y),
            Mode::Add => divide_as::<true>(divisor, x, y),
        }
    }
}
