//! Dropout, both ways: the same function of (x, keys) and of (d_y, keys).
#![allow(unsafe_code)] // Compiled once for each instruction set.

use super::isa::multiversion;
use super::pointwise::{Output, for_image_chunks, store};
use super::pool::Pool;
use crate::ops::dropout::Dropout;
use crate::plan::Mode;
use crate::random::{Purpose, Stream, normal::CHUNK as WORDS, philox};

/// Elements of one task.
const CHUNK: usize = 8 * WORDS;

/// `y = x / (1 - p)` where kept, else 0.
pub fn dropout(pool: &Pool, op: &Dropout, x: &[f32], keys: &[u32], y: Output) {
    let (isa, (y, mode)) = (pool.isa(), y);
    let (threshold, scale) = (op.threshold(), op.scale());
    for_image_chunks(pool, op.n, op.len, CHUNK, y, |image, from, y| {
        let keys = keys[4 * image..4 * image + 4].try_into().expect("four words a key");
        let stream = Stream::new(keys, Purpose::Dropout, op.layer);
        let x = &x[image * op.len + from..][..y.len()];
        let mut words = [0; WORDS];
        for (i, (x, y)) in x.chunks(WORDS).zip(y.chunks_mut(WORDS)).enumerate() {
            let words = &mut words[..x.len()];
            philox::fill(isa, stream, ((from + i * WORDS) / 4) as u32, words);
            mask(isa, threshold, scale, words, x, y, mode);
        }
    });
}

#[inline(always)]
fn mask_as<const ADD: bool>(threshold: u32, scale: f32, words: &[u32], x: &[f32], y: &mut [f32]) {
    for ((y, &x), &word) in y.iter_mut().zip(x).zip(words) {
        let factor = if word >= threshold { scale } else { 0.0 };
        store::<ADD>(y, x * factor);
    }
}

multiversion! {
    fn mask(
        isa: Isa, threshold: u32, scale: f32, words: &[u32], x: &[f32], y: &mut [f32], mode: Mode,
    ) {
        match mode {
            Mode::Write => mask_as::<false>(threshold, scale, words, x, y),
            Mode::Add => mask_as::<true>(threshold, scale, words, x, y),
        }
    }
}
