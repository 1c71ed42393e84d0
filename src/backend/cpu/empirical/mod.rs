//! The optimal denoiser of a finite data set, streamed over the images.
//!
//! The data are cut into [`chunks`] by their number alone, each chunk into
//! [`block`]s that stay in the second-level cache. A task takes a few states
//! through one chunk: distances to a block, weights relative to the nearest image
//! so far, weighted sum; a last pass combines the chunks in order. What a state
//! gets does not depend on the states beside it, so they may be split over tasks
//! at will.
//!
//! A distance is summed in f32 over [`LANES`] lanes for [`STRETCH`] elements at a
//! time and in f64 over those; exponents are differences in f64. In far images
//! weights vanish, and their part of the sum is passed over.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

mod distance;
mod sum;

use distance::{Distances, LANES, STRETCH, block_distances, fold};
use sum::add_weighted;

use super::isa::multiversion;
use super::math::exp;
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use crate::ops::empirical::Empirical;
use crate::plan::Mode;

/// Most states that go through a chunk together.
const STATES: usize = 16;
/// Most images of a block.
const BLOCK: usize = 64;
/// Least images of a chunk.
const CHUNK: usize = 512;
/// Most chunks.
const CHUNKS: usize = 16;

/// Images of a block: 256 KiB of them, [`LANES`] to [`BLOCK`].
fn block(len: usize) -> usize {
    (65_536 / len.max(1)).clamp(LANES, BLOCK) / LANES * LANES
}

/// Number of chunks that m images are cut into.
fn chunks(m: usize) -> usize {
    (m / CHUNK).clamp(1, CHUNKS)
}

/// The images of chunk c: `[from, to]`.
fn chunk(m: usize, c: usize) -> [usize; 2] {
    [m * c / chunks(m), m * (c + 1) / chunks(m)]
}

/// Floats of scratch, both passes: for every chunk and state two numbers in f64
/// and a weighted sum of images.
pub fn workspace_len(op: &Empirical) -> usize {
    op.n * chunks(op.m) * (4 + op.len)
}

/// What the denoiser reads.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// `[n, len]`
    pub x: &'a [f32],
    /// `[m, len]`
    pub data: &'a [f32],
    /// `[n]`
    pub std: &'a [f32],
    /// `[n]`; 1 where absent.
    pub signal: Option<&'a [f32]>,
}

impl Operands<'_> {
    fn signal(&self, i: usize) -> f32 {
        self.signal.map_or(1.0, |signal| signal[i])
    }

    /// 1 / (2 sigma^2), infinite at sigma = 0.
    fn precision(&self, i: usize) -> f64 {
        let std = f64::from(self.std[i]);
        0.5 / (std * std)
    }
}

/// `difference / (2 sigma^2)` of squared distances; 0 for equal ones also at
/// sigma = 0.
fn exponent(difference: f64, precision: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference * precision }
}

/// Weights of a block of images for a task's states.
type Weights = [[f32; BLOCK]; STATES];

/// Most states of a task, fewer where there would be too few tasks.
fn states_of_task(pool: &Pool, n: usize, m: usize) -> usize {
    let mut states = STATES;
    while states > 4 && n.div_ceil(states) * chunks(m) < 4 * pool.threads() {
        states /= 2;
    }
    states
}

/// Two numbers that go with a state through a chunk.
type Statistics = [f64; 2];

/// Goes through the data: `sums[chunk][state] = sum_j w_j x_j` with the weights
/// that `weigh(state, first image, distances, statistics, weights)` makes of a
/// block's distances. It returns the factor by which the sum so far is scaled.
fn stream(
    pool: &Pool,
    op: &Empirical,
    o: Operands,
    start: Statistics,
    (statistics, sums): (&mut [Statistics], &mut [f32]),
    weigh: impl Fn(usize, usize, &[f64], &mut Statistics, &mut [f32]) -> f32 + Sync,
) {
    let (isa, len, chunks) = (pool.isa(), op.len, chunks(op.m));
    let most = states_of_task(pool, op.n, op.m);
    let (statistics, sums) = (Parts::new(statistics), Parts::new(sums));
    pool.run(op.n.div_ceil(most) * chunks, &|task| {
        let (first, c) = (task / chunks * most, task % chunks);
        let states = most.min(op.n - first);
        let row = c * op.n + first;
        // SAFETY: each task has its own states and chunk.
        let (statistics, sums) =
            unsafe { (statistics.part(row, states), sums.part(row * len, states * len)) };
        statistics.fill(start);
        sums.fill(0.0);
        let x = &o.x[first * len..][..states * len];
        let mut signals = [0f32; STATES];
        for (i, signal) in signals[..states].iter_mut().enumerate() {
            *signal = o.signal(first + i);
        }
        let mut distances: Distances = [[0.0; BLOCK]; STATES];
        let mut weights: Weights = [[0.0; BLOCK]; STATES];
        let [from, to] = chunk(op.m, c);
        for from in (from..to).step_by(block(len)) {
            let images = block(len).min(to - from);
            let data = &o.data[from * len..][..images * len];
            block_distances(isa, len, x, &signals, data, &mut distances);
            for (i, sum) in sums.chunks_exact_mut(len).enumerate() {
                let (distances, weights) = (&distances[i][..images], &mut weights[i][..images]);
                let factor = weigh(first + i, from, distances, &mut statistics[i], weights);
                if factor != 1.0 {
                    scale(isa, sum, factor);
                }
            }
            add_weighted(isa, len, &weights, data, sums);
        }
    });
}

