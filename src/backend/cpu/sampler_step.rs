//! Sampler stages on the CPU; equations in [`crate::ops::sampler_step`].
#![allow(unsafe_code)] // Tasks write disjoint parts of the slots.

use super::math;
use super::pool::Parts;
use super::{Arguments, Pool};
use crate::ops::sampler_step::{MOST_SLOTS, SamplerQuantile, SamplerStep, column};
use crate::random::{Purpose, fill_normal};

/// Elements handled at a time, a multiple of the four normals of one counter:
/// the buffers of a chunk stay in the first-level cache.
pub(super) const CHUNK: usize = 512;

/// Operands of [`sampler_step`], with the shapes of [`SamplerStep`].
#[allow(missing_docs)]
pub struct Operands<'a> {
    pub prediction: &'a [f32],
    pub table: &'a [f32],
    pub stage: usize,
    pub keys: &'a [u32],
    pub noise: Option<&'a [f32]>,
    pub threshold: Option<&'a [f32]>,
    pub label: Label<'a>,
    pub input: Option<&'a mut [f32]>,
    pub slots: [&'a mut [f32]; MOST_SLOTS],
}

/// Where the next evaluation's label goes: one for each image the network sees.
#[allow(missing_docs)]
pub enum Label<'a> {
    Value(&'a mut [f32]),
    Index(&'a mut [u32]),
}

/// What the tasks read of a prediction: one f32 for each element of the state.
#[derive(Clone, Copy)]
pub(super) struct Prediction<'a> {
    pub(super) op: &'a SamplerStep,
    pub(super) values: &'a [f32],
}

impl Prediction<'_> {
    /// Elements `first..` of an image, guidance applied.
    pub(super) fn read(&self, image: usize, first: usize, guidance: f32, out: &mut [f32]) {
        let SamplerStep { n, spatial, channels, prediction_channels, guided, .. } = *self.op;
        let len = spatial * prediction_channels;
        let gather = |copy: usize, out: &mut [f32]| {
            let from = &self.values[(copy * n + image) * len..][..len];
            if channels == prediction_channels {
                out.copy_from_slice(&from[first..first + out.len()]);
            } else {
                for (e, o) in (first..).zip(out) {
                    *o = from[e / channels * prediction_channels + e % channels];
                }
            }
        };
        gather(0, out);
        if guided {
            let mut unconditional = [0f32; CHUNK];
            let unconditional = &mut unconditional[..out.len()];
            gather(1, unconditional);
            for (p, &u) in out.iter_mut().zip(&*unconditional) {
                *p = u + guidance * (*p - u);
            }
        }
    }
}

impl Prediction<'_> {
    /// Multiplies z by the std that the network predicts beside x_0 or eps.
    fn scale_noise(&self, image: usize, first: usize, row: &[f32], z: &mut [f32]) {
        let SamplerStep { spatial, channels, prediction_channels, .. } = *self.op;
        assert!(prediction_channels >= 2 * channels, "a learned variance has channels of its own");
        let from = &self.values[image * spatial * prediction_channels..];
        let second = column::OUTPUT + column::COEFFICIENTS;
        let (small, large) = (row[second], row[second + 1]);
        let ranges = row[column::TARGET + 1] == column::LEARNED_RANGE;
        for (e, z) in (first..).zip(z) {
            let v = from[e / channels * prediction_channels + channels + e % channels];
            *z *= if ranges {
                let part = 0.5 * (v + 1.0);
                math::exp(0.5 * (part * large + (1.0 - part) * small))
            } else {
                v.max(0.0).sqrt()
            };
        }
    }
}

fn axpy(out: &mut [f32], c: f32, values: &[f32]) {
    if c != 0.0 {
        for (o, &v) in out.iter_mut().zip(values) {
            *o += c * v;
        }
    }
}

