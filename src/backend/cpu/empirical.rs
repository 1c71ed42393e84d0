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

use super::isa::{Isa, multiversion};
use super::math::exp;
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use crate::ops::empirical::Empirical;
use crate::plan::Mode;

/// Lanes of a distance's sums, whatever the vectors' width.
const LANES: usize = 16;
/// Elements of a distance summed in f32.
const STRETCH: usize = 1024;
/// Images shorter than this are compared across images, not across elements.
const SHORT: usize = 24;
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

/// Distances from a task's states to a block of images.
type Distances = [[f64; BLOCK]; STATES];
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

/// Adds up lanes pairwise.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Whether the portable target fuses; in software that would cost a hundred
/// times the product.
const PORTABLE_FUSES: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Squared distances from the states x, each to its own factor times the images.
fn block_distances(
    isa: Isa,
    len: usize,
    x: &[f32],
    signals: &[f32; STATES],
    data: &[f32],
    distances: &mut Distances,
) {
    let (states, images) = (x.len() / len, data.len() / len);
    assert!(states <= STATES && images <= BLOCK);
    if len < SHORT {
        match isa {
            Isa::Portable => short_portable(isa, len, x, signals, data, distances),
            _ => short_fused(isa, len, x, signals, data, distances),
        }
        return;
    }
    match isa {
        Isa::Avx512 => long_wide(isa, len, x, signals, data, distances),
        Isa::Avx2 => long_middle(isa, len, x, signals, data, distances),
        Isa::Portable => long_narrow(isa, len, x, signals, data, distances),
    }
}

multiversion! {
    fn short_fused(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        short::<true>(len, x, signals, data, distances);
    }
}

multiversion! {
    fn short_portable(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        short::<PORTABLE_FUSES>(len, x, signals, data, distances);
    }
}

/// Sixteen images at a time, turned so that they lie along the lanes.
#[inline(always)]
fn short<const FUSED: bool>(
    len: usize,
    x: &[f32],
    signals: &[f32; STATES],
    data: &[f32],
    distances: &mut Distances,
) {
    let mut turned = [[0f32; LANES]; SHORT];
    for (at, group) in data.chunks(LANES * len).enumerate() {
        for (lane, image) in group.chunks_exact(len).enumerate() {
            for (e, &v) in image.iter().enumerate() {
                turned[e][lane] = v;
            }
        }
        for (i, x) in x.chunks_exact(len).enumerate() {
            let mut sums = [0f32; LANES];
            for (&x, images) in x.iter().zip(&turned) {
                for (sum, &v) in sums.iter_mut().zip(images) {
                    let difference = fma::<FUSED>(-signals[i], v, x);
                    *sum = fma::<FUSED>(difference, difference, *sum);
                }
            }
            let images = group.len() / len;
            let to = &mut distances[i][at * LANES..][..images];
            for (d, &sum) in to.iter_mut().zip(&sums) {
                *d = f64::from(sum);
            }
        }
    }
}

multiversion! {
    /// 32 vector registers of sixteen.
    fn long_wide(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        long::<2, 4, true>(len, x, signals, data, distances);
    }
}

multiversion! {
    /// 16 vector registers of eight.
    fn long_middle(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        long::<2, 2, true>(len, x, signals, data, distances);
    }
}

multiversion! {
    /// 16 vector registers of four.
    fn long_narrow(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        long::<1, 2, PORTABLE_FUSES>(len, x, signals, data, distances);
    }
}

/// Goes over the pairs in tiles of S states and J images.
#[inline(always)]
fn long<const S: usize, const J: usize, const FUSED: bool>(
    len: usize,
    x: &[f32],
    signals: &[f32; STATES],
    data: &[f32],
    distances: &mut Distances,
) {
    let (states, images) = (x.len() / len, data.len() / len);
    let mut i = 0;
    while i < states {
        let mut j = 0;
        let whole = i + S <= states;
        while whole && j + J <= images {
            pairs::<S, J, FUSED>(len, &x[i * len..], &signals[i..], &data[j * len..], |a, b, d| {
                distances[i + a][j + b] = d;
            });
            j += J;
        }
        for i in i..states.min(i + S) {
            for j in j..images {
                pairs::<1, 1, FUSED>(
                    len,
                    &x[i * len..],
                    &signals[i..],
                    &data[j * len..],
                    |_, _, d| {
                        distances[i][j] = d;
                    },
                );
            }
        }
        i += S;
    }
}

