//! The few vector operations that random numbers are made of, so that each
//! sequence is written once and means the same at every width.
#![allow(unsafe_code)] // Calls of vector instructions.

/// Lanes of f32 and u32. Every operation is the IEEE or integer operation of its
/// name in each lane, floats rounded to nearest even.
///
/// Implementations that use vector instructions are to be called from functions
/// compiled for those alone; everything is inlined there.
pub(super) trait Lanes {
    /// f32 lanes.
    type F: Copy;
    /// u32 lanes.
    type U: Copy;

    fn float(x: f32) -> Self::F;
    fn word(x: u32) -> Self::U;

    fn mul(a: Self::F, b: Self::F) -> Self::F;
    fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// a b + c, rounded once.
    fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn sqrt(a: Self::F) -> Self::F;

    fn and(a: Self::U, b: Self::U) -> Self::U;
    fn xor(a: Self::U, b: Self::U) -> Self::U;
    fn wrapping_add(a: Self::U, b: Self::U) -> Self::U;
    fn wrapping_sub(a: Self::U, b: Self::U) -> Self::U;
    fn shift_left<const N: u32>(a: Self::U) -> Self::U;
    /// Shifts in copies of the highest bit.
    fn shift_right_signed<const N: u32>(a: Self::U) -> Self::U;

    /// Nearest float of an unsigned number.
    fn from_unsigned(a: Self::U) -> Self::F;
    /// Nearest float of a two's complement number.
    fn from_signed(a: Self::U) -> Self::F;
    /// The bits of a float.
    fn to_bits(a: Self::F) -> Self::U;
    /// The float of these bits.
    fn from_bits(a: Self::U) -> Self::F;
    /// a where bit 30 of `w` is clear, else b.
    fn select_by_bit_30(w: Self::U, a: Self::F, b: Self::F) -> Self::F;
}

/// Lanes wide enough to work on several Philox blocks at once.
pub(super) trait Blocks: Lanes {
    /// Number of u32 lanes. Two lanes make one 64-bit lane, which holds one
    /// word of one block, so that half as many blocks are worked on.
    const LEN: usize;

    /// Number of the first block plus that of each lane, in the order that makes
    /// `store` write blocks in order.
    fn block_numbers(first: u32) -> Self::U;
    /// The number in the low half of each 64-bit lane.
    fn word64(x: u32) -> Self::U;
    /// 64-bit products of the low halves.
    fn product(a: Self::U, b: Self::U) -> Self::U;
    /// The high half of each 64-bit lane, in its low half.
    fn high(a: Self::U) -> Self::U;
    /// Low halves of a as the even, of b as the odd lanes.
    fn pack(a: Self::U, b: Self::U) -> Self::U;
    /// Writes lanes of a and b in turns, `2 LEN` elements.
    fn store(a: Self::U, b: Self::U, out: &mut [u32]);
}

/// One lane.
pub(super) struct Scalar;

impl Lanes for Scalar {
    type F = f32;
    type U = u32;

