//! Dropout, both ways: the same function of (x, keys) and of (d_y, keys).
#![allow(unsafe_code)] // Compiled once for each instruction set.

use super::isa::{Isa, multiversion};
use super::pointwise::{Output, for_image_chunks, store};
use super::pool::Pool;
use crate::ops::dropout::Dropout;
use crate::plan::Mode;
use crate::random::{Purpose, Stream, normal::CHUNK as WORDS, philox};

/// Elements of one task.
const CHUNK: usize = 16 * WORDS;

/// `y = x / (1 - p)` where kept, else 0.
pub fn dropout(pool: &Pool, op: &Dropout, x: &[f32], keys: &[u32], y: Output) {
    let (isa, (y, mode)) = (Isa::detect(), y);
    for_image_chunks(pool, op.n, op.len, CHUNK, y, |image, from, y| {
        let key = keys[4 * image..4 * image + 4].try_into().expect("four words a key");
        let stream = Stream::new(key, Purpose::Dropout, op.layer);
        let start = image * op.len + from;
        let x = &x[start..start + y.len()];
        dropout_chunk(isa, stream, from, op.threshold(), op.scale(), x, y, mode);
    });
}

#[inline(always)]
fn dropout_as<const ADD: bool>(
    stream: Stream,
    from: usize,
    threshold: u32,
    scale: f32,
    x: &[f32],
    y: &mut [f32],
) {
    let mut words = [[0u32; 4]; WORDS / 4];
    for (i, (x, y)) in x.chunks(WORDS).zip(y.chunks_mut(WORDS)).enumerate() {
        let index = (from + i * WORDS) / 4;
        let words = &mut words[..x.len().div_ceil(4)];
        philox::blocks(stream, index as u32, words);
        for ((y, &x), &word) in y.iter_mut().zip(x).zip(words.as_flattened()) {
            let factor = if word >= threshold { scale } else { 0.0 };
            store::<ADD>(y, x * factor);
        }
    }
}

multiversion! {
    fn dropout_chunk(
        isa: Isa, stream: Stream, from: usize, threshold: u32, scale: f32, x: &[f32],
        y: &mut [f32], mode: Mode,
    ) {
        match mode {
            Mode::Write => dropout_as::<false>(stream, from, threshold, scale, x, y),
            Mode::Add => dropout_as::<true>(stream, from, threshold, scale, x, y),
        }
    }
}
