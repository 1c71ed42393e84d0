//! The loss and its gradient: both draw eps again instead of reading it.
#![allow(unsafe_code)] // Each task writes its image's loss.

use super::isa::{Isa, multiversion};
use super::noising::{CHUNK, noise_stream, row};
use super::pointwise::{Output, for_image_chunks, store};
use super::pool::{Parts, Pool};
use crate::ops::loss::Loss;
use crate::ops::noising::coefficient;
use crate::plan::Mode;
use crate::random::{Stream, normal};

/// What prediction is compared with.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// `[n, len]`
    pub x0: &'a [f32],
    /// `[n, COLUMNS]`
    pub coefficients: &'a [f32],
    /// `[n, 4]`; without them there is no eps.
    pub keys: Option<&'a [u32]>,
}

/// `loss[n] = w[n] / len sum (prediction - target)^2`, the squares summed in f64.
pub fn loss(pool: &Pool, op: &Loss, prediction: &[f32], target: Target, loss: Output) {
    let (isa, (loss, mode)) = (Isa::detect(), loss);
    let parts = Parts::new(loss);
    pool.run(op.n, &|image| {
        // SAFETY: each task has its own image.
        let loss = &mut unsafe { parts.part(image, 1) }[0];
        let c = row(target.coefficients, image);
        let range = image * op.len..(image + 1) * op.len;
        let sum = sum_of_squares(
            isa,
            target.keys.map(|keys| noise_stream(keys, image)),
            [c[coefficient::TARGET_X0], c[coefficient::TARGET_NOISE]],
            &prediction[range.clone()],
            &target.x0[range],
        );
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
    let (isa, (d_prediction, mode)) = (Isa::detect(), d_prediction);
    for_image_chunks(pool, op.n, op.len, CHUNK, d_prediction, |image, from, d_prediction| {
        let c = row(target.coefficients, image);
        let weight = 2.0 * f64::from(op.scale) * f64::from(c[coefficient::WEIGHT]);
        let start = image * op.len + from;
        let range = start..start + d_prediction.len();
        backward_chunk(
            isa,
            target.keys.map(|keys| noise_stream(keys, image)),
            from,
            [c[coefficient::TARGET_X0], c[coefficient::TARGET_NOISE]],
            (weight / op.len as f64) as f32,
            &prediction[range.clone()],
            &target.x0[range],
            d_prediction,
            mode,
        );
    });
}

/// Calls `f(at, part of eps)` over the elements `from .. from + len` of an image;
/// without a stream eps is 0.
#[inline(always)]
fn for_noise(stream: Option<Stream>, from: usize, len: usize, mut f: impl FnMut(usize, &[f32])) {
    match stream {
        Some(stream) => normal::for_chunks(stream, from, len, f),
        None => {
            for at in (0..len).step_by(normal::CHUNK) {
                f(at, &[0.0; normal::CHUNK][..normal::CHUNK.min(len - at)]);
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
    fn sum_of_squares(
        isa: Isa, stream: Option<Stream>, factors: [f32; 2], prediction: &[f32], x0: &[f32],
    ) -> f64 {
        let mut lanes = [0f64; LANES];
        for_noise(stream, 0, prediction.len(), |at, eps| {
            let (prediction, x0) = (&prediction[at..at + eps.len()], &x0[at..at + eps.len()]);
            let mut squares = [0f32; normal::CHUNK];
            for (((s, &p), &x0), &eps) in squares.iter_mut().zip(prediction).zip(x0).zip(eps) {
                let d = difference(p, factors, x0, eps);
                *s = d * d;
            }
            for squares in squares[..eps.len().next_multiple_of(LANES)].chunks_exact(LANES) {
                for (lane, &s) in lanes.iter_mut().zip(squares) {
                    *lane += f64::from(s);
                }
            }
        });
        lanes.iter().sum()
    }
}

#[inline(always)]
fn backward_as<const ADD: bool>(
    stream: Option<Stream>,
    from: usize,
    factors: [f32; 2],
    scale: f32,
    prediction: &[f32],
    x0: &[f32],
    d_prediction: &mut [f32],
) {
    for_noise(stream, from, prediction.len(), |at, eps| {
        let part = at..at + eps.len();
        let (prediction, x0) = (&prediction[part.clone()], &x0[part.clone()]);
        for (((d, &p), &x0), &eps) in d_prediction[part].iter_mut().zip(prediction).zip(x0).zip(eps)
        {
            store::<ADD>(d, scale * difference(p, factors, x0, eps));
        }
    });
}

multiversion! {
    fn backward_chunk(
        isa: Isa, stream: Option<Stream>, from: usize, factors: [f32; 2], scale: f32,
        prediction: &[f32], x0: &[f32], d_prediction: &mut [f32], mode: Mode,
    ) {
        match mode {
            Mode::Write => {
                backward_as::<false>(stream, from, factors, scale, prediction, x0, d_prediction);
            }
            Mode::Add => {
                backward_as::<true>(stream, from, factors, scale, prediction, x0, d_prediction);
            }
        }
    }
}
