//! Terms of the variational bound and their gradient, in f64: one image is one
//! task, its elements in order.
#![allow(unsafe_code)] // Each task writes its own image's part.

use super::noising::noise_stream;
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use crate::diffusion::vlb::Decoder;
use crate::ops::variational::{Variational, column};
use crate::plan::Mode;
use crate::random::normal;

/// What both passes read.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// `[n, prediction_len]`
    pub prediction: &'a [f32],
    /// `[n, len]`
    pub x0: &'a [f32],
    /// `[n, COLUMNS]`
    pub coefficients: &'a [f32],
    /// `[n, 4]`
    pub keys: &'a [u32],
}

/// One element's loss and its slopes by F and V.
struct Element {
    loss: f64,
    d_mean: f64,
    d_variance: f64,
}

/// Calls `f(element, its loss and slopes)` over an image, in order.
fn for_elements(
    pool: &Pool,
    op: &Variational,
    operands: Operands,
    image: usize,
    mut f: impl FnMut(usize, Element),
) {
    let row = &operands.coefficients[image * column::COLUMNS..][..column::COLUMNS];
    let c = |i: usize| f64::from(row[i]);
    let prediction = &operands.prediction[image * op.prediction_len()..][..op.prediction_len()];
    let x0 = &operands.x0[image * op.len..][..op.len];
    let decoder = Decoder::of_half_bin(f64::from(op.half_bin));
    let (weight, simple_weight) = (c(column::WEIGHT), c(column::SIMPLE_WEIGHT));
    let (small, large) = (c(column::LN_SMALL), c(column::LN_LARGE));
    normal::for_chunks(pool.isa(), noise_stream(operands.keys, image), 0, op.len, |at, eps| {
        for (e, &eps) in (at..).zip(eps) {
            let (x0, eps) = (f64::from(x0[e]), f64::from(eps));
            let mean = f64::from(prediction[op.position(e, false)]);
            let v = match op.learned {
                true => f64::from(prediction[op.position(e, true)]),
                false => 0.0,
            };
            let gap = c(column::GAP_X0) * x0
                + c(column::GAP_NOISE) * eps
                + c(column::GAP_PREDICTION) * mean;
            let ln_variance = 0.5 * ((1.0 + v) * large + (1.0 - v) * small);
            let (term, by_gap, by_variance) = if c(column::DECODED) > 0.0 {
                let scored = decoder.score(x0, x0 - gap, ln_variance);
                (scored.nats, -scored.d_mean, scored.d_ln_variance)
            } else {
                let precision = (-ln_variance).exp();
                let shape = c(column::LN_POSTERIOR) - ln_variance;
                let c_0 = c(column::C_0);
                let square = c_0 * c_0 * gap * gap * precision;
                (
                    0.5 * (shape.exp_m1() - shape + square),
                    c_0 * c_0 * gap * precision,
                    -0.5 * (shape.exp_m1() + square),
                )
            };
            let error = mean - c(column::TARGET_X0) * x0 - c(column::TARGET_NOISE) * eps;
            let through_mean =
                if op.hold_mean { 0.0 } else { weight * by_gap * c(column::GAP_PREDICTION) };
            f(
                e,
                Element {
                    loss: simple_weight * error * error + weight * term,
                    d_mean: 2.0 * simple_weight * error + through_mean,
                    d_variance: weight * by_variance * 0.5 * (large - small),
                },
            );
        }
    });
}

/// `loss[n]`, the mean over an image's elements.
pub fn variational(pool: &Pool, op: &Variational, operands: Operands, loss: Output) {
    let (loss, mode) = loss;
    let parts = Parts::new(loss);
    pool.run(op.n, &|image| {
        // SAFETY: each task has its own image.
        let loss = &mut unsafe { parts.part(image, 1) }[0];
        let mut sum = 0.0;
        for_elements(pool, op, operands, image, |_, element| sum += element.loss);
        let mean = (sum / op.len as f64) as f32;
        match mode {
            Mode::Write => *loss = mean,
            Mode::Add => *loss += mean,
        }
    });
}

/// `d_prediction = scale / len` times the slopes.
pub fn variational_backward(
    pool: &Pool,
    op: &Variational,
    operands: Operands,
    d_prediction: Output,
) {
    let (d_prediction, mode) = d_prediction;
    let parts = Parts::new(d_prediction);
    let len = op.prediction_len();
    let scale = f64::from(op.scale) / op.len as f64;
    pool.run(op.n, &|image| {
        // SAFETY: each task has its own image.
        let d = unsafe { parts.part(image * len, len) };
        let mut put = |at: usize, slope: f64| match mode {
            Mode::Write => d[at] = (scale * slope) as f32,
            Mode::Add => d[at] += (scale * slope) as f32,
        };
        for_elements(pool, op, operands, image, |e, element| {
            put(op.position(e, false), element.d_mean);
            if op.learned {
                put(op.position(e, true), element.d_variance);
            }
        });
    });
}
