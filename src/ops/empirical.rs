//! The optimal denoiser of a finite data set, and with it the exact score of the
//! empirical distribution at any noise.
//!
//! With x = alpha x_0 + sigma eps and x_0 uniform over the images x_1 .. x_m,
//! ```text
//! E[x_0 | x] = sum_i w_i x_i,   w = softmax_i(-|x - alpha x_i|^2 / (2 sigma^2))
//! ```
//! Distances are sums of squared differences: the expanded form
//! |x|^2 - 2 alpha x . x_i + alpha^2 |x_i|^2 would lose in f32 what decides
//! between neighbours. The softmax is carried along, so the weights are nowhere
//! in memory. At sigma = 0 the nearest images share the weight.
//!
//! The derivative by x is the posterior covariance, alpha / sigma^2 Cov_w(x_i),
//! which is symmetric: d_x = alpha / sigma^2 sum_i w_i ((x_i - y) . d_y) (x_i - y).

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor.
/// - `Empirical`: inputs x `[n, ...]`, data `[m, ...]`, std `[n]`, signal `[n]`?
///   (1 where absent); outputs y (as x), log_sum `[n, 2]`: the logarithm of
///   sum_i exp(-|x - alpha x_i|^2 / (2 sigma^2)) as a sum of two f32.
/// - `EmpiricalBackward`: inputs x, data, std, signal?, y, log_sum, d_y; output d_x.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Empirical {
    pub n: usize,
    /// Images in the data set.
    pub m: usize,
    /// Elements of one image.
    pub len: usize,
}

impl Empirical {
    /// Floating-point operations of the forward pass: two multiply-adds for an
    /// element's distance, one for its share of the mean.
    pub fn flops(&self) -> u64 {
        6 * self.n as u64 * self.m as u64 * self.len as u64
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        let mut inputs = node.inputs.clone();
        inputs.extend([node.output(0), node.output(1), Some(d_y)]);
        d.push(Op::EmpiricalBackward(*self), &inputs, &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// The mean of the images of `data` given x; see [`Empirical`].
    pub fn empirical(
        &mut self,
        x: TensorId,
        data: TensorId,
        std: TensorId,
        signal: Option<TensorId>,
    ) -> Result<TensorId> {
        let shape = self.shape(x).to_vec();
        let (n, m) = (shape[0], self.shape(data)[0]);
        if m == 0 || self.shape(data)[1..] != shape[1..] {
            return Err(Error::Shape {
                op: "empirical",
                tensor: self.tensor(data).name.clone(),
                expected: format!("at least one image of {:?}", &shape[1..]),
                found: self.shape(data).to_vec(),
            });
        }
        for per_image in [Some(std), signal].into_iter().flatten() {
            self.expect_shape("empirical", per_image, &[n])?;
        }
        let op = Empirical { n, m, len: shape[1..].iter().product() };
        let y = self.transient(self.derived_name(x, "denoised"), &shape);
        let log_sum = self.transient(self.derived_name(x, "log_sum"), &[n, 2]);
        let inputs = [Some(x), Some(data), Some(std), signal];
        self.push_forward(Op::Empirical(op), &inputs, &[y, log_sum]);
        Ok(y)
    }
}
