//! Weighted squared error against a target that is linear in (x_0, eps): every
//! prediction type and every weighting is a choice of per-image coefficients.
//!
//! `loss[n] = w[n] / len * sum_e (prediction[n,e] - a[n] x_0[n,e] - b[n] eps[n,e])^2`;
//! the objective that is differentiated is `scale * sum_n loss[n]`. Sums are over
//! fixed chunks of the image, in order.

use super::Op;
use super::noising::{Pick, Picked, coefficient};
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor. a, b, w are columns `TARGET_X0`, `TARGET_NOISE`, `WEIGHT` of the
/// coefficients. Without keys there is no eps and b is not read; where a is 0, x_0 is
/// not.
/// - `Loss`: inputs prediction `[n, ...]`, x_0 (or a given target; with `pick` the
///   set), coefficients `[n, COLUMNS]`, keys `[n, 4]`?, with `pick` the picks `[n, 2]`;
///   output loss `[n]`.
/// - `LossBackward`: the same inputs; output d_prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Loss {
    pub n: usize,
    /// Elements of one image.
    pub len: usize,
    /// Factor of the sum in the objective: 1 / images of the optimizer step.
    pub scale: f32,
    /// Where x_0 is picked from a set of images, as by noising.
    pub pick: Option<Pick>,
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
        let op = Loss { n, len: shape[1..].iter().product(), scale, pick: None };
        let loss = self.transient("loss", &[n]);
        self.push_forward(
            Op::Loss(op),
            &[Some(prediction), Some(x0), Some(coefficients), keys],
            &[loss],
        );
        Ok(loss)
    }

    /// The same against images that are picked from a set.
    pub fn loss_picked(
        &mut self,
        prediction: TensorId,
        images: Picked,
        coefficients: TensorId,
        keys: TensorId,
        scale: f32,
    ) -> Result<TensorId> {
        let (n, len, pick) = self.pick("loss", images)?;
        let mut shape = self.shape(images.set).to_vec();
        shape[0] = n;
        self.expect_shape("loss", prediction, &shape)?;
        self.expect_shape("loss", coefficients, &[n, coefficient::COLUMNS])?;
        self.expect_shape("loss", keys, &[n, 4])?;
        let op = Op::Loss(Loss { n, len, scale, pick: Some(pick) });
        let loss = self.transient("loss", &[n]);
        let inputs = [prediction, images.set, coefficients, keys, images.picks].map(Some);
        self.push_forward(op, &inputs, &[loss]);
        Ok(loss)
    }
}
