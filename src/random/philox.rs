//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"), one block at a time and many blocks at once.
#![allow(unsafe_code)] // Compiled once for each instruction set.

use super::Purpose;
use super::lanes::Blocks;
#[cfg(target_arch = "x86_64")]
use super::lanes::x86::{Avx2, Avx512};
use crate::backend::cpu::isa::Isa;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block: four words of a counter under a key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(a) * u64::from(MULTIPLIER[0]);
        let p1 = u64::from(c) * u64::from(MULTIPLIER[1]);
        (a, c) = ((p1 >> 32) as u32 ^ b ^ k0, (p0 >> 32) as u32 ^ d ^ k1);
        (b, d) = (p1 as u32, p0 as u32);
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

    /// The words of block `index`.
    pub(super) fn block(&self, index: u32) -> [u32; 4] {
        let [draw, image, purpose] = self.rest;
        philox4x32([index, draw, image, purpose], self.key)
    }

    /// The words of as many blocks as the vectors hold: words 0 and 2, words 1
    /// and 3, as [`Blocks::pack`] puts them. Each word is in the low half of a
    /// 64-bit lane whose high half is rubbish that products ignore, so that a
    /// round is two products, two shifts and two threefold xors.
    #[inline(always)]
    pub(super) fn blocks<V: Blocks>(&self, index: u32) -> (V::U, V::U) {
        let [draw, image, purpose] = self.rest;
        let (mut a, mut b) = (V::block_numbers(index), V::word64(draw));
        let (mut c, mut d) = (V::word64(image), V::word64(purpose));
        let [mut k0, mut k1] = self.key;
        for _ in 0..ROUNDS {
            let p0 = V::product(a, V::word64(MULTIPLIER[0]));
            let p1 = V::product(c, V::word64(MULTIPLIER[1]));
            a = V::xor(V::xor(V::high(p1), b), V::word64(k0));
            c = V::xor(V::xor(V::high(p0), d), V::word64(k1));
            (b, d) = (p1, p0);
            k0 = k0.wrapping_add(WEYL[0]);
            k1 = k1.wrapping_add(WEYL[1]);
        }
        (V::pack(a, c), V::pack(b, d))
    }
}

/// What is made of words. A trait and not a closure, which would not be compiled
/// with its caller's instructions.
pub(super) trait Transform {
    /// Of words 0 and 2, and words 1 and 3, of some blocks.
    fn apply<V: Blocks>(even: V::U, odd: V::U) -> (V::U, V::U);
}

/// The words as they are.
struct Words;

impl Transform for Words {
    #[inline(always)]
    fn apply<V: Blocks>(even: V::U, odd: V::U) -> (V::U, V::U) {
        (even, odd)
    }
}

/// Fills `out` from block `index` on; the last vectors go through a buffer.
#[inline(always)]
pub(super) fn fill_blocks<V: Blocks, T: Transform>(stream: Stream, index: u32, out: &mut [u32]) {
    let len = 2 * V::LEN;
    for (i, out) in out.chunks_mut(len).enumerate() {
        let (even, odd) = stream.blocks::<V>(index.wrapping_add((i * len / 4) as u32));
        let (even, odd) = T::apply::<V>(even, odd);
        if out.len() == len {
            V::store(even, odd, out);
        } else {
            let mut buffer = [0; 32];
            V::store(even, odd, &mut buffer[..len]);
            out.copy_from_slice(&buffer[..out.len()]);
        }
    }
}

/// Number of the block that holds element `first`, checking that `len` elements
/// from there have counters.
pub(super) fn first_block(first: u64, len: usize) -> u32 {
    let end = first.checked_add(len as u64);
    assert!(end.is_some_and(|end| end <= 1 << 34), "an image has at most 2^34 random numbers");
    (first / 4) as u32
}

/// Calls `fill(block, out)` for `out`, the elements `first ..`, with a block for
/// the start that is not on a block's edge.
pub(super) fn from_edge<T: Copy + Default>(
    first: u64,
    out: &mut [T],
    fill: impl Fn(u32, &mut [T]),
) {
    let index = first_block(first, out.len());
    let skip = (first % 4) as usize;
    if skip == 0 {
        return fill(index, out);
    }
    let (head, body) = out.split_at_mut((4 - skip).min(out.len()));
    let mut block = [T::default(); 4];
    fill(index, &mut block);
    head.copy_from_slice(&block[skip..skip + head.len()]);
    fill(index.wrapping_add(1), body);
}

/// Words of blocks `index ..`, the last of which may be cut.
pub(crate) fn fill(isa: Isa, stream: Stream, index: u32, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512(stream: Stream, index: u32, out: &mut [u32]) {
            fill_blocks::<Avx512, Words>(stream, index, out);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(stream: Stream, index: u32, out: &mut [u32]) {
            fill_blocks::<Avx2, Words>(stream, index, out);
        }
        assert!(isa <= Isa::detect());
        match isa {
            // SAFETY: the assertion says that the machine has these instructions.
            Isa::Avx512 => return unsafe { avx512(stream, index, out) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { avx2(stream, index, out) },
            Isa::Portable => {}
        }
    }
    for (i, out) in out.chunks_mut(4).enumerate() {
        out.copy_from_slice(&stream.block(index.wrapping_add(i as u32))[..out.len()]);
    }
}
