//! Sums over the positions of an image, one for each channel.
//!
//! Positions are summed in f32 over chunks of [`CHUNK`], chunks in f64, both in
//! order: the result of a channel depends on nothing but its own values.

use super::isa::multiversion;

/// Positions that are summed in f32 before f64 takes over: keeps the error of a
/// sum at that of about sqrt(CHUNK) roundings whatever the image's size.
pub const CHUNK: usize = 32;

/// Most channels that a task takes at a time: their totals lie on the stack, and
/// clearing them must not cost more than a small image.
pub const MAX_CHANNELS: usize = 256;

/// Bytes that one task may go over more than once: half of a second-level cache
/// of 1 MiB.
const SLICE_BYTES: usize = 512 << 10;

/// How many channels one task takes: a multiple of `unit`, at most
/// [`MAX_CHANNELS`] unless one unit has more, and few enough to keep the slices
/// `[spatial, width]` of all `operands` in cache and all threads busy. It
/// decides speed only: no channel's result depends on it.
pub fn width(
    n: usize,
    channels: usize,
    unit: usize,
    spatial: usize,
    operands: usize,
    threads: usize,
) -> usize {
    let units = channels / unit;
    let mut per_task = units.min((MAX_CHANNELS / unit).max(1));
    loop {
        let width = per_task * unit;
        let too_large = width * spatial * operands * 4 > SLICE_BYTES;
        let idle = n * units.div_ceil(per_task) < 2 * threads;
        // Below 32 channels a row of the slice is less than two cache lines.
        if per_task == 1 || width < 64 || !(too_large || idle) {
            return width;
        }
        per_task = per_task.div_ceil(2);
    }
}

/// What is summed: K functions of the position's row and the channel.
trait Terms<const K: usize, const W: usize> {
    /// Adds the terms of the W channels from `channel` on.
    fn add(&self, row: &[f32; W], channel: usize, acc: &mut [[f32; W]; K]);
}

/// The values themselves.
struct Plain;

impl<const W: usize> Terms<1, W> for Plain {
    #[inline(always)]
    fn add(&self, row: &[f32; W], _: usize, [acc]: &mut [[f32; W]; 1]) {
        for i in 0..W {
            acc[i] += row[i];
        }
    }
}

/// Distance from the channel's centre, and its square.
struct Centred<'a>(&'a [f32]);

impl<const W: usize> Terms<2, W> for Centred<'_> {
    #[inline(always)]
    fn add(&self, row: &[f32; W], channel: usize, [first, second]: &mut [[f32; W]; 2]) {
        let centre: &[f32; W] = block(self.0, channel);
        for i in 0..W {
            let d = row[i] - centre[i];
            first[i] += d;
            second[i] = d.mul_add(d, second[i]);
        }
    }
}

/// W elements from `at` on.
#[inline(always)]
pub fn block<const W: usize>(x: &[f32], at: usize) -> &[f32; W] {
    x[at..at + W].try_into().expect("W elements")
}

#[inline(always)]
fn add_block<const K: usize, const W: usize, T: Terms<K, W>>(
    terms: &T,
    rows: &[f32],
    stride: usize,
    from: usize,
    channel: usize,
    totals: &mut [&mut [f64]; K],
) {
    let mut acc = [[0f32; W]; K];
    for row in rows.chunks_exact(stride) {
        terms.add(block(row, from + channel), channel, &mut acc);
    }
    for (totals, acc) in totals.iter_mut().zip(acc) {
        for (total, a) in totals[channel..channel + W].iter_mut().zip(acc) {
            *total += f64::from(a);
        }
    }
}

#[inline(always)]
fn sum_terms<const K: usize, T: Terms<K, 32> + Terms<K, 8> + Terms<K, 1>>(
    terms: &T,
    x: &[f32],
    stride: usize,
    from: usize,
    mut totals: [&mut [f64]; K],
) {
    let channels = totals[0].len();
    for rows in x.chunks(CHUNK * stride) {
        let mut channel = 0;
        while channel + 32 <= channels {
            add_block::<K, 32, T>(terms, rows, stride, from, channel, &mut totals);
            channel += 32;
        }
        while channel + 8 <= channels {
            add_block::<K, 8, T>(terms, rows, stride, from, channel, &mut totals);
            channel += 8;
        }
        while channel < channels {
            add_block::<K, 1, T>(terms, rows, stride, from, channel, &mut totals);
            channel += 1;
        }
    }
}

multiversion! {
    /// `totals[i] += sum_s x[s, from + i]` for x `[spatial, stride]`.
    pub fn sum(isa: Isa, x: &[f32], stride: usize, from: usize, totals: &mut [f64]) {
        sum_terms(&Plain, x, stride, from, [totals]);
    }
}

multiversion! {
    /// With `d = x[s, from + i] - centre[i]`: the first totals gain `sum_s d`,
    /// the second `sum_s d^2`.
    pub fn sum_centred(
        isa: Isa, x: &[f32], stride: usize, from: usize, centre: &[f32],
        totals: [&mut [f64]; 2],
    ) {
        sum_terms(&Centred(centre), x, stride, from, totals);
    }
}