/// Splits scratch into statistics and sums, `[chunks][n]` of them.
fn split<'a>(op: &Empirical, scratch: &'a mut [f32]) -> (&'a mut [Statistics], &'a mut [f32]) {
    let (statistics, sums) = scratch.split_at_mut(op.n * chunks(op.m) * 4);
    (bytemuck::cast_slice_mut(statistics), sums)
}

/// y and log_sum `[n, 2]`.
pub fn empirical(
    pool: &Pool,
    op: &Empirical,
    o: Operands,
    (y, mode): Output,
    log_sum: &mut [f32],
    workspace: &mut [f32],
) {
    let (isa, len) = (pool.isa(), op.len);
    let (statistics, sums) = split(op, workspace);
    let start = [f64::INFINITY, 0.0];
    stream(pool, op, o, start, (statistics, sums), |state, _, distances, statistics, weights| {
        weigh(isa, o.precision(state), distances, statistics, weights)
    });
    let (statistics, sums) = (&*statistics, &*sums);
    let (y, log_sum) = (Parts::new(y), Parts::new(log_sum));
    pool.run(op.n, &|i| {
        // SAFETY: each task has its own state.
        let (y, log_sum) = unsafe { (y.part(i * len, len), log_sum.part(2 * i, 2)) };
        let precision = o.precision(i);
        let of_chunk = || (0..chunks(op.m)).map(|c| statistics[c * op.n + i]);
        let nearest = of_chunk().fold(f64::INFINITY, |a, [d, _]| if a < d { a } else { d });
        let mut factors = [0f64; CHUNKS];
        let mut total = 0.0;
        for (factor, [distance, sum]) in factors.iter_mut().zip(of_chunk()) {
            *factor = (-exponent(distance - nearest, precision)).exp();
            total += *factor * sum;
        }
        let factors = factors.map(|factor| (factor / total) as f32);
        combine(isa, op.n * len, &sums[i * len..], &factors[..chunks(op.m)], None, (y, mode));
        let sum = total.ln() - exponent(nearest, precision);
        log_sum[0] = sum as f32;
        log_sum[1] = (sum - f64::from(log_sum[0])) as f32;
    });
}

/// What the backward pass reads beside the operands.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[n, len]`
    pub y: &'a [f32],
    /// `[n, 2]`
    pub log_sum: &'a [f32],
    /// `[n, len]`
    pub d_y: &'a [f32],
}

/// `d_x = alpha / sigma^2 sum_i c_i (x_i - y)`, `c_i = w_i (x_i - y) . d_y`.
pub fn empirical_backward(
    pool: &Pool,
    op: &Empirical,
    o: Operands,
    saved: Saved,
    (d_x, mode): Output,
    workspace: &mut [f32],
) {
    let (isa, len) = (pool.isa(), op.len);
    let (statistics, sums) = split(op, workspace);
    stream(pool, op, o, [0.0; 2], (statistics, sums), |state, from, distances, total, weights| {
        let log_sum = &saved.log_sum[2 * state..][..2];
        let log_sum = f64::from(log_sum[0]) + f64::from(log_sum[1]);
        let row = state * len..(state + 1) * len;
        let (y, d_y) = (&saved.y[row.clone()], &saved.d_y[row]);
        for (j, (weight, &distance)) in weights.iter_mut().zip(distances).enumerate() {
            let w = exp((-exponent(distance, o.precision(state)) - log_sum) as f32);
            *weight = 0.0;
            if w != 0.0 {
                let image = &o.data[(from + j) * len..][..len];
                *weight = w * product(isa, image, y, d_y);
            }
            total[0] += f64::from(*weight);
        }
        1.0
    });
    let (statistics, sums) = (&*statistics, &*sums);
    let d_x = Parts::new(d_x);
    pool.run(op.n, &|i| {
        // SAFETY: each task has its own state.
        let d_x = unsafe { d_x.part(i * len, len) };
        let factor = 2.0 * o.precision(i) * f64::from(o.signal(i));
        // The sum of c is 0 but for rounding, which the factor magnifies.
        let total: f64 = (0..chunks(op.m)).map(|c| statistics[c * op.n + i][0]).sum();
        let rest = Some((&saved.y[i * len..][..len], (-factor * total) as f32));
        let factors = [factor as f32; CHUNKS];
        combine(isa, op.n * len, &sums[i * len..], &factors[..chunks(op.m)], rest, (d_x, mode));
    });
}

