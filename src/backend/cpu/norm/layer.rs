//! Layer normalisation: a task takes rows.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use super::{Saved, image_maps, statistics};
use crate::backend::cpu::columns::{self, MAX_CHANNELS, block};
use crate::backend::cpu::isa::multiversion;
use crate::backend::cpu::math::{Function, with_function};
use crate::backend::cpu::pointwise::{Output, store};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::ops::norm::Norm;
use crate::plan::Mode;

/// Rows of a layer norm that one task takes: about 64 KiB of x.
fn rows_per_task(op: &Norm) -> usize {
    (16 * 1024 / op.channels.max(1)).max(1)
}

pub fn forward(
    pool: &Pool,
    op: &Norm,
    x: &[f32],
    (y, mode): Output,
    mean: &mut [f32],
    rstd: &mut [f32],
    maps: &[f32],
) {
    let isa = pool.isa();
    let (c, rows) = (op.channels, rows_per_task(op));
    let tasks = op.spatial.div_ceil(rows);
    let (y, means, rstds) = (Parts::new(y), Parts::new(mean), Parts::new(rstd));
    pool.run(op.n * tasks, &|task| {
        let (image, from) = (task / tasks, task % tasks * rows);
        let to = (from + rows).min(op.spatial);
        let maps = image_maps(op, maps, image);
        for row in image * op.spatial + from..image * op.spatial + to {
            let x = &x[row * c..(row + 1) * c];
            let centre = (row_sum(isa, x) / c as f64) as f32;
            let [first, second] = row_sums_centred(isa, x, centre).map(|sum| sum / c as f64);
            let (mean, low, rstd) = statistics(op, centre, first, second);
            // SAFETY: the rows of a task are its own.
            unsafe {
                means.part(row, 1)[0] = mean;
                rstds.part(row, 1)[0] = rstd;
            }
            // SAFETY: as above.
            let y = unsafe { y.part(row * c, c) };
            row_apply(isa, op, x, [mean, low, rstd], maps, y, mode);
        }
    });
}

#[inline(always)]
fn row_apply_as<F: Function, const ADD: bool>(
    x: &[f32],
    [mean, low, rstd]: [f32; 3],
    maps: [&[f32]; 2],
    y: &mut [f32],
) {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
        let xhat = ((x - mean) - low) * rstd;
        store::<ADD>(y, F::value(xhat.mul_add(gain[i], bias[i])));
    }
}

multiversion! {
    /// `y = f(xhat gain + bias)` for one position.
    fn row_apply(
        isa: Isa, op: &Norm, x: &[f32], statistics: [f32; 3], maps: [&[f32]; 2], y: &mut [f32],
        mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            Mode::Write => row_apply_as::<F, false>(x, statistics, maps, y),
            Mode::Add => row_apply_as::<F, true>(x, statistics, maps, y),
        });
    }
}

/// Lanes of a row's sum, fixed so that every path adds in the same order.
const LANES: usize = 32;

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f64 {
    lanes.iter().map(|&v| f64::from(v)).sum()
}

