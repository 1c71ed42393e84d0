//! Launches of `kernels/norm.cu`: f32.

use super::super::arguments::Call;
use super::super::entries::{
    Entry, NORM_BACKWARD_GROUP_F32, NORM_BACKWARD_GROUP_ODD_F32, NORM_BACKWARD_LAYER_F32,
    NORM_BACKWARD_LAYER_ODD_F32, NORM_BACKWARD_LAYER_SUMS_F32, NORM_BACKWARD_VECTORS_F32,
    NORM_FORWARD_GROUP_F32, NORM_FORWARD_GROUP_ODD_F32, NORM_FORWARD_LAYER_F32,
    NORM_FORWARD_LAYER_ODD_F32, params,
};
use super::super::pointwise::activation_code;
use super::{BACKWARD_X2, D_X2, JOINED, X2, x2_channels};
use crate::error::Result;
use crate::ops::norm::{Domain, Norm};

/// Threads of a block.
const THREADS: usize = 256;

/// Dynamic shared memory that leaves room for the sums on every card (99 KB).
const MOST_CACHE_BYTES: usize = 80 << 10;

/// Channels of a sector.
const SECTOR: usize = 8;

/// How a group norm is cut, from the shape of one image alone.
struct Slices {
    /// Channels of one access: 4, or 1 where groups or a second tensor are not multiples of 4.
    lanes: usize,
    /// Channels of a block.
    slice: usize,
    /// Blocks of an image.
    blocks: usize,
    /// Bytes of a slice of x.
    bytes: usize,
}

impl Slices {
    /// Whole groups: at least a sector of channels, and in small images as many as
    /// give every thread a position.
    fn new(op: &Norm, groups: usize, x2_channels: usize) -> Self {
        let group_len = op.channels / groups;
        let aligned = group_len.is_multiple_of(4) && x2_channels.is_multiple_of(4);
        let lanes = if aligned { 4 } else { 1 };
        let columns = group_len / lanes;
        let wanted = (THREADS / op.spatial.max(1)).max(SECTOR / lanes);
        let together = wanted.div_ceil(columns).min((THREADS / columns).max(1)).min(groups);
        let slice = together * group_len;
        Slices {
            lanes,
            slice,
            blocks: groups.div_ceil(together),
            bytes: op.spatial * slice * size_of::<f32>(),
        }
    }

    /// Shared memory for `copies` slices, or none where they do not fit.
    fn cache(&self, copies: usize) -> usize {
        let bytes = self.bytes * copies;
        if bytes <= MOST_CACHE_BYTES { bytes } else { 0 }
    }
}

/// Of two entries, the one for that many channels at a time.
fn by_lanes<'a, P>(lanes: usize, four: &'a Entry<P>, one: &'a Entry<P>) -> &'a Entry<P> {
    if lanes == 4 { four } else { one }
}

fn layer_lanes(op: &Norm) -> usize {
    if op.channels.is_multiple_of(4) { 4 } else { 1 }
}

/// A warp a position.
fn layer_grid(op: &Norm) -> [usize; 3] {
    [op.spatial.div_ceil(THREADS / 32), op.n, 1]
}

pub(super) fn forward(op: &Norm, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let x2_channels = x2_channels(op, call, X2);
    let params = params::Norm {
        y,
        mean: call.written(1),
        rstd: call.written(2),
        x: call.input(0),
        x2: call.optional(X2),
        gamma: call.optional(1),
        beta: call.optional(2),
        scale_shift: call.optional(3),
        spatial: op.spatial as i64,
        channels: op.channels as i32,
        x2_channels: x2_channels as i32,
        groups: 0,
        slice: 0,
        cached: 0,
        eps: op.eps,
        activation: activation_code(op.activation),
        add,
    };
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::new(op, groups, x2_channels);
            let cache = slices.cache(1);
            let params = params::Norm {
                groups: groups as i32,
                slice: slices.slice as i32,
                cached: u32::from(cache > 0),
                ..params
            };
            let entry =
                by_lanes(slices.lanes, &NORM_FORWARD_GROUP_F32, &NORM_FORWARD_GROUP_ODD_F32);
            call.launch(entry, [slices.blocks, op.n, 1], cache as u32, &params)
        }
        Domain::Layer => {
            let lanes = layer_lanes(op);
            let entry = by_lanes(lanes, &NORM_FORWARD_LAYER_F32, &NORM_FORWARD_LAYER_ODD_F32);
            call.launch(entry, layer_grid(op), 0, &params)
        }
    }
}

pub(super) fn backward(op: &Norm, call: &Call) -> Result<()> {
    let output = |i| call.output(i).unwrap_or((std::ptr::null_mut(), 0));
    let [(d_x, add), (d_x2, add2)] = [0, D_X2].map(output);
    let vectors = [1, 2, 3].map(output);
    let of_vectors = vectors.iter().any(|(d, _)| !d.is_null());
    let p = call.workspace();
    let q = p.wrapping_add(op.n * op.channels);
    let x2_channels = x2_channels(op, call, BACKWARD_X2);
    let params = params::NormBackward {
        d_x,
        d_x2,
        p,
        q,
        x: call.input(0),
        x2: call.optional(BACKWARD_X2),
        gamma: call.optional(1),
        beta: call.optional(2),
        scale_shift: call.optional(3),
        mean: call.input(4),
        rstd: call.input(5),
        d_y: call.input(6),
        joined: call.optional(JOINED),
        spatial: op.spatial as i64,
        channels: op.channels as i32,
        x2_channels: x2_channels as i32,
        groups: 0,
        slice: 0,
        cached: 0,
        activation: activation_code(op.activation),
        add,
        add2,
    };
    match op.domain {
        Domain::Group(groups) => {
            let slices = Slices::new(op, groups, x2_channels);
            let cache = slices.cache(2);
            let params = params::NormBackward {
                groups: groups as i32,
                slice: slices.slice as i32,
                cached: u32::from(cache > 0),
                ..params
            };
            let entry =
                by_lanes(slices.lanes, &NORM_BACKWARD_GROUP_F32, &NORM_BACKWARD_GROUP_ODD_F32);
            call.launch(entry, [slices.blocks, op.n, 1], cache as u32, &params)?;
        }
        Domain::Layer => {
            if of_vectors {
                let grid = [op.channels.div_ceil(32), op.n, 1];
                call.launch(&NORM_BACKWARD_LAYER_SUMS_F32, grid, 0, &params)?;
            }
            if !d_x.is_null() {
                let lanes = layer_lanes(op);
                let entry = by_lanes(lanes, &NORM_BACKWARD_LAYER_F32, &NORM_BACKWARD_LAYER_ODD_F32);
                call.launch(entry, layer_grid(op), 0, &params)?;
            }
        }
    }
    if !of_vectors {
        return Ok(());
    }
    let [(d_gamma, add_gamma), (d_beta, add_beta), (d_scale_shift, add_scale_shift)] = vectors;
    let params = params::NormVectors {
        d_gamma,
        d_beta,
        d_scale_shift: d_scale_shift.cast(),
        p,
        q,
        gamma: params.gamma,
        beta: params.beta,
        scale_shift: params.scale_shift.cast(),
        n: op.n as i64,
        channels: op.channels as i32,
        parts: 1,
        add_gamma,
        add_beta,
        add_scale_shift,
    };
    call.launch(&NORM_BACKWARD_VECTORS_F32, [op.channels.div_ceil(THREADS), 1, 1], 0, &params)
}
