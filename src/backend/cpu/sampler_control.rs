//! What decides about a sampler's stage image by image, on the CPU: norms, rows,
//! error control, blends, residuals. Equations in [`crate::ops::sampler_langevin`],
//! [`crate::ops::sampler_rk45`], [`crate::ops::sampler_blend`] and
//! [`crate::ops::sampler_estimate`].
#![allow(unsafe_code)] // Tasks write disjoint images.

use super::isa::multiversion;
use super::pointwise::{Output, for_image_chunks};
use super::pool::{Parts, Pool};
use super::sampler_step::{CHUNK, Prediction};
use crate::ops::sampler_blend::{SamplerBlend, column as blend};
use crate::ops::sampler_estimate::{SamplerEstimate, SamplerResidual};
use crate::ops::sampler_langevin::{SamplerLangevin, SamplerNorms, rule};
use crate::ops::sampler_rk45::{
    self as rk45, FACTORS, NODES, SamplerError, SamplerRk45, curve, slot, state,
};
use crate::ops::sampler_step::{MOST_SLOTS, column};
use crate::plan::Mode;
use crate::random::{Purpose, fill_normal};

/// Partial sums of one image, whatever the vectors' width.
const LANES: usize = 16;

multiversion! {
    /// Adds v^2 to the lanes, which element belongs to which fixed by its place.
    fn add_squares(isa: Isa, v: &[f32], lanes: &mut [f64; LANES]) {
        let (body, tail) = v.as_chunks::<LANES>();
        for v in body {
            for (lane, &v) in lanes.iter_mut().zip(v) {
                *lane += f64::from(v * v);
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(tail) {
            *lane += f64::from(v * v);
        }
    }
}

fn norm(lanes: &[f64; LANES]) -> f64 {
    lanes.iter().sum::<f64>().sqrt()
}

/// Operands of [`sampler_norms`], with the shapes of [`SamplerNorms`].
#[allow(missing_docs)]
pub struct NormOperands<'a> {
    pub prediction: &'a [f32],
    pub table: &'a [f32],
    pub stage: usize,
    pub keys: &'a [u32],
    pub noise: Option<&'a [f32]>,
    pub rules: &'a [f32],
    pub slots: [&'a [f32]; MOST_SLOTS],
}

/// `norms [n, 2]`: |eps| and |z| of every image at a Langevin stage, else 0.
pub fn sampler_norms(pool: &Pool, op: &SamplerNorms, operands: NormOperands, norms: &mut [f32]) {
    let NormOperands { prediction, table, stage, keys, noise, rules, slots } = operands;
    if rules[stage] != rule::LANGEVIN {
        norms.fill(0.0);
        return;
    }
    let (isa, step) = (pool.isa(), &op.step);
    let len = step.len();
    let prediction = Prediction { op: step, values: prediction };
    let norms = Parts::new(norms);
    pool.run(step.n, &|image| {
        let row = &table[step.row(stage, image)..][..column::COLUMNS];
        let x = &slots[row[column::INPUT_SLOT] as usize][image * len..][..len];
        let keys = keys[image * 4..][..4].try_into().expect("four words");
        let mut buffer = [0f32; CHUNK];
        let (mut eps_lanes, mut z_lanes) = ([0f64; LANES], [0f64; LANES]);
        for (first, x) in (0..).step_by(CHUNK).zip(x.chunks(CHUNK)) {
            let v = &mut buffer[..x.len()];
            prediction.read(image, first, row[column::GUIDANCE], v);
            for (v, &x) in v.iter_mut().zip(x) {
                *v = row[column::EPS_STATE] * x + row[column::EPS_PREDICTION] * *v;
            }
            add_squares(isa, v, &mut eps_lanes);
            match noise {
                Some(noise) => v.copy_from_slice(&noise[image * len + first..][..x.len()]),
                None => {
                    let draw = row[column::DRAW] as u32;
                    fill_normal(keys, Purpose::SampleStep, draw, first as u64, v);
                }
            }
            add_squares(isa, v, &mut z_lanes);
        }
        // SAFETY: each task has its own image.
        let norms = unsafe { norms.part(image * 2, 2) };
        (norms[0], norms[1]) = (norm(&eps_lanes) as f32, norm(&z_lanes) as f32);
    });
}

/// `rows [2, n, COLUMNS]`: this stage's row of every image, and the next one's.
pub fn sampler_langevin(
    op: &SamplerLangevin,
    table: &[f32],
    stage: usize,
    rules: &[f32],
    norms: &[f32],
    rows: &mut [f32],
) {
    let next = (stage + 1).min(op.stages - 1);
    let (now, later) = rows.split_at_mut(op.n * column::COLUMNS);
    for (to, stage) in [(&mut *now, stage), (later, next)] {
        for row in to.chunks_exact_mut(column::COLUMNS) {
            row.copy_from_slice(&table[stage * column::COLUMNS..][..column::COLUMNS]);
        }
    }
    if rules[stage] != rule::LANGEVIN {
        return;
    }
    let mean = |of: usize| {
        let sum: f64 = norms.chunks_exact(2).map(|norms| f64::from(norms[of])).sum();
        (sum / op.n as f64) as f32
    };
    let of_batch = [mean(0), mean(1)];
    for (row, norms) in now.chunks_exact_mut(column::COLUMNS).zip(norms.chunks_exact(2)) {
        let [eps, z] = if op.batch_norm { of_batch } else { [norms[0], norms[1]] };
        // Where there is no score there is nothing to follow.
        let ratio = if eps > 0.0 { z / eps } else { 0.0 };
        for k in 0..2 {
            let c = &mut row[column::OUTPUT + k * column::COEFFICIENTS..];
            c[column::OF_EPS] *= ratio * ratio;
            c[column::OF_NOISE] *= ratio;
        }
    }
}

/// `error [n]` before the stage that accepts; else `error` stays.
pub fn sampler_error(
    pool: &Pool,
    op: &SamplerError,
    stage: usize,
    [y, next, e]: [&[f32]; 3],
    error: &mut [f32],
) {
    if stage != rk45::ACCEPT {
        return;
    }
    let (isa, len) = (pool.isa(), op.len);
    let error = Parts::new(error);
    pool.run(op.n, &|image| {
        let mut lanes = [0f64; LANES];
        let mut buffer = [0f32; CHUNK];
        for first in (0..len).step_by(CHUNK) {
            let part = image * len + first..image * len + (first + CHUNK).min(len);
            let v = &mut buffer[..part.len()];
            scaled_errors(
                isa,
                [op.atol, op.rtol],
                &y[part.clone()],
                &next[part.clone()],
                &e[part],
                v,
            );
            add_squares(isa, v, &mut lanes);
        }
        // SAFETY: each task has its own image.
        let error = unsafe { error.part(image, 1) };
        error[0] = (norm(&lanes) / (len as f64).sqrt()) as f32;
    });
}

multiversion! {
    fn scaled_errors(isa: Isa, tolerances: [f32; 2], y: &[f32], next: &[f32], e: &[f32], v: &mut [f32]) {
        let [atol, rtol] = tolerances;
        for (((v, &y), &next), &e) in v.iter_mut().zip(y).zip(next).zip(e) {
            *v = e / (atol + rtol * y.abs().max(next.abs()));
        }
    }
}

/// Operands of [`sampler_rk45`], with the shapes of [`SamplerRk45`].
#[allow(missing_docs)]
pub struct Rk45Operands<'a> {
    pub table: &'a [f32],
    pub stage: usize,
    pub curve: &'a [f32],
    pub error: &'a [f32],
    pub rows: &'a mut [f32],
    pub state: &'a mut [f32],
    pub running: &'a mut [f32],
}

/// One column of the curve at u, linear between its rows.
fn curve_at(op: &SamplerRk45, values: &[f32], u: f32, column: usize) -> f32 {
    let position = ((u - op.first) / op.spacing).clamp(0.0, (op.nodes - 1) as f32);
    let below = (position as usize).min(op.nodes - 2);
    let part = position - below as f32;
    let at = |node: usize| values[node * curve::COLUMNS + column];
    at(below) + part * (at(below + 1) - at(below))
}

/// Accepts or rejects an image's step and chooses the next.
fn decide(op: &SamplerRk45, error: f32, s: &mut [f32]) {
    let (least, most, safety) = FACTORS;
    let after_rejection = s[state::ACCEPTS] == 0.0 && s[state::REJECTED] > 0.0;
    let predicted = match error {
        0.0 => most,
        // Also where the error is not a number: `max` takes the other side.
        error => (safety * f64::from(error).powf(-0.2)).max(least).min(most),
    };
    let accepts = error <= 1.0;
    s[state::ACCEPTS] = f32::from(accepts);
    let factor = if accepts && !after_rejection { predicted } else { predicted.min(1.0) };
    if accepts {
        s[state::ACCEPTED] += 1.0;
        if s[state::LAST] != 0.0 {
            s[state::TIME] = op.end;
            s[state::STATUS] = state::ARRIVED;
            return;
        }
        s[state::TIME] += s[state::STEP];
    } else {
        s[state::REJECTED] += 1.0;
    }
    let mut step = (factor * f64::from(s[state::STEP])) as f32;
    step = step.clamp(-op.most, op.most);
    let left = op.end - s[state::TIME];
    // A remainder that could not be a step of its own is taken along.
    let least = 4.0 * f32::EPSILON * s[state::TIME].abs().max(1.0);
    let last = step.abs() >= left.abs() - least;
    if last {
        step = left;
    }
    s[state::LAST] = f32::from(last);
    s[state::STEP] = step;
    if !accepts && step.abs() < least {
        s[state::STATUS] = state::STUCK;
    }
}

/// Control, rows and the number of images on their way.
pub fn sampler_rk45(op: &SamplerRk45, operands: Rk45Operands) {
    let Rk45Operands { table, stage, curve: values, error, rows, state: states, running } =
        operands;
    let (now, later) = rows.split_at_mut(op.n * column::COLUMNS);
    let base = |stage: usize| &table[stage * column::COLUMNS..][..column::COLUMNS];
    let mut on_their_way = 0;
    let images = now
        .chunks_exact_mut(column::COLUMNS)
        .zip(later.chunks_exact_mut(column::COLUMNS))
        .zip(states.chunks_exact_mut(state::COLUMNS));
    for (image, ((now, later), s)) in images.enumerate() {
        now.copy_from_slice(base(stage));
        later.copy_from_slice(base((stage + 1).min(rk45::STAGES - 1)));
        let was_running = s[state::STATUS] == state::RUNNING;
        match stage {
            0 if was_running => s[state::EVALUATIONS] += 1.0,
            rk45::ACCEPT if was_running => {
                s[state::EVALUATIONS] += (rk45::ACCEPT - rk45::STEP) as f32;
                decide(op, error[image], s);
            }
            rk45::ACCEPT => s[state::ACCEPTS] = 0.0,
            _ => {}
        }
        let accepts = s[state::ACCEPTS] != 0.0;
        let is_written = match stage {
            rk45::KEEP => accepts,
            rk45::END => true,
            _ => was_running,
        };
        if !is_written {
            now[column::TARGET..column::TARGET + 2].fill(-1.0);
        }
        let (u, h) = (s[state::TIME], s[state::STEP]);
        if stage < rk45::ACCEPT {
            let u = u + NODES[stage] as f32 * h;
            now[column::X0_STATE] = curve_at(op, values, u, curve::X0_STATE);
            now[column::X0_PREDICTION] = curve_at(op, values, u, curve::X0_PREDICTION);
            let cosine = curve_at(op, values, u, curve::COSINE);
            now[column::EPS_STATE] = cosine * cosine;
            now[column::EPS_PREDICTION] = 0.0;
            for k in 0..2 {
                let c = &mut now[column::OUTPUT + k * column::COEFFICIENTS..];
                c[column::OF_X0] = -cosine * c[column::OF_EPS];
            }
        }
        if stage == rk45::ACCEPT && !accepts {
            for k in 0..2 {
                let c = &mut now[column::OUTPUT + k * column::COEFFICIENTS..];
                c.swap(slot::STATE, slot::ARGUMENT);
                c.swap(slot::SLOPE[0], slot::SLOPE[6]);
            }
        }
        if stage <= rk45::ACCEPT {
            let c = &mut now[column::OUTPUT + column::COEFFICIENTS..];
            c[slot::SLOPE[0]..MOST_SLOTS].iter_mut().for_each(|c| *c *= h);
            c[column::OF_X0] *= h;
            c[column::OF_EPS] *= h;
        }
        let following = match stage {
            0..rk45::ACCEPT => (stage + 1).min(NODES.len() - 1),
            _ => 1,
        };
        let u = u + NODES[following] as f32 * h;
        later[column::LABEL] = curve_at(op, values, u, curve::LABEL);
        later[column::INPUT_SCALE] = curve_at(op, values, u, curve::INPUT_SCALE);
        later[column::INPUT_SLOT] = slot::ARGUMENT as f32;
        on_their_way += usize::from(s[state::STATUS] == state::RUNNING);
    }
    running[0] = on_their_way as f32;
}

/// Operands of [`sampler_blend`], with the shapes of [`SamplerBlend`].
#[allow(missing_docs)]
pub struct BlendOperands<'a> {
    pub table: &'a [f32],
    pub stage: usize,
    pub keys: &'a [u32],
    pub known: &'a [f32],
    pub mask: &'a [f32],
}

