//! Launches of `kernels/broadcast.cu`.

use super::arguments::{Call, groups};
use super::entries::{ADD_PER_IMAGE_F32, SUM_PER_IMAGE_F32, params};
use crate::error::Result;
use crate::ops::broadcast::PerImage;

/// Channels that a block of the sum takes, as in broadcast.cu.
const SUM_WIDTH: usize = 32;

pub(super) fn add_per_image(op: &PerImage, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let (x, e) = (call.input(0), call.input(1));
    let (spatial, channels) = (op.spatial as i64, op.channels as u32);
    let params = params::PerImage { y, x, e, spatial, channels, add };
    let entry = &ADD_PER_IMAGE_F32;
    call.launch(entry, groups(entry, op.spatial * op.channels, op.n), 0, &params)
}

pub(super) fn sum_per_image(op: &PerImage, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let (x, e) = (call.input(0), std::ptr::null());
    let (spatial, channels) = (op.spatial as i64, op.channels as u32);
    let params = params::PerImage { y, x, e, spatial, channels, add };
    call.launch(&SUM_PER_IMAGE_F32, [op.channels.div_ceil(SUM_WIDTH), op.n, 1], 0, &params)
}
