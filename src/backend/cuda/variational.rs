//! Launches of `kernels/variational.cu`.

use super::arguments::{Call, groups};
use super::entries::{VARIATIONAL_BACKWARD_F32, VARIATIONAL_FORWARD_F32, params};
use crate::error::Result;
use crate::ops::variational::Variational;

fn operands(op: &Variational, call: &Call) -> params::Variational {
    let (out, add) = call.required(0);
    params::Variational {
        out,
        prediction: call.input(0),
        x0: call.input(1),
        coefficients: call.input(2),
        keys: call.input_u32(3),
        len: op.len as i64,
        channels: op.channels as i32,
        learned: u32::from(op.learned),
        hold_mean: u32::from(op.hold_mean),
        half_bin: op.half_bin,
        scale: op.scale,
        add,
    }
}

pub(super) fn variational(op: &Variational, call: &Call) -> Result<()> {
    call.launch(&VARIATIONAL_FORWARD_F32, [op.n, 1, 1], 0, &operands(op, call))
}

pub(super) fn variational_backward(op: &Variational, call: &Call) -> Result<()> {
    let entry = &VARIATIONAL_BACKWARD_F32;
    call.launch(entry, groups(entry, op.len, op.n), 0, &operands(op, call))
}
