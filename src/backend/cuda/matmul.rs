//! Linear layers on CUDA: a convolution whose images are single pixels.

use super::arguments::Call;
use super::conv2d::{self, Arithmetic};
use super::linear;
use crate::error::Result;
use crate::ops::conv2d::Conv2d;
use crate::ops::linear::{GATE, Linear};

/// The linear layer as a convolution.
fn as_convolution(op: &Linear) -> Conv2d {
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

/// y from x, the weight, and optionally bias, per-row and residual terms, or more that
/// follows.
pub(super) fn forward(op: &Linear, call: &Call) -> Result<()> {
    if op.activation.is_some() || call.shape(GATE).is_some() {
        return linear::finished(op, call);
    }
    conv2d::forward(&as_convolution(op), call)
}

/// d_x from d_y and the weight.
pub(super) fn backward_data(op: &Linear, call: &Call) -> Result<()> {
    conv2d::backward_data(&as_convolution(op), call)
}

/// d_weight and d_bias from x and d_y.
pub(super) fn backward_weight(op: &Linear, call: &Call) -> Result<()> {
    conv2d::backward_weight(&as_convolution(op), call)
}

/// Parts in which the weight gradient's sums over the rows are added up.
pub(super) fn backward_weight_lanes(op: &Linear, arithmetic: Arithmetic) -> usize {
    conv2d::backward_weight_lanes(&as_convolution(op), arithmetic)
}

/// Floats of scratch memory of the weight gradient; the other passes need none.
pub(super) fn backward_weight_workspace_len(op: &Linear, arithmetic: Arithmetic) -> usize {
    conv2d::backward_weight_workspace_len(&as_convolution(op), arithmetic)
}
