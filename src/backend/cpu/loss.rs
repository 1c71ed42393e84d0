//! The loss and its gradient: both draw eps again instead of reading it.
#![allow(unsafe_code)] // Each task writes its image's loss.

use super::images::Images;
use super::isa::{Isa, multiversion};
use super::noising::{CHUNK, noise_stream, row};
use super::pointwise::{Output, for_image_chunks, store};
use super::pool::{Parts, Pool};
use crate::ops::loss::Loss;
use crate::ops::noising::coefficient;
use crate::plan::Mode;
use crate::random::normal;

/// What prediction is compared with.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// x_0, or a given target, `[n, len]`.
    pub x0: &'a Images<'a>,
    /// `[n, COLUMNS]`
    pub coefficients: &'a [f32],
    /// `[n, 4]`; without them there is no eps.
    pub keys: Option<&'a [u32]>,
}

/// `loss[n] = w[n] / len sum (prediction - target)^2`, the squares summed in f64.
pub fn loss(pool: &Pool, op: &Loss, prediction: &[f32], target: Target, loss: Output) {
    let (isa, (loss, mode)) = (pool.isa(), loss);
    let parts = Parts::new(loss);
    pool.run(op.n, &|image| {
        // SAFETY: each task has its own image.
        let loss = &mut unsafe { parts.part(image, 1) }[0];
        let c = row(target.coefficients, image);
        let factors = [c[coefficient::TARGET_X0], c[coefficient::TARGET_NOISE]];
        let prediction = &prediction[image * op.len..(image + 1) * op.len];
        let mut lanes = [0f64; LANES];
        target.for_noise(isa, image, 0, op.len, |at, eps| {
            let mut buffer = [0f32; normal::CHUNK];
            let x0 = target.clean(op, factors[0], image, at, &mut buffer[..eps.len()]);
            add_squares(isa, factors, &prediction[at..at + eps.len()], x0, eps, &mut lanes);
        });
        let sum: f64 = lanes.iter().sum();
        let mean = (f64::from(c[coefficient::WEIGHT]) * sum / op.len as f64) as f32;
        match mode {
            Mode::Write => *loss = mean,
            Mode::Add => *loss += mean,
        }
    });
}

/// `d_prediction = 2 scale w / len (prediction - target)`.
pub fn loss_backward(
    pool: &Pool,
    op: &Loss,
    prediction: &[f32],
    target: Target,
    d_prediction: Output,
) {
    let (isa, (d_prediction, mode)) = (pool.isa(), d_prediction);
    for_image_chunks(pool, op.n, op.len, CHUNK, d_prediction, |image, from, d_prediction| {
        let c = row(target.coefficients, image);
        let factors = [c[coefficient::TARGET_X0], c[coefficient::TARGET_NOISE]];
        let weight = 2.0 * f64::from(op.scale) * f64::from(c[coefficient::WEIGHT]);
        let scale = (weight / op.len as f64) as f32;
        let start = image * op.len + from;
        let prediction = &prediction[start..start + d_prediction.len()];
        target.for_noise(isa, image, from, d_prediction.len(), |at, eps| {
            let part = at..at + eps.len();
            let mut buffer = [0f32; normal::CHUNK];
            let x0 = target.clean(op, factors[0], image, from + at, &mut buffer[..eps.len()]);
            let prediction = &prediction[part.clone()];
            slopes(isa, factors, scale, prediction, x0, eps, &mut d_prediction[part], mode);
        });
    });
}

impl Target<'_> {
    /// x_0 of an image from an element on; zeros where its factor is 0.
    fn clean<'b>(
        &'b self,
        op: &Loss,
        factor: f32,
        image: usize,
        from: usize,
        buffer: &'b mut [f32],
    ) -> &'b [f32] {
        match factor == 0.0 {
            true => buffer,
            false => self.x0.part(op.len, image, from, buffer),
        }
    }

    /// Calls `f(at, part of eps)` over the elements `from .. from + len` of an
    /// image; without keys eps is 0.
    fn for_noise(
        &self,
        isa: Isa,
        image: usize,
        from: usize,
        len: usize,
        mut f: impl FnMut(usize, &[f32]),
    ) {
        match self.keys {
            Some(keys) => normal::for_chunks(isa, noise_stream(keys, image), from, len, f),
            None => {
                for at in (0..len).step_by(normal::CHUNK) {
                    f(at, &[0.0; normal::CHUNK][..normal::CHUNK.min(len - at)]);
                }
            }
        }
    }
}

/// `prediction - (a x_0 + b eps)`.
#[inline(always)]
fn difference(prediction: f32, [a, b]: [f32; 2], x0: f32, eps: f32) -> f32 {
    prediction - a.mul_add(x0, b * eps)
}

/// Partial sums of one image, whatever the vectors' width.
const LANES: usize = 16;

multiversion! {
    fn add_squares(
        isa: Isa, factors: [f32; 2], prediction: &[f32], x0: &[f32], eps: &[f32],
        lanes: &mut [f64; LANES],
    ) {
        let mut squares = [0f32; normal::CHUNK];
        for (((s, &p), &x0), &eps) in squares.iter_mut().zip(prediction).zip(x0).zip(eps) {
            let d = difference(p, factors, x0, eps);
            *s = d * d;
        }
        // Past the elements the squares are 0.
        for squares in squares[..eps.len().next_multiple_of(LANES)].chunks_exact(LANES) {
            for (lane, &s) in lanes.iter_mut().zip(squares) {
                *lane += f64::from(s);
            }
        }
    }
}

#[inline(always)]
fn slopes_as<const ADD: bool>(
    factors: [f32; 2],
    scale: f32,
    prediction: &[f32],
    x0: &[f32],
    eps: &[f32],
    d_prediction: &mut [f32],
) {
    for (((d, &p), &x0), &eps) in d_prediction.iter_mut().zip(prediction).zip(x0).zip(eps) {
        store::<ADD>(d, scale * difference(p, factors, x0, eps));
    }
}

multiversion! {
    fn slopes(
        isa: Isa, factors: [f32; 2], scale: f32, prediction: &[f32], x0: &[f32], eps: &[f32],
        d_prediction: &mut [f32], mode: Mode,
    ) {
        match mode {
            Mode::Write => slopes_as::<false>(factors, scale, prediction, x0, eps, d_prediction),
            Mode::Add => slopes_as::<true>(factors, scale, prediction, x0, eps, d_prediction),
        }
    }
}
