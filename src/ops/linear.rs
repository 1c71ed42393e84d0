//! Linear layer: `y[r, o] = bias[o] + sum_i x[r, i] w[o, i]` (a GEMM).

use super::Op;
use super::pointwise::Activation;
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor of a linear layer; `rows` is the product of the leading axes.
/// - `Linear`: inputs x `[..., in]`, weight `[out, in]`, bias `[out]` (optional); output y `[..., out]`.
/// - `LinearBackwardData`: inputs d_y, weight; output d_x.
/// - `LinearBackwardWeight`: inputs x, d_y; outputs d_weight, d_bias.
///
/// Lowering adds inputs as it does for [`Conv2d`](super::conv2d::Conv2d), and [`GATE`]: with
/// all of them `y = residual + gate * activation(x w^T + bias + per_image)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Linear {
    pub rows: usize,
    pub c_in: usize,
    pub c_out: usize,
    /// Of the result of `Linear`; lowering puts it there.
    pub activation: Option<Activation>,
}

/// Input position of `Linear` at which lowering puts factors `[n, c_out]` of the result, one
/// row of them for every `rows / n` rows.
pub const GATE: usize = 7;

/// Which pass of its layers a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GroupPass {
    Forward,
    BackwardData,
    BackwardWeight,
}

/// Linear layers over the same rows in one launch, which only a backend's lowering
/// makes. Operands by pass:
/// - forward: inputs x, then weight and bias (optional) of each; outputs y of each.
/// - to the data: inputs d_y and weight of each; output d_x, their sum in order.
/// - to the weights: inputs x, then d_y of each; outputs d_weight, d_bias of each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LinearGroup {
    pub rows: usize,
    pub c_in: usize,
    /// Outputs of each layer.
    pub columns: Vec<usize>,
    pub pass: GroupPass,
}

impl LinearGroup {
    /// Layers of one launch.
    pub const MOST: usize = 24;

    /// Floating-point operations of one pass.
    pub fn flops(&self) -> u64 {
        2 * (self.rows * self.c_in) as u64 * self.columns.iter().sum::<usize>() as u64
    }
}

impl Linear {
    /// The layer alone.
    pub fn new(rows: usize, c_in: usize, c_out: usize) -> Self {
        Linear { rows, c_in, c_out, activation: None }
    }

    /// Whether rows of x, of the weight and of the result are whole chunks of 16 bytes in
    /// either type: what CUDA's kernels for groups and activations take.
    pub(crate) fn fills_chunks(&self) -> bool {
        self.c_in.is_multiple_of(8) && self.c_out.is_multiple_of(8)
    }

    /// Floating-point operations of one pass.
    pub fn flops(&self) -> u64 {
        2 * (self.rows * self.c_in) as u64 * self.c_out as u64
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let (d_weight, d_bias) = (d.d_input(node, 1), d.d_input(node, 2));
        d.push(
            Op::LinearBackwardWeight(*self),
            &[Some(node.input(0)), Some(d_y)],
            &[d_weight, d_bias],
        );
        let d_x = d.d_input(node, 0);
        d.push(Op::LinearBackwardData(*self), &[Some(d_y), Some(node.input(1))], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Multiplies the last axis of x `[..., in]` by weight `[out, in]`.
    pub fn linear(
        &mut self,
        x: TensorId,
        weight: TensorId,
        bias: Option<TensorId>,
    ) -> Result<TensorId> {
        let mut shape = self.shape(x).to_vec();
        let c_in = *shape.last().expect("a linear layer's input has an axis");
        let c_out = self.shape(weight)[0];
        self.expect_shape("linear", weight, &[c_out, c_in])?;
        if let Some(b) = bias {
            self.expect_shape("linear", b, &[c_out])?;
        }
        let rows = shape[..shape.len() - 1].iter().product();
        *shape.last_mut().expect("has an axis") = c_out;
        let y = self.transient(self.derived_name(weight, "y"), &shape);
        let op = Op::Linear(Linear::new(rows, c_in, c_out));
        self.push_forward(op, &[Some(x), Some(weight), bias], &[y]);
        Ok(y)
    }
}
