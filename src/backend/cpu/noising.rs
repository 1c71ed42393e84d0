//! Noising: normals are made a chunk at a time in the nearest cache and used
//! there.
#![allow(unsafe_code)] // Compiled once for each instruction set; tasks write their images.

use super::images::Images;
use super::isa::multiversion;
use super::pointwise::{Output, for_image_chunks, store};
use super::pool::{Parts, Pool};
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

/// `x_t = signal x_0 + std eps`, and x_0 itself where it is asked for.
pub fn noising(
    pool: &Pool,
    op: &Noising,
    images: &Images,
    coefficients: &[f32],
    keys: &[u32],
    x_t: Output,
    kept: Option<&mut [f32]>,
) {
    let (isa, (x_t, mode)) = (pool.isa(), x_t);
    let kept = kept.map(Parts::new);
    for_image_chunks(pool, op.n, op.len, CHUNK, x_t, |image, from, x_t| {
        let c = row(coefficients, image);
        let factors = [c[coefficient::SIGNAL], c[coefficient::STD]];
        normal::for_chunks(isa, noise_stream(keys, image), from, x_t.len(), |at, eps| {
            let mut buffer = [0f32; normal::CHUNK];
            let x0 = images.part(op.len, image, from + at, &mut buffer[..eps.len()]);
            if let Some(kept) = &kept {
                // SAFETY: each task has its own image and chunk.
                let to = unsafe { kept.part(image * op.len + from + at, eps.len()) };
                to.copy_from_slice(x0);
            }
            combine(isa, factors, x0, eps, &mut x_t[at..at + eps.len()], mode);
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
