//! Langevin steps whose size follows each image's norms (Song et al. 2021, Alg. 4
//! and 5).
//!
//! With the step size e = 2 alpha (snr |z| / |score|)^2 and score = -eps / sigma,
//! ```text
//! x' = x + e score + sqrt(2 e) z = x - q a eps + sqrt(q) b z      q = (|z| / |eps|)^2
//! a  = 2 alpha snr^2 sigma,   b = 2 sqrt(alpha) snr sigma
//! ```
//! so a stage that follows this rule holds a and b as its coefficients of eps and
//! z, and q is what the image adds. Two ops before [`SamplerStep`] do so:
//! [`SamplerNorms`] finds |eps| and |z|, and [`SamplerLangevin`] writes this
//! stage's row of every image and the next one's, a table `[2, n, COLUMNS]` that
//! the step reads at stage 0. A stage of another rule is copied as it stands.
//!
//! An image's sums run over its own elements in a fixed order, so its bits do not
//! depend on the batch. The exception is asked for: `batch_norm` takes the means
//! of |eps| and |z| over the batch, as the reference implementation does.

use super::Op;
use super::sampler_step::{SamplerOperands, SamplerStep, column};
use crate::error::Result;
use crate::plan::{DType, Plan, Role, TensorId};

/// What a stage's rule says, an f32 for each stage.
pub mod rule {
    /// The row as it stands.
    pub const NONE: f32 = 0.0;
    /// eps times q and z times sqrt(q).
    pub const LANGEVIN: f32 = 1.0;
}

/// |eps| and |z| of every image, where the stage's [`rule`] is Langevin's; else 0.
///
/// Inputs: 0 prediction, 1 table, 2 stage, 3 keys, 4 given noise z? as
/// [`SamplerStep`], 5 rules `[stages]`, 6.. the slots. Output: norms `[n, 2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerNorms {
    /// Sizes, shared with the step.
    pub step: SamplerStep,
}

/// Rows of every image for this stage and the next.
///
/// Inputs: 0 table `[stages, 1, COLUMNS]`, 1 stage, 2 rules `[stages]`, 3 norms
/// `[n, 2]`. Output: rows `[2, n, COLUMNS]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerLangevin {
    /// Images.
    pub n: usize,
    /// Rows of the table.
    pub stages: usize,
    /// Whether every image takes the means of the batch's norms.
    pub batch_norm: bool,
}

impl Plan {
    /// Appends the per-image rows of a program with Langevin stages, of `rules
    /// [stages]`; give the result to [`Plan::sampler_step`] as its table, with a
    /// stage that is 0.
    pub fn sampler_langevin(
        &mut self,
        operands: &SamplerOperands,
        rules: TensorId,
        batch_norm: bool,
    ) -> Result<TensorId> {
        let step = self.sampler_descriptor(operands)?;
        let (n, stages) = (step.n, step.stages);
        self.expect_shape("sampler_langevin", operands.table, &[stages, 1, column::COLUMNS])?;
        self.expect_shape("sampler_langevin", rules, &[stages])?;
        let mut made =
            |name: &str, shape: &[usize]| self.activation(name, shape, DType::F32, Role::Transient);
        let norms = made("sampler.norms", &[n, 2]);
        let rows = made("sampler.rows", &[2, n, column::COLUMNS]);
        let SamplerOperands { prediction, table, stage, keys, noise, ref slots, .. } = *operands;
        let mut inputs =
            vec![Some(prediction), Some(table), Some(stage), Some(keys), noise, Some(rules)];
        inputs.extend(slots.iter().copied().map(Some));
        self.push_forward(Op::SamplerNorms(SamplerNorms { step }), &inputs, &[norms]);
        let op = SamplerLangevin { n, stages, batch_norm };
        let inputs = [Some(table), Some(stage), Some(rules), Some(norms)];
        self.push_forward(Op::SamplerLangevin(op), &inputs, &[rows]);
        Ok(rows)
    }
}
