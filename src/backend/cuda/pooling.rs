//! Launches of `kernels/pooling.cu`.

use super::arguments::{Call, groups};
use super::entries::{POOLING_BACKWARD_F32, POOLING_FORWARD_F32, params};
use crate::error::Result;
use crate::ops::pooling::{Pooling, Reduction};

fn operands(op: &Pooling, call: &Call, d_y: *const f32) -> params::Pooling {
    let (y, add) = call.required(0);
    let [oh, ow] = op.output_size().map(|len| len as i32);
    params::Pooling {
        y,
        x: call.input(0),
        d_y,
        h: op.h as i32,
        w: op.w as i32,
        oh,
        ow,
        c: op.c as i32,
        kernel_h: op.kernel[0] as i32,
        kernel_w: op.kernel[1] as i32,
        stride: op.stride as i32,
        padding: op.padding as i32,
        mean: u32::from(op.reduction == Reduction::Mean),
        add,
    }
}

/// A thread for four channels of a pixel, the last ones of a pixel fewer.
fn padded(pixels: usize, channels: usize) -> usize {
    pixels * channels.next_multiple_of(4)
}

pub(super) fn pooling(op: &Pooling, call: &Call) -> Result<()> {
    let (entry, [oh, ow]) = (&POOLING_FORWARD_F32, op.output_size());
    let grid = groups(entry, padded(oh * ow, op.c), op.n);
    call.launch(entry, grid, 0, &operands(op, call, std::ptr::null()))
}

pub(super) fn pooling_backward(op: &Pooling, call: &Call) -> Result<()> {
    let entry = &POOLING_BACKWARD_F32;
    let grid = groups(entry, padded(op.h * op.w, op.c), op.n);
    call.launch(entry, grid, 0, &operands(op, call, call.input(1)))
}
