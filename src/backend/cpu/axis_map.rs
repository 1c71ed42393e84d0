//! A matrix along one axis on the CPU; equation in [`crate::ops::axis_map`].

use super::isa::multiversion;
use super::pointwise::{Output, for_image_chunks};
use super::pool::Pool;
use crate::ops::axis_map::AxisMap;
use crate::plan::Mode;

/// `y[o, j, :] = sum_k m[j, k] x[o, k, :]`.
pub fn axis_map(pool: &Pool, op: &AxisMap, x: &[f32], matrix: &[f32], (y, mode): Output) {
    let (isa, AxisMap { outer, from, to, inner, .. }) = (pool.isa(), *op);
    // One task for one row of y: `for_image_chunks` with whole rows.
    for_image_chunks(pool, outer * to, inner, inner.max(1), y, |row, _, y| {
        let (o, j) = (row / to, row % to);
        if mode == Mode::Write {
            y.fill(0.0);
        }
        for k in 0..from {
            let c = matrix[op.entry(j, k)];
            if c != 0.0 {
                add_scaled(isa, c, &x[(o * from + k) * inner..][..inner], y);
            }
        }
    });
}

multiversion! {
    fn add_scaled(isa: Isa, c: f32, x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = c.mul_add(x, *y);
        }
    }
}