/// Runs one stage on all images.
pub fn sampler_step(pool: &Pool, op: &SamplerStep, operands: Operands) {
    let Operands { prediction, table, stage, keys, noise, threshold, label, input, slots } =
        operands;
    let (n, len, copies) = (op.n, op.len(), op.copies());
    assert!(stage < op.stages, "stage {stage} of {}", op.stages);
    assert_eq!(prediction.len(), copies * n * op.spatial * op.prediction_channels);
    assert!(slots[..op.slots].iter().all(|slot| slot.len() == n * len), "slots are [n, ...]");
    let prediction = Prediction { op, values: prediction };
    let next = (stage + 1).min(op.stages - 1);
    let next_label = |i: usize| table[op.row(next, i % n) + column::LABEL];
    match label {
        Label::Value(to) => to.iter_mut().enumerate().for_each(|(i, l)| *l = next_label(i)),
        Label::Index(to) => to.iter_mut().enumerate().for_each(|(i, l)| *l = next_label(i) as u32),
    }
    let slots = slots.map(Parts::new);
    let input = input.map(Parts::new);
    let chunks = len.div_ceil(CHUNK);
    pool.run(n * chunks, &|task| {
        let (image, first) = (task / chunks, task % chunks * CHUNK);
        let size = CHUNK.min(len - first);
        let at = image * len + first;
        let row = &table[op.row(stage, image)..][..column::COLUMNS];
        let parts: [&mut [f32]; MOST_SLOTS] = std::array::from_fn(|j| match j < op.slots {
            // SAFETY: tasks have disjoint element ranges, and a task takes one
            // part of each slot, so no two parts overlap.
            true => unsafe { slots[j].part(at, size) },
            false => Default::default(),
        });

        let (mut x0, mut eps, mut z) = ([0f32; CHUNK], [0f32; CHUNK], [0f32; CHUNK]);
        let (x0, eps, z) = (&mut x0[..size], &mut eps[..size], &mut z[..size]);
        let outputs = [0, 1].map(|k| {
            let from = column::OUTPUT + k * column::COEFFICIENTS;
            (row[column::TARGET + k], &row[from..from + column::COEFFICIENTS])
        });
        let takes = |of: usize| outputs.iter().any(|(target, c)| *target >= 0.0 && c[of] != 0.0);
        if takes(column::OF_X0) || takes(column::OF_EPS) {
            prediction.read(image, first, row[column::GUIDANCE], x0);
        }
        let x = &*parts[row[column::INPUT_SLOT] as usize];
        for ((x0, eps), &x) in x0.iter_mut().zip(eps.iter_mut()).zip(x) {
            let p = *x0;
            *x0 = row[column::X0_STATE] * x + row[column::X0_PREDICTION] * p;
            *eps = row[column::EPS_STATE] * x + row[column::EPS_PREDICTION] * p;
        }
        match threshold {
            Some(threshold) => {
                let s = threshold[image];
                x0.iter_mut().for_each(|v| *v = v.clamp(-s, s) / s);
            }
            None => {
                let clip = row[column::CLIP];
                x0.iter_mut().for_each(|v| *v = v.clamp(-clip, clip));
            }
        }
        if takes(column::OF_NOISE) {
            match noise {
                Some(noise) => z.copy_from_slice(&noise[at..at + size]),
                None => {
                    let keys = keys[image * 4..][..4].try_into().expect("four words");
                    let draw = row[column::DRAW] as u32;
                    fill_normal(keys, Purpose::SampleStep, draw, first as u64, z);
                }
            }
            if row[column::TARGET + 1] <= column::LEARNED {
                prediction.scale_noise(image, first, row, z);
            }
        }
        let mut sums = [[0f32; CHUNK]; 2];
        for ((target, c), sum) in outputs.iter().zip(&mut sums) {
            if *target < 0.0 {
                continue;
            }
            let sum = &mut sum[..size];
            for (part, &c) in parts.iter().zip(*c) {
                axpy(sum, c, part);
            }
            axpy(sum, c[column::OF_X0], x0);
            axpy(sum, c[column::OF_EPS], eps);
            axpy(sum, c[column::OF_NOISE], z);
        }
        for ((target, _), sum) in outputs.iter().zip(&sums) {
            if *target >= 0.0 {
                parts[*target as usize].copy_from_slice(&sum[..size]);
            }
        }
        if let Some(input) = &input {
            let row = &table[op.row(next, image)..][..column::COLUMNS];
            let (slot, scale) = (row[column::INPUT_SLOT] as usize, row[column::INPUT_SCALE]);
            for copy in 0..copies {
                // SAFETY: as above; the copies lie n * len elements apart.
                let part = unsafe { input.part(copy * n * len + at, size) };
                for (o, &v) in part.iter_mut().zip(&*parts[slot]) {
                    *o = scale * v;
                }
            }
        }
    });
}

