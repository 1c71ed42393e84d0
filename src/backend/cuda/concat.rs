//! Launches of `kernels/concat.cu`.

use super::arguments::{Call, groups};
use super::entries::{CONCAT_BACKWARD_F32, CONCAT_FORWARD_F32, params};
use crate::error::Result;
use crate::ops::concat::Concat;

pub(super) fn concat(op: &Concat, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let params = params::Concat {
        y,
        a: call.input(0),
        b: call.input(1),
        rows: op.rows as i64,
        c_a: op.c_a as u32,
        c_b: op.c_b as u32,
        add,
    };
    let entry = &CONCAT_FORWARD_F32;
    call.launch(entry, groups(entry, op.rows * (op.c_a + op.c_b), 1), 0, &params)
}

pub(super) fn concat_backward(op: &Concat, call: &Call) -> Result<()> {
    let entry = &CONCAT_BACKWARD_F32;
    for (i, (from, width)) in [(0, op.c_a), (op.c_a, op.c_b)].into_iter().enumerate() {
        let Some((d, add)) = call.output(i) else { continue };
        let params = params::ConcatBackward {
            d,
            d_y: call.input(0),
            rows: op.rows as i64,
            width: width as u32,
            from: from as u32,
            channels: (op.c_a + op.c_b) as u32,
            add,
        };
        call.launch(entry, groups(entry, op.rows * width, 1), 0, &params)?;
    }
    Ok(())
}
