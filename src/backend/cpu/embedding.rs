//! Embeddings of time and class. Sines are taken in f64 and rounded once: at
//! t = 1000 an argument in f32 would already be wrong by 3e-5.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use super::pointwise::{Output, for_chunks};
use super::pool::{Parts, Pool};
use crate::error::Result;
use crate::ops::embedding::{Fourier, Lookup, Sinusoidal};
use crate::plan::Mode;

fn put(y: &mut f32, v: f32, mode: Mode) {
    match mode {
        Mode::Write => *y = v,
        Mode::Add => *y += v,
    }
}

/// `[sin p_i, cos p_i]`, swapped when `flip`, zeros in what is left.
fn waves(y: &mut [f32], half: usize, flip: bool, mode: Mode, phase: impl Fn(usize) -> f64) {
    let (sine_at, cosine_at) = if flip { (half, 0) } else { (0, half) };
    for i in 0..half {
        let (sine, cosine) = phase(i).sin_cos();
        put(&mut y[sine_at + i], sine as f32, mode);
        put(&mut y[cosine_at + i], cosine as f32, mode);
    }
    for y in &mut y[2 * half..] {
        put(y, 0.0, mode);
    }
}

/// Sinusoidal embedding; see [`Sinusoidal`].
pub fn sinusoidal(pool: &Pool, op: &Sinusoidal, t: &[f32], (y, mode): Output) {
    let half = op.dim / 2;
    let step = -f64::from(op.max_period).ln() / (half as f64 - f64::from(op.freq_shift));
    for_chunks(pool, y, op.dim, |from, y| {
        let t = f64::from(t[from / op.dim]);
        waves(y, half, op.flip, mode, |i| t * (step * i as f64).exp());
    });
}

/// Fourier embedding; see [`Fourier`].
pub fn fourier(pool: &Pool, op: &Fourier, t: &[f32], w: &[f32], (y, mode): Output) {
    let dim = 2 * op.half;
    for_chunks(pool, y, dim, |from, y| {
        let t = f64::from(t[from / dim]);
        let t = std::f64::consts::TAU * if op.log { t.ln() } else { t };
        waves(y, op.half, op.flip, mode, |i| t * f64::from(w[i]));
    });
}

/// `y[n] = table[index[n]]`. An index outside the table is an error.
pub fn lookup(pool: &Pool, op: &Lookup, table: &[f32], index: &[u32], y: Output) -> Result<()> {
    op.check(index)?;
    let (y, mode) = y;
    for_chunks(pool, y, op.dim, |from, y| {
        let row = index[from / op.dim] as usize * op.dim;
        y.iter_mut().zip(&table[row..row + op.dim]).for_each(|(y, &v)| put(y, v, mode));
    });
    Ok(())
}

/// `d_table[r] = sum of d_y[n] over the images n with index r`, in their order.
pub fn lookup_backward(
    pool: &Pool,
    op: &Lookup,
    index: &[u32],
    d_y: &[f32],
    (d_table, mode): Output,
) -> Result<()> {
    op.check(index)?;
    // A task takes some columns of all rows, and so sees every image once.
    let width = 64.min(op.dim);
    let parts = Parts::new(d_table);
    pool.run(op.dim.div_ceil(width), &|task| {
        let from = task * width;
        let width = width.min(op.dim - from);
        // SAFETY: the columns of a task are its own; one part is alive at a time.
        let row = |r: usize| unsafe { parts.part(r * op.dim + from, width) };
        if mode == Mode::Write {
            (0..op.rows).for_each(|r| row(r).fill(0.0));
        }
        for (image, &r) in index.iter().enumerate() {
            let d_y = &d_y[image * op.dim + from..][..width];
            row(r as usize).iter_mut().zip(d_y).for_each(|(d, &g)| *d += g);
        }
    });
    Ok(())
}
