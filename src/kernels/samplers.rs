//! A sampler's stage and what decides about it.
//!
//! Outputs stand first, then inputs, as tensors of any shape with the right number of elements.

use super::{DeviceTensor, Kernels, Output};
use crate::error::Result;
use crate::ops::{
    Op, sampler_blend, sampler_estimate, sampler_langevin, sampler_rk45, sampler_step,
};

impl Kernels {
    /// Threshold of dynamic thresholding; shapes: [`SamplerQuantile`](sampler_step::SamplerQuantile).
    pub fn sampler_quantile(
        &self,
        op: &sampler_step::SamplerQuantile,
        threshold: Output,
        prediction: &DeviceTensor,
        table: &DeviceTensor,
        stage: &DeviceTensor,
        slots: &[&DeviceTensor],
    ) -> Result<()> {
        let mut inputs = vec![Some(prediction), Some(table), Some(stage)];
        inputs.extend(slots.iter().copied().map(Some));
        self.launch(Op::SamplerQuantile(*op), vec![Some(threshold)], &inputs)
    }

    /// One stage of any sampler; `stage` is absent where the step counts up `advanced`; shapes: [`SamplerStep`](sampler_step::SamplerStep).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn sampler_step(
        &self,
        op: &sampler_step::SamplerStep,
        label: Output,
        input: Option<Output>,
        slots: &mut [DeviceTensor],
        advanced: Option<Output>,
        arrived: Option<Output>,
        prediction: &DeviceTensor,
        table: &DeviceTensor,
        stage: Option<&DeviceTensor>,
        keys: &DeviceTensor,
        noise: Option<&DeviceTensor>,
        threshold: Option<&DeviceTensor>,
    ) -> Result<()> {
        let slots = slots.iter_mut().map(|slot| Some(Output::write(slot)));
        let mut outputs = vec![Some(label), input];
        outputs.extend(slots);
        outputs.extend([advanced, arrived]);
        self.launch(
            Op::SamplerStep(*op),
            outputs,
            &[Some(prediction), Some(table), stage, Some(keys), noise, threshold],
        )
    }

    /// Norms of eps and z of every image; shapes: [`SamplerNorms`](sampler_langevin::SamplerNorms).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn sampler_norms(
        &self,
        op: &sampler_langevin::SamplerNorms,
        norms: Output,
        prediction: &DeviceTensor,
        table: &DeviceTensor,
        stage: &DeviceTensor,
        keys: &DeviceTensor,
        noise: Option<&DeviceTensor>,
        rules: &DeviceTensor,
        slots: &[&DeviceTensor],
    ) -> Result<()> {
        let mut inputs =
            vec![Some(prediction), Some(table), Some(stage), Some(keys), noise, Some(rules)];
        inputs.extend(slots.iter().copied().map(Some));
        self.launch(Op::SamplerNorms(*op), vec![Some(norms)], &inputs)
    }

    /// Rows of every image for a Langevin stage; shapes: [`SamplerLangevin`](sampler_langevin::SamplerLangevin).
    pub fn sampler_langevin(
        &self,
        op: &sampler_langevin::SamplerLangevin,
        rows: Output,
        table: &DeviceTensor,
        stage: &DeviceTensor,
        rules: &DeviceTensor,
        norms: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::SamplerLangevin(*op),
            vec![Some(rows)],
            &[Some(table), Some(stage), Some(rules), Some(norms)],
        )
    }

    /// Error norm of an adaptive step; shapes: [`SamplerError`](sampler_rk45::SamplerError).
    pub fn sampler_error(
        &self,
        op: &sampler_rk45::SamplerError,
        error: Output,
        stage: &DeviceTensor,
        y: &DeviceTensor,
        next: &DeviceTensor,
        e: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::SamplerError(*op),
            vec![Some(error)],
            &[Some(stage), Some(y), Some(next), Some(e)],
        )
    }

    /// Control of every image's adaptive step; shapes: [`SamplerRk45`](sampler_rk45::SamplerRk45).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn sampler_rk45(
        &self,
        op: &sampler_rk45::SamplerRk45,
        rows: Output,
        state: Output,
        running: Output,
        table: &DeviceTensor,
        stage: &DeviceTensor,
        curve: &DeviceTensor,
        error: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::SamplerRk45(*op),
            vec![Some(rows), Some(state), Some(running)],
            &[Some(table), Some(stage), Some(curve), Some(error)],
        )
    }

    /// Known pixels put into the state; shapes: [`SamplerBlend`](sampler_blend::SamplerBlend).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn sampler_blend(
        &self,
        op: &sampler_blend::SamplerBlend,
        x: Output,
        table: &DeviceTensor,
        stage: &DeviceTensor,
        keys: &DeviceTensor,
        known: &DeviceTensor,
        mask: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::SamplerBlend(*op),
            vec![Some(x)],
            &[Some(table), Some(stage), Some(keys), Some(known), Some(mask)],
        )
    }

    /// x_0 from prediction and state; shapes: [`SamplerEstimate`](sampler_estimate::SamplerEstimate).
    pub fn sampler_estimate(
        &self,
        op: &sampler_estimate::SamplerEstimate,
        x_0: Output,
        prediction: &DeviceTensor,
        table: &DeviceTensor,
        stage: &DeviceTensor,
        state: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::SamplerEstimate(*op),
            vec![Some(x_0)],
            &[Some(prediction), Some(table), Some(stage), Some(state)],
        )
    }

    /// Gradients of the estimate; shapes: [`SamplerEstimate`](sampler_estimate::SamplerEstimate).
    pub fn sampler_estimate_backward(
        &self,
        op: &sampler_estimate::SamplerEstimate,
        d_prediction: Option<Output>,
        d_state: Option<Output>,
        d_x_0: &DeviceTensor,
        table: &DeviceTensor,
        stage: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::SamplerEstimateBackward(*op),
            vec![d_prediction, d_state],
            &[Some(d_x_0), Some(table), Some(stage)],
        )
    }

    /// Direction and norm of a residual; shapes: [`SamplerResidual`](sampler_estimate::SamplerResidual).
    pub fn sampler_residual(
        &self,
        op: &sampler_estimate::SamplerResidual,
        direction: Output,
        norms: Output,
        z: &DeviceTensor,
        y: &DeviceTensor,
        mask: Option<&DeviceTensor>,
    ) -> Result<()> {
        self.launch(
            Op::SamplerResidual(*op),
            vec![Some(direction), Some(norms)],
            &[Some(z), Some(y), mask],
        )
    }
}
