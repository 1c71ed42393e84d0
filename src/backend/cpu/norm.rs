//! Group and layer normalisation.
//!
//! Group norm: a task takes whole groups of one image, a slice that stays in
//! cache, and goes over it three times: mean, squared distances, result. Layer
//! norm: a task takes rows. Statistics are summed in f32 over short chunks and
//! in f64 over chunks (see [`columns`]), the mean corrected by what the second
//! sweep finds; `(x - mean) a + b` keeps what a large mean would cancel.
//!
//! Backward, with v the activation's argument and `dv = d_y f'(v)`: everything
//! follows from two sums an image and channel, `P = sum dv` and
//! `Q = sum dv xhat`: shift gets P, scale gets `gamma Q + beta P`, beta and
//! gamma get `sum_n (1 + scale) P` and `sum_n (1 + scale) Q` in the images'
//! order. With `d_xhat = dv gamma (1 + scale)`,
//! `d_x = rstd (d_xhat - mean(d_xhat) - xhat mean(d_xhat xhat))`.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use super::arguments::Arguments;
use super::columns::{self, MAX_CHANNELS, block};
use super::isa::multiversion;
use super::math::{Function, with_function};
use super::pointwise::{Output, store};
use super::pool::{Parts, Pool};
use crate::ops::norm::{Domain, Norm};
use crate::plan::Mode;

/// What forward and backward both read.
pub struct Operands<'a> {
    /// `[n, spatial, channels]`.
    pub x: &'a [f32],
    /// `[channels]`.
    pub gamma: Option<&'a [f32]>,
    /// `[channels]`.
    pub beta: Option<&'a [f32]>,
    /// `[n, 2 channels]`, scale first.
    pub scale_shift: Option<&'a [f32]>,
}

impl<'a> Operands<'a> {
    /// The first four inputs of the node.
    pub fn new(a: &Arguments<'a>) -> Self {
        Operands {
            x: a.input(0),
            gamma: a.optional(1),
            beta: a.optional(2),
            scale_shift: a.optional(3),
        }
    }

    /// `v = xhat gain + bias` for a channel of an image.
    fn affine(&self, op: &Norm, image: usize, channel: usize) -> (f32, f32) {
        let gamma = self.gamma.map_or(1.0, |g| g[channel]);
        let beta = self.beta.map_or(0.0, |b| b[channel]);
        match self.scale_shift {
            None => (gamma, beta),
            Some(s) => {
                let s = &s[image * 2 * op.channels..(image + 1) * 2 * op.channels];
                let scale = 1.0 + s[channel];
                (gamma * scale, beta * scale + s[op.channels + channel])
            }
        }
    }
}

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

/// y, mean and rstd.
#[allow(clippy::too_many_arguments)]
pub fn norm(
    pool: &Pool,
    op: &Norm,
    operands: &Operands,
    y: Output,
    mean: &mut [f32],
    rstd: &mut [f32],
    workspace: &mut [f32],
) {
    match op.domain {
        Domain::Group(groups) => group_forward(pool, op, groups, operands, y, mean, rstd),
        Domain::Layer => {
            affine_of_images(op, operands, workspace);
            layer_forward(pool, op, operands.x, y, mean, rstd, workspace);
        }
    }
}

/// Floats of scratch for the forward pass: a layer norm's affine maps.
pub fn workspace_len(op: &Norm) -> usize {
    match op.domain {
        Domain::Group(_) => 0,
        Domain::Layer => 2 * op.n * op.channels,
    }
}

/// `[n, 2, channels]`: gain and bias of each image.
fn affine_of_images(op: &Norm, operands: &Operands, maps: &mut [f32]) {
    for (image, maps) in maps.chunks_exact_mut(2 * op.channels).enumerate() {
        let (gain, bias) = maps.split_at_mut(op.channels);
        for (channel, (gain, bias)) in gain.iter_mut().zip(bias).enumerate() {
            (*gain, *bias) = operands.affine(op, image, channel);
        }
    }
}

/// Gain and bias of one image, from [`affine_of_images`].
fn image_maps<'a>(op: &Norm, maps: &'a [f32], image: usize) -> [&'a [f32]; 2] {
    let (gain, bias) =
        maps[image * 2 * op.channels..(image + 1) * 2 * op.channels].split_at(op.channels);
    [gain, bias]
}

