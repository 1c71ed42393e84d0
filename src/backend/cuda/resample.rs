//! Launches of `kernels/resample.cu`.

use super::arguments::{Call, each, for_type};
use super::entries::{RESAMPLE_BF16, RESAMPLE_F32, params};
use crate::error::Result;
use crate::ops::resample::{Edge, Method, Resample};

pub(super) fn resample(op: &Resample, call: &Call) -> Result<()> {
    launch(op, call, [op.h, op.w], op.output_size(), false)
}

pub(super) fn resample_backward(op: &Resample, call: &Call) -> Result<()> {
    launch(op, call, op.output_size(), [op.h, op.w], true)
}

fn launch(
    op: &Resample,
    call: &Call,
    [h, w]: [usize; 2],
    [oh, ow]: [usize; 2],
    backward: bool,
) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let mut params = params::Resample {
        y,
        x: call.input_as(0, dtype),
        h: h as u32,
        w: w as u32,
        oh: oh as u32,
        ow: ow as u32,
        c: op.c as u32,
        backward: u32::from(backward),
        weights: [1.0; 4],
        add,
        ..Default::default()
    };
    match op.method {
        Method::Nearest { factor } => {
            params.method = params::RESAMPLE_NEAREST;
            params.factor = factor as u32;
        }
        Method::AveragePool { factor } => {
            params.method = params::RESAMPLE_AVERAGE;
            params.factor = factor as u32;
            params.weights = [1.0 / factor as f32; 4];
        }
        Method::Fir { up, down, pad, edge, taps: [a, b, c, d] } => {
            params.method = params::RESAMPLE_FIR;
            (params.up, params.down) = (up as u32, down as u32);
            params.pad = pad[0] as i32;
            params.reflect = u32::from(edge == Edge::Reflect);
            // The kernel is flipped: upfirdn2d convolves, the loops here correlate.
            params.weights = [d, c, b, a];
        }
    }
    let tasks = oh * ow * op.c.div_ceil(each(dtype));
    let entry = for_type(dtype, &RESAMPLE_F32, &RESAMPLE_BF16);
    let blocks = tasks.div_ceil(entry.threads as usize);
    call.launch(entry, [blocks, op.n, 1], 0, &params)
}