multiversion! {
    fn row_sum(isa: Isa, x: &[f32]) -> f64 {
        let mut lanes = [0f32; LANES];
        let blocks = x.chunks_exact(LANES);
        let rest = blocks.remainder();
        for x in blocks {
            let x: &[f32; LANES] = block(x, 0);
            for i in 0..LANES {
                lanes[i] += x[i];
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += x;
        }
        fold(lanes)
    }
}

multiversion! {
    /// Sums of `x - centre` and of its square.
    fn row_sums_centred(isa: Isa, x: &[f32], centre: f32) -> [f64; 2] {
        let (mut first, mut second) = ([0f32; LANES], [0f32; LANES]);
        let blocks = x.chunks_exact(LANES);
        let rest = blocks.remainder();
        for x in blocks {
            let x: &[f32; LANES] = block(x, 0);
            for i in 0..LANES {
                let d = x[i] - centre;
                first[i] += d;
                second[i] = d.mul_add(d, second[i]);
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            let d = x - centre;
            first[i] += d;
            second[i] = d.mul_add(d, second[i]);
        }
        [fold(first), fold(second)]
    }
}

/// P and Q of a layer norm, where mean and rstd belong to the position.
pub fn sums(
    pool: &Pool,
    op: &Norm,
    x: &[f32],
    saved: &Saved,
    maps: &[f32],
    p: &mut [f32],
    q: &mut [f32],
) {
    let isa = pool.isa();
    let (c, image_len) = (op.channels, op.spatial * op.channels);
    let width = columns::width(op.n, c, 1, op.spatial, 0, pool.threads());
    let tasks = c.div_ceil(width);
    let (ps, qs) = (Parts::new(p), Parts::new(q));
    pool.run(op.n * tasks, &|task| {
        let (image, from) = (task / tasks, task % tasks * width);
        let len = width.min(c - from);
        let maps = image_maps(op, maps, image).map(|m| &m[from..from + len]);
        let (mut p_total, mut q_total) = ([0f64; MAX_CHANNELS], [0f64; MAX_CHANNELS]);
        let (mut p, mut q) = ([0f32; MAX_CHANNELS], [0f32; MAX_CHANNELS]);
        for s in 0..op.spatial {
            let (row, at) = (image * op.spatial + s, image * image_len + s * c + from);
            let (x, d_y) = (&x[at..at + len], &saved.d_y[at..at + len]);
            let statistics = [saved.mean[row], saved.rstd[row]];
            add(isa, op, x, d_y, statistics, maps, [&mut p[..len], &mut q[..len]]);
            if (s + 1) % columns::CHUNK == 0 || s + 1 == op.spatial {
                for i in 0..len {
                    p_total[i] += f64::from(std::mem::take(&mut p[i]));
                    q_total[i] += f64::from(std::mem::take(&mut q[i]));
                }
            }
        }
        // SAFETY: the channels of a task are its own.
        let p = unsafe { ps.part(image * c + from, len) };
        // SAFETY: as above.
        let q = unsafe { qs.part(image * c + from, len) };
        p.iter_mut().zip(p_total).for_each(|(p, total)| *p = total as f32);
        q.iter_mut().zip(q_total).for_each(|(q, total)| *q = total as f32);
    });
}

#[inline(always)]
fn add_as<F: Function>(
    x: &[f32],
    d_y: &[f32],
    [mean, rstd]: [f32; 2],
    maps: [&[f32]; 2],
    [p, q]: [&mut [f32]; 2],
) {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    for (i, (((p, q), &x), &d_y)) in p.iter_mut().zip(q).zip(x).zip(d_y).enumerate() {
        let xhat = (x - mean) * rstd;
        let dv = d_y * F::slope(xhat.mul_add(gain[i], bias[i]));
        *p += dv;
        *q = dv.mul_add(xhat, *q);
    }
}

multiversion! {
    /// Adds one position to P and Q.
    fn add(
        isa: Isa, op: &Norm, x: &[f32], d_y: &[f32], statistics: [f32; 2], maps: [&[f32]; 2],
        sums: [&mut [f32]; 2],
    ) {
        with_function!(op.activation, F => add_as::<F>(x, d_y, statistics, maps, sums));
    }
}

pub fn backward(
    pool: &Pool,
    op: &Norm,
    x: &[f32],
    saved: &Saved,
    maps: &[f32],
    (d_x, mode): Output,
) {
    let isa = pool.isa();
    let (c, rows) = (op.channels, rows_per_task(op));
    let tasks = op.spatial.div_ceil(rows);
    let parts = Parts::new(d_x);
    pool.run(op.n * tasks, &|task| {
        let (image, first) = (task / tasks, task % tasks * rows);
        let last = (first + rows).min(op.spatial);
        let maps = image_maps(op, maps, image);
        for row in image * op.spatial + first..image * op.spatial + last {
            let statistics = [saved.mean[row], saved.rstd[row]];
            let (x, d_y) = (&x[row * c..(row + 1) * c], &saved.d_y[row * c..(row + 1) * c]);
            let sums = row_gradient_sums(isa, op, x, d_y, statistics, maps);
            let means = sums.map(|sum| (sum / c as f64) as f32);
            // SAFETY: the rows of a task are its own.
            let d_x = unsafe { parts.part(row * c, c) };
            row_d_x(isa, op, x, d_y, statistics, means, maps, d_x, mode);
        }
    });
}

#[inline(always)]
fn row_gradient_sums_as<F: Function>(
    x: &[f32],
    d_y: &[f32],
    [mean, rstd]: [f32; 2],
    maps: [&[f32]; 2],
) -> [f64; 2] {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    let (mut m1, mut m2) = ([0f32; LANES], [0f32; LANES]);
    let mut add = |lane: usize, i: usize| {
        let xhat = (x[i] - mean) * rstd;
        let d_xhat = d_y[i] * F::slope(xhat.mul_add(gain[i], bias[i])) * gain[i];
        m1[lane] += d_xhat;
        m2[lane] = d_xhat.mul_add(xhat, m2[lane]);
    };
    let whole = x.len() / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            add(lane, first + lane);
        }
    }
    for i in whole..x.len() {
        add(i - whole, i);
    }
    [fold(m1), fold(m2)]
}

multiversion! {
    /// Sums of d_xhat and of d_xhat xhat over channels of one position.
    fn row_gradient_sums(
        isa: Isa, op: &Norm, x: &[f32], d_y: &[f32], statistics: [f32; 2], maps: [&[f32]; 2],
    ) -> [f64; 2] {
        with_function!(op.activation, F => row_gradient_sums_as::<F>(x, d_y, statistics, maps))
    }
}

#[inline(always)]
fn row_d_x_as<F: Function, const ADD: bool>(
    x: &[f32],
    d_y: &[f32],
    [mean, rstd]: [f32; 2],
    [m1, m2]: [f32; 2],
    maps: [&[f32]; 2],
    d_x: &mut [f32],
) {
    let [gain, bias] = maps.map(|m| &m[..x.len()]);
    for (i, ((d_x, &x), &d_y)) in d_x.iter_mut().zip(x).zip(d_y).enumerate() {
        let xhat = (x - mean) * rstd;
        let dv = d_y * F::slope(xhat.mul_add(gain[i], bias[i]));
        store::<ADD>(d_x, rstd * (-xhat).mul_add(m2, dv.mul_add(gain[i], -m1)));
    }
}

multiversion! {
    fn row_d_x(
        isa: Isa, op: &Norm, x: &[f32], d_y: &[f32], statistics: [f32; 2], means: [f32; 2],
        maps: [&[f32]; 2], d_x: &mut [f32], mode: Mode,
    ) {
        with_function!(op.activation, F => match mode {
            Mode::Write => row_d_x_as::<F, false>(x, d_y, statistics, means, maps, d_x),
            Mode::Add => row_d_x_as::<F, true>(x, d_y, statistics, means, maps, d_x),
        });
    }
}
