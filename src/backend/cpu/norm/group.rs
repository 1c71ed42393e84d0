//! Group normalisation: a task takes whole groups of one image, a slice that
//! stays in cache, and goes over it three times: mean, squared distances,
//! result. Statistics are summed in f32 over short chunks and in f64 over chunks
//! (see [`columns`]), the mean corrected by what the second sweep finds;
//! `(x - mean) a + b` keeps what a large mean would cancel.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use super::{Operands, Saved, statistics};
use crate::backend::cpu::columns::{self, MAX_CHANNELS, block};
use crate::backend::cpu::isa::multiversion;
use crate::backend::cpu::math::{Function, with_function};
use crate::backend::cpu::pointwise::{Output, store};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::ops::norm::Norm;
use crate::plan::Mode;

/// A value for each channel of a slab.
type PerChannel = [f32; MAX_CHANNELS];

/// Most groups of one task: they have at least a channel each.
const MAX_GROUPS: usize = MAX_CHANNELS;

/// Whole groups of one image, and how a task goes through their channels: in
/// slabs of at most [`MAX_CHANNELS`].
struct Slice {
    image: usize,
    first_group: usize,
    groups: usize,
    group_len: usize,
}

impl Slice {
    /// Groups of one task, tasks of one image, where the task goes more than
    /// once over that many operands.
    fn split(pool: &Pool, op: &Norm, groups: usize, operands: usize) -> (usize, usize) {
        let unit = op.channels / groups;
        let threads = pool.threads();
        let width = columns::width(op.n, op.channels, unit, op.spatial, operands, threads);
        let per_task = width / unit;
        (per_task, groups.div_ceil(per_task))
    }

    fn new(task: usize, op: &Norm, groups: usize, (per_task, tasks): (usize, usize)) -> Self {
        let first_group = task % tasks * per_task;
        Slice {
            image: task / tasks,
            first_group,
            groups: per_task.min(groups - first_group),
            group_len: op.channels / groups,
        }
    }

    /// (first channel, channels) of each slab.
    fn slabs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let from = self.first_group * self.group_len;
        let to = from + self.groups * self.group_len;
        (from..to).step_by(MAX_CHANNELS).map(move |c| (c, MAX_CHANNELS.min(to - c)))
    }

    /// Calls `f(i, g)` for channels `from + i`, i in 0..len, with g the group's
    /// position in the slice: one division a slab, for a small image feels more.
    #[inline(always)]
    fn each(&self, from: usize, len: usize, mut f: impl FnMut(usize, usize)) {
        let mut group = from / self.group_len - self.first_group;
        let mut left = self.group_len - from % self.group_len;
        for i in 0..len {
            f(i, group);
            left -= 1;
            if left == 0 {
                (group, left) = (group + 1, self.group_len);
            }
        }
    }
}

pub fn forward(
    pool: &Pool,
    op: &Norm,
    groups: usize,
    operands: &Operands,
    (y, mode): Output,
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let isa = pool.isa();
    let split = Slice::split(pool, op, groups, 1);
    let (c, image_len) = (op.channels, op.spatial * op.channels);
    let elements = (op.spatial * (c / groups)) as f64;
    let (y, means, rstds) = (Parts::new(y), Parts::new(mean), Parts::new(rstd));
    pool.run(op.n * split.1, &|task| {
        let slice = Slice::new(task, op, groups, split);
        let x = &operands.x[slice.image * image_len..(slice.image + 1) * image_len];
        let from_group = slice.image * groups + slice.first_group;
        // SAFETY: the groups of a task are its own.
        let mean = unsafe { means.part(from_group, slice.groups) };
        // SAFETY: as above.
        let rstd = unsafe { rstds.part(from_group, slice.groups) };
        let mut sums = [0f64; MAX_GROUPS];
        let mut totals = [0f64; MAX_CHANNELS];
        for (from, len) in slice.slabs() {
            totals[..len].fill(0.0);
            columns::sum(isa, x, c, from, &mut totals[..len]);
            slice.each(from, len, |i, g| sums[g] += totals[i]);
        }
        for (mean, sum) in mean.iter_mut().zip(&sums) {
            *mean = (sum / elements) as f32;
        }
        // Distances from that mean give the variance, and what the mean is off by.
        let (mut first, mut second) = ([0f64; MAX_GROUPS], [0f64; MAX_GROUPS]);
        let mut squares = [0f64; MAX_CHANNELS];
        let mut centre: PerChannel = [0.0; MAX_CHANNELS];
        for (from, len) in slice.slabs() {
            totals[..len].fill(0.0);
            squares[..len].fill(0.0);
            slice.each(from, len, |i, g| centre[i] = mean[g]);
            let sums = [&mut totals[..len], &mut squares[..len]];
            columns::sum_centred(isa, x, c, from, &centre[..len], sums);
            slice.each(from, len, |i, g| {
                first[g] += totals[i];
                second[g] += squares[i];
            });
        }
        let mut low = [0f32; MAX_GROUPS];
        for g in 0..slice.groups {
            (mean[g], low[g], rstd[g]) =
                statistics(op, mean[g], first[g] / elements, second[g] / elements);
        }
        let mut gain: PerChannel = [0.0; MAX_CHANNELS];
        let mut bias: PerChannel = [0.0; MAX_CHANNELS];
        for (from, len) in slice.slabs() {
            slice.each(from, len, |i, g| {
                let (a, b) = operands.affine(op, slice.image, from + i);
                centre[i] = mean[g];
                gain[i] = rstd[g] * a;
                bias[i] = b - low[g] * gain[i];
            });
            let maps = [&centre, &gain, &bias];
            // SAFETY: the channels of a task are its own.
            unsafe { apply(isa, op, x, maps, [from, len], y, slice.image, mode) };
        }
    });
}

