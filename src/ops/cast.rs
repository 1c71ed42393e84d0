//! Between f32 and bf16.

use super::Op;
use crate::plan::{DType, Plan, Role, TensorId};

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

impl Plan {
    /// x in another element type, f32 or bf16.
    pub fn cast(&mut self, x: TensorId, dtype: DType) -> TensorId {
        let (shape, op) = (self.shape(x).to_vec(), Cast { len: self.tensor(x).len() });
        let y = self.activation(self.derived_name(x, "cast"), &shape, dtype, Role::Transient);
        self.push_forward(Op::Cast(op), &[Some(x)], &[y]);
        y
    }
}
