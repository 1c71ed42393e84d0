//! Launches of norms: `kernels/norm.cu` in f32 ([`exact`]), `kernels/norm_group_half.cu` and
//! `norm_layer_half.cu` in bf16 ([`half`]).
//!
//! A group norm's x may lie in two tensors, side by side in channels, so that their
//! concatenation need not be formed: [`X2`], [`BACKWARD_X2`] and [`D_X2`] are the positions
//! of the second among a node's operands, behind those of
//! [`Norm`](crate::ops::norm::Norm). What other readers of the concatenation left in one
//! gradient may be added to both: [`JOINED`].

mod exact;
mod half;

use super::arguments::Call;
use crate::error::Result;
use crate::ops::norm::Norm;
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

/// Channels of the second tensor at an input's position.
fn x2_channels(op: &Norm, call: &Call, position: usize) -> usize {
    call.elements(position) / (op.n * op.spatial).max(1)
}

pub(super) fn norm(op: &Norm, call: &Call) -> Result<()> {
    match call.dtype(0) {
        DType::BF16 => half::forward(op, call),
        _ => exact::forward(op, call),
    }
}

/// P and Q, of each part of an image.
pub(super) fn backward_workspace_len(op: &Norm, dtype: DType) -> usize {
    let parts = if dtype == DType::BF16 { half::parts(op) } else { 1 };
    2 * op.n * parts * op.channels
}

pub(super) fn norm_backward(op: &Norm, call: &Call) -> Result<()> {
    match call.dtype(0) {
        DType::BF16 => half::backward(op, call),
        _ => exact::backward(op, call),
    }
}
