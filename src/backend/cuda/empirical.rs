//! Launches of `kernels/empirical.cu`.

use super::arguments::{Call, groups};
use super::entries::{
    EMPIRICAL_BACKWARD_COMBINE_F32, EMPIRICAL_BACKWARD_STREAM_F32, EMPIRICAL_FORWARD_COMBINE_F32,
    EMPIRICAL_FORWARD_STREAM_F32, Entry, params,
};
use crate::error::Result;
use crate::ops::empirical::Empirical;

/// States of a block, as in empirical.cu.
const STATES: usize = 16;
/// Least images of a chunk: two tiles.
const CHUNK: usize = 128;
/// Most chunks, as in empirical.cu.
const MOST_CHUNKS: usize = 64;

/// Parts that the data are cut into, by their number alone.
fn chunks(op: &Empirical) -> usize {
    (op.m / CHUNK).clamp(1, MOST_CHUNKS)
}

/// For every chunk and state two f64 and a weighted sum of images.
pub(super) fn workspace_len(op: &Empirical) -> usize {
    op.n * chunks(op) * (4 + op.len)
}

/// Both passes; `log_sum`, `y` and `d_y` as the pass has them.
fn launch(
    op: &Empirical,
    call: &Call,
    (stream, combine): (&Entry<params::Empirical>, &Entry<params::Empirical>),
    (log_sum, y, d_y): (*mut f32, *const f32, *const f32),
) -> Result<()> {
    let (out, add) = call.required(0);
    let (chunks, workspace) = (chunks(op), call.workspace());
    let params = params::Empirical {
        out,
        log_sum,
        statistics: workspace.cast(),
        sums: workspace.wrapping_add(4 * op.n * chunks),
        x: call.input(0),
        data: call.input(1),
        std: call.input(2),
        signal: call.optional(3),
        y,
        d_y,
        n: op.n as i64,
        m: op.m as i64,
        len: op.len as i64,
        chunks: chunks as i32,
        add,
    };
    call.launch(stream, [chunks, op.n.div_ceil(STATES), 1], 0, &params)?;
    call.launch(combine, groups(combine, op.len, op.n), 0, &params)
}

pub(super) fn empirical(op: &Empirical, call: &Call) -> Result<()> {
    let entries = (&EMPIRICAL_FORWARD_STREAM_F32, &EMPIRICAL_FORWARD_COMBINE_F32);
    let log_sum = call.written(1);
    launch(op, call, entries, (log_sum, std::ptr::null(), std::ptr::null()))
}

pub(super) fn empirical_backward(op: &Empirical, call: &Call) -> Result<()> {
    let entries = (&EMPIRICAL_BACKWARD_STREAM_F32, &EMPIRICAL_BACKWARD_COMBINE_F32);
    // Only read in this pass.
    let log_sum = call.input(5).cast_mut();
    launch(op, call, entries, (log_sum, call.input(4), call.input(6)))
}
