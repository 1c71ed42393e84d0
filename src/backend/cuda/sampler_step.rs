//! Launches of `kernels/sampler_step.cu`.

use super::arguments::{Call, for_type, groups};
use super::entries::{
    SAMPLER_QUANTILE_BF16, SAMPLER_QUANTILE_F32, SAMPLER_STEP_BF16, SAMPLER_STEP_F32, params,
};
use crate::error::Result;
use crate::ops::sampler_step::{SamplerQuantile, SamplerStep};

/// What step and quantile are both told: sizes, prediction, table, stage.
pub(super) fn sizes(op: &SamplerStep, call: &Call) -> params::SamplerStep {
    params::SamplerStep {
        prediction: call.input_as(0, call.dtype(0)),
        table: call.input(1),
        stage: call.optional_u32(2),
        n: op.n as u32,
        spatial: op.spatial as u32,
        channels: op.channels as u32,
        prediction_channels: op.prediction_channels as u32,
        slot_count: op.slots as u32,
        stages: op.stages as u32,
        per_image: u32::from(op.per_image),
        guided: u32::from(op.guided),
        label_is_index: u32::from(op.label_is_index),
        ..Default::default()
    }
}

pub(super) fn sampler_step(op: &SamplerStep, call: &Call) -> Result<()> {
    let mut params = sizes(op, call);
    if call.node().output(2 + op.slots).is_some() {
        params.advanced = call.written_u32(2 + op.slots);
        params.arrived = call.written_u32(3 + op.slots);
    }
    if params.stage.is_null() {
        params.stage = params.advanced;
    }
    params.keys = call.input_u32(3);
    params.noise = call.optional(4);
    params.threshold = call.optional(5);
    params.label = match op.label_is_index {
        true => call.written_u32(0).cast(),
        false => call.written(0).cast(),
    };
    // The network's input has the type of its output.
    let dtype = call.dtype(0);
    params.input = call.output_as(1, dtype).map_or(std::ptr::null_mut(), |(input, _)| input);
    for (j, slot) in params.slots.iter_mut().take(op.slots).enumerate() {
        *slot = call.written(2 + j);
    }
    let entry = for_type(dtype, &SAMPLER_STEP_F32, &SAMPLER_STEP_BF16);
    call.launch(entry, groups(entry, op.len(), op.n), 0, &params)
}

pub(super) fn sampler_quantile(op: &SamplerQuantile, call: &Call) -> Result<()> {
    let mut step = sizes(&op.step, call);
    for (j, slot) in step.slots.iter_mut().take(op.step.slots).enumerate() {
        // Only read by this kernel.
        *slot = call.input(3 + j).cast_mut();
    }
    let threshold = call.written(0);
    let params = params::SamplerQuantile { threshold, step, ratio: op.ratio, max: op.max };
    let entry = for_type(call.dtype(0), &SAMPLER_QUANTILE_F32, &SAMPLER_QUANTILE_BF16);
    call.launch(entry, [op.step.n, 1, 1], 0, &params)
}
