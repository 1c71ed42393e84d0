//! Launches of `kernels/loss.cu`.

use super::arguments::{Call, for_type, groups};
use super::entries::{
    LOSS_BACKWARD_BF16, LOSS_BACKWARD_F32, LOSS_FORWARD_BF16, LOSS_FORWARD_F32, params,
};
use super::noising::images;
use crate::error::Result;
use crate::ops::loss::Loss;
use crate::plan::DType;

/// With an output of that type.
fn operands(op: &Loss, call: &Call, dtype: DType) -> params::Loss {
    let (out, add) = call.required_as(0, dtype);
    params::Loss {
        out,
        prediction: call.input_as(0, call.dtype(0)),
        images: images(call, op.pick, 1, 4),
        coefficients: call.input(2),
        keys: call.optional_u32(3),
        len: op.len as i64,
        scale: op.scale,
        add,
    }
}

pub(super) fn loss(op: &Loss, call: &Call) -> Result<()> {
    let entry = for_type(call.dtype(0), &LOSS_FORWARD_F32, &LOSS_FORWARD_BF16);
    call.launch(entry, [op.n, 1, 1], 0, &operands(op, call, DType::F32))
}

pub(super) fn loss_backward(op: &Loss, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let entry = for_type(dtype, &LOSS_BACKWARD_F32, &LOSS_BACKWARD_BF16);
    call.launch(entry, groups(entry, op.len, op.n), 0, &operands(op, call, dtype))
}
