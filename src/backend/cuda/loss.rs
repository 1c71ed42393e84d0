//! Launches of `kernels/loss.cu`.

use super::arguments::{Call, groups};
use super::entries::{LOSS_BACKWARD_F32, LOSS_FORWARD_F32, params};
use super::noising::images;
use crate::error::Result;
use crate::ops::loss::Loss;

fn operands(op: &Loss, call: &Call) -> params::Loss {
    let (out, add) = call.required(0);
    params::Loss {
        out,
        prediction: call.input(0),
        images: images(call, op.pick, 1, 4),
        coefficients: call.input(2),
        keys: call.optional_u32(3),
        len: op.len as i64,
        scale: op.scale,
        add,
    }
}

pub(super) fn loss(op: &Loss, call: &Call) -> Result<()> {
    call.launch(&LOSS_FORWARD_F32, [op.n, 1, 1], 0, &operands(op, call))
}

pub(super) fn loss_backward(op: &Loss, call: &Call) -> Result<()> {
    let entry = &LOSS_BACKWARD_F32;
    call.launch(entry, groups(entry, op.len, op.n), 0, &operands(op, call))
}