    #[inline(always)]
    fn float(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn word(x: u32) -> u32 {
        x
    }
    #[inline(always)]
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn sqrt(a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn and(a: u32, b: u32) -> u32 {
        a & b
    }
    #[inline(always)]
    fn xor(a: u32, b: u32) -> u32 {
        a ^ b
    }
    #[inline(always)]
    fn wrapping_add(a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn wrapping_sub(a: u32, b: u32) -> u32 {
        a.wrapping_sub(b)
    }
    #[inline(always)]
    fn shift_left<const N: u32>(a: u32) -> u32 {
        a << N
    }
    #[inline(always)]
    fn shift_right_signed<const N: u32>(a: u32) -> u32 {
        ((a as i32) >> N) as u32
    }
    #[inline(always)]
    fn from_unsigned(a: u32) -> f32 {
        a as f32
    }
    #[inline(always)]
    fn from_signed(a: u32) -> f32 {
        a as i32 as f32
    }
    #[inline(always)]
    fn to_bits(a: f32) -> u32 {
        a.to_bits()
    }
    #[inline(always)]
    fn from_bits(a: u32) -> f32 {
        f32::from_bits(a)
    }
    #[inline(always)]
    fn select_by_bit_30(w: u32, a: f32, b: f32) -> f32 {
        if w & 0x4000_0000 == 0 { a } else { b }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Blocks, Lanes};

    /// Defines methods as one expression of vector instructions each.
    macro_rules! instructions {
        ($(fn $name:ident $(<const $n:ident: u32>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {$(
            #[inline(always)]
            fn $name$(<const $n: u32>)?($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller is compiled for these instructions, which
                // its own caller has found on this machine (`Isa::detect`).
                unsafe { $body }
            }
        )*};
    }

    /// Eight lanes; four blocks.
    pub(in crate::random) struct Avx2;

    impl Lanes for Avx2 {
        type F = __m256;
        type U = __m256i;

        instructions! {
            fn float(x: f32) -> __m256 = _mm256_set1_ps(x);
            fn word(x: u32) -> __m256i = _mm256_set1_epi32(x as i32);
            fn mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            fn sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            fn sqrt(a: __m256) -> __m256 = _mm256_sqrt_ps(a);
            fn and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
            fn xor(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
            fn wrapping_add(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
            fn wrapping_sub(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
            fn shift_left<const N: u32>(a: __m256i) -> __m256i =
                _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32));
            fn shift_right_signed<const N: u32>(a: __m256i) -> __m256i =
                _mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32));
            // Both halves are exact, so that their sum is rounded once.
            fn from_unsigned(a: __m256i) -> __m256 = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(_mm256_srli_epi32::<16>(a)),
                _mm256_set1_ps(65536.0),
                _mm256_cvtepi32_ps(_mm256_blend_epi16::<0xAA>(a, _mm256_setzero_si256())),
            );
            fn from_signed(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
            fn to_bits(a: __m256) -> __m256i = _mm256_castps_si256(a);
            fn from_bits(a: __m256i) -> __m256 = _mm256_castsi256_ps(a);
            fn select_by_bit_30(w: __m256i, a: __m256, b: __m256) -> __m256 =
                _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32::<1>(w)));
        }
    }

    impl Blocks for Avx2 {
        const LEN: usize = 8;

        instructions! {
            fn block_numbers(first: u32) -> __m256i = _mm256_add_epi32(
                _mm256_set1_epi32(first as i32),
                _mm256_setr_epi64x(0, 2, 1, 3),
            );
            fn word64(x: u32) -> __m256i = _mm256_set1_epi64x(i64::from(x));
            fn product(a: __m256i, b: __m256i) -> __m256i = _mm256_mul_epu32(a, b);
            fn high(a: __m256i) -> __m256i = _mm256_srli_epi64::<32>(a);
            fn pack(a: __m256i, b: __m256i) -> __m256i =
                _mm256_blend_epi32::<0xAA>(a, _mm256_slli_epi64::<32>(b));
            fn store(a: __m256i, b: __m256i, out: &mut [u32]) = {
                assert!(out.len() >= 16);
                let to = out.as_mut_ptr().cast();
                _mm256_storeu_si256(to, _mm256_unpacklo_epi32(a, b));
                _mm256_storeu_si256(to.add(1), _mm256_unpackhi_epi32(a, b));
            };
        }
    }

    /// Sixteen lanes; eight blocks.
    pub(in crate::random) struct Avx512;

    impl Lanes for Avx512 {
        type F = __m512;
        type U = __m512i;

        instructions! {
            fn float(x: f32) -> __m512 = _mm512_set1_ps(x);
            fn word(x: u32) -> __m512i = _mm512_set1_epi32(x as i32);
            fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            fn sqrt(a: __m512) -> __m512 = _mm512_sqrt_ps(a);
            fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
            fn xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
            fn wrapping_add(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
            fn wrapping_sub(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
            fn shift_left<const N: u32>(a: __m512i) -> __m512i = _mm512_slli_epi32::<N>(a);
            fn shift_right_signed<const N: u32>(a: __m512i) -> __m512i =
                _mm512_srai_epi32::<N>(a);
            fn from_unsigned(a: __m512i) -> __m512 = _mm512_cvtepu32_ps(a);
            fn from_signed(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
            fn to_bits(a: __m512) -> __m512i = _mm512_castps_si512(a);
            fn from_bits(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
            fn select_by_bit_30(w: __m512i, a: __m512, b: __m512) -> __m512 = {
                let bit = _mm512_test_epi32_mask(w, _mm512_set1_epi32(0x4000_0000));
                _mm512_mask_blend_ps(bit, a, b)
            };
        }
    }

    impl Blocks for Avx512 {
        const LEN: usize = 16;

        instructions! {
            fn block_numbers(first: u32) -> __m512i = _mm512_add_epi32(
                _mm512_set1_epi32(first as i32),
                _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
            );
            fn word64(x: u32) -> __m512i = _mm512_set1_epi64(i64::from(x));
            fn product(a: __m512i, b: __m512i) -> __m512i = _mm512_mul_epu32(a, b);
            fn high(a: __m512i) -> __m512i = _mm512_srli_epi64::<32>(a);
            fn pack(a: __m512i, b: __m512i) -> __m512i =
                _mm512_mask_blend_epi32(0xAAAA, a, _mm512_shuffle_epi32::<0b10_10_00_00>(b));
            fn store(a: __m512i, b: __m512i, out: &mut [u32]) = {
                assert!(out.len() >= 32);
                let to = out.as_mut_ptr().cast();
                _mm512_storeu_si512(to, _mm512_unpacklo_epi32(a, b));
                _mm512_storeu_si512(to.add(1), _mm512_unpackhi_epi32(a, b));
            };
        }
    }
}
