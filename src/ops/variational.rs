//! One term of the variational bound, with or without a learned variance, and
//! beside it the simple loss of the mean (Nichol & Dhariwal 2021).
//!
//! With the network's answer F and, where it is learned, V in as many channels
//! again, each element e of image n has
//! ```text
//! gap  = g_x x_0 + g_e eps + g_f F                      x_0 minus the model's
//! v    = (1 + V)/2 large + (1 - V)/2 small              ln(variance), V = 0 if not learned
//! term = (e^(posterior - v) - 1 - (posterior - v) + c_0^2 gap^2 e^-v) / 2
//!        or, where `decoded`, -ln of the normal(x_0 - gap, e^v)'s mass in x_0's bin
//! loss[n] = 1/len sum_e w_s (F - a x_0 - b eps)^2 + w term
//! ```
//! and the objective that is differentiated is `scale * sum_n loss[n]`; with
//! `hold_mean`, F is constant in the term. Sums are in f64, in the image's order.

use super::Op;
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Columns of the per-image tensor `[n, COLUMNS]` of [`Variational`].
pub mod column {
    /// g_x.
    pub const GAP_X0: usize = 0;
    /// g_e.
    pub const GAP_NOISE: usize = 1;
    /// g_f.
    pub const GAP_PREDICTION: usize = 2;
    /// c_0: means differ by c_0 gap.
    pub const C_0: usize = 3;
    /// ln of the posterior's variance.
    pub const LN_POSTERIOR: usize = 4;
    /// ln of the smaller variance.
    pub const LN_SMALL: usize = 5;
    /// ln of the larger variance.
    pub const LN_LARGE: usize = 6;
    /// 1 at the step to the data, which the decoder scores; else 0.
    pub const DECODED: usize = 7;
    /// w; 0 for padding of the last batch.
    pub const WEIGHT: usize = 8;
    /// w_s.
    pub const SIMPLE_WEIGHT: usize = 9;
    /// a.
    pub const TARGET_X0: usize = 10;
    /// b.
    pub const TARGET_NOISE: usize = 11;
    /// Columns of the tensor.
    pub const COLUMNS: usize = 12;
}

/// Descriptor.
/// - `Variational`: inputs prediction `[n, h, w, c]` or `[n, h, w, 2c]`, x_0
///   `[n, h, w, c]`, coefficients `[n, COLUMNS]`, keys `[n, 4]`; output loss `[n]`.
/// - `VariationalBackward`: the same inputs; output d_prediction.
///
/// eps is that of [`Noising`](super::noising::Noising).
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Variational {
    pub n: usize,
    /// Elements of one image of x_0.
    pub len: usize,
    pub channels: usize,
    /// Whether V follows F in the channels.
    pub learned: bool,
    pub hold_mean: bool,
    /// Half the distance of two levels of the data.
    pub half_bin: f32,
    /// Factor of the sum in the objective: 1 / images of the optimizer step.
    pub scale: f32,
}

/// What the caller of [`Plan::variational`] chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Options {
    pub hold_mean: bool,
    pub half_bin: f32,
    pub scale: f32,
}

impl Variational {
    /// Where F (`second` false) or V of element `e` lies in the prediction of its
    /// image.
    pub fn position(&self, e: usize, second: bool) -> usize {
        match self.learned {
            false => e,
            true => {
                let (pixel, channel) = (e / self.channels, e % self.channels);
                (2 * pixel + usize::from(second)) * self.channels + channel
            }
        }
    }

    /// Elements of one image of the prediction.
    pub fn prediction_len(&self) -> usize {
        self.len * if self.learned { 2 } else { 1 }
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let d_prediction = d.d_input(node, 0);
        d.push(Op::VariationalBackward(*self), &node.inputs, &[d_prediction]);
        Ok(())
    }
}

impl Plan {
    /// Per-image losses `[n]`; see [`Variational`]. The variance is learned where
    /// the prediction has twice x_0's channels.
    pub fn variational(
        &mut self,
        prediction: TensorId,
        x0: TensorId,
        coefficients: TensorId,
        keys: TensorId,
        options: Options,
    ) -> Result<TensorId> {
        let shape = self.shape(x0).to_vec();
        let (n, channels) = (shape[0], shape[shape.len() - 1]);
        let mut expected = shape.clone();
        let learned = self.shape(prediction).last() == Some(&(2 * channels));
        expected[shape.len() - 1] = if learned { 2 * channels } else { channels };
        self.expect_shape("variational", prediction, &expected)?;
        self.expect_shape("variational", coefficients, &[n, column::COLUMNS])?;
        self.expect_shape("variational", keys, &[n, 4])?;
        let op = Variational {
            n,
            len: shape[1..].iter().product(),
            channels,
            learned,
            hold_mean: options.hold_mean,
            half_bin: options.half_bin,
            scale: options.scale,
        };
        let loss = self.transient("loss", &[n]);
        self.push_forward(
            Op::Variational(op),
            &[Some(prediction), Some(x0), Some(coefficients), Some(keys)],
            &[loss],
        );
        Ok(loss)
    }
}
