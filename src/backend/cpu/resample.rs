//! Nearest, average pooling and FIR in both directions: each is a separable
//! linear map whose every output row and column gathers from a short window of
//! consecutive input rows and columns. Weights come from a table of four.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use super::isa::multiversion;
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use crate::ops::resample::{Edge, Method, Resample};
use crate::plan::Mode;

/// Inputs along one axis that one output gathers: `first .. first + count`,
/// where input `first + i` has weight `weights[tap + i * step]`. Inputs outside
/// the axis are mirrored at its ends.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    first: isize,
    count: usize,
    tap: isize,
    step: isize,
}

impl Window {
    fn uniform(first: usize, count: usize) -> Self {
        Window { first: first as isize, count, tap: 0, step: 0 }
    }

    /// Indices i with `0 <= tap(i) < 4` for `tap(i) = origin + i * step`, those
    /// of 0..len alone where a length is given.
    fn of_taps(origin: isize, step: isize, len: Option<usize>) -> Self {
        // The bound that the first index must meet, then the one for the last.
        let (mut first, mut last) = if step > 0 {
            (ceil_div(-origin, step), (3 - origin).div_euclid(step))
        } else {
            (ceil_div(origin - 3, -step), origin.div_euclid(-step))
        };
        if let Some(len) = len {
            (first, last) = (first.max(0), last.min(len as isize - 1));
        }
        let count = (last - first + 1).max(0) as usize;
        Window { first, count, tap: origin + first * step, step }
    }

    /// Input i of the window on an axis of `len`.
    #[inline(always)]
    fn input(&self, i: usize, len: usize) -> usize {
        let (at, last) = (self.first + i as isize, len as isize - 1);
        (last - (last - at.abs()).abs()) as usize
    }

    #[inline(always)]
    fn weight(&self, i: usize, weights: &[f32; 4]) -> f32 {
        weights[(self.tap + i as isize * self.step) as usize]
    }
}

fn ceil_div(a: isize, b: isize) -> isize {
    -(-a).div_euclid(b)
}

/// One direction of a method: the four weights, and each output's windows.
#[derive(Clone, Copy)]
struct Gather {
    method: Method,
    backward: bool,
}

impl Gather {
    fn weights(&self) -> [f32; 4] {
        match self.method {
            Method::Nearest { .. } => [1.0; 4],
            Method::AveragePool { factor } => [1.0 / factor as f32; 4],
            // The kernel is flipped: upfirdn2d convolves, where the loops here correlate.
            Method::Fir { taps: [a, b, c, d], .. } => [d, c, b, a],
        }
    }

    /// What output `o` of `outputs` gathers from an axis of `inputs`: one window,
    /// and backward at a mirroring edge one more for each mirror image of `o`.
    #[inline(always)]
    fn windows(&self, o: usize, inputs: usize, outputs: usize) -> [Window; 3] {
        let none = Window::default();
        match (self.method, self.backward) {
            (Method::Nearest { factor }, false) => [Window::uniform(o / factor, 1), none, none],
            (Method::Nearest { factor }, true) | (Method::AveragePool { factor }, false) => {
                [Window::uniform(o * factor, factor), none, none]
            }
            (Method::AveragePool { factor }, true) => {
                // Nothing reaches the remainder that pooling dropped.
                let from = o / factor;
                [Window::uniform(from, usize::from(from < inputs)), none, none]
            }
            // Output o meets input i at tap k = i up + pad - o down.
            (Method::Fir { up, down, pad, edge, .. }, false) => {
                let len = (edge == Edge::Zero).then_some(inputs);
                let origin = pad[0] as isize - (o * down) as isize;
                [Window::of_taps(origin, up as isize, len), none, none]
            }
            (Method::Fir { up, down, pad, edge, .. }, true) => {
                let of = |pixel: isize| {
                    let origin = pixel * up as isize + pad[0] as isize;
                    Window::of_taps(origin, -(down as isize), Some(inputs))
                };
                let (pixel, last) = (o as isize, outputs as isize - 1);
                let mirrored = |at: isize, is: bool| {
                    if is && edge == Edge::Reflect { of(at) } else { none }
                };
                let (low, high) = (-pixel, 2 * last - pixel);
                [of(pixel), mirrored(low, pixel != 0), mirrored(high, pixel != last)]
            }
        }
    }
}

/// y from x.
pub fn resample(pool: &Pool, op: &Resample, x: &[f32], y: Output) {
    let gather = Gather { method: op.method, backward: false };
    run(pool, op.n, op.c, gather, x, [op.h, op.w], y, op.output_size());
}

/// d_x from d_y.
pub fn resample_backward(pool: &Pool, op: &Resample, d_y: &[f32], d_x: Output) {
    let gather = Gather { method: op.method, backward: true };
    run(pool, op.n, op.c, gather, d_y, op.output_size(), d_x, [op.h, op.w]);
}

#[allow(clippy::too_many_arguments)]
fn run(
    pool: &Pool,
    n: usize,
    c: usize,
    gather: Gather,
    x: &[f32],
    [h, w]: [usize; 2],
    (y, mode): Output,
    [oh, ow]: [usize; 2],
) {
    let isa = pool.isa();
    let parts = Parts::new(y);
    pool.run(n * oh, &|task| {
        let image = &x[task / oh * h * w * c..][..h * w * c];
        // SAFETY: the output row is this task's own.
        let y = unsafe { parts.part(task * ow * c, ow * c) };
        row(isa, gather, image, [h, w, c], gather.windows(task % oh, h, oh), y, mode);
    });
}

multiversion! {
    fn row(
        isa: Isa, gather: Gather, image: &[f32], shape: [usize; 3], rows: [Window; 3],
        y: &mut [f32], mode: Mode,
    ) {
        let [h, w, c] = shape;
        let (weights, ow) = (gather.weights(), y.len() / c);
        for (o, y) in y.chunks_exact_mut(c).enumerate() {
            let columns = gather.windows(o, w, ow);
            let mut empty = mode == Mode::Write;
            for (rows, i) in rows.iter().flat_map(|r| (0..r.count).map(move |i| (r, i))) {
                for (columns, j) in columns.iter().flat_map(|c| (0..c.count).map(move |j| (c, j))) {
                    let weight = rows.weight(i, &weights) * columns.weight(j, &weights);
                    let at = (rows.input(i, h) * w + columns.input(j, w)) * c;
                    let x = &image[at..at + c];
                    if empty {
                        y.iter_mut().zip(x).for_each(|(y, &x)| *y = weight * x);
                        empty = false;
                    } else {
                        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x.mul_add(weight, *y));
                    }
                }
            }
            if empty {
                y.fill(0.0);
            }
        }
    }
}
