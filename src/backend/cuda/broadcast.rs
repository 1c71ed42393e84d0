//! Launches of `kernels/broadcast.cu`.

use super::arguments::{Call, each, for_type, packs};
use super::entries::{
    ADD_PER_IMAGE_BF16, ADD_PER_IMAGE_F32, SUM_PER_IMAGE_BF16, SUM_PER_IMAGE_F32, params,
};
use crate::error::Result;
use crate::ops::broadcast::PerImage;

/// Channels that a block of the sum takes, as in broadcast.cu.
const SUM_WIDTH: usize = 32;

pub(super) fn add_per_image(op: &PerImage, call: &Call) -> Result<()> {
    per_image(op, call, false)
}

pub(super) fn scale_per_image(op: &PerImage, call: &Call) -> Result<()> {
    per_image(op, call, true)
}

fn per_image(op: &PerImage, call: &Call, multiply: bool) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let (x, e) = (call.input_as(0, dtype), call.input_as(1, dtype));
    let (spatial, channels) = (op.spatial as i64, op.channels as u32);
    let (factor, multiply) = (std::ptr::null(), u32::from(multiply));
    let params = params::PerImage { y, x, e, factor, spatial, channels, multiply, add };
    let entry = for_type(dtype, &ADD_PER_IMAGE_F32, &ADD_PER_IMAGE_BF16);
    let len = op.spatial * op.channels;
    call.launch(entry, packs(entry, each(dtype), len, op.n), 0, &params)
}

pub(super) fn sum_per_image(op: &PerImage, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let (x, e, factor) = (call.input_as(0, dtype), std::ptr::null(), call.optional_as(1, dtype));
    let (spatial, channels) = (op.spatial as i64, op.channels as u32);
    let params = params::PerImage { y, x, e, factor, spatial, channels, multiply: 0, add };
    let entry = for_type(dtype, &SUM_PER_IMAGE_F32, &SUM_PER_IMAGE_BF16);
    call.launch(entry, [op.channels.div_ceil(SUM_WIDTH), op.n, 1], 0, &params)
}
