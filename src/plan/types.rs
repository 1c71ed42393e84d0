//! Element types of operands: which ops take bf16 where, and plans that ask for what is
//! not there.

use super::precision::half_form;
use super::{DType, Node, Plan, Space, Tensor, TensorId};
use crate::error::{Error, Result};
use crate::ops::Op;

/// An operand of a node: what it is there, its position, its tensor.
type Operand = (&'static str, usize, TensorId);

fn operands(node: &Node) -> impl Iterator<Item = Operand> {
    let inputs = node.inputs.iter().enumerate();
    let inputs = inputs.filter_map(|(i, input)| Some(("input", i, (*input)?)));
    let outputs = node.outputs.iter().enumerate();
    inputs.chain(outputs.filter_map(|(i, write)| Some(("output", i, write.as_ref()?.tensor))))
}

/// Whether the form of an op that takes bf16 takes it there.
fn takes_half(op: &Op, what: &str, i: usize) -> bool {
    let form = half_form(op);
    form.is_some_and(|f| if what == "input" { f.inputs } else { f.outputs }.contains(&i))
}

/// An operand of another type than the op takes there.
fn mismatch(node: &Node, (what, i, _): Operand, tensor: &Tensor, wanted: DType) -> Error {
    Error::Shape {
        op: node.op.name(),
        tensor: format!("{what} {i} `{}` ({:?})", tensor.name, tensor.dtype),
        expected: format!("{} values of {wanted:?}", tensor.len()),
        found: tensor.shape.clone(),
    }
}

impl Plan {
    /// Checks that ops are given bf16 where they take it: all operands of an op's form of
    /// bf16 ([`precision`](super::precision)) or none. For what a backend executes.
    ///
    /// # Errors
    /// The first operand of another type, by name.
    pub fn check_types(&self) -> Result<()> {
        self.check_types_by(true)
    }

    /// The same for a backend that computes in f32 alone: casts excepted, nothing is bf16.
    pub fn check_single(&self) -> Result<()> {
        self.check_types_by(false)
    }

    fn check_types_by(&self, halves: bool) -> Result<()> {
        for node in &self.nodes {
            // The optimizer writes the bf16 weights beside the others.
            if matches!(node.op, Op::Cast(_) | Op::AdamW(_)) {
                continue;
            }
            let is_half = |id: TensorId| self.tensor(id).dtype == DType::BF16;
            let takes = |o: &Operand| halves && takes_half(&node.op, o.0, o.1);
            let in_half = operands(node).any(|o| takes(&o) && is_half(o.2));
            for operand in operands(node) {
                let tensor = self.tensor(operand.2);
                let wanted = if in_half && takes(&operand) { DType::BF16 } else { DType::F32 };
                let is_float = matches!(tensor.dtype, DType::F32 | DType::BF16);
                if is_float && tensor.dtype != wanted {
                    return Err(mismatch(node, operand, tensor, wanted));
                }
            }
        }
        Ok(())
    }

    /// Makes bf16 what ops write whose operands are: results and gradients of ops over bf16
    /// tensors, in a plan that was built as one in f32.
    pub(crate) fn follow_types(&mut self) {
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            let is_half = |id: TensorId| self.tensor(id).dtype == DType::BF16;
            let reads = |o: &Operand| o.0 == "input" && takes_half(&node.op, o.0, o.1);
            if !operands(node).any(|o| reads(&o) && is_half(o.2)) {
                continue;
            }
            let writes = |o: &Operand| o.0 == "output" && takes_half(&node.op, o.0, o.1);
            let written: Vec<_> = operands(node).filter(writes).map(|o| o.2).collect();
            for id in written {
                let tensor = &mut self.tensors[id.index()];
                // What the caller gave is as it is.
                if tensor.space != Space::Parameters && tensor.dtype == DType::F32 {
                    tensor.dtype = DType::BF16;
                }
            }
        }
    }
}
