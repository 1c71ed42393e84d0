//! Launches of `kernels/optimizer.cu`.

use super::arguments::Call;
use super::entries::{ADAMW_F32, GLOBAL_NORM_F32, SQUARE_SUMS_F32, params};
use crate::error::Result;
use crate::ops::optimizer::{AdamW, GlobalNorm};
use crate::plan::DType;

/// Elements of a chunk, as in optimizer.cu.
const CHUNK: usize = 16384;

/// Ranges of one launch.
const MOST_RANGES: usize = params::MOST_RANGES as usize;

fn chunks(ranges: &[(usize, usize)]) -> usize {
    ranges.iter().map(|(_, len)| len.div_ceil(CHUNK)).sum()
}

/// The ranges as launches take them, with the number of chunks of each launch.
fn batches(ranges: &[(usize, usize)]) -> impl Iterator<Item = (params::Ranges, usize)> {
    let mut next = 0;
    ranges.chunks(MOST_RANGES).map(move |some| {
        let mut r = params::Ranges { count: some.len() as u32, ..Default::default() };
        let first = next;
        r.first_chunk[0] = first as u32;
        for (i, &(start, len)) in some.iter().enumerate() {
            (r.start[i], r.len[i]) = (start as i64, len as i64);
            next += len.div_ceil(CHUNK);
            r.first_chunk[i + 1] = next as u32;
        }
        (r, next - first)
    })
}

/// One f64 a chunk.
pub(super) fn norm_workspace_len(op: &GlobalNorm) -> usize {
    2 * chunks(&op.ranges).max(1)
}

pub(super) fn global_norm(op: &GlobalNorm, call: &Call) -> Result<()> {
    let sums: *mut f64 = call.workspace().cast();
    for (ranges, blocks) in batches(&op.ranges) {
        let params = params::SquareSums { sums, gradients: call.input(0), ranges };
        call.launch(&SQUARE_SUMS_F32, [blocks, 1, 1], 0, &params)?;
    }
    let chunks = chunks(&op.ranges) as u32;
    let params = params::GlobalNorm { norm: call.written(0), sums, chunks };
    call.launch(&GLOBAL_NORM_F32, [1, 1, 1], 0, &params)
}

pub(super) fn adamw(op: &AdamW, call: &Call) -> Result<()> {
    for (ranges, blocks) in batches(&op.ranges) {
        let params = params::AdamW {
            parameters: call.written(0),
            first_moments: call.written(1),
            second_moments: call.written(2),
            average: call.written(3),
            half: call.output_as(4, DType::BF16).map_or(std::ptr::null_mut(), |(half, _)| half),
            gradients: call.input(0),
            norm: call.input(1),
            control: call.input(2),
            ranges,
            beta1: op.beta1,
            beta2: op.beta2,
            eps: op.eps,
            weight_decay: op.weight_decay,
            clip: op.clip.unwrap_or(f64::INFINITY),
        };
        call.launch(&ADAMW_F32, [blocks, 1, 1], 0, &params)?;
    }
    Ok(())
}
