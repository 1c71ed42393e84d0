//! Launches of attention: `kernels/attention.cu` in f32 ([`exact`]) and
//! `kernels/attention_tensor*.cu` on tensor cores, in bf16 and tf32 ([`tensor`]).

mod exact;
mod tensor;

use super::arguments::Call;
use super::entries::params;
use crate::backend::Precision;
use crate::error::{Error, Result};
use crate::ops::attention::Attention;
use crate::plan::DType;

/// Largest head dimension there is a kernel for.
const MOST_HEAD_DIM: usize = 256;

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

/// Bytes from token to token; only kernels on tensor cores read it.
fn pitch(op: &Attention, dtype: DType) -> u32 {
    (op.heads * op.head_dim * dtype.bytes()) as u32
}

pub(super) fn attention(op: &Attention, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let params = params::Attention {
        o: call.required_as(0, dtype).0,
        lse: call.written(1),
        q: call.input_as(0, dtype),
        k: call.input_as(1, dtype),
        v: call.input_as(2, dtype),
        s_q: op.s_q as i64,
        s_kv: op.s_kv as i64,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        pitch: pitch(op, dtype),
        scale: op.scale,
    };
    match tensor::kernels(op, dtype, call.precision()) {
        Some(kernels) => tensor::forward(kernels, op, &params, call),
        None => exact::forward(op, &params, call),
    }
}

/// delta, and what the kernels on tensor cores keep beside it.
pub(super) fn backward_workspace_len(op: &Attention, dtype: DType, precision: Precision) -> usize {
    let rows = op.n * op.heads;
    match tensor::kernels(op, dtype, precision) {
        Some(_) => rows * tensor::statistics_len(op),
        None => rows * op.s_q,
    }
}

pub(super) fn attention_backward(op: &Attention, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let [(d_q, add_q), (d_k, add_k), (d_v, add_v)] =
        [0, 1, 2].map(|i| call.output_as(i, dtype).unwrap_or((std::ptr::null_mut(), 0)));
    let params = params::AttentionBackward {
        d_q,
        d_k,
        d_v,
        delta: call.workspace(),
        q: call.input_as(0, dtype),
        k: call.input_as(1, dtype),
        v: call.input_as(2, dtype),
        o: call.input_as(3, dtype),
        lse: call.input(4),
        d_o: call.input_as(5, dtype),
        s_q: op.s_q as i64,
        s_kv: op.s_kv as i64,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        pitch: pitch(op, dtype),
        scale: op.scale,
        add_q,
        add_k,
        add_v,
    };
    match tensor::kernels(op, dtype, call.precision()) {
        Some(kernels) => tensor::backward(kernels, op, &params, call),
        None => exact::backward(op, &params, call),
    }
}
