//! Launches of `kernels/embedding.cu`.

use super::arguments::{Call, each, for_type, packs};
use super::entries::{
    FOURIER_EMBEDDING_BF16, FOURIER_EMBEDDING_F32, LOOKUP_BACKWARD_BF16, LOOKUP_BACKWARD_F32,
    LOOKUP_FORWARD_BF16, LOOKUP_FORWARD_F32, SINUSOIDAL_EMBEDDING_BF16, SINUSOIDAL_EMBEDDING_F32,
    params,
};
use crate::error::Result;
use crate::ops::embedding::{Fourier, Lookup, Sinusoidal};

pub(super) fn sinusoidal(op: &Sinusoidal, call: &Call) -> Result<()> {
    let dtype = call.written_dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let half = (op.dim / 2) as f64;
    let params = params::Waves {
        y,
        t: call.input(0),
        w: std::ptr::null(),
        step: -f64::from(op.max_period).ln() / (half - f64::from(op.freq_shift)),
        dim: op.dim as u32,
        flip: u32::from(op.flip),
        log: 0,
        add,
    };
    let entry = for_type(dtype, &SINUSOIDAL_EMBEDDING_F32, &SINUSOIDAL_EMBEDDING_BF16);
    // One thread a frequency, and one for the zero of an odd row.
    let blocks = op.dim.div_ceil(2).div_ceil(entry.threads as usize);
    call.launch(entry, [blocks, op.n, 1], 0, &params)
}

pub(super) fn fourier(op: &Fourier, call: &Call) -> Result<()> {
    let dtype = call.written_dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Waves {
        y,
        t: call.input(0),
        w: call.input(1),
        step: 0.0,
        dim: 2 * op.half as u32,
        flip: u32::from(op.flip),
        log: u32::from(op.log),
        add,
    };
    let entry = for_type(dtype, &FOURIER_EMBEDDING_F32, &FOURIER_EMBEDDING_BF16);
    call.launch(entry, [op.half.div_ceil(entry.threads as usize), op.n, 1], 0, &params)
}

pub(super) fn lookup(op: &Lookup, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let (y, add) = call.required_as(0, dtype);
    let params = params::Lookup {
        y,
        bad: call.bad_index(),
        table: call.input_as(0, dtype),
        index: call.input_u32(1),
        n: op.n as u32,
        rows: op.rows as u32,
        dim: op.dim as u32,
        add,
    };
    let entry = for_type(dtype, &LOOKUP_FORWARD_F32, &LOOKUP_FORWARD_BF16);
    call.launch(entry, packs(entry, each(dtype), op.dim, op.n), 0, &params)
}

pub(super) fn lookup_backward(op: &Lookup, call: &Call) -> Result<()> {
    let dtype = call.dtype(1);
    let (y, add) = call.required(0);
    let params = params::Lookup {
        y: y.cast(),
        bad: call.bad_index(),
        table: call.input_as(1, dtype),
        index: call.input_u32(0),
        n: op.n as u32,
        rows: op.rows as u32,
        dim: op.dim as u32,
        add,
    };
    let entry = for_type(dtype, &LOOKUP_BACKWARD_F32, &LOOKUP_BACKWARD_BF16);
    call.launch(entry, [op.dim.div_ceil(entry.threads as usize), op.rows, 1], 0, &params)
}
