//! One stage of any sampler in one pass over the state.
//!
//! With x the slot the network saw, p its output, and z standard normal:
//! ```text
//! p     = p_uncond + guidance (p_cond - p_uncond)      when guided
//! x_0   = limit(x0_state x + x0_prediction p)
//! eps   = eps_state x + eps_prediction p               not limited
//! out_k = sum_j c_kj slot_j + c_k7 x_0 + c_k8 eps + c_k9 z     k = 0, 1
//! ```
//! A row of f32 [`column`]s holds a stage's coefficients; the stages' rows form
//! a table on the device, and a one-element tensor says which stage this is; the
//! step itself goes on to the next one. So a captured step is replayed for every
//! stage, and nothing is uploaded in between. A coefficient of 0 means that
//! its operand is not read: where neither output takes x_0 or eps, the prediction
//! is not. All terms are computed with separate f32 multiply
//! and add, in the order above, so that every backend gives the same bits.
//!
//! A network that predicts its own variance has twice the channels. With v the
//! second half (of the conditional batch), z is multiplied by
//! ```text
//! sqrt(max(v, 0))                                  LEARNED
//! exp((f large + (1 - f) small) / 2), f = (v + 1) / 2   LEARNED_RANGE
//! ```
//! before it is used; Nichol & Dhariwal 2021, eq. 15, for the second.
//!
//! The same pass writes what the next evaluation needs: its label, and, where
//! the network does not read the state as it stands, its scaled and doubled
//! input. An element of the outputs depends on the same element alone.
//!
//! Saharia et al. 2022, sec. 2.3 for dynamic thresholding, whose per-image
//! quantile is an op of its own before this one: [`SamplerQuantile`].

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{DType, Mode, Plan, TensorId, Write};

/// Name of slot 0 in a plan whose network may read it as it stands, with factor 1. Lowering
/// may then add [`INPUT`].
pub const SLOT_0: &str = "sampler.slot.0";

/// Name of the network's input where it is not slot 0. Whoever sets slot 0 sets it too, where
/// the lowered plan has it: in bf16 the step writes both, so that nothing is cast.
pub const INPUT: &str = "sampler.input";

/// Most state slots a sampler has; with x_0 they are the 8 of a stage's sum.
pub const MOST_SLOTS: usize = 7;

/// Columns of a stage's row. Integers are held as f32, exactly.
pub mod column {
    /// The network's label at this stage.
    pub const LABEL: usize = 0;
    /// Slot the network sees.
    pub const INPUT_SLOT: usize = 1;
    /// Factor of that slot in the network's input (c_in).
    pub const INPUT_SCALE: usize = 2;
    /// Factor of the state in x_0.
    pub const X0_STATE: usize = 3;
    /// Factor of the prediction in x_0.
    pub const X0_PREDICTION: usize = 4;
    /// Factor of the state in eps.
    pub const EPS_STATE: usize = 5;
    /// Factor of the prediction in eps.
    pub const EPS_PREDICTION: usize = 6;
    /// Largest |x_0|; infinite for no limit. Not used with thresholding.
    pub const CLIP: usize = 7;
    /// Draw of the noise z.
    pub const DRAW: usize = 8;
    /// Guidance weight.
    pub const GUIDANCE: usize = 9;
    /// Slot the first output is written to; the second's follows. -1: none;
    /// for the second also [`LEARNED`] or [`LEARNED_RANGE`], in whose place there
    /// is no second output.
    pub const TARGET: usize = 10;
    /// In place of the second target: the prediction holds the noise's variance.
    pub const LEARNED: f32 = -2.0;
    /// In place of the second target: the prediction holds where the logarithm of
    /// the noise's variance lies between the second output's first two
    /// coefficients, `small` and `large`, from -1 to 1.
    pub const LEARNED_RANGE: f32 = -3.0;
    /// First coefficient of the first output; the second's start [`COEFFICIENTS`] later.
    pub const OUTPUT: usize = 12;
    /// Coefficients of one output: slots 0..7, x_0, eps, z.
    pub const COEFFICIENTS: usize = 10;
    /// Position of x_0 among them.
    pub const OF_X0: usize = 7;
    /// Position of eps among them.
    pub const OF_EPS: usize = 8;
    /// Position of z among them.
    pub const OF_NOISE: usize = 9;
    /// Columns of the row.
    pub const COLUMNS: usize = 32;
}