/// Thresholds of all images into `threshold [n]`. The k-th smallest |x_0| is
/// found by its bits, eleven at a time: non-negative floats order as integers.
/// No scratch memory, and |x_0| is computed again in each of the four passes.
#[allow(clippy::too_many_arguments)] // the operands of a node
pub fn sampler_quantile(
    pool: &Pool,
    op: &SamplerQuantile,
    prediction: &[f32],
    table: &[f32],
    stage: usize,
    slots: [&[f32]; MOST_SLOTS],
    threshold: &mut [f32],
) {
    let step = &op.step;
    let len = step.len();
    assert_eq!(threshold.len(), step.n);
    let prediction = Prediction { op: step, values: prediction };
    let threshold = Parts::new(threshold);
    pool.run(step.n, &|image| {
        let row = &table[step.row(stage, image)..][..column::COLUMNS];
        let x = &slots[row[column::INPUT_SLOT] as usize][image * len..][..len];
        let each = |f: &mut dyn FnMut(u32)| {
            let mut p = [0f32; CHUNK];
            for (first, x) in (0..).step_by(CHUNK).zip(x.chunks(CHUNK)) {
                let p = &mut p[..x.len()];
                prediction.read(image, first, row[column::GUIDANCE], p);
                for (&x, &p) in x.iter().zip(&*p) {
                    let x0 = row[column::X0_STATE] * x + row[column::X0_PREDICTION] * p;
                    f(x0.abs().to_bits());
                }
            }
        };
        // As torch.quantile: rank and interpolation in f32.
        let rank = op.ratio * (len - 1) as f32;
        let (below, weight) = (rank as usize, rank - rank.floor());
        let (low, not_above) = select(&each, below);
        let low_value = f32::from_bits(low);
        let quantile = if weight == 0.0 || not_above > below + 1 {
            low_value
        } else {
            let mut high = u32::MAX;
            each(&mut |bits| {
                if bits > low {
                    high = high.min(bits);
                }
            });
            let gap = f32::from_bits(high) - low_value;
            if weight < 0.5 {
                low_value + weight * gap
            } else {
                f32::from_bits(high) - gap * (1.0 - weight)
            }
        };
        // SAFETY: one element a task.
        let own = unsafe { threshold.part(image, 1) };
        own[0] = quantile.max(1.0).min(op.max);
    });
}

/// The k-th smallest of the values `each` gives, and how many are not above it.
fn select(each: &impl Fn(&mut dyn FnMut(u32)), k: usize) -> (u32, usize) {
    let (mut prefix, mut below) = (0u32, 0usize);
    let mut known = 0;
    let mut equal = 0;
    for bits in [11, 11, 10] {
        let shift = 32 - known - bits;
        let mut counts = [0usize; 1 << 11];
        each(&mut |value| {
            if known == 0 || value >> (32 - known) == prefix {
                counts[(value >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        });
        let mut digit = 0;
        while below + counts[digit] <= k {
            below += counts[digit];
            digit += 1;
        }
        equal = counts[digit];
        prefix = prefix << bits | digit as u32;
        known += bits;
    }
    (prefix, below + equal)
}

pub(super) fn execute_step(pool: &Pool, op: &SamplerStep, a: &mut Arguments) {
    let label = match op.label_is_index {
        true => Label::Index(a.written_u32(0)),
        false => Label::Value(a.written(0)),
    };
    let input = a.output(1).map(|(input, _)| input);
    let slots = std::array::from_fn(|j| match j < op.slots {
        true => a.written(2 + j),
        false => Default::default(),
    });
    let advanced = a.has_output(2 + op.slots).then(|| a.written_u32(2 + op.slots));
    let told = a.optional_u32(2).map(|stage| stage[0]);
    let stage = told.or(advanced.as_ref().map(|stage| stage[0])).expect("a step has a stage");
    let operands = Operands {
        prediction: a.input(0),
        table: a.input(1),
        stage: stage as usize,
        keys: a.input_u32(3),
        noise: a.optional(4),
        threshold: a.optional(5),
        label,
        input,
        slots,
    };
    sampler_step(pool, op, operands);
    if let Some(stage) = advanced {
        stage[0] += 1;
    }
}

pub(super) fn execute_quantile(pool: &Pool, op: &SamplerQuantile, a: &mut Arguments) {
    let slots = std::array::from_fn(|j| match j < op.step.slots {
        true => a.input(3 + j),
        false => Default::default(),
    });
    let stage = a.input_u32(2)[0] as usize;
    sampler_quantile(pool, op, a.input(0), a.input(1), stage, slots, a.written(0));
}