/// Puts the known pixels into `x [n, len]`.
pub fn sampler_blend(pool: &Pool, op: &SamplerBlend, operands: BlendOperands, x: &mut [f32]) {
    let BlendOperands { table, stage, keys, known, mask } = operands;
    let row = &table[stage * blend::COLUMNS..][..blend::COLUMNS];
    if row[blend::ACTIVE] == 0.0 {
        return;
    }
    let (signal, std, draw) = (row[blend::SIGNAL], row[blend::STD], row[blend::DRAW] as u32);
    for_image_chunks(pool, op.n, op.len, CHUNK, x, |image, first, x| {
        let part = image * op.len + first..image * op.len + first + x.len();
        let mut z = [0f32; CHUNK];
        let z = &mut z[..x.len()];
        if std != 0.0 {
            let keys = keys[image * 4..][..4].try_into().expect("four words");
            fill_normal(keys, Purpose::Known, draw, first as u64, z);
        }
        for (((x, &z), &known), &m) in
            x.iter_mut().zip(&*z).zip(&known[part.clone()]).zip(&mask[part])
        {
            *x = m * (signal * known + std * z) + (1.0 - m) * *x;
        }
    });
}

/// `x_0 [n, ...]`, not limited, from the state `x`.
pub fn sampler_estimate(
    pool: &Pool,
    op: &SamplerEstimate,
    prediction: &[f32],
    row: &[f32],
    x: &[f32],
    (x0, mode): Output,
) {
    let (step, len) = (&op.step, op.step.len());
    let prediction = Prediction { op: step, values: prediction };
    for_image_chunks(pool, step.n, len, CHUNK, x0, |image, first, x0| {
        let mut p = [0f32; CHUNK];
        let p = &mut p[..x0.len()];
        prediction.read(image, first, row[column::GUIDANCE], p);
        let x = &x[image * len + first..][..x0.len()];
        for ((x0, &x), &p) in x0.iter_mut().zip(x).zip(&*p) {
            let v = row[column::X0_STATE] * x + row[column::X0_PREDICTION] * p;
            *x0 = if mode == Mode::Add { *x0 + v } else { v };
        }
    });
}

