//! What a plan's convolution nodes call.

use super::super::arguments::Call;
use super::layer::{GatherOperands, Layer, OuterOperands, Pass};
use super::{Arithmetic, Source};
use crate::backend::Precision;
use crate::error::Result;
use crate::ops::conv2d::{Conv2d, PER_IMAGE, RESIDUAL, SECOND};
use crate::plan::DType;

/// What a node computes with, by the type of its tensors and the program's precision.
pub(in crate::backend::cuda) fn arithmetic(dtype: DType, precision: Precision) -> Arithmetic {
    match (dtype, precision) {
        (DType::BF16, _) => Arithmetic::Bf16,
        (_, Precision::Tf32) => Arithmetic::Tf32,
        _ => Arithmetic::F32,
    }
}

fn layer(op: &Conv2d, arithmetic: Arithmetic) -> Layer {
    Layer { arithmetic, ..Layer::plain(op) }
}

/// Where x comes from, by the shapes of what the node reads.
fn source(op: &Conv2d, call: &Call) -> Source {
    let channels = |shape: &[usize]| shape.last().copied().unwrap_or(1);
    let second_channels = call.shape(SECOND).map_or(0, channels);
    let x_len: usize = call.shape(0).map_or(1, |shape| shape.iter().product());
    let pixels = x_len / (op.c_in - second_channels);
    Source { second_channels, enlarge: (op.n * op.h * op.w / pixels).ilog2() / 2 }
}

/// Floats of scratch memory of the forward pass.
pub(in crate::backend::cuda) fn forward_workspace_len(op: &Conv2d, a: Arithmetic) -> usize {
    layer(op, a).gather_workspace_len(Pass::Forward)
}

/// Floats of scratch memory of the backward pass to the data.
pub(in crate::backend::cuda) fn backward_data_workspace_len(op: &Conv2d, a: Arithmetic) -> usize {
    layer(op, a).gather_workspace_len(Pass::BackwardData)
}

/// Parts in which the weight gradient's sums over the pixels are added up, in order.
pub(in crate::backend::cuda) fn backward_weight_lanes(op: &Conv2d, a: Arithmetic) -> usize {
    layer(op, a).outer().lanes
}

/// Floats of scratch memory of the weight gradient.
pub(in crate::backend::cuda) fn backward_weight_workspace_len(op: &Conv2d, a: Arithmetic) -> usize {
    layer(op, a).outer_workspace_len()
}

fn gather_node(op: &Conv2d, call: &Call, pass: Pass) -> Result<()> {
    let dtype = call.dtype(0);
    let of_forward = |i| match pass {
        Pass::Forward => call.optional_as(i, dtype).cast(),
        Pass::BackwardData => std::ptr::null(),
    };
    let (y, add) = call.required_as(0, dtype);
    let operands = GatherOperands {
        y: y.cast(),
        workspace: call.workspace(),
        counters: call.counters(),
        x: call.input_as(0, dtype).cast(),
        x2: of_forward(SECOND),
        weight: call.input_as(1, dtype).cast(),
        bias: if pass == Pass::Forward { call.optional(2) } else { std::ptr::null() },
        per_image: of_forward(PER_IMAGE),
        residual: of_forward(RESIDUAL),
        add: add == 1,
    };
    let mut layer = layer(op, arithmetic(dtype, call.precision()));
    if pass == Pass::Forward {
        layer.source = source(op, call);
    }
    layer.launch_gather(pass, &operands, &mut |launch| launch.by(call))
}

/// y from x, the weight, and optionally bias, per-image and residual terms.
pub(in crate::backend::cuda) fn forward(op: &Conv2d, call: &Call) -> Result<()> {
    gather_node(op, call, Pass::Forward)
}

/// d_x from d_y and the weight.
pub(in crate::backend::cuda) fn backward_data(op: &Conv2d, call: &Call) -> Result<()> {
    gather_node(op, call, Pass::BackwardData)
}

/// f32 d_weight and d_bias from x and d_y.
pub(in crate::backend::cuda) fn backward_weight(op: &Conv2d, call: &Call) -> Result<()> {
    let (d_weight, add) = call.output(0).unwrap_or((std::ptr::null_mut(), 0));
    let (d_bias, add_bias) = call.output(1).unwrap_or((std::ptr::null_mut(), 0));
    let dtype = call.dtype(0);
    let operands = OuterOperands {
        d_weight,
        d_bias,
        workspace: call.workspace(),
        counters: call.counters(),
        x: call.input_as(0, dtype).cast(),
        x2: call.optional_as(SECOND, dtype).cast(),
        d_y: call.input_as(1, dtype).cast(),
        add: add == 1,
        add_bias: add_bias == 1,
    };
    let mut layer = layer(op, arithmetic(dtype, call.precision()));
    layer.source = source(op, call);
    layer.launch_outer(&operands, &mut |launch| launch.by(call))
}
