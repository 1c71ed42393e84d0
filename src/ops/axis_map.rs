//! A matrix along one axis: `y[o, j, i] = sum_k m[j, k] x[o, k, i]`.
//!
//! Two of them, along height and width, are any separable linear map of images:
//! blurs, means over blocks, interpolation. The backward is the transposed map.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor. Inputs: 0 x `[outer, from, inner]`, 1 matrix `[to, from]`, or `[from,
/// to]` when transposed. Output: y `[outer, to, inner]`. Summed in the order of k,
/// zeros of the matrix left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AxisMap {
    pub outer: usize,
    pub from: usize,
    pub to: usize,
    pub inner: usize,
    pub transposed: bool,
}

impl AxisMap {
    /// Entry (j, k) of the map in the matrix.
    pub fn entry(&self, j: usize, k: usize) -> usize {
        if self.transposed { k * self.to + j } else { j * self.from + k }
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        let (from, to, transposed) = (self.to, self.from, !self.transposed);
        let op = AxisMap { from, to, transposed, ..*self };
        d.push(Op::AxisMap(op), &[Some(d_y), node.inputs[1]], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Applies a matrix `[to, from]` along an axis of x.
    pub fn axis_map(&mut self, x: TensorId, matrix: TensorId, axis: usize) -> Result<TensorId> {
        let mut shape = self.shape(x).to_vec();
        let &[to, from] = self.shape(matrix) else {
            let t = self.tensor(matrix);
            return Err(Error::Shape {
                op: "axis_map",
                tensor: t.name.clone(),
                expected: "[to, from]".into(),
                found: t.shape.clone(),
            });
        };
        if shape.get(axis) != Some(&from) {
            return Err(Error::Shape {
                op: "axis_map",
                tensor: self.tensor(x).name.clone(),
                expected: format!("{from} along axis {axis}"),
                found: shape,
            });
        }
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        shape[axis] = to;
        let y = self.transient(self.derived_name(x, &format!("mapped_{axis}")), &shape);
        let op = AxisMap { outer, from, to, inner, transposed: false };
        self.push_forward(Op::AxisMap(op), &[Some(x), Some(matrix)], &[y]);
        Ok(y)
    }
}
