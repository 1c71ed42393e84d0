//! Standard normals as an exactly specified sequence of IEEE f32 operations.
//!
//! Two words make two normals by the Box-Muller transform (1958). [`pair`] is the
//! definition: every operation in it is one IEEE operation rounded to nearest
//! even, in the order written; `mul_add` is one rounding, nothing is contracted
//! or reassociated, and no function of a mathematical library is called. Scalar
//! code, vectors of any width and CUDA without `-fmad` therefore give the same
//! bits.
#![allow(unsafe_code)] // Compiled once for each instruction set.

use super::philox::{Stream, first_block};
use crate::backend::cpu::isa::{Isa, multiversion};

/// Bits of the f32 nearest 2/3: mantissas are taken in [2/3, 4/3).
const TWO_THIRDS: u32 = 0x3f2a_aaab;
/// -2 ln 2.
const MINUS_TWO_LN_2: f32 = f32::from_bits(0xbfb1_7218);
/// -2 ln(1 + f) / f on [-1/3, 1/3], constant term first.
const LOG: [f32; 9] = coefficients([
    0xc000_0000,
    0x3f7f_ffeb,
    0xbf2a_aa7e,
    0x3f00_0a27,
    0xbecc_e9d8,
    0x3ea8_1c70,
    0xbe8f_544d,
    0x3e9d_862f,
    0xbe8f_9401,
]);
/// sin(pi/2 t) / t in t^2, |t| <= 1/2.
const SIN: [f32; 4] = coefficients([0x3fc9_0fdb, 0xbf25_5df6, 0x3da3_3591, 0xbb97_ad0e]);
/// cos(pi/2 t) in t^2, |t| <= 1/2.
const COS: [f32; 4] = coefficients([0x3f80_0000, 0xbf9d_e9ce, 0x3e81_d82c, 0xbca7_3c5f]);

const fn coefficients<const N: usize>(bits: [u32; N]) -> [f32; N] {
    let mut values = [0.0; N];
    let mut i = 0;
    while i < N {
        values[i] = f32::from_bits(bits[i]);
        i += 1;
    }
    values
}

/// Horner's rule, each step one fused multiply-add.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: &[f32; N]) -> f32 {
    let mut y = c[N - 1];
    for i in (0..N - 1).rev() {
        y = y.mul_add(x, c[i]);
    }
    y
}

/// The two normals of two words; the sequence of this module's page.
#[inline(always)]
pub fn pair(radius: u32, angle: u32) -> [f32; 2] {
    const UNIT: f32 = 1.0 / (1u64 << 32) as f32;
    let u = (radius as f32).mul_add(UNIT, 0.5 * UNIT);
    let bits = u.to_bits().wrapping_sub(TWO_THIRDS);
    let exponent = ((bits as i32) >> 23) as f32;
    let f = f32::from_bits((bits & 0x007f_ffff) + TWO_THIRDS) - 1.0;
    let r = exponent.mul_add(MINUS_TWO_LN_2, f * polynomial(f, &LOG)).sqrt();

    let t = ((angle << 2) as i32) as f32 * UNIT;
    let t2 = t * t;
    let sin = r * (t * polynomial(t2, &SIN));
    let cos = r * polynomial(t2, &COS);
    let cos = f32::from_bits(cos.to_bits() ^ (angle & 0x8000_0000));
    if angle & 0x4000_0000 == 0 { [cos, sin] } else { [sin, cos] }
}

/// Normals made at a time: their words stay in the nearest cache.
pub(crate) const CHUNK: usize = 512;

/// The normals of blocks `index ..`, at most [`CHUNK`] of them.
#[inline(always)]
pub(crate) fn fill_blocks(stream: Stream, index: u32, out: &mut [f32]) {
    let blocks = out.len() / 4;
    // In 32-bit halves of one lane: first the words of the even pair.
    let mut radius = [0u64; CHUNK / 4];
    let mut angle = [0u64; CHUNK / 4];
    for (i, (radius, angle)) in radius[..blocks].iter_mut().zip(&mut angle).enumerate() {
        let [a, b, c, d] = stream.block(index.wrapping_add(i as u32));
        *radius = a & 0xffff_ffff | c << 32;
        *angle = b & 0xffff_ffff | d << 32;
    }
    let radius: &[u32] = bytemuck::cast_slice(&radius[..blocks]);
    let angle: &[u32] = bytemuck::cast_slice(&angle[..blocks]);
    let (pairs, _) = out.as_chunks_mut::<2>();
    for ((z, &radius), &angle) in pairs.iter_mut().zip(radius).zip(angle) {
        *z = pair(radius, angle);
    }
}

/// Calls `f(at, normals of elements from + at ..)` over `len` elements, at most
/// [`CHUNK`] at a time; `from` is a multiple of 4. To be compiled with the
/// caller's instructions.
#[inline(always)]
pub(crate) fn for_chunks(
    stream: Stream,
    from: usize,
    len: usize,
    mut f: impl FnMut(usize, &[f32]),
) {
    let first = first_block(from as u64, len);
    let mut z = [0.0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let n = CHUNK.min(len - at);
        let index = first.wrapping_add((at / 4) as u32);
        fill_blocks(stream, index, &mut z[..n.next_multiple_of(4)]);
        f(at, &z[..n]);
    }
}

#[cfg(target_endian = "big")]
compile_error!("words of two pairs are packed for little-endian machines");

multiversion! {
    fn fill_aligned(isa: Isa, stream: Stream, index: u32, out: &mut [f32]) {
        for (i, out) in out.chunks_mut(CHUNK).enumerate() {
            fill_blocks(stream, index.wrapping_add((i * (CHUNK / 4)) as u32), out);
        }
    }
}

/// Normals of elements `first ..`.
pub(super) fn fill(isa: Isa, stream: Stream, first: u64, out: &mut [f32]) {
    let mut index = first_block(first, out.len());
    let skip = (first % 4) as usize;
    let mut block = [0.0; 4];
    let head = if skip == 0 { 0 } else { (4 - skip).min(out.len()) };
    let (head, body) = out.split_at_mut(head);
    if !head.is_empty() {
        fill_blocks(stream, index, &mut block);
        head.copy_from_slice(&block[skip..skip + head.len()]);
        index = index.wrapping_add(1);
    }
    let aligned = body.len() / 4 * 4;
    let (body, tail) = body.split_at_mut(aligned);
    fill_aligned(isa, stream, index, body);
    if !tail.is_empty() {
        fill_blocks(stream, index.wrapping_add((aligned / 4) as u32), &mut block);
        tail.copy_from_slice(&block[..tail.len()]);
    }
}