/// For every state `[len]` of `x` the two nearest images: squared distance and
/// index, the nearer first, of equal ones the earlier. Where there is one image
/// the second is infinitely far.
pub fn nearest_two(pool: &Pool, x: &[f32], data: &[f32], len: usize) -> Vec<[(f64, usize); 2]> {
    let op = Empirical { n: x.len() / len, m: data.len() / len, len };
    let (isa, chunks) = (pool.isa(), chunks(op.m));
    let most = states_of_task(pool, op.n, op.m);
    let mut nearest = vec![[(f64::INFINITY, 0); 2]; op.n * chunks];
    let parts = Parts::new(&mut nearest);
    pool.run(op.n.div_ceil(most) * chunks, &|task| {
        let (first, c) = (task / chunks * most, task % chunks);
        let states = most.min(op.n - first);
        // SAFETY: each task has its own states and chunk.
        let nearest = unsafe { parts.part(c * op.n + first, states) };
        let x = &x[first * len..][..states * len];
        let mut distances: Distances = [[0.0; BLOCK]; STATES];
        let [from, to] = chunk(op.m, c);
        for from in (from..to).step_by(block(len)) {
            let images = block(len).min(to - from);
            let data = &data[from * len..][..images * len];
            block_distances(isa, len, x, &[1.0; STATES], data, &mut distances);
            for (two, distances) in nearest.iter_mut().zip(&distances) {
                for (j, &distance) in distances[..images].iter().enumerate() {
                    insert(two, (distance, from + j));
                }
            }
        }
    });
    let (two, others) = nearest.split_at_mut(op.n);
    for others in others.chunks_exact(op.n) {
        for (two, others) in two.iter_mut().zip(others) {
            others.iter().for_each(|&other| insert(two, other));
        }
    }
    two.to_vec()
}

/// Keeps the two smallest; on a tie the one that was there.
fn insert(two: &mut [(f64, usize); 2], new: (f64, usize)) {
    if new.0 < two[0].0 {
        *two = [new, two[0]];
    } else if new.0 < two[1].0 {
        two[1] = new;
    }
}

multiversion! {
    /// Turns distances into weights relative to the nearest image so far, adds
    /// them up, and returns the factor that brings what was accumulated before to
    /// the new scale.
    fn weigh(
        isa: Isa, precision: f64, distances: &[f64], statistics: &mut [f64; 2],
        weights: &mut [f32],
    ) -> f32 {
        let [before, sum] = *statistics;
        let now = distances.iter().fold(before, |a, &d| if a < d { a } else { d });
        let mut added = 0f64;
        for (weight, &distance) in weights.iter_mut().zip(distances) {
            *weight = exp(-exponent(distance - now, precision) as f32);
            added += f64::from(*weight);
        }
        let correction = if before == f64::INFINITY {
            0.0
        } else {
            exp(-exponent(before - now, precision) as f32)
        };
        *statistics = [now, sum * f64::from(correction) + added];
        correction
    }
}

multiversion! {
    fn scale(isa: Isa, row: &mut [f32], factor: f32) {
        for v in row {
            *v *= factor;
        }
    }
}

multiversion! {
    /// `(image - y) . d_y`
    fn product(isa: Isa, image: &[f32], y: &[f32], d_y: &[f32]) -> f32 {
        let mut total = 0f64;
        let stretches = image.chunks(STRETCH).zip(y.chunks(STRETCH)).zip(d_y.chunks(STRETCH));
        for ((image, y), d_y) in stretches {
            let mut sums = [0f32; LANES];
            let groups = image.chunks(LANES).zip(y.chunks(LANES)).zip(d_y.chunks(LANES));
            for ((image, y), d_y) in groups {
                for (((sum, &v), &y), &d) in sums.iter_mut().zip(image).zip(y).zip(d_y) {
                    *sum += (v - y) * d;
                }
            }
            total += f64::from(fold(sums));
        }
        total as f32
    }
}

multiversion! {
    /// `y = sum_c factors[c] sums[c stride ..] + factor rest`, in this order.
    fn combine(
        isa: Isa, stride: usize, sums: &[f32], factors: &[f32], rest: Option<(&[f32], f32)>,
        y: Output,
    ) {
        let (y, mode) = y;
        for (e, y) in y.iter_mut().enumerate() {
            // From +0 on, so that passing over weights of 0 leaves no -0 behind.
            let mut sum = 0.0;
            for (c, &factor) in factors.iter().enumerate() {
                sum += factor * sums[c * stride + e];
            }
            if let Some((rest, factor)) = rest {
                sum += factor * rest[e];
            }
            match mode {
                Mode::Write => *y = sum,
                Mode::Add => *y += sum,
            }
        }
    }
}
