//! Launches of `kernels/pointwise.cu`.

use super::arguments::{Call, each, for_type, packs};
use super::entries::{
    ACTIVATE_BACKWARD_BF16, ACTIVATE_BACKWARD_F32, ACTIVATE_FORWARD_BF16, ACTIVATE_FORWARD_F32,
    ADD_BF16, ADD_F32, SCALE_BF16, SCALE_F32, SCALE_ROWS_BF16, SCALE_ROWS_F32, params,
};
use crate::error::Result;
use crate::ops::pointwise::{Activate, Activation, Add, Scale, ScaleRows};

/// The kernels' number of an activation.
pub(super) fn activation_code(activation: Option<Activation>) -> u32 {
    match activation {
        None => params::ACTIVATION_NONE,
        Some(Activation::Silu) => params::ACTIVATION_SILU,
        Some(Activation::Gelu) => params::ACTIVATION_GELU,
        Some(Activation::GeluTanh) => params::ACTIVATION_GELU_TANH,
        Some(Activation::Relu) => params::ACTIVATION_RELU,
        Some(Activation::Mish) => params::ACTIVATION_MISH,
    }
}

pub(super) fn activate(op: &Activate, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Activate {
        y,
        x: call.input_as(0, dtype),
        d_y: std::ptr::null(),
        len: op.len as i64,
        activation: activation_code(Some(op.activation)),
        add,
    };
    let entry = for_type(dtype, &ACTIVATE_FORWARD_F32, &ACTIVATE_FORWARD_BF16);
    call.launch(entry, packs(entry, each(dtype), op.len, 1), 0, &params)
}

pub(super) fn activate_backward(op: &Activate, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Activate {
        y,
        x: call.input_as(0, dtype),
        d_y: call.input_as(1, dtype),
        len: op.len as i64,
        activation: activation_code(Some(op.activation)),
        add,
    };
    let entry = for_type(dtype, &ACTIVATE_BACKWARD_F32, &ACTIVATE_BACKWARD_BF16);
    call.launch(entry, packs(entry, each(dtype), op.len, 1), 0, &params)
}

pub(super) fn add(op: &Add, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let (a, b) = (call.input_as(0, dtype), call.input_as(1, dtype));
    let params = params::Add { y, a, b, len: op.len as i64, scale: op.scale, add };
    let entry = for_type(dtype, &ADD_F32, &ADD_BF16);
    call.launch(entry, packs(entry, each(dtype), op.len, 1), 0, &params)
}

pub(super) fn scale(op: &Scale, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let (x, len) = (call.input_as(0, dtype), op.len as i64);
    let params = params::Scale { y, x, len, scale: op.scale, offset: op.offset, add };
    let entry = for_type(dtype, &SCALE_F32, &SCALE_BF16);
    call.launch(entry, packs(entry, each(dtype), op.len, 1), 0, &params)
}

pub(super) fn scale_rows(op: &ScaleRows, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::ScaleRows {
        y,
        x: call.input_as(0, dtype),
        s: call.input(1),
        len: op.len as i64,
        columns: op.columns as u32,
        column: op.column as u32,
        divide: u32::from(op.divide),
        add,
    };
    let entry = for_type(dtype, &SCALE_ROWS_F32, &SCALE_ROWS_BF16);
    call.launch(entry, packs(entry, each(dtype), op.len, op.n), 0, &params)
}