/// The distances of one tile. Indices, because the loops have to unroll.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn pairs<const S: usize, const J: usize, const FUSED: bool>(
    len: usize,
    x: &[f32],
    signals: &[f32],
    data: &[f32],
    mut put: impl FnMut(usize, usize, f64),
) {
    assert!(x.len() >= S * len && data.len() >= J * len);
    let signals: [f32; S] = std::array::from_fn(|i| -signals[i]);
    let mut totals = [[0f64; J]; S];
    for from in (0..len).step_by(STRETCH) {
        let to = len.min(from + STRETCH);
        let mut sums = [[[0f32; LANES]; J]; S];
        let mut e = from;
        while e + LANES <= to {
            // SAFETY: e + LANES <= len, and x and data hold S and J rows of len.
            let lanes = |rows: &[f32], row: usize| unsafe {
                *rows.as_ptr().add(row * len + e).cast::<[f32; LANES]>()
            };
            for j in 0..J {
                let image = lanes(data, j);
                for i in 0..S {
                    let x = lanes(x, i);
                    for l in 0..LANES {
                        let difference = fma::<FUSED>(signals[i], image[l], x[l]);
                        sums[i][j][l] = fma::<FUSED>(difference, difference, sums[i][j][l]);
                    }
                }
            }
            e += LANES;
        }
        for i in 0..S {
            for j in 0..J {
                let mut lanes = sums[i][j];
                let (x, image) = (&x[i * len + e..i * len + to], &data[j * len + e..j * len + to]);
                for ((sum, &x), &v) in lanes.iter_mut().zip(x).zip(image) {
                    let difference = fma::<FUSED>(signals[i], v, x);
                    *sum = fma::<FUSED>(difference, difference, *sum);
                }
                totals[i][j] += f64::from(fold(lanes));
            }
        }
    }
    for (i, totals) in totals.iter().enumerate() {
        for (j, &total) in totals.iter().enumerate() {
            put(i, j, total);
        }
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

/// States that share the loads of an image.
const TOGETHER: usize = 4;
/// Elements of a state in registers.
const WIDTH: usize = 32;

/// An image of a block and its weights for some states.
type Heavy = (usize, [f32; TOGETHER]);

/// `sums[i] += sum_j weights[i][j] data[j]`, j in order, the sum over j first.
fn add_weighted(isa: Isa, len: usize, weights: &Weights, data: &[f32], sums: &mut [f32]) {
    for (sums, weights) in sums.chunks_mut(TOGETHER * len).zip(weights.chunks(TOGETHER)) {
        let mut heavy: [Heavy; BLOCK] = [(0, [0.0; TOGETHER]); BLOCK];
        let (mut count, states) = (0, sums.len() / len);
        for (j, _) in data.chunks_exact(len).enumerate() {
            let of_image = std::array::from_fn(|i| if i < states { weights[i][j] } else { 0.0 });
            // Far images weigh nothing: for most noises most of them.
            if of_image.iter().any(|&w| w != 0.0) {
                heavy[count] = (j, of_image);
                count += 1;
            }
        }
        match isa {
            Isa::Portable => add_portable(isa, len, &heavy[..count], data, sums),
            _ => add_fused(isa, len, &heavy[..count], data, sums),
        }
    }
}

multiversion! {
    fn add_fused(isa: Isa, len: usize, heavy: &[Heavy], data: &[f32], sums: &mut [f32]) {
        add::<true>(len, heavy, data, sums);
    }
}

multiversion! {
    fn add_portable(isa: Isa, len: usize, heavy: &[Heavy], data: &[f32], sums: &mut [f32]) {
        add::<PORTABLE_FUSES>(len, heavy, data, sums);
    }
}

#[inline(always)]
fn add<const FUSED: bool>(len: usize, heavy: &[Heavy], data: &[f32], sums: &mut [f32]) {
    let mut e = 0;
    while e + WIDTH <= len {
        columns::<WIDTH, FUSED>(len, e, heavy, data, sums);
        e += WIDTH;
    }
    while e + 8 <= len {
        columns::<8, FUSED>(len, e, heavy, data, sums);
        e += 8;
    }
    while e < len {
        columns::<1, FUSED>(len, e, heavy, data, sums);
        e += 1;
    }
}

/// Elements `e .. e + N` of the sums.
#[inline(always)]
fn columns<const N: usize, const FUSED: bool>(
    len: usize,
    e: usize,
    heavy: &[Heavy],
    data: &[f32],
    sums: &mut [f32],
) {
    assert!(e + N <= len);
    let mut added = [[0f32; N]; TOGETHER];
    for (j, weights) in heavy {
        assert!((j + 1) * len <= data.len());
        // SAFETY: inside the image, which the assertions put inside the data.
        let image = unsafe { *data.as_ptr().add(j * len + e).cast::<[f32; N]>() };
        for (added, &w) in added.iter_mut().zip(weights) {
            for (added, &v) in added.iter_mut().zip(&image) {
                *added = fma::<FUSED>(w, v, *added);
            }
        }
    }
    for (sum, added) in sums.chunks_exact_mut(len).zip(&added) {
        for (sum, &added) in sum[e..e + N].iter_mut().zip(added) {
            *sum += added;
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
