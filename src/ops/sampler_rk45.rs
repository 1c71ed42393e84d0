//! Dormand and Prince's embedded pair of order 5 and 4 with time, step size and
//! acceptance of every image on the device (Dormand & Prince 1980; Hairer, Norsett
//! & Wanner 1993, II.4).
//!
//! The independent variable is u = ln(sigma / alpha). With phi = atan(sigma /
//! alpha) the state y = x / sqrt(alpha^2 + sigma^2) obeys
//! ```text
//! dy/du = sin(phi) cos(phi) (cos(phi) eps - sin(phi) x_0)
//!       = cos(phi) (cos(phi) y - x_0)
//! ```
//! for every process, and is never large. The second form, in which eps is taken
//! again from x_0, is the one computed, so that a limit on x_0 limits the slope. A
//! [`curve`] tabulates x_0's factors, cos(phi), the network's label and its input's
//! factor over equal steps of u, linear in between.
//!
//! A step is the stages 1 to 8 of ten (stage 0 finds the first slope, 9 ends):
//! ```text
//! 1..5  k_2..k_6, and the next argument Y = y + h sum_j a_j k_j
//! 6     k_7 = slope at y', and e = h sum_j (b_j - b*_j) k_j
//! 7     accepted: y = y', Y = y' + h' a_21 k_7; else Y = y + h' a_21 k_1
//! 8     accepted: k_1 = k_7
//! ```
//! k_2 is in neither b nor b*, so k_6 takes its slot, and seven slots suffice:
//! y, Y, k_1, k_2 / k_6, k_3 / e, k_4 / k_7, k_5. Stages 7, 8 and 9 run without the
//! network. Before every stage [`SamplerRk45`] writes the rows of all images for
//! [`SamplerStep`](super::sampler_step::SamplerStep) from the base table, whose
//! second output has its slopes' coefficients still without h, and whose stages 7
//! and 8 are those of an accepted step. Its own slope stands there as eps. An image that has arrived is not written
//! any more.

use super::Op;
use super::sampler_step::{SamplerOperands, column};
use crate::error::{Error, Result};
use crate::plan::{Mode, Plan, TensorId, Write};

/// Stages of the program.
pub const STAGES: usize = 10;
/// First stage of a step.
pub const STEP: usize = 1;
/// Stage that accepts or rejects, after [`SamplerError`].
pub const ACCEPT: usize = 7;
/// Stage that keeps the last slope; a step ends with it.
pub const KEEP: usize = 8;
/// Stage after the last step, of all images.
pub const END: usize = 9;
/// Slots.
pub const SLOTS: usize = 7;
/// Where each quantity lies; some share.
pub mod slot {
    /// y.
    pub const STATE: usize = 0;
    /// The argument Y; at last y'.
    pub const ARGUMENT: usize = 1;
    /// k_1 to k_7.
    pub const SLOPE: [usize; 7] = [2, 3, 4, 5, 6, 3, 5];
    /// e.
    pub const ERROR: usize = 4;
}
/// Times of the slopes k_1 to k_7 within a step.
pub const NODES: [f64; 7] = [0.0, 0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0];
/// First slope's factor in the second argument.
pub const A_21: f64 = 0.2;

/// Columns of the curve, `[nodes, COLUMNS]`.
pub mod curve {
    /// The network's label.
    pub const LABEL: usize = 0;
    /// Factor of the argument in the network's input.
    pub const INPUT_SCALE: usize = 1;
    /// The argument's factor in x_0.
    pub const X0_STATE: usize = 2;
    /// The prediction's factor in x_0.
    pub const X0_PREDICTION: usize = 3;
    /// cos(phi).
    pub const COSINE: usize = 4;
    /// Columns of a row.
    pub const COLUMNS: usize = 5;
}

/// Columns of an image's control state, `[n, COLUMNS]`.
pub mod state {
    /// u of y.
    pub const TIME: usize = 0;
    /// Step h being tried, with its sign.
    pub const STEP: usize = 1;
    /// One of [`RUNNING`], [`ARRIVED`], [`STUCK`].
    pub const STATUS: usize = 2;
    /// Evaluations of the network for this image.
    pub const EVALUATIONS: usize = 3;
    /// Accepted steps.
    pub const ACCEPTED: usize = 4;
    /// Rejected steps.
    pub const REJECTED: usize = 5;
    /// Whether the step being tried ends at the last time.
    pub const LAST: usize = 6;
    /// Whether the step just tried was accepted: 1, 0; 0 where none was tried.
    pub const ACCEPTS: usize = 7;
    /// Columns of a row.
    pub const COLUMNS: usize = 8;
    /// Status: on its way.
    pub const RUNNING: f32 = 0.0;
    /// Status: at the last time.
    pub const ARRIVED: f32 = 1.0;
    /// Status: the step has become too small to be told from none.
    pub const STUCK: f32 = 2.0;
}

