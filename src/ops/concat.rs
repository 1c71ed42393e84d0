//! Concatenation along channels: the U-Net's skip connections.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor. `rows` is the product of all axes but the last.
/// - `Concat`: inputs a `[rows, c_a]`, b `[rows, c_b]`; output `[rows, c_a + c_b]`.
/// - `ConcatBackward`: input d_y; outputs d_a, d_b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Concat {
    pub rows: usize,
    pub c_a: usize,
    pub c_b: usize,
}

impl Concat {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let outputs = [d.d_input(node, 0), d.d_input(node, 1)];
        d.push(Op::ConcatBackward(*self), &[Some(d_y)], &outputs);
        Ok(())
    }
}

impl Plan {
    /// Concatenates along the last axis.
    pub fn concat(&mut self, a: TensorId, b: TensorId) -> Result<TensorId> {
        let (sa, sb) = (self.shape(a).to_vec(), self.shape(b).to_vec());
        let axes = sa.len();
        if axes != sb.len() || sa[..axes - 1] != sb[..axes - 1] {
            return Err(Error::Shape {
                op: "concat",
                tensor: self.tensor(b).name.clone(),
                expected: format!("{:?} in all axes but the last", &sa[..axes - 1]),
                found: sb,
            });
        }
        let op =
            Concat { rows: sa[..axes - 1].iter().product(), c_a: sa[axes - 1], c_b: sb[axes - 1] };
        let mut shape = sa;
        shape[axes - 1] += op.c_b;
        let y = self.transient(self.derived_name(a, "concat"), &shape);
        self.push_forward(Op::Concat(op), &[Some(a), Some(b)], &[y]);
        Ok(y)
    }
}
