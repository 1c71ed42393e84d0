//! Nearest, average pooling and FIR in both directions: each is a separable
//! linear map whose every output row and column gathers from a short window of
//! consecutive input rows and columns. Weights come from a table of four.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use super::isa::{Isa, multiversion};
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use crate::ops::resample::{Method, Resample};
use crate::plan::Mode;

/// The inputs along one axis that one output gathers: `first .. first + count`,
/// where input `first + i` has weight `weights[tap + i * step]`.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: usize,
    count: usize,
    tap: isize,
    step: isize,
}

impl Window {
    fn uniform(first: usize, count: usize) -> Self {
        Window { first, count, tap: 0, step: 0 }
    }

    /// Indices i of 0..len with `0 <= tap(i) < 4` for `tap(i) = origin + i * step`.
    fn of_taps(origin: isize, step: isize, len: usize) -> Self {
        // The bound that the first index must meet, then the one for the last.
        let (low, high) = if step > 0 {
            (ceil_div(-origin, step), (3 - origin).div_euclid(step))
        } else {
            (ceil_div(origin - 3, -step), origin.div_euclid(-step))
        };
        let first = low.max(0);
        let count = (high.min(len as isize - 1) - first + 1).max(0);
        Window { first: first as usize, count: count as usize, tap: origin + first * step, step }
    }

    #[inline(always)]
    fn weight(&self, i: usize, weights: &[f32; 4]) -> f32 {
        weights[(self.tap + i as isize * self.step) as usize]
    }
}

fn ceil_div(a: isize, b: isize) -> isize {
    -(-a).div_euclid(b)
}

/// One direction of a method: the four weights, and each output's window.
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

    /// What output `o` gathers from an axis of `len` inputs.
    #[inline(always)]
    fn window(&self, o: usize, len: usize) -> Window {
        match (self.method, self.backward) {
            (Method::Nearest { factor }, false) => Window::uniform(o / factor, 1),
            (Method::Nearest { factor }, true) => Window::uniform(o * factor, factor),
            (Method::AveragePool { factor }, false) => Window::uniform(o * factor, factor),
            (Method::AveragePool { factor }, true) => {
                // Nothing reaches the remainder that pooling dropped.
                let from = o / factor;
                Window::uniform(from, usize::from(from < len))
            }
            // Output o meets input i at tap k = i up + pad - o down.
            (Method::Fir { up, down, pad, .. }, false) => {
                Window::of_taps(pad[0] as isize - (o * down) as isize, up as isize, len)
            }
            (Method::Fir { up, down, pad, .. }, true) => {
                Window::of_taps((o * up + pad[0]) as isize, -(down as isize), len)
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
    let isa = Isa::detect();
    let parts = Parts::new(y);
    pool.run(n * oh, &|task| {
        let image = &x[task / oh * h * w * c..][..h * w * c];
        // SAFETY: the output row is this task's own.
        let y = unsafe { parts.part(task * ow * c, ow * c) };
        row(isa, gather, image, w, c, gather.window(task % oh, h), y, mode);
    });
}

multiversion! {
    fn row(
        isa: Isa, gather: Gather, image: &[f32], w: usize, c: usize, rows: Window,
        y: &mut [f32], mode: Mode,
    ) {
        let weights = gather.weights();
        for (o, y) in y.chunks_exact_mut(c).enumerate() {
            let columns = gather.window(o, w);
            let mut empty = mode == Mode::Write;
            for i in 0..rows.count {
                for j in 0..columns.count {
                    let weight = rows.weight(i, &weights) * columns.weight(j, &weights);
                    let at = ((rows.first + i) * w + columns.first + j) * c;
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
