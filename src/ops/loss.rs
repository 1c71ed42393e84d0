//! Weighted squared error against a target that is linear in (x_0, eps): every
//! prediction type and every weighting is a choice of per-image coefficients.
//!
//! `loss[n] = w[n] / len * sum_e (prediction[n,e] - a[n] x_0[n,e] - b[n] eps[n,e])^2`;
//! the objective that is differentiated is `scale * sum_n loss[n]`. Sums are over
//! fixed chunks of the image, in order.

use super::Op;
use super::noising::coefficient;
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor. a, b, w are columns `TARGET_X0`, `TARGET_NOISE`, `WEIGHT` of the
/// coefficients. Without keys there is no eps and b is not read.
/// - `Loss`: inputs prediction `[n, ...]`, x_0 (or a given target), coefficients
///   `[n, COLUMNS]`, keys `[n, 4]`?; output loss `[n]`.
/// - `LossBackward`: the same inputs; output d_prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Loss {
    pub n: usize,
    /// Elements of one image.
    pub len: usize,
    /// Factor of the sum in the objective: 1 / images of the optimizer step.
    pub scale: f32,
}

impl Loss {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let d_prediction = d.d_input(node, 0);
        d.push(Op::LossBackward(*self), &node.inputs, &[d_prediction]);
        Ok(())
    }
}

impl Plan {
    /// Per-image losses `[n]`; see [`Loss`].
    pub fn loss(
        &mut self,
        prediction: TensorId,
        x0: TensorId,
        coefficients: TensorId,
        keys: Option<TensorId>,
        scale: f32,
    ) -> Result<TensorId> {
        let shape = self.shape(prediction).to_vec();
        let n = shape[0];
        self.expect_shape("loss", x0, &shape)?;
        self.expect_shape("loss", coefficients, &[n, coefficient::COLUMNS])?;
        if let Some(k) = keys {
            self.expect_shape("loss", k, &[n, 4])?;
        }
        let op = Loss { n, len: shape[1..].iter().product(), scale };
        let loss = self.transient("loss", &[n]);
        self.push_forward(
            Op::Loss(op),
            &[Some(prediction), Some(x0), Some(coefficients), keys],
            &[loss],
        );
        Ok(loss)
    }
}
