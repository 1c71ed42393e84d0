//! Launches of `kernels/norm_group.cu` and `norm_layer.cu`: f32.

use super::super::arguments::Call;
use super::super::entries::{
    Entry, NORM_BACKWARD_GROUP_F32, NORM_BACKWARD_GROUP_ODD_F32, NORM_BACKWARD_LAYER_F32,
    NORM_BACKWARD_LAYER_ODD_F32, NORM_FORWARD_GROUP_F32, NORM_FORWARD_GROUP_ODD_F32,
    NORM_FORWARD_LAYER_F32, NORM_FORWARD_LAYER_ODD_F32, params,
};
use super::{Slices, launch_slices};
use crate::error::Result;
use crate::ops::norm::{Domain, Norm};

/// Threads of a block.
const THREADS: usize = 256;

/// Shared memory for slices that leaves room for the sums on every card (99 KB).
const MOST_CACHE_BYTES: usize = 76 << 10;

/// Sums for groups in front of what a backward pass keeps: two f64 a thread.
const GROUP_SUM_BYTES: u32 = 2 * 8 * THREADS as u32;

/// Channels of a sector, and of 16 bytes.
const SECTOR: usize = 8;
const CHUNK: usize = 4;

/// Positions of a block of a layer norm's backward pass, as in norm_layer.cu.
pub(super) const BACKWARD_POSITIONS: usize = 16;

impl Slices {
    /// At least a sector of channels, and in small images as many as give every thread a
    /// position.
    fn exact(op: &Norm, groups: usize, x2_channels: i32) -> Self {
        let group_len = op.channels / groups;
        let aligned =
            group_len.is_multiple_of(CHUNK) && (x2_channels as usize).is_multiple_of(CHUNK);
        let lanes = if aligned { CHUNK } else { 1 };
        let columns = group_len / lanes;
        let wanted = (THREADS / op.spatial.max(1)).max(SECTOR / lanes);
        let together = wanted.div_ceil(columns).min((THREADS / columns).max(1)).min(groups);
        Slices { lanes, slice: together * group_len, blocks: groups.div_ceil(together) }
    }

    /// Positions that shared memory keeps of `copies` slices, all or none, and its bytes.
    fn all_kept(&self, spatial: usize, copies: usize) -> (usize, u32) {
        let bytes = spatial * self.slice * size_of::<f32>() * copies;
        if bytes <= MOST_CACHE_BYTES { (spatial, bytes as u32) } else { (0, 0) }
    }
}

/// Of two entries, the one for that many channels at a time.
fn by_lanes<'a, P>(lanes: usize, four: &'a Entry<P>, one: &'a Entry<P>) -> &'a Entry<P> {
    if lanes == CHUNK { four } else { one }
}

fn layer_lanes(op: &Norm) -> usize {
    if op.channels.is_multiple_of(CHUNK) { CHUNK } else { 1 }
}

pub(super) fn forward(op: &Norm, call: &Call, params: params::Norm) -> Result<()> {
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::exact(op, groups, params.x2_channels);
            let (kept, bytes) = slices.all_kept(op.spatial, 1);
            let params = params::Norm { slice: slices.slice as i32, kept: kept as i32, ..params };
            let entry =
                by_lanes(slices.lanes, &NORM_FORWARD_GROUP_F32, &NORM_FORWARD_GROUP_ODD_F32);
            launch_slices(call, entry, [slices.blocks, op.n], bytes, &params)
        }
        Domain::Layer => {
            let entry =
                by_lanes(layer_lanes(op), &NORM_FORWARD_LAYER_F32, &NORM_FORWARD_LAYER_ODD_F32);
            call.launch(entry, [op.spatial.div_ceil(THREADS / 32), op.n, 1], 0, &params)
        }
    }
}

pub(super) fn backward(op: &Norm, call: &Call, params: params::NormBackward) -> Result<()> {
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::exact(op, groups, params.x2_channels);
            let (kept, bytes) = slices.all_kept(op.spatial, 2);
            let (slice, kept) = (slices.slice as i32, kept as i32);
            let params = params::NormBackward { slice, kept, ..params };
            let entry =
                by_lanes(slices.lanes, &NORM_BACKWARD_GROUP_F32, &NORM_BACKWARD_GROUP_ODD_F32);
            launch_slices(call, entry, [slices.blocks, op.n], bytes + GROUP_SUM_BYTES, &params)
        }
        Domain::Layer => {
            let entry =
                by_lanes(layer_lanes(op), &NORM_BACKWARD_LAYER_F32, &NORM_BACKWARD_LAYER_ODD_F32);
            call.launch(entry, [op.spatial.div_ceil(BACKWARD_POSITIONS), op.n, 1], 0, &params)
        }
    }
}