/// `y = f((x - centre) gain + bias)` for W channels of a chunk of positions.
///
/// # Safety
/// As [`apply`].
#[inline(always)]
unsafe fn apply_block<const W: usize, F: Function, const ADD: bool>(
    x: &[f32],
    maps: [&PerChannel; 3],
    [stride, from, at]: [usize; 3],
    y: Parts<f32>,
    y_from: usize,
) {
    let [centre, gain, bias] = maps.map(|m| block::<W>(m, at));
    for (s, x) in x.chunks_exact(stride).enumerate() {
        let x = block::<W>(x, from + at);
        // SAFETY: the caller's promise; one block is alive at a time.
        let y = unsafe { y.part(y_from + s * stride + from + at, W) };
        for i in 0..W {
            store::<ADD>(&mut y[i], F::value((x[i] - centre[i]).mul_add(gain[i], bias[i])));
        }
    }
}

/// # Safety
/// As [`apply`].
#[inline(always)]
unsafe fn apply_as<F: Function, const ADD: bool>(
    op: &Norm,
    x: &[f32],
    maps: [&PerChannel; 3],
    [from, len]: [usize; 2],
    y: Parts<f32>,
    image: usize,
) {
    let stride = op.channels;
    for (chunk, x) in x.chunks(columns::CHUNK * stride).enumerate() {
        let y_from = image * op.spatial * stride + chunk * columns::CHUNK * stride;
        let mut at = 0;
        while at + 32 <= len {
            // SAFETY: the caller's promise.
            unsafe { apply_block::<32, F, ADD>(x, maps, [stride, from, at], y, y_from) };
            at += 32;
        }
        while at + 8 <= len {
            // SAFETY: the caller's promise.
            unsafe { apply_block::<8, F, ADD>(x, maps, [stride, from, at], y, y_from) };
            at += 8;
        }
        while at < len {
            // SAFETY: the caller's promise.
            unsafe { apply_block::<1, F, ADD>(x, maps, [stride, from, at], y, y_from) };
            at += 1;
        }
    }
}

multiversion! {
    /// `y = f((x - centre) gain + bias)` for `len` channels from `from` on of an image.
    ///
    /// # Safety
    /// Those channels of the image in y must be used by nothing else meanwhile.
    unsafe fn apply(
        isa: Isa, op: &Norm, x: &[f32], maps: [&PerChannel; 3], channels: [usize; 2],
        y: Parts<f32>, image: usize, mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            // SAFETY: the caller's promise.
            Mode::Write => unsafe { apply_as::<F, false>(op, x, maps, channels, y, image) },
            // SAFETY: the caller's promise.
            Mode::Add => unsafe { apply_as::<F, true>(op, x, maps, channels, y, image) },
        });
    }
}

