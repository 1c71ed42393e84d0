//! Standard normals as an exactly specified sequence of IEEE f32 operations.
//!
//! Two words make two normals by the transform of Box and Muller (1958). Every
//! operation is one IEEE operation rounded to nearest even, in the order written;
//! `fma` is one rounding, nothing is contracted or reassociated, and no function
//! of a mathematical library is called. Scalar code, vectors of any width and
//! CUDA (`-fmad=false`, or the `__f*_rn` intrinsics, `__uint2float_rn`,
//! `__int2float_rn`, `__fsqrt_rn`) therefore give the same bits.
//!
//! # The sequence
//! Integers wrap; `>>>` shifts in the sign; `P(x)` is Horner's rule with one fma
//! a step from the last coefficient.
//! ```text
//! from `radius`, the word of the even element
//!   u = fma(float(radius), 2^-32, 2^-33)             in [2^-33, 1]
//!   b = bits(u) - 0x3f2aaaab                         2/3
//!   e = float(b >>> 23)
//!   f = from_bits((b & 0x007fffff) + 0x3f2aaaab) - 1 in [-1/3, 1/3]
//!   r = sqrt(fma(e, 0xbfb17218, f * LOG(f)))         e (-2 ln 2) - 2 ln(1 + f)
//! from `angle`, the word of the odd element
//!   t  = float(signed(angle << 2)) * 2^-32           quarter turns in [-1/2, 1/2]
//!   t2 = t * t
//!   s  = r * (t * SIN(t2))
//!   c  = r * COS(t2), its sign bit flipped by bit 31 of angle
//! z = (c, s) where bit 30 of angle is 0, else (s, c)
//!
//! LOG  c0000000 3f7fffeb bf2aaa7e 3f000a27 becce9d8 3ea81c70 be8f544d 3e9d862f be8f9401
//! SIN  3fc90fdb bf255df6 3da33591 bb97ad0e
//! COS  3f800000 bf9de9ce 3e81d82c bca73c5f
//! ```
//! LOG, SIN and COS minimise the largest relative error of -2 ln(1 + f) / f,
//! sin(pi t / 2) / t and cos(pi t / 2), each coefficient rounded to f32 in turn
//! and the rest fitted again: 2.6e-8, 2.8e-8 and 3.9e-8, under half an ulp.
//!
//! # Accuracy
//! Against the same transform of the same words in exact arithmetic, measured on
//! 2^27 normals: root mean square error 7.0e-8; largest 7.8e-7 where r > 0.05
//! (2.5 ulp of r beyond r = 1.7). Where u rounds to values next to 1, r can only be
//! sqrt(k 2^-23): below r = 0.05 the error grows as 2^-25 / r, and up to 2.4e-4
//! next to r = 0, for one pair in 2^24. In probability that is at most 2^-25
//! everywhere, and the tail P(r > x) is good to a relative 2^-23. The largest |z|
//! is 6.7637; a true normal lies beyond it with probability 1.3e-11.
//!
//! # Why this one
//! Operations for two normals: 35 and a square root, that is 18 a normal beside
//! Philox's 15 a word (60 for a block of four). No branch and no table, so no
//! divergence and no shared memory on a GPU. An inverse distribution function on
//! one word needs the same logarithm for each normal instead of each pair, 9 more
//! multiply-adds, and a second polynomial in the tails that one warp in ten would
//! enter: about 31 operations and more. A table of piecewise polynomials has fewer
//! operations but gathers.
#![allow(unsafe_code)] // Compiled once for each instruction set.

#[cfg(target_arch = "x86_64")]
use super::lanes::x86::{Avx2, Avx512};
use super::lanes::{Blocks, Lanes, Scalar};
use super::philox::{self, Stream, Transform};
use crate::backend::cpu::isa::Isa;

/// Bits of the f32 nearest 2/3: mantissas are taken in [2/3, 4/3).
const TWO_THIRDS: u32 = 0x3f2a_aaab;
/// -2 ln 2.
const MINUS_TWO_LN_2: u32 = 0xbfb1_7218;
/// -2 ln(1 + f) / f for |f| <= 1/3, constant term first.
const LOG: [u32; 9] = [
    0xc000_0000,
    0x3f7f_ffeb,
    0xbf2a_aa7e,
    0x3f00_0a27,
    0xbecc_e9d8,
    0x3ea8_1c70,
    0xbe8f_544d,
    0x3e9d_862f,
    0xbe8f_9401,
];
/// sin(pi/2 t) / t in t^2, |t| <= 1/2.
const SIN: [u32; 4] = [0x3fc9_0fdb, 0xbf25_5df6, 0x3da3_3591, 0xbb97_ad0e];
/// cos(pi/2 t) in t^2, |t| <= 1/2.
const COS: [u32; 4] = [0x3f80_0000, 0xbf9d_e9ce, 0x3e81_d82c, 0xbca7_3c5f];

