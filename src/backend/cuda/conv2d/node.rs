//! What a plan's convolution nodes call.

use super::super::arguments::Call;
use super::layer::{GatherOperands, Layer, OuterOperands, Pass};
use crate::error::Result;
use crate::ops::conv2d::{Conv2d, PER_IMAGE, RESIDUAL};

/// Floats of scratch memory of the forward pass.
pub(in crate::backend::cuda) fn forward_workspace_len(op: &Conv2d) -> usize {
    Layer::plain(op).gather_workspace_len(Pass::Forward)
}

/// Floats of scratch memory of the backward pass to the data.
pub(in crate::backend::cuda) fn backward_data_workspace_len(op: &Conv2d) -> usize {
    Layer::plain(op).gather_workspace_len(Pass::BackwardData)
}

/// Floats of scratch memory of the weight gradient.
pub(in crate::backend::cuda) fn backward_weight_workspace_len(op: &Conv2d) -> usize {
    Layer::plain(op).outer_workspace_len()
}

fn gather_node(op: &Conv2d, call: &Call, pass: Pass) -> Result<()> {
    let forward = pass == Pass::Forward;
    let optional = |i| if forward { call.optional(i) } else { std::ptr::null() };
    let (y, add) = call.required(0);
    let operands = GatherOperands {
        y,
        workspace: call.workspace(),
        x: call.input(0),
        x2: std::ptr::null(),
        weight: call.input(1),
        bias: optional(2),
        per_image: optional(PER_IMAGE),
        residual: optional(RESIDUAL),
        add: add == 1,
    };
    Layer::plain(op).launch_gather(pass, &operands, &mut |launch| launch.by(call))
}

/// y from x, the weight, and optionally bias, per-image and residual terms.
pub(in crate::backend::cuda) fn forward(op: &Conv2d, call: &Call) -> Result<()> {
    gather_node(op, call, Pass::Forward)
}

/// d_x from d_y and the weight.
pub(in crate::backend::cuda) fn backward_data(op: &Conv2d, call: &Call) -> Result<()> {
    gather_node(op, call, Pass::BackwardData)
}

/// d_weight and d_bias from x and d_y.
pub(in crate::backend::cuda) fn backward_weight(op: &Conv2d, call: &Call) -> Result<()> {
    let (d_weight, add) = call.output(0).unwrap_or((std::ptr::null_mut(), 0));
    let (d_bias, add_bias) = call.output(1).unwrap_or((std::ptr::null_mut(), 0));
    let operands = OuterOperands {
        d_weight,
        d_bias,
        workspace: call.workspace(),
        x: call.input(0),
        x2: std::ptr::null(),
        d_y: call.input(1),
        add: add == 1,
        add_bias: add_bias == 1,
    };
    Layer::plain(op).launch_outer(&operands, &mut |launch| launch.by(call))
}
