//! Launches of `kernels/concat.cu`.

use super::arguments::{Call, each, for_type, packs};
use super::entries::{
    CONCAT_BACKWARD_BF16, CONCAT_BACKWARD_F32, CONCAT_FORWARD_BF16, CONCAT_FORWARD_F32, params,
};
use crate::error::Result;
use crate::ops::concat::Concat;

pub(super) fn concat(op: &Concat, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Concat {
        y,
        a: call.input_as(0, dtype),
        b: call.input_as(1, dtype),
        rows: op.rows as i64,
        c_a: op.c_a as u32,
        c_b: op.c_b as u32,
        add,
    };
    let entry = for_type(dtype, &CONCAT_FORWARD_F32, &CONCAT_FORWARD_BF16);
    let len = op.rows * (op.c_a + op.c_b);
    call.launch(entry, packs(entry, each(dtype), len, 1), 0, &params)
}

pub(super) fn concat_backward(op: &Concat, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let entry = for_type(dtype, &CONCAT_BACKWARD_F32, &CONCAT_BACKWARD_BF16);
    for (i, (from, width)) in [(0, op.c_a), (op.c_a, op.c_b)].into_iter().enumerate() {
        let Some((d, add)) = call.output_as(i, dtype) else { continue };
        let params = params::ConcatBackward {
            d,
            d_y: call.input_as(0, dtype),
            rows: op.rows as i64,
            width: width as u32,
            from: from as u32,
            channels: (op.c_a + op.c_b) as u32,
            add,
        };
        call.launch(entry, packs(entry, each(dtype), op.rows * width, 1), 0, &params)?;
    }
    Ok(())
}