fn group_forward(
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
            unsafe { group_apply(isa, op, x, maps, [from, len], y, slice.image, mode) };
        }
    });
}

/// Mean, what its rounding lost, and 1 / sqrt(variance + eps), from the mean
/// distance and mean squared distance to a centre near the mean.
fn statistics(op: &Norm, centre: f32, first: f64, second: f64) -> (f32, f32, f32) {
    let exact = f64::from(centre) + first;
    let mean = exact as f32;
    let variance = (second - first * first).max(0.0);
    let rstd = 1.0 / (variance + f64::from(op.eps)).sqrt();
    (mean, (exact - f64::from(mean)) as f32, rstd as f32)
}

/// `y = f((x - centre) gain + bias)` for W channels of a chunk of positions.
///
/// # Safety
/// As [`group_apply`].
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
/// As [`group_apply`].
#[inline(always)]
unsafe fn group_apply_as<F: Function, const ADD: bool>(
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
    unsafe fn group_apply(
        isa: Isa, op: &Norm, x: &[f32], maps: [&PerChannel; 3], channels: [usize; 2],
        y: Parts<f32>, image: usize, mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            // SAFETY: the caller's promise.
            Mode::Write => unsafe { group_apply_as::<F, false>(op, x, maps, channels, y, image) },
            // SAFETY: the caller's promise.
            Mode::Add => unsafe { group_apply_as::<F, true>(op, x, maps, channels, y, image) },
        });
    }
}

/// Rows of a layer norm that one task takes: about 64 KiB of x.
fn rows_per_task(op: &Norm) -> usize {
    (16 * 1024 / op.channels.max(1)).max(1)
}

fn layer_forward(
    pool: &Pool,
    op: &Norm,
    x: &[f32],
    (y, mode): Output,
    mean: &mut [f32],
    rstd: &mut [f32],
    maps: &[f32],
) {
    let isa = pool.isa();
    let (c, rows) = (op.channels, rows_per_task(op));
    let tasks = op.spatial.div_ceil(rows);
    let (y, means, rstds) = (Parts::new(y), Parts::new(mean), Parts::new(rstd));
    pool.run(op.n * tasks, &|task| {
        let (image, from) = (task / tasks, task % tasks * rows);
        let to = (from + rows).min(op.spatial);
        let maps = image_maps(op, maps, image);
        for row in image * op.spatial + from..image * op.spatial + to {
            let x = &x[row * c..(row + 1) * c];
            let centre = (row_sum(isa, x) / c as f64) as f32;
            let [first, second] = row_sums_centred(isa, x, centre).map(|sum| sum / c as f64);
            let (mean, low, rstd) = statistics(op, centre, first, second);
            // SAFETY: the rows of a task are its own.
            unsafe {
                means.part(row, 1)[0] = mean;
                rstds.part(row, 1)[0] = rstd;
            }
            // SAFETY: as above.
            let y = unsafe { y.part(row * c, c) };
            row_apply(isa, op, x, [mean, low, rstd], maps, y, mode);
        }
    });
}

#[inline(always)]
fn row_apply_as<F: Function, const ADD: bool>(
    x: &[f32],
    [mean, low, rstd]: [f32; 3],
    maps: [&[f32]; 2],
    y: &mut [f32],
) {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
        let xhat = ((x - mean) - low) * rstd;
        store::<ADD>(y, F::value(xhat.mul_add(gain[i], bias[i])));
    }
}

multiversion! {
    /// `y = f(xhat gain + bias)` for one position.
    fn row_apply(
        isa: Isa, op: &Norm, x: &[f32], statistics: [f32; 3], maps: [&[f32]; 2], y: &mut [f32],
        mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            Mode::Write => row_apply_as::<F, false>(x, statistics, maps, y),
            Mode::Add => row_apply_as::<F, true>(x, statistics, maps, y),
        });
    }
}

/// Lanes of a row's sum, fixed so that every path adds in the same order.
const LANES: usize = 32;

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f64 {
    lanes.iter().map(|&v| f64::from(v)).sum()
}

