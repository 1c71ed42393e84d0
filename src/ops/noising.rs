//! The forward process in one pass: `x_t = signal x_0 + std eps`, with eps drawn
//! in place from Philox and never stored (the loss draws the same bits again).
//! Ho et al. 2020, eq. 4; Song et al. 2021, eq. 29.

use super::Op;
use crate::error::Result;
use crate::plan::{Plan, TensorId};

/// Columns of the per-image coefficient tensor `[n, COLUMNS]` that noising and
/// loss read.
pub mod coefficient {
    /// Factor of x_0 in the network's input (c_in included).
    pub const SIGNAL: usize = 0;
    /// Factor of eps in the network's input (c_in included).
    pub const STD: usize = 1;
    /// Factor of x_0 in the target.
    pub const TARGET_X0: usize = 2;
    /// Factor of eps in the target.
    pub const TARGET_NOISE: usize = 3;
    /// Weight of the image's loss; 0 for padding of the last batch.
    pub const WEIGHT: usize = 4;
    /// Columns of the tensor.
    pub const COLUMNS: usize = 8;
}

/// Descriptor. Inputs x_0 `[n, ...]`, coefficients `[n, COLUMNS]`, keys `[n, 4]`;
/// output x_t. eps is purpose [`Purpose::TrainNoise`](crate::random::Purpose), draw 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Noising {
    pub n: usize,
    /// Elements of one image.
    pub len: usize,
}

impl Plan {
    /// Noises x_0; see [`Noising`].
    pub fn noising(
        &mut self,
        x0: TensorId,
        coefficients: TensorId,
        keys: TensorId,
    ) -> Result<TensorId> {
        let shape = self.shape(x0).to_vec();
        let n = shape[0];
        self.expect_shape("noising", coefficients, &[n, coefficient::COLUMNS])?;
        self.expect_shape("noising", keys, &[n, 4])?;
        let op = Noising { n, len: shape[1..].iter().product() };
        let x_t = self.transient("x_t", &shape);
        self.push_forward(Op::Noising(op), &[Some(x0), Some(coefficients), Some(keys)], &[x_t]);
        Ok(x_t)
    }
}
