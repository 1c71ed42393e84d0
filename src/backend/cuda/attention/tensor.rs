//! Launches of `kernels/attention_tensor.cu` and `attention_tensor_backward.cu`: bf16, and
//! f32 rounded to tf32.

use super::super::arguments::Call;
use super::super::entries::{
    ATTENTION_BACKWARD_DELTA_BF16, ATTENTION_BACKWARD_DELTA_TF32, ATTENTION_BACKWARD_KEY_16_BF16,
    ATTENTION_BACKWARD_KEY_32_BF16, ATTENTION_BACKWARD_KEY_32_TF32, ATTENTION_BACKWARD_KEY_64_BF16,
    ATTENTION_BACKWARD_KEY_64_TF32, ATTENTION_BACKWARD_KEY_128_BF16,
    ATTENTION_BACKWARD_KEY_128_TF32, ATTENTION_BACKWARD_KEY_256_BF16,
    ATTENTION_BACKWARD_KEY_ODD_64_BF16, ATTENTION_BACKWARD_KEY_ODD_256_BF16,
    ATTENTION_BACKWARD_QUERY_16_BF16, ATTENTION_BACKWARD_QUERY_32_BF16,
    ATTENTION_BACKWARD_QUERY_32_TF32, ATTENTION_BACKWARD_QUERY_64_BF16,
    ATTENTION_BACKWARD_QUERY_64_TF32, ATTENTION_BACKWARD_QUERY_128_BF16,
    ATTENTION_BACKWARD_QUERY_128_TF32, ATTENTION_BACKWARD_QUERY_256_BF16,
    ATTENTION_BACKWARD_QUERY_ODD_64_BF16, ATTENTION_BACKWARD_QUERY_ODD_256_BF16,
    ATTENTION_BACKWARD_VALUE_256_BF16, ATTENTION_BACKWARD_VALUE_ODD_256_BF16,
    ATTENTION_FORWARD_16_BF16, ATTENTION_FORWARD_32_BF16, ATTENTION_FORWARD_32_TF32,
    ATTENTION_FORWARD_64_BF16, ATTENTION_FORWARD_64_TF32, ATTENTION_FORWARD_128_BF16,
    ATTENTION_FORWARD_128_TF32, ATTENTION_FORWARD_256_BF16, ATTENTION_FORWARD_ODD_64_BF16,
    ATTENTION_FORWARD_ODD_256_BF16, ATTENTION_FORWARD_TALL_64_BF16,
    ATTENTION_FORWARD_TALL_128_BF16, Entry, params,
};
use crate::backend::Precision;
use crate::error::Result;
use crate::ops::attention::Attention;
use crate::plan::DType;

/// Queries from which on a warp takes 32 rows, where there is such a kernel: each key
/// and value read from shared memory then serves twice as many products.
const MANY_QUERIES: usize = 512;

/// Floats of a pair of queries, as attention_tensor_backward.cu lays them out.
const PAIR: usize = 8;

/// A forward kernel: rows of a warp, and of a tile of keys.
struct Forward {
    entry: &'static Entry<params::Attention>,
    queries: usize,
    keys: usize,
}

impl Forward {
    /// Rows of a block.
    fn rows(&self) -> usize {
        self.entry.threads as usize / 32 * self.queries
    }

    /// Shared memory: two tiles of keys and two of values.
    fn shared_bytes(&self, row_bytes: usize) -> u32 {
        (4 * self.keys * row_bytes) as u32
    }
}

const fn forward_of(
    entry: &'static Entry<params::Attention>,
    queries: usize,
    keys: usize,
) -> Forward {
    Forward { entry, queries, keys }
}

/// A backward kernel: rows of a tile of the other side, and whether both left operands
/// stay in registers.
struct Backward {
    entry: &'static Entry<params::AttentionBackward>,
    tile: usize,
    keeps_both: bool,
}

impl Backward {
    /// Rows of a block: 16 a warp.
    fn rows(&self) -> usize {
        self.entry.threads as usize / 2
    }

    /// Shared memory: two stages of two tiles, a left operand, two stages of statistics.
    fn shared_bytes(&self, row_bytes: usize) -> u32 {
        let own = if self.keeps_both { 0 } else { self.rows() };
        let statistics = 2 * self.tile * PAIR / 2 * size_of::<f32>();
        ((4 * self.tile + own) * row_bytes + statistics) as u32
    }

    fn launch(
        &self,
        rows: usize,
        op: &Attention,
        row_bytes: usize,
        params: &params::AttentionBackward,
        call: &Call,
    ) -> Result<()> {
        let grid = [rows.div_ceil(self.rows()), op.heads, op.n];
        call.launch(self.entry, grid, self.shared_bytes(row_bytes), params)
    }
}

const fn backward_of(
    entry: &'static Entry<params::AttentionBackward>,
    tile: usize,
    keeps_both: bool,
) -> Backward {
    Backward { entry, tile, keeps_both }
}

/// The kernels of a width; heads are filled up with zeros to it.
pub(super) struct Kernels {
    width: usize,
    /// Bytes of a row in shared memory.
    row_bytes: usize,
    forward: Forward,
    tall: Option<Forward>,
    delta: &'static Entry<params::AttentionBackward>,
    query: Backward,
    /// d_k and d_v, or d_k alone.
    key: Backward,
    /// d_v, where `key` leaves it.
    value: Option<Backward>,
}

