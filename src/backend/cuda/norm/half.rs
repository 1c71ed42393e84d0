//! Launches of `kernels/norm_group_half.cu` and `norm_layer_half.cu`: bf16.

use super::super::arguments::Call;
use super::super::entries::{
    Entry, NORM_BACKWARD_GROUP_ANY_BF16, NORM_BACKWARD_GROUP_BF16, NORM_BACKWARD_GROUP_ODD_BF16,
    NORM_BACKWARD_GROUP_SILU_BF16, NORM_BACKWARD_LAYER_1024_BF16, NORM_BACKWARD_LAYER_2048_BF16,
    NORM_BACKWARD_VECTORS_BF16, NORM_FORWARD_GROUP_ANY_BF16, NORM_FORWARD_GROUP_BF16,
    NORM_FORWARD_GROUP_ODD_BF16, NORM_FORWARD_GROUP_SILU_BF16, NORM_FORWARD_LAYER_1024_BF16,
    NORM_FORWARD_LAYER_2048_BF16, params,
};
use super::super::pointwise::activation_code;
use super::{BACKWARD_X2, D_X2, JOINED, X2, x2_channels};
use crate::error::Result;
use crate::ops::norm::{Domain, Norm};
use crate::ops::pointwise::Activation;
use crate::plan::DType;

/// Threads of a block of a group norm.
const THREADS: usize = 256;

/// Shared memory of a block: room for a second one on an A100, and for one on every card.
const MOST_SHARED_BYTES: usize = 80 << 10;

/// Channels of a sector.
const SECTOR: usize = 16;

/// Channels of 16 bytes.
const CHUNK: usize = 8;

/// Positions of a block of a layer norm, forward and backward, as in norm_layer_half.cu.
const POSITIONS: [usize; 2] = [32, 64];

/// Widest layer norm of the narrower kernels, whose lanes keep fewer columns.
const NARROW: usize = 1024;

/// How a group norm is cut, from the shape of one image alone.
struct Slices {
    /// Channels of one access: 8, or 1 where images or their second tensor are not
    /// multiples of 8.
    lanes: usize,
    /// Channels of a block.
    slice: usize,
    /// Blocks of an image.
    blocks: usize,
}

