//! Launches of `kernels/attention.cu`: f32.

use super::super::arguments::Call;
use super::super::entries::{
    ATTENTION_BACKWARD_DELTA_F32, ATTENTION_BACKWARD_KEY_32_F32, ATTENTION_BACKWARD_KEY_64_F32,
    ATTENTION_BACKWARD_KEY_128_F32, ATTENTION_BACKWARD_KEY_256_F32,
    ATTENTION_BACKWARD_QUERY_32_F32, ATTENTION_BACKWARD_QUERY_64_F32,
    ATTENTION_BACKWARD_QUERY_128_F32, ATTENTION_BACKWARD_QUERY_256_F32, ATTENTION_FORWARD_32_F32,
    ATTENTION_FORWARD_64_F32, ATTENTION_FORWARD_128_F32, ATTENTION_FORWARD_256_F32, Entry, params,
};
use super::MOST_HEAD_DIM;
use crate::error::Result;
use crate::ops::attention::Attention;

/// The kernels of a width; rows of a tile are a quarter of an entry's threads.
struct Kernels {
    width: usize,
    forward: &'static Entry<params::Attention>,
    query: &'static Entry<params::AttentionBackward>,
    key: &'static Entry<params::AttentionBackward>,
}

const KERNELS: [Kernels; 4] = [
    Kernels {
        width: 32,
        forward: &ATTENTION_FORWARD_32_F32,
        query: &ATTENTION_BACKWARD_QUERY_32_F32,
        key: &ATTENTION_BACKWARD_KEY_32_F32,
    },
    Kernels {
        width: 64,
        forward: &ATTENTION_FORWARD_64_F32,
        query: &ATTENTION_BACKWARD_QUERY_64_F32,
        key: &ATTENTION_BACKWARD_KEY_64_F32,
    },
    Kernels {
        width: 128,
        forward: &ATTENTION_FORWARD_128_F32,
        query: &ATTENTION_BACKWARD_QUERY_128_F32,
        key: &ATTENTION_BACKWARD_KEY_128_F32,
    },
    Kernels {
        width: MOST_HEAD_DIM,
        forward: &ATTENTION_FORWARD_256_F32,
        query: &ATTENTION_BACKWARD_QUERY_256_F32,
        key: &ATTENTION_BACKWARD_KEY_256_F32,
    },
];

fn kernels(op: &Attention) -> &'static Kernels {
    let found = KERNELS.iter().find(|kernels| op.head_dim <= kernels.width);
    found.expect("checked when the plan was lowered")
}

/// Rows of a tile.
fn tile<P>(entry: &Entry<P>) -> usize {
    entry.threads as usize / 4
}

/// Bytes of `tiles` tiles of rows and `scores` of scores, as attention.cu lays them out.
fn shared_bytes<P>(kernels: &Kernels, entry: &Entry<P>, tiles: usize, scores: usize) -> u32 {
    let rows = tile(entry);
    (rows * (tiles * (kernels.width + 4) + scores * (rows + 4)) * size_of::<f32>()) as u32
}

pub(super) fn forward(op: &Attention, params: &params::Attention, call: &Call) -> Result<()> {
    let kernels = kernels(op);
    let entry = kernels.forward;
    let grid = [op.s_q.div_ceil(tile(entry)), op.heads, op.n];
    call.launch(entry, grid, shared_bytes(kernels, entry, 2, 1), params)
}

pub(super) fn backward(
    op: &Attention,
    params: &params::AttentionBackward,
    call: &Call,
) -> Result<()> {
    let grid = |rows: usize, tile: usize| [rows.div_ceil(tile), op.heads, op.n];
    call.launch(&ATTENTION_BACKWARD_DELTA_F32, grid(op.s_q, 8), 0, params)?;
    let kernels = kernels(op);
    if !params.d_q.is_null() {
        let entry = kernels.query;
        let bytes = shared_bytes(kernels, entry, 4, 1);
        call.launch(entry, grid(op.s_q, tile(entry)), bytes, params)?;
    }
    if !params.d_k.is_null() || !params.d_v.is_null() {
        let entry = kernels.key;
        let bytes = shared_bytes(kernels, entry, 4, 2);
        call.launch(entry, grid(op.s_kv, tile(entry)), bytes, params)?;
    }
    Ok(())
}
