//! Squared distances from a few states to a block of images, and products of the
//! backward pass: sums in f32 over [`LANES`] lanes for [`STRETCH`] elements at a
//! time and in f64 over those.
#![allow(unsafe_code)] // Whole vectors are read from rows whose length was checked.

use super::{BLOCK, STATES};
use crate::backend::cpu::isa::{Isa, multiversion};

/// Lanes of a distance's sums, whatever the vectors' width.
pub(super) const LANES: usize = 16;
/// Elements of a distance summed in f32.
pub(super) const STRETCH: usize = 1024;
/// Images shorter than this are compared across images, not across elements.
const SHORT: usize = 24;
/// Distances from a task's states to a block of images.
pub(super) type Distances = [[f64; BLOCK]; STATES];
/// Adds up lanes pairwise.
#[inline(always)]
pub(super) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Whether the portable target fuses; in software that would cost a hundred
/// times the product.
pub(super) const PORTABLE_FUSES: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[inline(always)]
pub(super) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Squared distances from the states x, each to its own factor times the images.
pub(super) fn block_distances(
    isa: Isa,
    len: usize,
    x: &[f32],
    signals: &[f32; STATES],
    data: &[f32],
    distances: &mut Distances,
) {
    let (states, images) = (x.len() / len, data.len() / len);
    assert!(states <= STATES && images <= BLOCK);
    if len < SHORT {
        match isa {
            Isa::Portable => short_portable(isa, len, x, signals, data, distances),
            _ => short_fused(isa, len, x, signals, data, distances),
        }
        return;
    }
    match isa {
        Isa::Avx512 => long_wide(isa, len, x, signals, data, distances),
        Isa::Avx2 => long_middle(isa, len, x, signals, data, distances),
        Isa::Portable => long_narrow(isa, len, x, signals, data, distances),
    }
}

multiversion! {
    fn short_fused(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        short::<true>(len, x, signals, data, distances);
    }
}

multiversion! {
    fn short_portable(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        short::<PORTABLE_FUSES>(len, x, signals, data, distances);
    }
}

/// Sixteen images at a time, turned so that they lie along the lanes.
#[inline(always)]
fn short<const FUSED: bool>(
    len: usize,
    x: &[f32],
    signals: &[f32; STATES],
    data: &[f32],
    distances: &mut Distances,
) {
    let mut turned = [[0f32; LANES]; SHORT];
    for (at, group) in data.chunks(LANES * len).enumerate() {
        for (lane, image) in group.chunks_exact(len).enumerate() {
            for (e, &v) in image.iter().enumerate() {
                turned[e][lane] = v;
            }
        }
        for (i, x) in x.chunks_exact(len).enumerate() {
            let mut sums = [0f32; LANES];
            for (&x, images) in x.iter().zip(&turned) {
                for (sum, &v) in sums.iter_mut().zip(images) {
                    let difference = fma::<FUSED>(-signals[i], v, x);
                    *sum = fma::<FUSED>(difference, difference, *sum);
                }
            }
            let images = group.len() / len;
            let to = &mut distances[i][at * LANES..][..images];
            for (d, &sum) in to.iter_mut().zip(&sums) {
                *d = f64::from(sum);
            }
        }
    }
}

multiversion! {
    /// 32 vector registers of sixteen.
    fn long_wide(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        long::<2, 4, true>(len, x, signals, data, distances);
    }
}

multiversion! {
    /// 16 vector registers of eight.
    fn long_middle(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        long::<2, 2, true>(len, x, signals, data, distances);
    }
}

multiversion! {
    /// 16 vector registers of four.
    fn long_narrow(
        isa: Isa, len: usize, x: &[f32], signals: &[f32; STATES], data: &[f32],
        distances: &mut Distances,
    ) {
        long::<1, 2, PORTABLE_FUSES>(len, x, signals, data, distances);
    }
}

/// Goes over the pairs in tiles of S states and J images.
#[inline(always)]
fn long<const S: usize, const J: usize, const FUSED: bool>(
    len: usize,
    x: &[f32],
    signals: &[f32; STATES],
    data: &[f32],
    distances: &mut Distances,
) {
    let (states, images) = (x.len() / len, data.len() / len);
    let mut i = 0;
    while i < states {
        let mut j = 0;
        let whole = i + S <= states;
        while whole && j + J <= images {
            pairs::<S, J, FUSED>(len, &x[i * len..], &signals[i..], &data[j * len..], |a, b, d| {
                distances[i + a][j + b] = d;
            });
            j += J;
        }
        for i in i..states.min(i + S) {
            for j in j..images {
                pairs::<1, 1, FUSED>(
                    len,
                    &x[i * len..],
                    &signals[i..],
                    &data[j * len..],
                    |_, _, d| {
                        distances[i][j] = d;
                    },
                );
            }
        }
        i += S;
    }
}

/// The distances of one tile. Indices, because the loops have to unroll.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn pairs<const S: usize, const J: usize, const FUSED: bool>(
    len: usize,
    x: &[f32],
    signals: &[f32],
    data: &[f32],
    mut put: impl FnMut(usize, usize, f64),
) {
    assert!(x.len() >= S * len && data.len() >= J * len);
    let signals: [f32; S] = std::array::from_fn(|i| -signals[i]);
    let mut totals = [[0f64; J]; S];
    for from in (0..len).step_by(STRETCH) {
        let to = len.min(from + STRETCH);
        let mut sums = [[[0f32; LANES]; J]; S];
        let mut e = from;
        while e + LANES <= to {
            // SAFETY: e + LANES <= len, and x and data hold S and J rows of len.
            let lanes = |rows: &[f32], row: usize| unsafe {
                *rows.as_ptr().add(row * len + e).cast::<[f32; LANES]>()
            };
            for j in 0..J {
                let image = lanes(data, j);
                for i in 0..S {
                    let x = lanes(x, i);
                    for l in 0..LANES {
                        let difference = fma::<FUSED>(signals[i], image[l], x[l]);
                        sums[i][j][l] = fma::<FUSED>(difference, difference, sums[i][j][l]);
                    }
                }
            }
            e += LANES;
        }
        for i in 0..S {
            for j in 0..J {
                let mut lanes = sums[i][j];
                let (x, image) = (&x[i * len + e..i * len + to], &data[j * len + e..j * len + to]);
                for ((sum, &x), &v) in lanes.iter_mut().zip(x).zip(image) {
                    let difference = fma::<FUSED>(signals[i], v, x);
                    *sum = fma::<FUSED>(difference, difference, *sum);
                }
                totals[i][j] += f64::from(fold(lanes));
            }
        }
    }
    for (i, totals) in totals.iter().enumerate() {
        for (j, &total) in totals.iter().enumerate() {
            put(i, j, total);
        }
    }
}
