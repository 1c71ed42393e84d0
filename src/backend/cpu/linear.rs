//! Linear layers on the CPU: a convolution whose images are single pixels, with
//! the same micro-kernels. A row's result has the same bits whatever the number
//! of rows; with few rows the pass is a single sweep over the packed weight.

use super::conv2d::{self, Epilogue};
use super::isa::Isa;
use super::pool::Pool;
use crate::ops::conv2d::Conv2d;
use crate::ops::linear::Linear;
use crate::plan::Mode;

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

/// `y = x weight^T + epilogue`. x `[rows, in]`, `packed` as for
/// [`conv2d::forward`], y `[rows, out]`; `per_image` of the epilogue is by row.
#[allow(clippy::too_many_arguments)] // The operands of one equation.
pub fn forward(
    pool: &Pool,
    isa: Isa,
    op: &Linear,
    x: &[f32],
    packed: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
    mode: Mode,
) {
    conv2d::forward(pool, isa, &as_convolution(op), x, packed, epilogue, y, mode);
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
