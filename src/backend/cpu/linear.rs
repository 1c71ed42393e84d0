//! Linear layers on the CPU: a convolution whose images are single pixels, with
//! the same micro-kernels. A row's result has the same bits whatever the number
//! of rows; with few rows the pass is a single sweep over the packed weight. An activation
//! and a gate are a second sweep, over the result.

use super::conv2d::{self, Epilogue};
use super::isa::{Isa, multiversion};
use super::math::{Function, with_function};
use super::pointwise::for_chunks;
use super::pool::Pool;
use crate::ops::conv2d::Conv2d;
use crate::ops::linear::Linear;
use crate::ops::pointwise::Activation;
use crate::plan::Mode;

/// Elements of a task that finishes results.
const CHUNK: usize = 8192;

/// What follows a layer: `residual + gate * activation(x w^T + bias + per_image)`.
pub struct Finish<'a> {
    /// `[n, out]`; a row for every `rows / n` rows.
    pub gate: Option<&'a [f32]>,
    /// `per_image` is by row.
    pub epilogue: Epilogue<'a>,
}

/// The linear layer as a convolution.
pub fn as_convolution(op: &Linear) -> Conv2d {
    Conv2d {
        n: op.rows,
        h: 1,
        w: 1,
        c_in: op.c_in,
        c_out: op.c_out,
        kernel: [1, 1],
        options: Default::default(),
    }
}

/// `y = x weight^T` and what follows. x `[rows, in]`, `packed` as for
/// [`conv2d::forward`], y `[rows, out]`, which is not added to where an activation or a gate
/// follows.
#[allow(clippy::too_many_arguments)] // The operands of one equation.
pub fn forward(
    pool: &Pool,
    isa: Isa,
    op: &Linear,
    x: &[f32],
    packed: &[f32],
    finish: Finish,
    y: &mut [f32],
    mode: Mode,
) {
    let conv = as_convolution(op);
    let Finish { gate, epilogue } = finish;
    if op.activation.is_none() && gate.is_none() {
        return conv2d::forward(pool, isa, &conv, x, packed, epilogue, y, mode);
    }
    let residual = epilogue.residual;
    let first = Epilogue { residual: None, ..epilogue };
    conv2d::forward(pool, isa, &conv, x, packed, first, y, Mode::Write);
    let c = op.c_out;
    // Rows of a gate's row.
    let shared = gate.map_or(1, |gate| op.rows * c / gate.len().max(1));
    for_chunks(pool, y, CHUNK.div_ceil(c) * c, |from, y| {
        for (r, y) in y.chunks_exact_mut(c).enumerate() {
            let row = from / c + r;
            let gate = gate.map(|gate| &gate[row / shared * c..][..c]);
            let residual = residual.map(|residual| &residual[row * c..][..c]);
            finish_row(isa, op.activation, gate, residual, y);
        }
    });
}

#[inline(always)]
fn finish_row_as<F: Function>(gate: Option<&[f32]>, residual: Option<&[f32]>, y: &mut [f32]) {
    y.iter_mut().for_each(|y| *y = F::value(*y));
    if let Some(gate) = gate {
        y.iter_mut().zip(gate).for_each(|(y, g)| *y *= g);
    }
    if let Some(residual) = residual {
        y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
    }
}

multiversion! {
    fn finish_row(
        isa: Isa,
        activation: Option<Activation>,
        gate: Option<&[f32]>,
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) {
        with_function!(activation, F => finish_row_as::<F>(gate, residual, y));
    }
}

/// `d_x = d_y weight`. d_y `[rows, out]`, `packed` as for
/// [`conv2d::backward_data`], d_x `[rows, in]`.
pub fn backward_data(
    pool: &Pool,
    isa: Isa,
    op: &Linear,
    d_y: &[f32],
    packed: &[f32],
    d_x: &mut [f32],
    mode: Mode,
) {
    conv2d::backward_data(pool, isa, &as_convolution(op), d_y, packed, d_x, mode);
}

/// `d_weight = d_y^T x`, `d_bias = sum of the rows of d_y`; workspace as for
/// [`conv2d::backward_weight`].
#[allow(clippy::too_many_arguments)] // The operands of one equation.
pub fn backward_weight(
    pool: &Pool,
    isa: Isa,
    op: &Linear,
    x: &[f32],
    d_y: &[f32],
    d_weight: Option<(&mut [f32], Mode)>,
    d_bias: Option<(&mut [f32], Mode)>,
    workspace: &mut [f32],
) {
    let op = as_convolution(op);
    conv2d::backward_weight(pool, isa, &op, x, d_y, d_weight, d_bias, workspace);
}