/// Descriptor. Noise is purpose [`Purpose::SampleStep`](crate::random::Purpose).
///
/// Inputs: 0 prediction `[copies n, ..., prediction_channels]`, 1 table
/// `[stages, rows, COLUMNS]`, 2 stage `[1]` u32 where it is not the advanced one,
/// 3 keys `[n, 4]` u32, 4 given noise z `[n, ..., channels]`?, 5 threshold `[n]`?.
/// Outputs: 0 label of the next evaluation `[copies n]`, 1 its input
/// `[copies n, ..., channels]`?, 2.. the slots `[n, ..., channels]`, each read
/// and written in place; after them the [`Advance`]'s two words, where it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerStep {
    /// Images.
    pub n: usize,
    /// Positions of an image.
    pub spatial: usize,
    /// Channels of the state.
    pub channels: usize,
    /// Channels of the prediction; those past `channels` are read for a learned
    /// variance only.
    pub prediction_channels: usize,
    /// State slots.
    pub slots: usize,
    /// Rows of the table.
    pub stages: usize,
    /// Whether every image has a row of its own.
    pub per_image: bool,
    /// Whether the prediction holds the conditional batch and then the
    /// unconditional one.
    pub guided: bool,
    /// Whether the label is a u32, the row of a table, and not an f32.
    pub label_is_index: bool,
}

impl SamplerStep {
    /// Elements of one image of the state.
    pub fn len(&self) -> usize {
        self.spatial * self.channels
    }

    /// Whether an image has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Batches in the prediction.
    pub fn copies(&self) -> usize {
        if self.guided { 2 } else { 1 }
    }

    /// First element of image i's row at a stage.
    pub fn row(&self, stage: usize, image: usize) -> usize {
        let rows = if self.per_image { self.n } else { 1 };
        (stage * rows + if self.per_image { image } else { 0 }) * column::COLUMNS
    }
}

/// Threshold of dynamic thresholding: the quantile of |x_0| over an image by
/// linear interpolation between order statistics, brought into `[1, max]` (to
/// `max` where that is below 1). The statistics are selected exactly.
///
/// Inputs: 0 to 2 as [`SamplerStep`], 3.. the slots; output threshold `[n]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerQuantile {
    /// Sizes, shared with the step.
    pub step: SamplerStep,
    /// Quantile, 0 to 1.
    pub ratio: f32,
    /// Largest threshold.
    pub max: f32,
}

/// A stage number that the step counts up in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The number, `[1]` u32.
    pub stage: TensorId,
    /// Whatever a backend counts its blocks with, `[1]` u32: 0 between two steps.
    pub arrived: TensorId,
}

/// Operands of a sampler step, by name.
#[derive(Clone, Debug)]
pub struct SamplerOperands {
    /// The network's output.
    pub prediction: TensorId,
    /// Rows of all stages.
    pub table: TensorId,
    /// Number of the stage, `[1]` u32.
    pub stage: TensorId,
    /// The number that the step counts up at its end: `stage`, or the one that rows
    /// of each image were made for.
    pub advance: Option<Advance>,
    /// Random keys `[n, 4]`.
    pub keys: TensorId,
    /// Noise to take in place of drawing it.
    pub noise: Option<TensorId>,
    /// The network's label, `[copies n]`, f32 or u32.
    pub label: TensorId,
    /// The network's input, where it is not a slot.
    pub input: Option<TensorId>,
    /// State slots `[n, ...]`.
    pub slots: Vec<TensorId>,
    /// Dynamic thresholding: quantile and largest threshold.
    pub threshold: Option<(f32, f32)>,
}

