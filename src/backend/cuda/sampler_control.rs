//! Launches of `kernels/sampler_control.cu`.

use super::arguments::{Call, for_type, groups};
use super::entries::{
    SAMPLER_BLEND_F32, SAMPLER_ERROR_F32, SAMPLER_ESTIMATE_BACKWARD_PREDICTION_F32,
    SAMPLER_ESTIMATE_BACKWARD_STATE_F32, SAMPLER_ESTIMATE_FORWARD_F32, SAMPLER_LANGEVIN_F32,
    SAMPLER_NORMS_BF16, SAMPLER_NORMS_F32, SAMPLER_RESIDUAL_F32, SAMPLER_RK45_F32, params,
};
use super::sampler_step::sizes;
use crate::error::Result;
use crate::ops::sampler_blend::SamplerBlend;
use crate::ops::sampler_estimate::{SamplerEstimate, SamplerResidual};
use crate::ops::sampler_langevin::{SamplerLangevin, SamplerNorms};
use crate::ops::sampler_rk45::{ACCEPT, SamplerError, SamplerRk45};

pub(super) fn norms(op: &SamplerNorms, call: &Call) -> Result<()> {
    let mut step = sizes(&op.step, call);
    step.keys = call.input_u32(3);
    step.noise = call.optional(4);
    for (j, slot) in step.slots.iter_mut().take(op.step.slots).enumerate() {
        // Only read by this kernel.
        *slot = call.input(6 + j).cast_mut();
    }
    let params = params::SamplerNorms { norms: call.written(0), rules: call.input(5), step };
    let entry = for_type(call.dtype(0), &SAMPLER_NORMS_F32, &SAMPLER_NORMS_BF16);
    call.launch(entry, [op.step.n, 1, 1], 0, &params)
}

pub(super) fn langevin(op: &SamplerLangevin, call: &Call) -> Result<()> {
    let params = params::SamplerLangevin {
        rows: call.written(0),
        table: call.input(0),
        stage: call.input_u32(1),
        rules: call.input(2),
        norms: call.input(3),
        n: op.n as u32,
        stages: op.stages as u32,
        batch_norm: u32::from(op.batch_norm),
    };
    call.launch(&SAMPLER_LANGEVIN_F32, [1, 1, 1], 0, &params)
}

pub(super) fn error(op: &SamplerError, call: &Call) -> Result<()> {
    let params = params::SamplerError {
        error: call.written(0),
        stage: call.input_u32(0),
        y: call.input(1),
        next: call.input(2),
        e: call.input(3),
        len: op.len as i64,
        accept: ACCEPT as u32,
        atol: op.atol,
        rtol: op.rtol,
    };
    call.launch(&SAMPLER_ERROR_F32, [op.n, 1, 1], 0, &params)
}

pub(super) fn rk45(op: &SamplerRk45, call: &Call) -> Result<()> {
    let params = params::SamplerRk45 {
        rows: call.written(0),
        state: call.written(1),
        running: call.written(2),
        table: call.input(0),
        stage: call.input_u32(1),
        curve: call.input(2),
        error: call.input(3),
        n: op.n as u32,
        nodes: op.nodes as u32,
        first: op.first,
        spacing: op.spacing,
        end: op.end,
        most: op.most,
    };
    call.launch(&SAMPLER_RK45_F32, [1, 1, 1], 0, &params)
}

pub(super) fn blend(op: &SamplerBlend, call: &Call) -> Result<()> {
    let params = params::SamplerBlend {
        x: call.written(0),
        table: call.input(0),
        stage: call.input_u32(1),
        keys: call.input_u32(2),
        known: call.input(3),
        mask: call.input(4),
        len: op.len as i64,
        stages: op.stages as u32,
    };
    call.launch(&SAMPLER_BLEND_F32, groups(&SAMPLER_BLEND_F32, op.len, op.n), 0, &params)
}

pub(super) fn estimate(op: &SamplerEstimate, call: &Call) -> Result<()> {
    let (out, add) = call.required(0);
    let step = sizes(&op.step, call);
    let params = params::SamplerEstimate { out, from: call.input(3), step, add };
    let entry = &SAMPLER_ESTIMATE_FORWARD_F32;
    call.launch(entry, groups(entry, op.step.len(), op.step.n), 0, &params)
}

pub(super) fn estimate_backward(op: &SamplerEstimate, call: &Call) -> Result<()> {
    let step = sizes(&op.step, call);
    let from = call.input(0);
    if let Some((out, add)) = call.output(0) {
        let params = params::SamplerEstimate { out, from, step, add };
        let entry = &SAMPLER_ESTIMATE_BACKWARD_PREDICTION_F32;
        let wide = op.step.spatial * op.step.prediction_channels;
        let images = op.step.copies() * op.step.n;
        call.launch(entry, groups(entry, wide, images), 0, &params)?;
    }
    if let Some((out, add)) = call.output(1) {
        let params = params::SamplerEstimate { out, from, step, add };
        let entry = &SAMPLER_ESTIMATE_BACKWARD_STATE_F32;
        call.launch(entry, groups(entry, op.step.n * op.step.len(), 1), 0, &params)?;
    }
    Ok(())
}

pub(super) fn residual(op: &SamplerResidual, call: &Call) -> Result<()> {
    let params = params::SamplerResidual {
        direction: call.written(0),
        norms: call.written(1),
        z: call.input(0),
        y: call.input(1),
        mask: call.optional(2),
        len: op.len as i64,
    };
    call.launch(&SAMPLER_RESIDUAL_F32, [op.n, 1, 1], 0, &params)
}