multiversion! {
    fn row_sum(isa: Isa, x: &[f32]) -> f64 {
        let mut lanes = [0f32; LANES];
        let blocks = x.chunks_exact(LANES);
        let rest = blocks.remainder();
        for x in blocks {
            let x: &[f32; LANES] = block(x, 0);
            for i in 0..LANES {
                lanes[i] += x[i];
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += x;
        }
        fold(lanes)
    }
}

multiversion! {
    /// Sums of `x - centre` and of its square.
    fn row_sums_centred(isa: Isa, x: &[f32], centre: f32) -> [f64; 2] {
        let (mut first, mut second) = ([0f32; LANES], [0f32; LANES]);
        let blocks = x.chunks_exact(LANES);
        let rest = blocks.remainder();
        for x in blocks {
            let x: &[f32; LANES] = block(x, 0);
            for i in 0..LANES {
                let d = x[i] - centre;
                first[i] += d;
                second[i] = d.mul_add(d, second[i]);
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            let d = x - centre;
            first[i] += d;
            second[i] = d.mul_add(d, second[i]);
        }
        [fold(first), fold(second)]
    }
}

/// Floats of scratch for the backward pass: P and Q, `[n, channels]` each, and a
/// layer norm's affine maps.
pub fn backward_workspace_len(op: &Norm) -> usize {
    2 * op.n * op.channels + workspace_len(op)
}

/// d_x, d_gamma, d_beta, d_scale_shift; `None` skips one.
#[allow(clippy::too_many_arguments)]
pub fn norm_backward(
    pool: &Pool,
    op: &Norm,
    operands: &Operands,
    mean: &[f32],
    rstd: &[f32],
    d_y: &[f32],
    [d_x, d_gamma, d_beta, d_scale_shift]: [Option<Output>; 4],
    workspace: &mut [f32],
) {
    let of_vectors = d_gamma.is_some() || d_beta.is_some() || d_scale_shift.is_some();
    let (p, rest) = workspace.split_at_mut(op.n * op.channels);
    let (q, maps) = rest.split_at_mut(op.n * op.channels);
    let saved = Saved { mean, rstd, d_y };
    match op.domain {
        Domain::Group(groups) => group_backward(pool, op, groups, operands, &saved, d_x, p, q),
        Domain::Layer => {
            affine_of_images(op, operands, maps);
            if of_vectors {
                layer_sums(pool, op, operands.x, &saved, maps, p, q);
            }
            if let Some(d_x) = d_x {
                layer_backward(pool, op, operands.x, &saved, maps, d_x);
            }
        }
    }
    if of_vectors {
        vectors(op, operands, p, q, [d_gamma, d_beta, d_scale_shift]);
    }
}

/// What backward reads beside the operands.
struct Saved<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
    d_y: &'a [f32],
}

#[allow(clippy::too_many_arguments)]
fn group_backward(
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
            unsafe { group_sums(isa, op, &rows, &maps, kept, p, q) };
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
            unsafe { group_d_x(isa, op, &rows, &maps, len, d_x, mode) };
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
/// As [`group_sums`].
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
/// As [`group_sums`].
#[inline(always)]
unsafe fn group_sums_as<F: Function>(
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
    unsafe fn group_sums(
        isa: Isa, op: &Norm, rows: &Rows, maps: &Maps, kept: Option<Parts<f32>>,
        p: &mut [f32], q: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        with_function!(op.activation, F => unsafe {
            group_sums_as::<F>(op, rows, maps, kept, p, q)
        });
    }
}

/// d_x of W channels over a chunk of positions; in write mode it holds dv before.
///
/// # Safety
/// As [`group_d_x`].
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
/// As [`group_d_x`].
#[inline(always)]
unsafe fn group_d_x_as<F: Function, const ADD: bool>(
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
    unsafe fn group_d_x(
        isa: Isa, op: &Norm, rows: &Rows, maps: &Maps, len: usize, d_x: Parts<f32>, mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            // SAFETY: the caller's promise.
            Mode::Write => unsafe { group_d_x_as::<F, false>(op, rows, maps, len, d_x) },
            // SAFETY: the caller's promise.
            Mode::Add => unsafe { group_d_x_as::<F, true>(op, rows, maps, len, d_x) },
        });
    }
}

