//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"), one block at a time and many blocks at once.
#![allow(unsafe_code)] // Compiled once for each instruction set.

use super::Purpose;
use crate::backend::cpu::isa::{Isa, multiversion};

const MULTIPLIER: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;
const LOW: u64 = 0xFFFF_FFFF;

/// One block: four words of a counter under a key.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    block(counter.map(u64::from), key).map(|c| c as u32)
}

/// The block with its words in the low halves of 64-bit lanes. The high halves
/// carry rubbish on purpose: a 32 x 32 -> 64 bit vector product ignores them, so
/// that a round of a whole vector is two products, two shifts and two xors.
#[inline(always)]
pub(super) fn block(counter: [u64; 4], key: [u32; 2]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = (a & LOW) * MULTIPLIER[0];
        let p1 = (c & LOW) * MULTIPLIER[1];
        (a, b, c, d) = ((p1 >> 32) ^ b ^ k0 as u64, p1, (p0 >> 32) ^ d ^ k1 as u64, p0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// Everything of a counter and its key but the element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    key: [u32; 2],
    /// draw, image low, purpose and image high.
    rest: [u32; 3],
}

impl Stream {
    /// `keys` come from [`super::image_keys`].
    pub fn new(keys: [u32; 4], purpose: Purpose, draw: u32) -> Self {
        assert!(keys[3] < 1 << 24, "image keys hold an index of 56 bits");
        let [seed_low, seed_high, image_low, image_high] = keys;
        Stream {
            key: [seed_low, seed_high],
            rest: [draw, image_low, (purpose as u32) << 24 | image_high],
        }
    }

    /// The words of block `index`, in the low halves.
    #[inline(always)]
    pub(super) fn block(&self, index: u32) -> [u64; 4] {
        let [draw, image, purpose] = self.rest.map(u64::from);
        block([index as u64, draw, image, purpose], self.key)
    }
}

/// Number of the block that holds element `first`, checking that `len` elements
/// from there have counters.
pub(super) fn first_block(first: u64, len: usize) -> u32 {
    let end = first.checked_add(len as u64);
    assert!(end.is_some_and(|end| end <= 1 << 34), "an image has at most 2^34 random numbers");
    (first / 4) as u32
}

/// Blocks `index ..`, to be compiled with the caller's instructions.
#[inline(always)]
pub(crate) fn blocks(stream: Stream, index: u32, out: &mut [[u32; 4]]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = stream.block(index.wrapping_add(i as u32)).map(|w| w as u32);
    }
}

multiversion! {
    fn fill_blocks(isa: Isa, stream: Stream, index: u32, out: &mut [[u32; 4]]) {
        blocks(stream, index, out);
    }
}

/// Words of elements `first ..`.
pub(super) fn fill_words(isa: Isa, stream: Stream, first: u64, out: &mut [u32]) {
    let mut index = first_block(first, out.len());
    let skip = (first % 4) as usize;
    let head = if skip == 0 { 0 } else { (4 - skip).min(out.len()) };
    let (head, body) = out.split_at_mut(head);
    if !head.is_empty() {
        let w = stream.block(index).map(|w| w as u32);
        head.copy_from_slice(&w[skip..skip + head.len()]);
        index = index.wrapping_add(1);
    }
    let (blocks, tail) = body.as_chunks_mut::<4>();
    fill_blocks(isa, stream, index, blocks);
    if !tail.is_empty() {
        let w = stream.block(index.wrapping_add(blocks.len() as u32)).map(|w| w as u32);
        tail.copy_from_slice(&w[..tail.len()]);
    }
}
