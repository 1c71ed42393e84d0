//! Launches of `kernels/dropout.cu`.

use super::arguments::{Call, groups};
use super::entries::{DROPOUT_F32, params};
use crate::error::Result;
use crate::ops::dropout::Dropout;

pub(super) fn dropout(op: &Dropout, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let params = params::Dropout {
        y,
        x: call.input(0),
        keys: call.input_u32(1),
        len: op.len as i64,
        threshold: op.threshold(),
        layer: op.layer,
        scale: op.scale(),
        add,
    };
    call.launch(&DROPOUT_F32, groups(&DROPOUT_F32, op.len, op.n), 0, &params)
}
