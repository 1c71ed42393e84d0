//! Weighted sums of a block of images; images that weigh nothing are passed over.
#![allow(unsafe_code)] // Whole vectors are read from images inside the data.

use super::distance::{PORTABLE_FUSES, fma};
use super::{BLOCK, Weights};
use crate::backend::cpu::isa::{Isa, multiversion};

/// States that share the loads of an image.
const TOGETHER: usize = 4;
/// Elements of a state in registers.
const WIDTH: usize = 32;

/// An image of a block and its weights for some states.
type Heavy = (usize, [f32; TOGETHER]);

/// `sums[i] += sum_j weights[i][j] data[j]`, j in order, the sum over j first.
pub(super) fn add_weighted(
    isa: Isa,
    len: usize,
    weights: &Weights,
    data: &[f32],
    sums: &mut [f32],
) {
    for (sums, weights) in sums.chunks_mut(TOGETHER * len).zip(weights.chunks(TOGETHER)) {
        let mut heavy: [Heavy; BLOCK] = [(0, [0.0; TOGETHER]); BLOCK];
        let (mut count, states) = (0, sums.len() / len);
        for (j, _) in data.chunks_exact(len).enumerate() {
            let of_image = std::array::from_fn(|i| if i < states { weights[i][j] } else { 0.0 });
            // Far images weigh nothing: for most noises most of them.
            if of_image.iter().any(|&w| w != 0.0) {
                heavy[count] = (j, of_image);
                count += 1;
            }
        }
        match isa {
            Isa::Portable => add_portable(isa, len, &heavy[..count], data, sums),
            _ => add_fused(isa, len, &heavy[..count], data, sums),
        }
    }
}

multiversion! {
    fn add_fused(isa: Isa, len: usize, heavy: &[Heavy], data: &[f32], sums: &mut [f32]) {
        add::<true>(len, heavy, data, sums);
    }
}

multiversion! {
    fn add_portable(isa: Isa, len: usize, heavy: &[Heavy], data: &[f32], sums: &mut [f32]) {
        add::<PORTABLE_FUSES>(len, heavy, data, sums);
    }
}

#[inline(always)]
fn add<const FUSED: bool>(len: usize, heavy: &[Heavy], data: &[f32], sums: &mut [f32]) {
    let mut e = 0;
    while e + WIDTH <= len {
        columns::<WIDTH, FUSED>(len, e, heavy, data, sums);
        e += WIDTH;
    }
    while e + 8 <= len {
        columns::<8, FUSED>(len, e, heavy, data, sums);
        e += 8;
    }
    while e < len {
        columns::<1, FUSED>(len, e, heavy, data, sums);
        e += 1;
    }
}

/// Elements `e .. e + N` of the sums.
#[inline(always)]
fn columns<const N: usize, const FUSED: bool>(
    len: usize,
    e: usize,
    heavy: &[Heavy],
    data: &[f32],
    sums: &mut [f32],
) {
    assert!(e + N <= len);
    let mut added = [[0f32; N]; TOGETHER];
    for (j, weights) in heavy {
        assert!((j + 1) * len <= data.len());
        // SAFETY: inside the image, which the assertions put inside the data.
        let image = unsafe { *data.as_ptr().add(j * len + e).cast::<[f32; N]>() };
        for (added, &w) in added.iter_mut().zip(weights) {
            for (added, &v) in added.iter_mut().zip(&image) {
                *added = fma::<FUSED>(w, v, *added);
            }
        }
    }
    for (sum, added) in sums.chunks_exact_mut(len).zip(&added) {
        for (sum, &added) in sum[e..e + N].iter_mut().zip(added) {
            *sum += added;
        }
    }
}
