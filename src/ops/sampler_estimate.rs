//! What a measurement of the finished image says about the state now: the parts of
//! diffusion posterior sampling (Chung et al. 2023) that are not a network.
//!
//! ```text
//! x_0 = x0_state x + x0_prediction p          estimate, differentiable; p guided
//! r   = m (z - y),  u = r / |r|               residual of a measurement z = H x_0
//! ```
//! `u` is the gradient of |r| by z, so [`Plan::derive`] from z with u upstream
//! gives the gradient of |m (y - H x_0(x))| by the state.

use super::Op;
use super::sampler_step::{SamplerStep, column};
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// x_0 from the state and the prediction, not limited. `SamplerEstimate`: inputs 0
/// prediction, 1 table, 2 stage, 3 the state; output x_0 `[n, ...]`.
/// `SamplerEstimateBackward`: inputs 0 d_x_0, 1 table, 2 stage; outputs 0
/// d_prediction, 1 d_state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerEstimate {
    /// Sizes, shared with the step.
    pub step: SamplerStep,
}

/// Inputs: 0 z, 1 y, 2 mask m?, all `[n, ...]`. Outputs: 0 u `[n, ...]`, zero where
/// |r| is, 1 |r| `[n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SamplerResidual {
    pub n: usize,
    /// Elements of an image.
    pub len: usize,
}

impl SamplerEstimate {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_x0) = d.d_output(node, 0) else { return Ok(()) };
        let outputs = [d.d_input(node, 0), d.d_input(node, 3)];
        let inputs = [Some(d_x0), node.inputs[1], node.inputs[2]];
        d.push(Op::SamplerEstimateBackward(*self), &inputs, &outputs);
        Ok(())
    }
}

impl Plan {
    /// Appends the estimate of x_0 at a stage of `table [stages, 1, COLUMNS]`, from
    /// the `state` the network saw.
    pub fn sampler_estimate(
        &mut self,
        prediction: TensorId,
        table: TensorId,
        stage: TensorId,
        state: TensorId,
    ) -> Result<TensorId> {
        const NAME: &str = "sampler_estimate";
        let shape = self.shape(state).to_vec();
        let (n, channels) = (shape[0], shape[shape.len() - 1]);
        let mut predicted = shape.clone();
        predicted[0] = self.shape(prediction)[0];
        let last = predicted.len() - 1;
        predicted[last] = (*self.shape(prediction).last().unwrap_or(&0)).max(channels);
        let guided = predicted[0] == 2 * n;
        if !guided {
            predicted[0] = n;
        }
        self.expect_shape(NAME, prediction, &predicted)?;
        self.expect_shape(NAME, stage, &[1])?;
        let stages = self.shape(table)[0];
        self.expect_shape(NAME, table, &[stages, 1, column::COLUMNS])?;
        let step = SamplerStep {
            n,
            spatial: shape[1..last].iter().product(),
            channels,
            prediction_channels: predicted[last],
            slots: 1,
            stages,
            per_image: false,
            guided,
            label_is_index: false,
        };
        let x0 = self.transient("sampler.x0", &shape);
        let inputs = [prediction, table, stage, state].map(Some);
        self.push_forward(Op::SamplerEstimate(SamplerEstimate { step }), &inputs, &[x0]);
        Ok(x0)
    }

    /// Appends the residual of a measurement: its direction u and its norm.
    pub fn sampler_residual(
        &mut self,
        z: TensorId,
        y: TensorId,
        mask: Option<TensorId>,
    ) -> Result<(TensorId, TensorId)> {
        const NAME: &str = "sampler_residual";
        let shape = self.shape(z).to_vec();
        self.expect_shape(NAME, y, &shape)?;
        if let Some(mask) = mask {
            self.expect_shape(NAME, mask, &shape)?;
        }
        let op = SamplerResidual { n: shape[0], len: shape[1..].iter().product() };
        let direction = self.transient("sampler.residual", &shape);
        let norm = self.transient("sampler.residual_norm", &[shape[0]]);
        self.push_forward(Op::SamplerResidual(op), &[Some(z), Some(y), mask], &[direction, norm]);
        Ok((direction, norm))
    }
}
