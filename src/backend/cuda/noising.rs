//! Launches of `kernels/noising.cu`.

use super::arguments::{Call, groups};
use super::entries::{NOISING_F32, params};
use crate::error::Result;
use crate::ops::noising::Noising;

pub(super) fn noising(op: &Noising, call: &Call) -> Result<()> {
    let (x_t, add) = call.required(0);
    let params = params::Noising {
        x_t,
        x0: call.input(0),
        coefficients: call.input(1),
        keys: call.input_u32(2),
        len: op.len as i64,
        add,
    };
    call.launch(&NOISING_F32, groups(&NOISING_F32, op.len, op.n), 0, &params)
}