/// P and Q of a layer norm, where mean and rstd belong to the position.
fn layer_sums(
    pool: &Pool,
    op: &Norm,
    x: &[f32],
    saved: &Saved,
    maps: &[f32],
    p: &mut [f32],
    q: &mut [f32],
) {
    let isa = pool.isa();
    let (c, image_len) = (op.channels, op.spatial * op.channels);
    let width = columns::width(op.n, c, 1, op.spatial, 0, pool.threads());
    let tasks = c.div_ceil(width);
    let (ps, qs) = (Parts::new(p), Parts::new(q));
    pool.run(op.n * tasks, &|task| {
        let (image, from) = (task / tasks, task % tasks * width);
        let len = width.min(c - from);
        let maps = image_maps(op, maps, image).map(|m| &m[from..from + len]);
        let (mut p_total, mut q_total) = ([0f64; MAX_CHANNELS], [0f64; MAX_CHANNELS]);
        let (mut p, mut q) = ([0f32; MAX_CHANNELS], [0f32; MAX_CHANNELS]);
        for s in 0..op.spatial {
            let (row, at) = (image * op.spatial + s, image * image_len + s * c + from);
            let (x, d_y) = (&x[at..at + len], &saved.d_y[at..at + len]);
            let statistics = [saved.mean[row], saved.rstd[row]];
            layer_add(isa, op, x, d_y, statistics, maps, [&mut p[..len], &mut q[..len]]);
            if (s + 1) % columns::CHUNK == 0 || s + 1 == op.spatial {
                for i in 0..len {
                    p_total[i] += f64::from(std::mem::take(&mut p[i]));
                    q_total[i] += f64::from(std::mem::take(&mut q[i]));
                }
            }
        }
        // SAFETY: the channels of a task are its own.
        let p = unsafe { ps.part(image * c + from, len) };
        // SAFETY: as above.
        let q = unsafe { qs.part(image * c + from, len) };
        p.iter_mut().zip(p_total).for_each(|(p, total)| *p = total as f32);
        q.iter_mut().zip(q_total).for_each(|(q, total)| *q = total as f32);
    });
}

#[inline(always)]
fn layer_add_as<F: Function>(
    x: &[f32],
    d_y: &[f32],
    [mean, rstd]: [f32; 2],
    maps: [&[f32]; 2],
    [p, q]: [&mut [f32]; 2],
) {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    for (i, (((p, q), &x), &d_y)) in p.iter_mut().zip(q).zip(x).zip(d_y).enumerate() {
        let xhat = (x - mean) * rstd;
        let dv = d_y * F::slope(xhat.mul_add(gain[i], bias[i]));
        *p += dv;
        *q = dv.mul_add(xhat, *q);
    }
}

multiversion! {
    /// Adds one position to P and Q.
    fn layer_add(
        isa: Isa, op: &Norm, x: &[f32], d_y: &[f32], statistics: [f32; 2], maps: [&[f32]; 2],
        sums: [&mut [f32]; 2],
    ) {
        with_function!(op.activation, F => layer_add_as::<F>(x, d_y, statistics, maps, sums));
    }
}

fn layer_backward(
    pool: &Pool,
    op: &Norm,
    x: &[f32],
    saved: &Saved,
    maps: &[f32],
    (d_x, mode): Output,
) {
    let isa = pool.isa();
    let (c, rows) = (op.channels, rows_per_task(op));
    let tasks = op.spatial.div_ceil(rows);
    let parts = Parts::new(d_x);
    pool.run(op.n * tasks, &|task| {
        let (image, first) = (task / tasks, task % tasks * rows);
        let last = (first + rows).min(op.spatial);
        let maps = image_maps(op, maps, image);
        for row in image * op.spatial + first..image * op.spatial + last {
            let statistics = [saved.mean[row], saved.rstd[row]];
            let (x, d_y) = (&x[row * c..(row + 1) * c], &saved.d_y[row * c..(row + 1) * c]);
            let sums = layer_row_sums(isa, op, x, d_y, statistics, maps);
            let means = sums.map(|sum| (sum / c as f64) as f32);
            // SAFETY: the rows of a task are its own.
            let d_x = unsafe { parts.part(row * c, c) };
            layer_d_x(isa, op, x, d_y, statistics, means, maps, d_x, mode);
        }
    });
}

