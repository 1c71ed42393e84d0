//! Launches of `kernels/cast.cu`.

use super::arguments::{Call, groups};
use super::entries::{CAST_TO_BF16, CAST_TO_F32, params};
use crate::error::Result;
use crate::ops::cast::Cast;
use crate::plan::DType;

pub(super) fn cast(op: &Cast, call: &Call) -> Result<()> {
    let (from, to, entry) = match call.dtype(0) {
        DType::BF16 => (DType::BF16, DType::F32, &CAST_TO_F32),
        _ => (DType::F32, DType::BF16, &CAST_TO_BF16),
    };
    let (y, add) = call.required_as(0, to);
    let params = params::Cast { y, x: call.input_as(0, from), len: op.len as i64, add };
    call.launch(entry, groups(entry, op.len, 1), 0, &params)
}
