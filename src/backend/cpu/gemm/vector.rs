//! The vector types the micro-kernels are generic over.
//!
//! Every lane does one IEEE fused multiply-add at a time, in the order the
//! kernel gives, so all of them produce the same bits. A dtype with its own dot
//! product instruction (bf16: `vdpbf16ps`) is a second trait beside this one,
//! not a vector type of it: its kernels read pairs of the reduced axis.

/// f32 lanes of one register.
///
/// # Safety
/// Every method needs the CPU features of the implementing type; pointers must
/// be valid for the lanes that are read or written.
pub(super) trait Vector: Copy {
    /// Lanes.
    const LANES: usize;
    /// Which lanes a masked load reads.
    type Mask: Copy;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
    /// The first `count` lanes (all, when there are fewer).
    unsafe fn mask(count: usize) -> Self::Mask;
    /// Asks for a cache line that will be read soon; any address is allowed.
    unsafe fn prefetch(at: *const f32);
    /// Reads the lanes of the mask; the others are zero and not touched.
    unsafe fn load_masked(from: *const f32, mask: Self::Mask) -> Self;
}

/// Plain Rust. The compiler maps the loops to whatever the target has; without
/// a hardware fused multiply-add they are exact and slow.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Vector for Portable {
    const LANES: usize = 8;
    type Mask = usize;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; 8])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: eight readable elements, by the contract of the trait.
        Portable(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: eight writable elements, by the contract of the trait.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self, b: Self, mut c: Self) -> Self {
        for i in 0..8 {
            c.0[i] = a.0[i].mul_add(b.0[i], c.0[i]);
        }
        c
    }
    #[inline(always)]
    unsafe fn mask(count: usize) -> usize {
        count
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: usize) -> Self {
        let mut lanes = [0.0; 8];
        for (i, lane) in lanes.iter_mut().enumerate().take(mask) {
            // SAFETY: lanes of the mask are readable, by the contract of the trait.
            *lane = unsafe { *from.add(i) };
        }
        Portable(lanes)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// [`Vector`] by the intrinsics of one CPU feature.
    macro_rules! by_intrinsics {
        (
            $vector:ty, $lanes:literal, $mask:ty, $mask_of:ident,
            $zero:ident, $splat:ident, $load:ident, $store:ident, $fma:ident, $load_masked:ident
        ) => {
            impl Vector for $vector {
                const LANES: usize = $lanes;
                type Mask = $mask;

                #[inline(always)]
                unsafe fn zero() -> Self {
                    // SAFETY: the CPU feature is there, by the contract of the trait.
                    unsafe { $zero() }
                }
                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    // SAFETY: as for zero.
                    unsafe { $splat(value) }
                }
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: so many elements are readable, by the contract of the trait.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: so many elements are writable, by the contract of the trait.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
                    // SAFETY: as for zero.
                    unsafe { $fma(a, b, c) }
                }
                #[inline(always)]
                unsafe fn mask(count: usize) -> $mask {
                    // SAFETY: as for zero.
                    unsafe { $mask_of(count) }
                }
                #[inline(always)]
                unsafe fn prefetch(at: *const f32) {
                    // SAFETY: a hint, which reads nothing.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
                }
                #[inline(always)]
                unsafe fn load_masked(from: *const f32, mask: $mask) -> Self {
                    // SAFETY: the mask's lanes are readable, by the contract of the trait.
                    unsafe { $load_masked(from, mask) }
                }
            }
        };
    }

    /// The first `count` of 16 lanes.
    #[inline(always)]
    unsafe fn mask_512(count: usize) -> __mmask16 {
        if count >= 16 { 0xffff } else { (1u16 << count) - 1 }
    }

    /// The first `count` of 8 lanes; needs AVX2.
    #[inline(always)]
    unsafe fn mask_256(count: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), lanes)
        }
    }

    /// Needs AVX-512F, and the lanes of the mask to be readable.
    #[inline(always)]
    unsafe fn load_masked_512(from: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }

    by_intrinsics!(
        __m512,
        16,
        __mmask16,
        mask_512,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        load_masked_512
    );
    by_intrinsics!(
        __m256,
        8,
        __m256i,
        mask_256,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_maskload_ps
    );
}
