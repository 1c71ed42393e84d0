//! Launches of `kernels/norm_group_half.cu` and `norm_layer_half.cu`: bf16.

use super::super::arguments::Call;
use super::super::entries::{
    Entry, NORM_BACKWARD_GROUP_ANY_BF16, NORM_BACKWARD_GROUP_BF16, NORM_BACKWARD_GROUP_ODD_BF16,
    NORM_BACKWARD_GROUP_SILU_BF16, NORM_BACKWARD_GROUP_SMALL_BF16,
    NORM_BACKWARD_GROUP_SMALL_SILU_BF16, NORM_BACKWARD_LAYER_1024_BF16,
    NORM_BACKWARD_LAYER_2048_BF16, NORM_FORWARD_GROUP_ANY_BF16, NORM_FORWARD_GROUP_BF16,
    NORM_FORWARD_GROUP_ODD_BF16, NORM_FORWARD_GROUP_SILU_BF16, NORM_FORWARD_GROUP_SMALL_BF16,
    NORM_FORWARD_GROUP_SMALL_SILU_BF16, NORM_FORWARD_LAYER_1024_BF16, NORM_FORWARD_LAYER_2048_BF16,
    params,
};
use super::{Slices, launch_slices};
use crate::error::Result;
use crate::ops::norm::{Domain, Norm};
use crate::ops::pointwise::Activation;
use crate::plan::DType;

/// Threads of a block of a group norm.
const THREADS: usize = 256;

/// Shared memory of a block: room for a second one on an A100, and for one on every card.
const MOST_SHARED_BYTES: usize = 80 << 10;

/// Channels of a sector, and of 16 bytes.
const SECTOR: usize = 16;
const CHUNK: usize = 8;

/// Positions of a block of a layer norm, as in norm_layer_half.cu.
const FORWARD_POSITIONS: usize = 32;
pub(super) const BACKWARD_POSITIONS: usize = 64;

/// Widest layer norm of the narrower kernels, whose lanes keep fewer columns.
const NARROW: usize = 1024;

impl Slices {
    /// Whole sectors, and in small images as many as give every thread a position.
    fn half(op: &Norm, groups: usize, x2_channels: i32) -> Self {
        let group_len = op.channels / groups;
        let aligned =
            op.channels.is_multiple_of(CHUNK) && (x2_channels as usize).is_multiple_of(CHUNK);
        let lanes = if aligned { CHUNK } else { 1 };
        let least = match aligned {
            true => (1..).map(|k| k * group_len).find(|len| len.is_multiple_of(SECTOR)),
            false => Some(group_len * SECTOR.div_ceil(group_len)),
        };
        let least = least.expect("16 groups at the latest");
        let wanted = THREADS.div_ceil(op.spatial.max(1)) * lanes;
        let slice = (wanted.div_ceil(least) * least).min(op.channels);
        Slices { lanes, slice, blocks: op.channels.div_ceil(slice) }
    }

    /// Positions that shared memory keeps of `tensors` tensors beside `arrays` floats a
    /// channel, and the bytes of it all.
    fn kept(&self, op: &Norm, tensors: usize, arrays: usize) -> (usize, u32) {
        let position = |slice: usize| tensors * slice * DType::BF16.bytes();
        let room = MOST_SHARED_BYTES.saturating_sub(self.fixed_bytes(self.slice, arrays));
        let kept = (room / position(self.slice)).min(op.spatial);
        // The last block's slice may be narrower, and need more room for its sums.
        let last = op.channels - (self.blocks - 1) * self.slice;
        let bytes = |slice| self.fixed_bytes(slice, arrays) + kept * position(slice);
        (kept, bytes(self.slice).max(bytes(last)) as u32)
    }

    /// Bytes of sums and of `arrays` floats a channel for a slice; see the kernels' `Slice`.
    fn fixed_bytes(&self, slice: usize, arrays: usize) -> usize {
        let columns = slice / self.lanes;
        let along = columns.min(THREADS);
        let by_warps = along < 32 && along.is_power_of_two();
        let lines = if by_warps { THREADS / 32 } else { THREADS / along };
        let first = along * self.lanes.min(4);
        let pitch = first + (2 * self.lanes * along - first).next_multiple_of(32);
        let sums = (lines * pitch).next_multiple_of(4);
        let array = match self.lanes {
            1 => columns.next_multiple_of(4),
            _ => 8 * ((columns + 3) / 8 * 8 + 4),
        };
        (sums + arrays * array) * size_of::<f32>()
    }

    /// Of four entries, the one for an activation.
    fn pick<P>(
        &self,
        activation: Option<Activation>,
        [none, silu, any, odd]: [&'static Entry<P>; 4],
    ) -> &'static Entry<P> {
        match activation {
            _ if self.lanes == 1 => odd,
            None => none,
            Some(Activation::Silu) => silu,
            Some(_) => any,
        }
    }
}

/// How a group norm of small images is cut, from the shape of one image alone; see
/// norm_small_half.cu.
struct Small {
    /// Channels of a block.
    slice: usize,
    /// Images of a block.
    images: usize,
}

