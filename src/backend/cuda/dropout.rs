//! Launches of `kernels/dropout.cu`.

use super::arguments::{Call, each, for_type, packs};
use super::entries::{DROPOUT_BF16, DROPOUT_F32, params};
use crate::error::Result;
use crate::ops::dropout::Dropout;

pub(super) fn dropout(op: &Dropout, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Dropout {
        y,
        x: call.input_as(0, dtype),
        keys: call.input_u32(1),
        len: op.len as i64,
        threshold: op.threshold(),
        layer: op.layer,
        scale: op.scale(),
        add,
    };
    let entry = for_type(dtype, &DROPOUT_F32, &DROPOUT_BF16);
    call.launch(entry, packs(entry, each(dtype), op.len, op.n), 0, &params)
}