#[allow(clippy::too_many_arguments)]
pub fn backward(
    pool: &Pool,
    op: &Norm,
    groups: usize,
    operands: &Operands,
    saved: &Saved,
    d_x: Option<Output>,
    p: &mut [f32],
    q: &mut [f32],
) {
    let isa = pool.isa();
    let split = Slice::split(pool, op, groups, 2);
    let (c, image_len) = (op.channels, op.spatial * op.channels);
    let elements = (op.spatial * (c / groups)) as f64;
    let (ps, qs) = (Parts::new(p), Parts::new(q));
    let (d_x, mode) = match d_x {
        Some((d_x, mode)) => (Some(Parts::new(d_x)), mode),
        None => (None, Mode::Write),
    };
    // Where d_x is overwritten, the first sweep leaves dv there for the second.
    let kept = d_x.filter(|_| mode == Mode::Write);
    pool.run(op.n * split.1, &|task| {
        let slice = Slice::new(task, op, groups, split);
        let image = slice.image * image_len..(slice.image + 1) * image_len;
        let (x, d_y) = (&operands.x[image.clone()], &saved.d_y[image]);
        let mut maps = Maps::new();
        let (mut m1, mut m2) = ([0f64; MAX_GROUPS], [0f64; MAX_GROUPS]);
        let fill = |maps: &mut Maps, from: usize, len: usize| {
            let first = slice.image * groups + slice.first_group;
            slice.each(from, len, |i, g| {
                (maps.mean[i], maps.rstd[i]) = (saved.mean[first + g], saved.rstd[first + g]);
                (maps.gain[i], maps.bias[i]) = operands.affine(op, slice.image, from + i);
            });
        };
        for (from, len) in slice.slabs() {
            fill(&mut maps, from, len);
            // SAFETY: the channels of a task are its own, in P, Q and d_x.
            let (p, q) = unsafe {
                let at = slice.image * c + from;
                (ps.part(at, len), qs.part(at, len))
            };
            let rows = Rows { x, d_y, from, image: slice.image };
            // SAFETY: as above.
            unsafe { sums(isa, op, &rows, &maps, kept, p, q) };
            slice.each(from, len, |i, g| {
                let gain = f64::from(maps.gain[i]);
                m1[g] += gain * f64::from(p[i]);
                m2[g] += gain * f64::from(q[i]);
            });
        }
        let Some(d_x) = d_x else { return };
        for (from, len) in slice.slabs() {
            fill(&mut maps, from, len);
            slice.each(from, len, |i, g| {
                maps.m1[i] = (m1[g] / elements) as f32;
                maps.m2[i] = (m2[g] / elements) as f32;
            });
            let rows = Rows { x, d_y, from, image: slice.image };
            // SAFETY: as above.
            unsafe { d_x_of(isa, op, &rows, &maps, len, d_x, mode) };
        }
    });
}

/// Channels from `from` on of an image's x and d_y.
struct Rows<'a> {
    x: &'a [f32],
    d_y: &'a [f32],
    from: usize,
    image: usize,
}

impl<'a> Rows<'a> {
    /// Chunks of positions: x, d_y, and the chunk's first element among all images.
    #[inline(always)]
    fn chunks(&self, op: &Norm) -> impl Iterator<Item = (&'a [f32], &'a [f32], usize)> + use<'a> {
        let len = columns::CHUNK * op.channels;
        let first = self.image * self.x.len();
        let chunks = self.x.chunks(len).zip(self.d_y.chunks(len)).enumerate();
        chunks.map(move |(i, (x, d_y))| (x, d_y, first + i * len))
    }
}

/// Constants of the backward pass for the channels of a slab.
struct Maps {
    mean: PerChannel,
    rstd: PerChannel,
    gain: PerChannel,
    bias: PerChannel,
    m1: PerChannel,
    m2: PerChannel,
}

impl Maps {
    fn new() -> Self {
        let zero = [0f32; MAX_CHANNELS];
        Maps { mean: zero, rstd: zero, gain: zero, bias: zero, m1: zero, m2: zero }
    }
}

/// Adds to P and Q of W channels over a chunk of positions; leaves dv in `kept`.
///
/// # Safety
/// As [`sums`].
#[inline(always)]
unsafe fn chunk_sums<const W: usize, F: Function>(
    (x, d_y, first): (&[f32], &[f32], usize),
    [stride, from, at]: [usize; 3],
    maps: &Maps,
    kept: Option<Parts<f32>>,
    totals: [&mut [f64]; 2],
) {
    let [mean, rstd, gain, bias] =
        [&maps.mean, &maps.rstd, &maps.gain, &maps.bias].map(|m| block::<W>(m, at));
    let (mut p, mut q) = ([0f32; W], [0f32; W]);
    for (s, (x, d_y)) in x.chunks_exact(stride).zip(d_y.chunks_exact(stride)).enumerate() {
        let (x, d_y) = (block::<W>(x, from + at), block::<W>(d_y, from + at));
        let mut dv = [0f32; W];
        for i in 0..W {
            let xhat = (x[i] - mean[i]) * rstd[i];
            dv[i] = d_y[i] * F::slope(xhat.mul_add(gain[i], bias[i]));
            p[i] += dv[i];
            q[i] = dv[i].mul_add(xhat, q[i]);
        }
        if let Some(kept) = kept {
            // SAFETY: the caller's promise; one block is alive at a time.
            unsafe { kept.part(first + s * stride + from + at, W) }.copy_from_slice(&dv);
        }
    }
    let [p_total, q_total] = totals;
    for i in 0..W {
        p_total[at + i] += f64::from(p[i]);
        q_total[at + i] += f64::from(q[i]);
    }
}

