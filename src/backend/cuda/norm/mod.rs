//! Launches of norms: `kernels/norm_group.cu` and `norm_layer.cu` in f32 ([`exact`]),
//! `norm_group_half.cu`, `norm_small_half.cu` and `norm_layer_half.cu` in bf16 ([`half`]).
//! One a node.
//!
//! A group norm's x may lie in two tensors, side by side in channels, so that their
//! concatenation need not be formed: [`X2`], [`BACKWARD_X2`] and [`D_X2`] are the positions
//! of the second among a node's operands, behind those of
//! [`Norm`](crate::ops::norm::Norm). What other readers of the concatenation left in one
//! gradient may be added to both: [`JOINED`].

mod exact;
mod half;

use super::arguments::Call;
use super::device::COUNTERS;
use super::entries::{Entry, params};
use super::pointwise::activation_code;
use crate::error::{Error, Result};
use crate::ops::norm::{Domain, Norm};
use crate::plan::DType;

/// Position of the channels of x that lie in a second tensor, among the inputs of `Norm`.
pub(crate) const X2: usize = 4;

/// The same among the inputs of `NormBackward`.
pub(crate) const BACKWARD_X2: usize = 7;

/// Their gradient, among the outputs of `NormBackward`.
pub(crate) const D_X2: usize = 4;

/// Position of a gradient of all channels that d_x and d_x2 are to contain too, among the
/// inputs of `NormBackward`.
pub(crate) const JOINED: usize = 8;

/// Images that the last blocks of a layer norm add up at once, as in norm.cuh.
const CLASSES: usize = 16;

/// How a group norm is cut, from the shape of one image alone.
struct Slices {
    /// Channels of one access of 16 bytes, or 1 where the shape forbids them.
    lanes: usize,
    /// Channels of a block: whole groups.
    slice: usize,
    /// Blocks of an image.
    blocks: usize,
}

/// Channels of the second tensor at an input's position.
fn x2_channels(op: &Norm, call: &Call, position: usize) -> usize {
    call.elements(position) / (op.n * op.spatial).max(1)
}

/// Groups of an image; 0 of a layer norm.
fn groups(op: &Norm) -> usize {
    match op.domain {
        Domain::Group(groups) => groups,
        Domain::Layer => 0,
    }
}

/// Parts of an image whose sums P and Q the last blocks add up.
fn parts(op: &Norm, dtype: DType) -> usize {
    let positions = match op.domain {
        Domain::Group(_) => return 1,
        Domain::Layer if dtype == DType::BF16 => half::BACKWARD_POSITIONS,
        Domain::Layer => exact::BACKWARD_POSITIONS,
    };
    op.spatial.div_ceil(positions)
}

pub(super) fn norm(op: &Norm, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Norm {
        y,
        mean: call.written(1),
        rstd: call.written(2),
        x: call.input_as(0, dtype),
        x2: call.optional_as(X2, dtype),
        gamma: call.optional(1),
        beta: call.optional(2),
        scale_shift: call.optional_as(3, dtype),
        spatial: op.spatial as i64,
        n: op.n as i32,
        channels: op.channels as i32,
        x2_channels: x2_channels(op, call, X2) as i32,
        groups: groups(op) as i32,
        slice: 0,
        kept: 0,
        eps: op.eps,
        activation: activation_code(op.activation),
        add,
    };
    match dtype {
        DType::BF16 => half::forward(op, call, params),
        _ => exact::forward(op, call, params),
    }
}

/// P and Q of each part of an image, and of classes of images.
pub(super) fn backward_workspace_len(op: &Norm, dtype: DType) -> usize {
    let classes = if op.domain == Domain::Layer { CLASSES } else { 0 };
    2 * (op.n * parts(op, dtype) + classes) * op.channels
}

pub(super) fn norm_backward(op: &Norm, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let none = (std::ptr::null_mut(), 0);
    let output = |i| call.output_as(i, dtype).unwrap_or(none);
    let [(d_x, add), (d_x2, add2), (d_scale_shift, add_scale_shift)] = [0, D_X2, 3].map(output);
    let [(d_gamma, add_gamma), (d_beta, add_beta)] =
        [1, 2].map(|i| call.output(i).unwrap_or((std::ptr::null_mut(), 0)));
    let of_vectors = [d_gamma.cast(), d_beta.cast(), d_scale_shift].iter().any(|d| !d.is_null());
    let params = params::NormBackward {
        d_x,
        d_x2,
        d_gamma,
        d_beta,
        d_scale_shift,
        sums: if of_vectors { call.workspace() } else { std::ptr::null_mut() },
        counters: call.counters(),
        x: call.input_as(0, dtype),
        x2: call.optional_as(BACKWARD_X2, dtype),
        gamma: call.optional(1),
        beta: call.optional(2),
        scale_shift: call.optional_as(3, dtype),
        mean: call.input(4),
        rstd: call.input(5),
        d_y: call.input_as(6, dtype),
        joined: call.optional_as(JOINED, dtype),
        spatial: op.spatial as i64,
        n: op.n as i32,
        channels: op.channels as i32,
        x2_channels: x2_channels(op, call, BACKWARD_X2) as i32,
        groups: groups(op) as i32,
        slice: 0,
        kept: 0,
        activation: activation_code(op.activation),
        add,
        add2,
        add_gamma,
        add_beta,
        add_scale_shift,
    };
    match dtype {
        DType::BF16 => half::backward(op, call, params),
        _ => exact::backward(op, call, params),
    }
}

/// Launches a group norm: `rows` blocks a slice, which has a counter for its backward pass.
fn launch_slices<P>(
    call: &Call,
    entry: &Entry<P>,
    [slices, rows]: [usize; 2],
    shared_bytes: u32,
    params: &P,
) -> Result<()> {
    if slices > COUNTERS {
        let problem = format!("{slices} slices of channels are more than {COUNTERS}");
        return Err(Error::Launch { op: call.node().op.name(), kernel: entry.name, problem });
    }
    call.launch(entry, [slices, rows, 1], shared_bytes, params)
}