#[inline(always)]
fn layer_row_sums_as<F: Function>(
    x: &[f32],
    d_y: &[f32],
    [mean, rstd]: [f32; 2],
    maps: [&[f32]; 2],
) -> [f64; 2] {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    let (mut m1, mut m2) = ([0f32; LANES], [0f32; LANES]);
    let mut add = |lane: usize, i: usize| {
        let xhat = (x[i] - mean) * rstd;
        let d_xhat = d_y[i] * F::slope(xhat.mul_add(gain[i], bias[i])) * gain[i];
        m1[lane] += d_xhat;
        m2[lane] = d_xhat.mul_add(xhat, m2[lane]);
    };
    let whole = x.len() / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            add(lane, first + lane);
        }
    }
    for i in whole..x.len() {
        add(i - whole, i);
    }
    [fold(m1), fold(m2)]
}

multiversion! {
    /// Sums of d_xhat and of d_xhat xhat over channels of one position.
    fn layer_row_sums(
        isa: Isa, op: &Norm, x: &[f32], d_y: &[f32], statistics: [f32; 2], maps: [&[f32]; 2],
    ) -> [f64; 2] {
        with_function!(op.activation, F => layer_row_sums_as::<F>(x, d_y, statistics, maps))
    }
}

#[inline(always)]
fn layer_d_x_as<F: Function, const ADD: bool>(
    x: &[f32],
    d_y: &[f32],
    [mean, rstd]: [f32; 2],
    [m1, m2]: [f32; 2],
    maps: [&[f32]; 2],
    d_x: &mut [f32],
) {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    for (i, ((d_x, &x), &d_y)) in d_x.iter_mut().zip(x).zip(d_y).enumerate() {
        let xhat = (x - mean) * rstd;
        let dv = d_y * F::slope(xhat.mul_add(gain[i], bias[i]));
        store::<ADD>(d_x, rstd * (-xhat).mul_add(m2, dv.mul_add(gain[i], -m1)));
    }
}

multiversion! {
    fn layer_d_x(
        isa: Isa, op: &Norm, x: &[f32], d_y: &[f32], statistics: [f32; 2], means: [f32; 2],
        maps: [&[f32]; 2], d_x: &mut [f32], mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            Mode::Write => layer_d_x_as::<F, false>(x, d_y, statistics, means, maps, d_x),
            Mode::Add => layer_d_x_as::<F, true>(x, d_y, statistics, means, maps, d_x),
        });
    }
}

/// Gradients of the vectors from P and Q: small, so on one thread.
fn vectors(
    op: &Norm,
    operands: &Operands,
    p: &[f32],
    q: &[f32],
    [d_gamma, d_beta, d_scale_shift]: [Option<Output>; 3],
) {
    let c = op.channels;
    let put = |d: &mut f32, v: f32, mode: Mode| match mode {
        Mode::Write => *d = v,
        Mode::Add => *d += v,
    };
    for (sums, output) in [(q, d_gamma), (p, d_beta)] {
        let Some((d, mode)) = output else { continue };
        for (channel, d) in d.iter_mut().enumerate() {
            let total: f64 = (0..op.n)
                .map(|image| {
                    let scale = operands.scale_shift.map_or(0.0, |s| s[image * 2 * c + channel]);
                    f64::from(1.0 + scale) * f64::from(sums[image * c + channel])
                })
                .sum();
            put(d, total as f32, mode);
        }
    }
    let Some((d, mode)) = d_scale_shift else { return };
    for image in 0..op.n {
        let d = &mut d[image * 2 * c..(image + 1) * 2 * c];
        for channel in 0..c {
            let (p, q) = (p[image * c + channel], q[image * c + channel]);
            let gamma = operands.gamma.map_or(1.0, |g| g[channel]);
            let beta = operands.beta.map_or(0.0, |b| b[channel]);
            put(&mut d[channel], gamma.mul_add(q, beta * p), mode);
            put(&mut d[c + channel], p, mode);
        }
    }
}