impl Small {
    /// Warps of a block, and packs of a tensor that a lane keeps.
    const WARPS: usize = 4;
    const SLOTS: usize = 8;
    /// Most columns of a warp's slice.
    const MOST_ALONG: usize = 8;
    /// Most positions of an image. In larger ones gamma and beta are few bytes among the rest.
    const MOST_POSITIONS: usize = 64;

    /// None where images are not small, or so small that most lanes would be idle, and where
    /// groups are not powers of two of whole columns.
    fn new(op: &Norm, x2_channels: i32, has_scale_shift: bool) -> Option<Self> {
        let Domain::Group(groups) = op.domain else { return None };
        let columns = op.channels / groups / CHUNK;
        let along = columns.max(SECTOR / CHUNK);
        let whole = op.channels == groups * columns * CHUNK
            && columns.is_power_of_two()
            && along <= Self::MOST_ALONG
            && op.channels.is_multiple_of(along * CHUNK)
            && (x2_channels as usize).is_multiple_of(CHUNK);
        let known = matches!(op.activation, None | Some(Activation::Silu)) && !has_scale_shift;
        if !whole || !known {
            return None;
        }
        let rows = 32 / along;
        let fits = 2 * op.spatial >= rows && op.spatial <= Self::MOST_POSITIONS;
        let turns = op.spatial.div_ceil(rows);
        (fits && turns <= Self::SLOTS)
            .then(|| Small { slice: Self::WARPS * along * CHUNK, images: Self::SLOTS / turns })
    }

    /// Launches over all slices and images; of two entries the one for the activation.
    fn launch<P>(
        &self,
        op: &Norm,
        call: &Call,
        [none, silu]: [&'static Entry<P>; 2],
        params: &P,
    ) -> Result<()> {
        let entry = if op.activation.is_none() { none } else { silu };
        let grid = [op.channels.div_ceil(self.slice), op.n.div_ceil(self.images)];
        launch_slices(call, entry, grid, 0, params)
    }
}

pub(super) fn forward(op: &Norm, call: &Call, params: params::Norm) -> Result<()> {
    let has_scale_shift = !params.scale_shift.is_null();
    if let Some(small) = Small::new(op, params.x2_channels, has_scale_shift) {
        let (slice, kept) = (small.slice as i32, small.images as i32);
        let params = params::Norm { slice, kept, ..params };
        let entries = [&NORM_FORWARD_GROUP_SMALL_BF16, &NORM_FORWARD_GROUP_SMALL_SILU_BF16];
        return small.launch(op, call, entries, &params);
    }
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::half(op, groups, params.x2_channels);
            let (kept, bytes) = slices.kept(op, 1, 3);
            let params = params::Norm { slice: slices.slice as i32, kept: kept as i32, ..params };
            let entries = [
                &NORM_FORWARD_GROUP_BF16,
                &NORM_FORWARD_GROUP_SILU_BF16,
                &NORM_FORWARD_GROUP_ANY_BF16,
                &NORM_FORWARD_GROUP_ODD_BF16,
            ];
            let entry = slices.pick(op.activation, entries);
            launch_slices(call, entry, [slices.blocks, op.n], bytes, &params)
        }
        Domain::Layer => {
            let entry = match op.channels <= NARROW {
                true => &NORM_FORWARD_LAYER_1024_BF16,
                false => &NORM_FORWARD_LAYER_2048_BF16,
            };
            let bytes = 2 * op.channels * size_of::<f32>();
            let grid = [op.spatial.div_ceil(FORWARD_POSITIONS), op.n, 1];
            call.launch(entry, grid, bytes as u32, &params)
        }
    }
}

pub(super) fn backward(op: &Norm, call: &Call, params: params::NormBackward) -> Result<()> {
    let has_scale_shift = !params.scale_shift.is_null();
    if let Some(small) = Small::new(op, params.x2_channels, has_scale_shift) {
        let (slice, kept) = (small.slice as i32, small.images as i32);
        let params = params::NormBackward { slice, kept, ..params };
        let entries = [&NORM_BACKWARD_GROUP_SMALL_BF16, &NORM_BACKWARD_GROUP_SMALL_SILU_BF16];
        return small.launch(op, call, entries, &params);
    }
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::half(op, groups, params.x2_channels);
            let (kept, bytes) = slices.kept(op, 2, 6);
            let (slice, kept) = (slices.slice as i32, kept as i32);
            let params = params::NormBackward { slice, kept, ..params };
            let entries = [
                &NORM_BACKWARD_GROUP_BF16,
                &NORM_BACKWARD_GROUP_SILU_BF16,
                &NORM_BACKWARD_GROUP_ANY_BF16,
                &NORM_BACKWARD_GROUP_ODD_BF16,
            ];
            let entry = slices.pick(op.activation, entries);
            launch_slices(call, entry, [slices.blocks, op.n], bytes, &params)
        }
        Domain::Layer => {
            let entry = match op.channels <= NARROW {
                true => &NORM_BACKWARD_LAYER_1024_BF16,
                false => &NORM_BACKWARD_LAYER_2048_BF16,
            };
            // Gain and bias, and P and Q of each warp.
            let arrays = 2 + 2 * entry.threads as usize / 32;
            let bytes = arrays * op.channels * size_of::<f32>();
            let grid = [op.spatial.div_ceil(BACKWARD_POSITIONS), op.n, 1];
            call.launch(entry, grid, bytes as u32, &params)
        }
    }
}
