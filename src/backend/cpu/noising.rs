//! Noising: normals are made a chunk at a time in the nearest cache and used
//! there.
#![allow(unsafe_code)] // Compiled once for each instruction set.

use super::isa::multiversion;
use super::pointwise::{Output, for_image_chunks, store};
use super::pool::Pool;
use crate::ops::noising::{Noising, coefficient};
use crate::plan::Mode;
use crate::random::{Purpose, Stream, normal};

/// Elements of one task: a whole number of [`normal::CHUNK`].
pub(super) const CHUNK: usize = 8 * normal::CHUNK;

/// The stream of a training example's eps.
pub(super) fn noise_stream(keys: &[u32], image: usize) -> Stream {
    let keys = keys[4 * image..4 * image + 4].try_into().expect("four words a key");
    Stream::new(keys, Purpose::TrainNoise, 0)
}

/// Row `image` of the coefficients.
pub(super) fn row(coefficients: &[f32], image: usize) -> &[f32; coefficient::COLUMNS] {
    let from = image * coefficient::COLUMNS;
    coefficients[from..from + coefficient::COLUMNS].try_into().expect("a row")
}

/// `x_t = signal x_0 + std eps`.
pub fn noising(
    pool: &Pool,
    op: &Noising,
    x0: &[f32],
    coefficients: &[f32],
    keys: &[u32],
    x_t: Output,
) {
    let (isa, (x_t, mode)) = (pool.isa(), x_t);
    for_image_chunks(pool, op.n, op.len, CHUNK, x_t, |image, from, x_t| {
        let c = row(coefficients, image);
        let factors = [c[coefficient::SIGNAL], c[coefficient::STD]];
        let x0 = &x0[image * op.len + from..][..x_t.len()];
        normal::for_chunks(isa, noise_stream(keys, image), from, x_t.len(), |at, eps| {
            let part = at..at + eps.len();
            combine(isa, factors, &x0[part.clone()], eps, &mut x_t[part], mode);
        });
    });
}

#[inline(always)]
fn combine_as<const ADD: bool>([signal, std]: [f32; 2], x0: &[f32], eps: &[f32], x_t: &mut [f32]) {
    for ((x_t, &x0), &eps) in x_t.iter_mut().zip(x0).zip(eps) {
        store::<ADD>(x_t, std.mul_add(eps, signal * x0));
    }
}

multiversion! {
    fn combine(
        isa: Isa, factors: [f32; 2], x0: &[f32], eps: &[f32], x_t: &mut [f32], mode: Mode,
    ) {
        match mode {
            Mode::Write => combine_as::<false>(factors, x0, eps, x_t),
            Mode::Add => combine_as::<true>(factors, x0, eps, x_t),
        }
    }
}
