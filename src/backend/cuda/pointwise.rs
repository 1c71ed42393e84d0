//! Launches of `kernels/pointwise.cu`.

use super::arguments::{Call, groups};
use super::entries::{
    ACTIVATE_BACKWARD_F32, ACTIVATE_FORWARD_F32, ADD_F32, SCALE_F32, SCALE_ROWS_F32, params,
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
    let (y, add) = call.required(0);
    let params = params::Activate {
        y,
        x: call.input(0),
        d_y: std::ptr::null(),
        len: op.len as i64,
        activation: activation_code(Some(op.activation)),
        add,
    };
    let entry = &ACTIVATE_FORWARD_F32;
    call.launch(entry, groups(entry, op.len, 1), 0, &params)
}

pub(super) fn activate_backward(op: &Activate, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let params = params::Activate {
        y,
        x: call.input(0),
        d_y: call.input(1),
        len: op.len as i64,
        activation: activation_code(Some(op.activation)),
        add,
    };
    let entry = &ACTIVATE_BACKWARD_F32;
    call.launch(entry, groups(entry, op.len, 1), 0, &params)
}

pub(super) fn add(op: &Add, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let (a, b) = (call.input(0), call.input(1));
    let params = params::Add { y, a, b, len: op.len as i64, scale: op.scale, add };
    call.launch(&ADD_F32, groups(&ADD_F32, op.len, 1), 0, &params)
}

pub(super) fn scale(op: &Scale, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let (x, len) = (call.input(0), op.len as i64);
    let params = params::Scale { y, x, len, scale: op.scale, offset: op.offset, add };
    call.launch(&SCALE_F32, groups(&SCALE_F32, op.len, 1), 0, &params)
}

pub(super) fn scale_rows(op: &ScaleRows, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let params = params::ScaleRows {
        y,
        x: call.input(0),
        s: call.input(1),
        len: op.len as i64,
        columns: op.columns as u32,
        column: op.column as u32,
        divide: u32::from(op.divide),
        add,
    };
    call.launch(&SCALE_ROWS_F32, groups(&SCALE_ROWS_F32, op.len, op.n), 0, &params)
}