/// Horner's rule, each step one fused multiply-add.
#[inline(always)]
fn polynomial<V: Lanes, const N: usize>(x: V::F, coefficients: &[u32; N]) -> V::F {
    let mut y = V::float(f32::from_bits(coefficients[N - 1]));
    for i in (0..N - 1).rev() {
        y = V::mul_add(y, x, V::float(f32::from_bits(coefficients[i])));
    }
    y
}

/// The sequence of this module's page.
#[inline(always)]
fn pairs<V: Lanes>(radius: V::U, angle: V::U) -> (V::F, V::F) {
    let unit = 1.0 / (1u64 << 32) as f32;

    let u = V::mul_add(V::from_unsigned(radius), V::float(unit), V::float(0.5 * unit));
    let bits = V::wrapping_sub(V::to_bits(u), V::word(TWO_THIRDS));
    let exponent = V::from_signed(V::shift_right_signed::<23>(bits));
    let mantissa = V::wrapping_add(V::and(bits, V::word(0x007f_ffff)), V::word(TWO_THIRDS));
    let f = V::sub(V::from_bits(mantissa), V::float(1.0));
    let log = V::mul(f, polynomial::<V, 9>(f, &LOG));
    let r = V::sqrt(V::mul_add(exponent, V::float(f32::from_bits(MINUS_TWO_LN_2)), log));

    let t = V::mul(V::from_signed(V::shift_left::<2>(angle)), V::float(unit));
    let t2 = V::mul(t, t);
    let sin = V::mul(r, V::mul(t, polynomial::<V, 4>(t2, &SIN)));
    let cos = V::mul(r, polynomial::<V, 4>(t2, &COS));
    let sign = V::and(angle, V::word(0x8000_0000));
    let cos = V::from_bits(V::xor(V::to_bits(cos), sign));
    (V::select_by_bit_30(angle, cos, sin), V::select_by_bit_30(angle, sin, cos))
}

/// The two normals of two words.
pub fn pair(radius: u32, angle: u32) -> [f32; 2] {
    pairs::<Scalar>(radius, angle).into()
}

/// Words to normals.
struct Normals;

impl Transform for Normals {
    #[inline(always)]
    fn apply<V: Blocks>(even: V::U, odd: V::U) -> (V::U, V::U) {
        let (x, y) = pairs::<V>(even, odd);
        (V::to_bits(x), V::to_bits(y))
    }
}

/// Normals of blocks `index ..`, the last of which may be cut.
fn fill_blocks(isa: Isa, stream: Stream, index: u32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512(stream: Stream, index: u32, out: &mut [f32]) {
            philox::fill_blocks::<Avx512, Normals>(stream, index, bytemuck::cast_slice_mut(out));
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(stream: Stream, index: u32, out: &mut [f32]) {
            philox::fill_blocks::<Avx2, Normals>(stream, index, bytemuck::cast_slice_mut(out));
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
        let [a, b, c, d] = stream.block(index.wrapping_add(i as u32));
        let ([z0, z1], [z2, z3]) = (pair(a, b), pair(c, d));
        out.copy_from_slice(&[z0, z1, z2, z3][..out.len()]);
    }
}

/// Normals of elements `first ..`.
pub(super) fn fill(isa: Isa, stream: Stream, first: u64, out: &mut [f32]) {
    philox::from_edge(first, out, |index, out| fill_blocks(isa, stream, index, out));
}

/// Normals that kernels make at a time: they stay in the nearest cache.
pub(crate) const CHUNK: usize = 1024;

/// Calls `f(at, normals of elements from + at ..)` over `len` elements, at most
/// [`CHUNK`] at a time; `from` is a multiple of 4.
pub(crate) fn for_chunks(
    isa: Isa,
    stream: Stream,
    from: usize,
    len: usize,
    mut f: impl FnMut(usize, &[f32]),
) {
    let first = philox::first_block(from as u64, len);
    let mut z = [0.0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let z = &mut z[..CHUNK.min(len - at)];
        fill_blocks(isa, stream, first.wrapping_add((at / 4) as u32), z);
        f(at, z);
    }
}