impl Plan {
    /// The descriptor of a step, once its operands' shapes fit together.
    pub(super) fn sampler_descriptor(&self, operands: &SamplerOperands) -> Result<SamplerStep> {
        const NAME: &str = "sampler_step";
        let SamplerOperands { prediction, table, stage, keys, noise, label, input, slots, .. } =
            operands.clone();
        let wrong = |plan: &Plan, id: TensorId, expected: String| {
            let t = plan.tensor(id);
            Err(Error::Shape { op: NAME, tensor: t.name.clone(), expected, found: t.shape.clone() })
        };
        let Some(&first) = slots.first() else {
            return Err(Error::Usage("a sampler needs at least one slot".into()));
        };
        let shape = self.shape(first).to_vec();
        if slots.len() > MOST_SLOTS || shape.len() < 2 {
            return wrong(self, first, format!("[n, ..., c], at most {MOST_SLOTS} slots"));
        }
        for &slot in &slots {
            self.expect_shape(NAME, slot, &shape)?;
        }
        let (n, channels) = (shape[0], shape[shape.len() - 1]);
        let predicted = self.shape(prediction).to_vec();
        let copies = predicted[0] / n.max(1);
        let prediction_channels = *predicted.last().expect("shapes have axes");
        let inner = 1..shape.len() - 1;
        if !(copies == 1 || copies == 2)
            || predicted.len() != shape.len()
            || predicted[0] != copies * n
            || predicted[inner.clone()] != shape[inner.clone()]
            || prediction_channels < channels
        {
            return wrong(self, prediction, format!("as the state {shape:?}, or twice its batch"));
        }
        let &[stages, rows, column::COLUMNS] = self.shape(table) else {
            return wrong(self, table, format!("[stages, 1 or {n}, {}]", column::COLUMNS));
        };
        if rows != 1 && rows != n {
            return wrong(self, table, format!("[stages, 1 or {n}, {}]", column::COLUMNS));
        }
        self.expect_shape(NAME, stage, &[1])?;
        for word in operands.advance.iter().flat_map(|a| [a.stage, a.arrived]) {
            self.expect_shape(NAME, word, &[1])?;
        }
        self.expect_shape(NAME, keys, &[n, 4])?;
        self.expect_shape(NAME, label, &[predicted[0]])?;
        if let Some(z) = noise {
            self.expect_shape(NAME, z, &shape)?;
        }
        if let Some(input) = input {
            let mut doubled = shape.clone();
            doubled[0] = predicted[0];
            self.expect_shape(NAME, input, &doubled)?;
        }
        Ok(SamplerStep {
            n,
            spatial: shape[inner].iter().product(),
            channels,
            prediction_channels,
            slots: slots.len(),
            stages,
            per_image: rows == n && n > 1,
            guided: copies == 2,
            label_is_index: self.tensor(label).dtype == DType::U32,
        })
    }

    /// Appends one stage of a sampler; see [`SamplerStep`].
    pub fn sampler_step(&mut self, operands: &SamplerOperands) -> Result<()> {
        let step = self.sampler_descriptor(operands)?;
        let n = step.n;
        let SamplerOperands {
            prediction,
            table,
            stage,
            keys,
            noise,
            label,
            input,
            ref slots,
            advance,
            ..
        } = *operands;
        let first = slots[0];
        let threshold = operands.threshold.map(|(ratio, max)| {
            let threshold = self.activation(
                self.derived_name(first, "threshold"),
                &[n],
                DType::F32,
                crate::plan::Role::Transient,
            );
            let mut inputs = vec![Some(prediction), Some(table), Some(stage)];
            inputs.extend(slots.iter().copied().map(Some));
            let op = SamplerQuantile { step, ratio, max };
            self.push_forward(Op::SamplerQuantile(op), &inputs, &[threshold]);
            threshold
        });
        let write = |tensor| Some(Write { tensor, mode: Mode::Write });
        let mut outputs = vec![write(label), input.and_then(write)];
        outputs.extend(slots.iter().map(|&slot| write(slot)));
        outputs.extend(advance.iter().flat_map(|a| [write(a.stage), write(a.arrived)]));
        let told = (advance.map(|a| a.stage) != Some(stage)).then_some(stage);
        let inputs = vec![Some(prediction), Some(table), told, Some(keys), noise, threshold];
        self.push(Op::SamplerStep(step), inputs, outputs);
        Ok(())
    }
}
