//! Between f32 and bf16.

use super::Op;
use super::pointwise::Scale;
use crate::error::Result;
use crate::plan::{DType, Deriver, Node, Plan, Role, TensorId};

/// `y = x` in the element type of y: from f32 to bf16 to nearest even, NaN stays NaN;
/// from bf16 to f32 exactly. Added in f32 before it is rounded. Input x; output y.
///
/// Not an op of a network: a backend's lowering inserts it where neighbours disagree
/// ([`plan::precision`](crate::plan::precision)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Cast {
    pub len: usize,
}

impl Cast {
    /// The gradient goes on as it is.
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        let op = Scale { len: self.len, scale: 1.0, offset: 0.0 };
        d.push(Op::Scale(op), &[Some(d_y)], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// x in another element type, f32 or bf16.
    pub fn cast(&mut self, x: TensorId, dtype: DType) -> TensorId {
        let (shape, op) = (self.shape(x).to_vec(), Cast { len: self.tensor(x).len() });
        let y = self.activation(self.derived_name(x, "cast"), &shape, dtype, Role::Transient);
        self.push_forward(Op::Cast(op), &[Some(x)], &[y]);
        y
    }
}
