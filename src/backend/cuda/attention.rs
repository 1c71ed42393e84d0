//! Launches of `kernels/attention.cu`.

use super::arguments::Call;
use super::entries::{
    ATTENTION_BACKWARD_DELTA_F32, ATTENTION_BACKWARD_KEY_32_F32, ATTENTION_BACKWARD_KEY_64_F32,
    ATTENTION_BACKWARD_KEY_128_F32, ATTENTION_BACKWARD_KEY_256_F32,
    ATTENTION_BACKWARD_QUERY_32_F32, ATTENTION_BACKWARD_QUERY_64_F32,
    ATTENTION_BACKWARD_QUERY_128_F32, ATTENTION_BACKWARD_QUERY_256_F32, ATTENTION_FORWARD_32_F32,
    ATTENTION_FORWARD_64_F32, ATTENTION_FORWARD_128_F32, ATTENTION_FORWARD_256_F32, Entry, params,
};
use crate::error::{Error, Result};
use crate::ops::attention::Attention;

/// Largest head dimension there is a kernel for.
const MOST_HEAD_DIM: usize = 256;

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

/// Refuses heads there is no kernel for.
pub(super) fn check(op: &Attention) -> Result<()> {
    if op.head_dim <= MOST_HEAD_DIM {
        return Ok(());
    }
    Err(Error::Device {
        device: "cuda".into(),
        problem: format!(
            "attention heads of {} channels are more than the kernels' {MOST_HEAD_DIM}; \
             use more heads, or --device cpu",
            op.head_dim
        ),
    })
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

pub(super) fn attention(op: &Attention, call: &Call) -> Result<()> {
    let params = params::Attention {
        o: call.written(0),
        lse: call.written(1),
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        s_q: op.s_q as i64,
        s_kv: op.s_kv as i64,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        scale: op.scale,
    };
    let kernels = kernels(op);
    let entry = kernels.forward;
    let grid = [op.s_q.div_ceil(tile(entry)), op.heads, op.n];
    call.launch(entry, grid, shared_bytes(kernels, entry, 2, 1), &params)
}

/// delta.
pub(super) fn backward_workspace_len(op: &Attention) -> usize {
    op.n * op.heads * op.s_q
}

pub(super) fn attention_backward(op: &Attention, call: &Call) -> Result<()> {
    let [(d_q, add_q), (d_k, add_k), (d_v, add_v)] =
        [0, 1, 2].map(|i| call.output(i).unwrap_or((std::ptr::null_mut(), 0)));
    let params = params::AttentionBackward {
        d_q,
        d_k,
        d_v,
        delta: call.workspace(),
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        o: call.input(3),
        lse: call.input(4),
        d_o: call.input(5),
        s_q: op.s_q as i64,
        s_kv: op.s_kv as i64,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        scale: op.scale,
        add_q,
        add_k,
        add_v,
    };
    let grid = |rows: usize, tile: usize| [rows.div_ceil(tile), op.heads, op.n];
    call.launch(&ATTENTION_BACKWARD_DELTA_F32, grid(op.s_q, 8), 0, &params)?;
    let kernels = kernels(op);
    if !d_q.is_null() {
        let entry = kernels.query;
        let bytes = shared_bytes(kernels, entry, 4, 1);
        call.launch(entry, grid(op.s_q, tile(entry)), bytes, &params)?;
    }
    if !d_k.is_null() || !d_v.is_null() {
        let entry = kernels.key;
        let bytes = shared_bytes(kernels, entry, 4, 2);
        call.launch(entry, grid(op.s_kv, tile(entry)), bytes, &params)?;
    }
    Ok(())
}
