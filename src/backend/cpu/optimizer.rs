//! Gradient norm and AdamW with EMA, each one pass over the arenas.
#![allow(unsafe_code)] // Tasks write disjoint chunks of the arenas.

use super::isa::multiversion;
use super::pool::{Parts, Pool};
use crate::ops::optimizer::{AdamW, GlobalNorm, control};

/// Elements of one task: 64 KiB an arena.
const CHUNK: usize = 16384;
/// Parts of the norm's sum. Fixed, so that the order of summation depends on the
/// ranges alone and the partial sums need no memory from the plan.
const SEGMENTS: usize = 64;
/// Partial sums of one chunk, whatever the vectors' width.
const LANES: usize = 16;

/// The chunks of all ranges, numbered in order.
struct Chunks<'a> {
    ranges: &'a [(usize, usize)],
}

impl Chunks<'_> {
    fn count(&self) -> usize {
        self.ranges.iter().map(|(_, len)| len.div_ceil(CHUNK)).sum()
    }

    /// (start, len) of chunk `i`.
    fn get(&self, mut i: usize) -> (usize, usize) {
        for &(start, len) in self.ranges {
            let chunks = len.div_ceil(CHUNK);
            if i < chunks {
                let from = i * CHUNK;
                return (start + from, CHUNK.min(len - from));
            }
            i -= chunks;
        }
        unreachable!("chunk past the last range")
    }
}

/// `sqrt(sum g^2)` over the ranges, summed in f64.
pub fn global_norm(pool: &Pool, op: &GlobalNorm, gradients: &[f32], norm: &mut [f32]) {
    let isa = pool.isa();
    let chunks = Chunks { ranges: &op.ranges };
    let count = chunks.count();
    let per_segment = count.div_ceil(SEGMENTS).max(1);
    let mut sums = [0f64; SEGMENTS];
    let parts = Parts::new(&mut sums);
    pool.run(count.div_ceil(per_segment), &|segment| {
        let mut sum = 0.0;
        for i in segment * per_segment..((segment + 1) * per_segment).min(count) {
            let (start, len) = chunks.get(i);
            sum += sum_of_squares(isa, &gradients[start..start + len]);
        }
        // SAFETY: each task has its own segment.
        let segment = unsafe { parts.part(segment, 1) };
        segment[0] = sum;
    });
    norm[0] = sums.iter().sum::<f64>().sqrt() as f32;
}

multiversion! {
    fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        let (body, tail) = x.as_chunks::<LANES>();
        for x in body {
            for (lane, &x) in lanes.iter_mut().zip(x) {
                *lane = f64::from(x).mul_add(f64::from(x), *lane);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(tail) {
            *lane = f64::from(x).mul_add(f64::from(x), *lane);
        }
        lanes.iter().sum()
    }
}

/// What AdamW changes in place; whole arenas.
#[allow(missing_docs)]
pub struct State<'a> {
    pub parameters: &'a mut [f32],
    pub first_moments: &'a mut [f32],
    pub second_moments: &'a mut [f32],
    pub average: &'a mut [f32],
}

/// The factors of one step.
#[derive(Clone, Copy)]
struct Factors {
    /// Clipping.
    gradient: f32,
    /// lr weight_decay.
    decay: f32,
    /// 1 - beta1.
    rate1: f32,
    beta2: f32,
    /// 1 - beta2.
    rate2: f32,
    /// 1 / sqrt(c2).
    root: f32,
    eps: f32,
    /// lr / c1.
    step: f32,
    /// 1 - decay of the average.
    ema_rate: f32,
}

impl Factors {
    fn new(op: &AdamW, norm: f32, control: &[f32]) -> Self {
        let column = |i: usize| f64::from(control[i]);
        let learning_rate = column(control::LEARNING_RATE);
        let clip = op.clip.map_or(1.0, |clip| (clip / (f64::from(norm) + 1e-6)).min(1.0));
        Factors {
            gradient: clip as f32,
            decay: (learning_rate * op.weight_decay) as f32,
            rate1: (1.0 - op.beta1) as f32,
            beta2: op.beta2 as f32,
            rate2: (1.0 - op.beta2) as f32,
            root: (1.0 / column(control::BIAS_CORRECTION_2).sqrt()) as f32,
            eps: op.eps as f32,
            step: (learning_rate / column(control::BIAS_CORRECTION_1)) as f32,
            ema_rate: control[control::EMA_RATE],
        }
    }
}

/// AdamW and the average over the ranges.
pub fn adamw(
    pool: &Pool,
    op: &AdamW,
    gradients: &[f32],
    norm: &[f32],
    control: &[f32],
    state: State,
) {
    if !norm[0].is_finite() {
        return;
    }
    let isa = pool.isa();
    let factors = Factors::new(op, norm[0], control);
    let chunks = Chunks { ranges: &op.ranges };
    let parameters = Parts::new(state.parameters);
    let first_moments = Parts::new(state.first_moments);
    let second_moments = Parts::new(state.second_moments);
    let average = Parts::new(state.average);
    pool.run(chunks.count(), &|i| {
        let (start, len) = chunks.get(i);
        // SAFETY: each task has its own chunk, and ranges do not overlap.
        let [p, m, v, ema] = unsafe {
            [
                parameters.part(start, len),
                first_moments.part(start, len),
                second_moments.part(start, len),
                average.part(start, len),
            ]
        };
        adamw_chunk(isa, factors, &gradients[start..start + len], p, m, v, ema);
    });
}

multiversion! {
    fn adamw_chunk(
        isa: Isa, factors: Factors, g: &[f32], p: &mut [f32], m: &mut [f32], v: &mut [f32],
        ema: &mut [f32],
    ) {
        let f = factors;
        let near = f.ema_rate < 0.5;
        for ((((&g, p), m), v), ema) in g.iter().zip(p).zip(m).zip(v).zip(ema) {
            let g = g * f.gradient;
            *m = f.rate1.mul_add(g - *m, *m);
            *v = f.beta2.mul_add(*v, f.rate2 * g * g);
            // One rounding at the weight's size: 1 - lr weight_decay would add one.
            *p -= f.step.mul_add(*m / f.root.mul_add(v.sqrt(), f.eps), f.decay * *p);
            // From the nearer end, so that rate 1 copies and rate 0 keeps.
            let difference = *p - *ema;
            *ema = if near {
                f.ema_rate.mul_add(difference, *ema)
            } else {
                (f.ema_rate - 1.0).mul_add(difference, *p)
            };
        }
    }
}