impl Slices {
    /// Whole groups and whole sectors, and in small images as many as give every thread a
    /// position.
    fn new(op: &Norm, groups: usize, x2_channels: usize) -> Self {
        let group_len = op.channels / groups;
        let aligned = op.channels.is_multiple_of(CHUNK) && x2_channels.is_multiple_of(CHUNK);
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
    /// channel, and the bytes of it all; see the kernels' `Slice`.
    fn kept(&self, spatial: usize, tensors: usize, arrays: usize) -> (usize, u32) {
        let along = (self.slice / self.lanes).min(THREADS);
        let by_warps = along < 32 && along.is_power_of_two();
        let lines = if by_warps { THREADS / 32 } else { THREADS / along };
        let sums = (lines * (2 * self.lanes + 1) * along).next_multiple_of(4);
        let fixed = (sums + arrays * self.slice) * size_of::<f32>();
        let position = tensors * self.slice * DType::BF16.bytes();
        let kept = (MOST_SHARED_BYTES.saturating_sub(fixed) / position).min(spatial);
        (kept, (fixed + kept * position) as u32)
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

/// Parts of an image whose sums P and Q are added up last.
pub(super) fn parts(op: &Norm) -> usize {
    match op.domain {
        Domain::Group(_) => 1,
        Domain::Layer => op.spatial.div_ceil(POSITIONS[1]),
    }
}

pub(super) fn forward(op: &Norm, call: &Call) -> Result<()> {
    let half = DType::BF16;
    let (y, add) = call.required_as(0, half);
    let x2_channels = x2_channels(op, call, X2);
    let params = params::NormHalf {
        y,
        mean: call.written(1),
        rstd: call.written(2),
        x: call.input_as(0, half),
        x2: call.optional_as(X2, half),
        gamma: call.optional(1),
        beta: call.optional(2),
        scale_shift: call.optional_as(3, half),
        spatial: op.spatial as i32,
        channels: op.channels as i32,
        x2_channels: x2_channels as i32,
        groups: 0,
        slice: 0,
        kept: 0,
        eps: op.eps,
        activation: activation_code(op.activation),
        add,
    };
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::new(op, groups, x2_channels);
            let (kept, bytes) = slices.kept(op.spatial, 1, 3);
            let params = params::NormHalf {
                groups: groups as i32,
                slice: slices.slice as i32,
                kept: kept as i32,
                ..params
            };
            let entries = [
                &NORM_FORWARD_GROUP_BF16,
                &NORM_FORWARD_GROUP_SILU_BF16,
                &NORM_FORWARD_GROUP_ANY_BF16,
                &NORM_FORWARD_GROUP_ODD_BF16,
            ];
            let entry = slices.pick(op.activation, entries);
            call.launch(entry, [slices.blocks, op.n, 1], bytes, &params)
        }
        Domain::Layer => {
            let entry = match op.channels <= NARROW {
                true => &NORM_FORWARD_LAYER_1024_BF16,
                false => &NORM_FORWARD_LAYER_2048_BF16,
            };
            let bytes = 2 * op.channels * size_of::<f32>();
            let grid = [op.spatial.div_ceil(POSITIONS[0]), op.n, 1];
            call.launch(entry, grid, bytes as u32, &params)
        }
    }
}

pub(super) fn backward(op: &Norm, call: &Call) -> Result<()> {
    let half = DType::BF16;
    let none = (std::ptr::null_mut(), 0);
    let [(d_x, add), (d_x2, add2)] = [0, D_X2].map(|i| call.output_as(i, half).unwrap_or(none));
    let parts = parts(op);
    let x2_channels = x2_channels(op, call, BACKWARD_X2);
    let p = call.workspace();
    let q = p.wrapping_add(op.n * parts * op.channels);
    let params = params::NormHalfBackward {
        d_x,
        d_x2,
        p,
        q,
        x: call.input_as(0, half),
        x2: call.optional_as(BACKWARD_X2, half),
        gamma: call.optional(1),
        beta: call.optional(2),
        scale_shift: call.optional_as(3, half),
        mean: call.input(4),
        rstd: call.input(5),
        d_y: call.input_as(6, half),
        joined: call.optional_as(JOINED, half),
        spatial: op.spatial as i32,
        channels: op.channels as i32,
        x2_channels: x2_channels as i32,
        groups: 0,
        slice: 0,
        kept: 0,
        activation: activation_code(op.activation),
        add,
        add2,
    };
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::new(op, groups, x2_channels);
            let (kept, bytes) = slices.kept(op.spatial, 2, 6);
            let params = params::NormHalfBackward {
                groups: groups as i32,
                slice: slices.slice as i32,
                kept: kept as i32,
                ..params
            };
            let entries = [
                &NORM_BACKWARD_GROUP_BF16,
                &NORM_BACKWARD_GROUP_SILU_BF16,
                &NORM_BACKWARD_GROUP_ANY_BF16,
                &NORM_BACKWARD_GROUP_ODD_BF16,
            ];
            let entry = slices.pick(op.activation, entries);
            call.launch(entry, [slices.blocks, op.n, 1], bytes, &params)?;
        }
        Domain::Layer => {
            let entry = match op.channels <= NARROW {
                true => &NORM_BACKWARD_LAYER_1024_BF16,
                false => &NORM_BACKWARD_LAYER_2048_BF16,
            };
            // Gain and bias, and P and Q of each warp.
            let arrays = 2 + 2 * entry.threads as usize / 32;
            let bytes = arrays * op.channels * size_of::<f32>();
            call.launch(entry, [parts, op.n, 1], bytes as u32, &params)?;
        }
    }
    vectors(op, call, &params, parts)
}

/// The gradients of gamma, beta and scale_shift that are wanted.
fn vectors(op: &Norm, call: &Call, of: &params::NormHalfBackward, parts: usize) -> Result<()> {
    let [(d_gamma, add_gamma), (d_beta, add_beta)] =
        [1, 2].map(|i| call.output(i).unwrap_or((std::ptr::null_mut(), 0)));
    let (d_scale_shift, add_scale_shift) =
        call.output_as(3, DType::BF16).unwrap_or((std::ptr::null_mut(), 0));
    let of_weights = !d_gamma.is_null() || !d_beta.is_null();
    if !of_weights && d_scale_shift.is_null() {
        return Ok(());
    }
    let params = params::NormVectors {
        d_gamma,
        d_beta,
        d_scale_shift,
        p: of.p,
        q: of.q,
        gamma: of.gamma,
        beta: of.beta,
        scale_shift: of.scale_shift,
        n: op.n as i64,
        channels: op.channels as i32,
        parts: parts as i32,
        add_gamma,
        add_beta,
        add_scale_shift,
    };
    // Nothing is summed over images for scale_shift alone.
    let rows = if of_weights { 1 } else { op.n };
    call.launch(&NORM_BACKWARD_VECTORS_BF16, [op.channels.div_ceil(THREADS), rows, 1], 0, &params)
}