/// Largest and smallest change of the step, and the part of the predicted one
/// that is taken; as in Hairer's code and SciPy.
pub const FACTORS: (f64, f64, f64) = (0.2, 10.0, 0.9);

/// `error[i] = sqrt(mean((e / (atol + rtol max(|y|, |y'|)))^2))` before stage
/// [`ACCEPT`]; at another stage the output keeps its content.
///
/// Inputs: 0 stage, 1 y, 2 y', 3 e, all `[n, ...]`. Output: `[n]`, kept between runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerError {
    /// Images.
    pub n: usize,
    /// Elements of an image.
    pub len: usize,
    /// Absolute tolerance.
    pub atol: f32,
    /// Relative tolerance.
    pub rtol: f32,
}

/// Control of every image, then its rows for this stage and the next evaluation.
///
/// Inputs: 0 base table `[STAGES, 1, COLUMNS]`, 1 stage, 2 curve `[nodes, 5]`,
/// 3 error `[n]`. Outputs: 0 rows `[2, n, COLUMNS]`, 1 state `[n, 8]` in place,
/// 2 images on their way `[1]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerRk45 {
    /// Images.
    pub n: usize,
    /// Rows of the curve.
    pub nodes: usize,
    /// u of the curve's first row.
    pub first: f32,
    /// u between two rows.
    pub spacing: f32,
    /// Last u.
    pub end: f32,
    /// Largest step.
    pub most: f32,
}

/// Operands of the control, by name.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Rk45Operands {
    pub curve: TensorId,
    pub error: TensorId,
    pub state: TensorId,
    pub running: TensorId,
    pub rows: TensorId,
}

/// What the control needs to know about a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rk45Settings {
    /// u of the curve's first row.
    pub first: f32,
    /// u between two rows of the curve.
    pub spacing: f32,
    /// Last u.
    pub end: f32,
    /// Largest step.
    pub most: f32,
    /// Absolute tolerance.
    pub atol: f32,
    /// Relative tolerance.
    pub rtol: f32,
}

impl Plan {
    /// Appends error norm and control; give `rows` to [`Plan::sampler_step`] as
    /// its table, with a stage that is 0.
    pub fn sampler_rk45(
        &mut self,
        operands: &SamplerOperands,
        control: Rk45Operands,
        settings: Rk45Settings,
    ) -> Result<()> {
        const NAME: &str = "sampler_rk45";
        let step = self.sampler_descriptor(operands)?;
        let (n, len) = (step.n, step.len());
        self.expect_shape(NAME, operands.table, &[STAGES, 1, column::COLUMNS])?;
        let Rk45Operands { curve, error, state, running, rows } = control;
        let nodes = self.shape(curve)[0];
        self.expect_shape(NAME, curve, &[nodes.max(2), curve::COLUMNS])?;
        self.expect_shape(NAME, error, &[n])?;
        self.expect_shape(NAME, state, &[n, state::COLUMNS])?;
        self.expect_shape(NAME, running, &[1])?;
        self.expect_shape(NAME, rows, &[2, n, column::COLUMNS])?;
        if operands.slots.len() != SLOTS {
            return Err(Error::Usage(format!("{NAME} takes {SLOTS} slots")));
        }
        let [y, next, e] = [slot::STATE, slot::ARGUMENT, slot::ERROR].map(|j| operands.slots[j]);
        let Rk45Settings { first, spacing, end, most, atol, rtol } = settings;
        let stage = Some(operands.stage);
        let op = SamplerError { n, len, atol, rtol };
        self.push_forward(Op::SamplerError(op), &[stage, Some(y), Some(next), Some(e)], &[error]);
        let op = SamplerRk45 { n, nodes, first, spacing, end, most };
        let write = |tensor| Some(Write { tensor, mode: Mode::Write });
        self.push(
            Op::SamplerRk45(op),
            vec![Some(operands.table), stage, Some(curve), Some(error)],
            vec![write(rows), write(state), write(running)],
        );
        Ok(())
    }
}