/// # Safety
/// As [`sums`].
#[inline(always)]
unsafe fn sums_as<F: Function>(
    op: &Norm,
    rows: &Rows,
    maps: &Maps,
    kept: Option<Parts<f32>>,
    p: &mut [f32],
    q: &mut [f32],
) {
    let len = p.len();
    let (mut ps, mut qs) = ([0f64; MAX_CHANNELS], [0f64; MAX_CHANNELS]);
    for chunk in rows.chunks(op) {
        let mut at = 0;
        while at + 16 <= len {
            let place = [op.channels, rows.from, at];
            // SAFETY: the caller's promise.
            unsafe { chunk_sums::<16, F>(chunk, place, maps, kept, [&mut ps, &mut qs]) };
            at += 16;
        }
        while at < len {
            let place = [op.channels, rows.from, at];
            // SAFETY: the caller's promise.
            unsafe { chunk_sums::<1, F>(chunk, place, maps, kept, [&mut ps, &mut qs]) };
            at += 1;
        }
    }
    p.iter_mut().zip(ps).for_each(|(p, total)| *p = total as f32);
    q.iter_mut().zip(qs).for_each(|(q, total)| *q = total as f32);
}

multiversion! {
    /// P and Q of the slab's channels; dv into the same place of `kept`.
    ///
    /// # Safety
    /// Those channels of the image in `kept` must be used by nothing else meanwhile.
    unsafe fn sums(
        isa: Isa, op: &Norm, rows: &Rows, maps: &Maps, kept: Option<Parts<f32>>,
        p: &mut [f32], q: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        with_function!(op.activation, F => unsafe {
            sums_as::<F>(op, rows, maps, kept, p, q)
        });
    }
}

/// d_x of W channels over a chunk of positions; in write mode it holds dv before.
///
/// # Safety
/// As [`d_x_of`].
#[inline(always)]
unsafe fn chunk_d_x<const W: usize, F: Function, const ADD: bool>(
    (x, d_y, first): (&[f32], &[f32], usize),
    [stride, from, at]: [usize; 3],
    maps: &Maps,
    d_x: Parts<f32>,
) {
    let [mean, rstd, gain, bias, m1, m2] =
        [&maps.mean, &maps.rstd, &maps.gain, &maps.bias, &maps.m1, &maps.m2]
            .map(|m| block::<W>(m, at));
    for (s, (x, d_y)) in x.chunks_exact(stride).zip(d_y.chunks_exact(stride)).enumerate() {
        let (x, d_y) = (block::<W>(x, from + at), block::<W>(d_y, from + at));
        // SAFETY: the caller's promise; one block is alive at a time.
        let d_x = unsafe { d_x.part(first + s * stride + from + at, W) };
        for i in 0..W {
            let xhat = (x[i] - mean[i]) * rstd[i];
            let dv = match ADD {
                true => d_y[i] * F::slope(xhat.mul_add(gain[i], bias[i])),
                false => d_x[i],
            };
            let inner = (-xhat).mul_add(m2[i], dv.mul_add(gain[i], -m1[i]));
            store::<ADD>(&mut d_x[i], rstd[i] * inner);
        }
    }
}

/// # Safety
/// As [`d_x_of`].
#[inline(always)]
unsafe fn d_x_of_as<F: Function, const ADD: bool>(
    op: &Norm,
    rows: &Rows,
    maps: &Maps,
    len: usize,
    d_x: Parts<f32>,
) {
    for chunk in rows.chunks(op) {
        let mut at = 0;
        while at + 16 <= len {
            let place = [op.channels, rows.from, at];
            // SAFETY: the caller's promise.
            unsafe { chunk_d_x::<16, F, ADD>(chunk, place, maps, d_x) };
            at += 16;
        }
        while at < len {
            let place = [op.channels, rows.from, at];
            // SAFETY: the caller's promise.
            unsafe { chunk_d_x::<1, F, ADD>(chunk, place, maps, d_x) };
            at += 1;
        }
    }
}

multiversion! {
    /// d_x of `len` channels of a slab; in write mode it holds dv before.
    ///
    /// # Safety
    /// Those channels of the image in d_x must be used by nothing else meanwhile.
    unsafe fn d_x_of(
        isa: Isa, op: &Norm, rows: &Rows, maps: &Maps, len: usize, d_x: Parts<f32>, mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            // SAFETY: the caller's promise.
            Mode::Write => unsafe { d_x_of_as::<F, false>(op, rows, maps, len, d_x) },
            // SAFETY: the caller's promise.
            Mode::Add => unsafe { d_x_of_as::<F, true>(op, rows, maps, len, d_x) },
        });
    }
}