/// The gradients by prediction and state.
pub fn sampler_estimate_backward(
    pool: &Pool,
    op: &SamplerEstimate,
    d_x0: &[f32],
    row: &[f32],
    d_prediction: Option<Output>,
    d_state: Option<Output>,
) {
    let (step, len) = (&op.step, op.step.len());
    let store = |to: &mut f32, v: f32, mode| {
        *to = if mode == Mode::Add { *to + v } else { v };
    };
    if let Some((d_prediction, mode)) = d_prediction {
        let (channels, wide) = (step.channels, step.prediction_channels);
        let own = step.spatial * wide;
        for_image_chunks(pool, step.copies() * step.n, own, CHUNK, d_prediction, |i, first, d| {
            let share = match (step.guided, i < step.n) {
                (false, _) => 1.0,
                (true, true) => row[column::GUIDANCE],
                (true, false) => 1.0 - row[column::GUIDANCE],
            };
            let scale = share * row[column::X0_PREDICTION];
            let from = &d_x0[i % step.n * len..][..len];
            for (e, d) in (first..).zip(d) {
                let (at, channel) = (e / wide, e % wide);
                let v =
                    if channel < channels { scale * from[at * channels + channel] } else { 0.0 };
                store(d, v, mode);
            }
        });
    }
    if let Some((d_state, mode)) = d_state {
        for_image_chunks(pool, step.n, len, CHUNK, d_state, |image, first, d| {
            let from = &d_x0[image * len + first..][..d.len()];
            for (d, &v) in d.iter_mut().zip(from) {
                store(d, row[column::X0_STATE] * v, mode);
            }
        });
    }
}

/// `direction = m (z - y) / |m (z - y)|` and the norms `[n]`.
pub fn sampler_residual(
    pool: &Pool,
    op: &SamplerResidual,
    [z, y]: [&[f32]; 2],
    mask: Option<&[f32]>,
    direction: &mut [f32],
    norms: &mut [f32],
) {
    let (isa, len) = (pool.isa(), op.len);
    let (direction, norms) = (Parts::new(direction), Parts::new(norms));
    pool.run(op.n, &|image| {
        // SAFETY: each task has its own image.
        let (r, norm_of) = unsafe { (direction.part(image * len, len), norms.part(image, 1)) };
        let part = image * len..(image + 1) * len;
        for ((r, &z), &y) in r.iter_mut().zip(&z[part.clone()]).zip(&y[part.clone()]) {
            *r = z - y;
        }
        if let Some(mask) = mask {
            r.iter_mut().zip(&mask[part]).for_each(|(r, &m)| *r *= m);
        }
        let mut lanes = [0f64; LANES];
        add_squares(isa, r, &mut lanes);
        let norm = norm(&lanes) as f32;
        norm_of[0] = norm;
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        r.iter_mut().for_each(|r| *r *= scale);
    });
}