/// For heads of a multiple of 8 channels.
static ALIGNED: [Kernels; 5] = [
    Kernels {
        width: 16,
        row_bytes: 32,
        forward: forward_of(&ATTENTION_FORWARD_16_BF16, 16, 64),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_16_BF16, 64, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_16_BF16, 64, true),
        value: None,
    },
    Kernels {
        width: 32,
        row_bytes: 64,
        forward: forward_of(&ATTENTION_FORWARD_32_BF16, 16, 64),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_32_BF16, 64, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_32_BF16, 64, true),
        value: None,
    },
    Kernels {
        width: 64,
        row_bytes: 128,
        forward: forward_of(&ATTENTION_FORWARD_64_BF16, 16, 64),
        tall: Some(forward_of(&ATTENTION_FORWARD_TALL_64_BF16, 32, 64)),
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_64_BF16, 64, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_64_BF16, 64, true),
        value: None,
    },
    Kernels {
        width: 128,
        row_bytes: 256,
        forward: forward_of(&ATTENTION_FORWARD_128_BF16, 16, 64),
        tall: Some(forward_of(&ATTENTION_FORWARD_TALL_128_BF16, 32, 96)),
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_128_BF16, 64, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_128_BF16, 64, false),
        value: None,
    },
    Kernels {
        width: 256,
        row_bytes: 512,
        forward: forward_of(&ATTENTION_FORWARD_256_BF16, 16, 32),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_256_BF16, 16, false),
        key: backward_of(&ATTENTION_BACKWARD_KEY_256_BF16, 16, false),
        value: Some(backward_of(&ATTENTION_BACKWARD_VALUE_256_BF16, 32, true)),
    },
];

/// For any heads, element by element.
static ODD: [Kernels; 2] = [
    Kernels {
        width: 64,
        row_bytes: 128,
        forward: forward_of(&ATTENTION_FORWARD_ODD_64_BF16, 16, 64),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_ODD_64_BF16, 64, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_ODD_64_BF16, 64, true),
        value: None,
    },
    Kernels {
        width: 256,
        row_bytes: 512,
        forward: forward_of(&ATTENTION_FORWARD_ODD_256_BF16, 16, 16),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_BF16,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_ODD_256_BF16, 16, false),
        key: backward_of(&ATTENTION_BACKWARD_KEY_ODD_256_BF16, 16, false),
        value: Some(backward_of(&ATTENTION_BACKWARD_VALUE_ODD_256_BF16, 32, true)),
    },
];

/// For heads of a multiple of 4 channels of f32; rows are 16 bytes longer than a head.
static TF32: [Kernels; 3] = [
    Kernels {
        width: 32,
        row_bytes: 144,
        forward: forward_of(&ATTENTION_FORWARD_32_TF32, 16, 64),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_TF32,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_32_TF32, 32, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_32_TF32, 32, true),
        value: None,
    },
    Kernels {
        width: 64,
        row_bytes: 272,
        forward: forward_of(&ATTENTION_FORWARD_64_TF32, 16, 32),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_TF32,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_64_TF32, 32, true),
        key: backward_of(&ATTENTION_BACKWARD_KEY_64_TF32, 32, true),
        value: None,
    },
    Kernels {
        width: 128,
        row_bytes: 528,
        forward: forward_of(&ATTENTION_FORWARD_128_TF32, 16, 32),
        tall: None,
        delta: &ATTENTION_BACKWARD_DELTA_TF32,
        query: backward_of(&ATTENTION_BACKWARD_QUERY_128_TF32, 16, false),
        key: backward_of(&ATTENTION_BACKWARD_KEY_128_TF32, 16, false),
        value: None,
    },
];

/// The kernels for heads of such tensors in a plan of that precision, if there are any.
pub(super) fn kernels(
    op: &Attention,
    dtype: DType,
    precision: Precision,
) -> Option<&'static Kernels> {
    let all: &'static [Kernels] = match (dtype, precision) {
        (DType::BF16, _) if op.head_dim.is_multiple_of(8) => &ALIGNED,
        (DType::BF16, _) => &ODD,
        (_, Precision::Tf32) if op.head_dim.is_multiple_of(4) => &TF32,
        _ => &[],
    };
    all.iter().find(|kernels| op.head_dim <= kernels.width)
}

pub(super) fn forward(
    kernels: &Kernels,
    op: &Attention,
    params: &params::Attention,
    call: &Call,
) -> Result<()> {
    let tall = kernels.tall.as_ref().filter(|_| op.s_q >= MANY_QUERIES);
    let kernel = tall.unwrap_or(&kernels.forward);
    let grid = [op.s_q.div_ceil(kernel.rows()), op.heads, op.n];
    call.launch(kernel.entry, grid, kernel.shared_bytes(kernels.row_bytes), params)
}

/// Floats of a head's statistics.
pub(super) fn statistics_len(op: &Attention) -> usize {
    op.s_q.div_ceil(2) * PAIR
}

pub(super) fn backward(
    kernels: &Kernels,
    op: &Attention,
    params: &params::AttentionBackward,
    call: &Call,
) -> Result<()> {
    let queries = op.s_q.next_multiple_of(2);
    // Eight threads a query.
    let grid = [queries.div_ceil(kernels.delta.threads as usize / 8), op.heads, op.n];
    call.launch(kernels.delta, grid, 0, params)?;
    let row_bytes = kernels.row_bytes;
    if !params.d_q.is_null() {
        kernels.query.launch(op.s_q, op, row_bytes, params, call)?;
    }
    match &kernels.value {
        None if params.d_k.is_null() && params.d_v.is_null() => {}
        None => kernels.key.launch(op.s_kv, op, row_bytes, params, call)?,
        Some(value) => {
            if !params.d_k.is_null() {
                kernels.key.launch(op.s_kv, op, row_bytes, params, call)?;
            }
            if !params.d_v.is_null() {
                value.launch(op.s_kv, op, row_bytes, params, call)?;
            }
        }
    }
    Ok(())
}
