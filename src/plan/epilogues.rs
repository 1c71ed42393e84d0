//! Additions that a convolution or a linear layer can do while it stores its result.

use super::{Mode, Plan, Role, Space, TensorId};
use crate::ops::Op;
use crate::ops::conv2d::{PER_IMAGE, RESIDUAL};

/// At which nodes a tensor is read and written, in order.
#[derive(Default)]
struct Uses {
    reads: Vec<usize>,
    writes: Vec<usize>,
}

fn uses(plan: &Plan, tensor: TensorId) -> Uses {
    let mut uses = Uses::default();
    for (i, node) in plan.nodes.iter().enumerate() {
        let reads = node.inputs.iter().flatten().filter(|&&t| t == tensor).count();
        uses.reads.extend(std::iter::repeat_n(i, reads));
        if node.outputs.iter().flatten().any(|w| w.tensor == tensor) {
            uses.writes.push(i);
        }
    }
    uses
}

fn is_transient(plan: &Plan, tensor: TensorId) -> bool {
    let t = plan.tensor(tensor);
    t.space == Space::Activations && t.role == Role::Transient
}

impl Plan {
    /// Moves `add_per_image` and `add` (of scale 1) into the convolution or linear
    /// layer before them, when nothing else reads its result: for a backend's
    /// lowering. The fused node adds in the same order, so results keep their bits.
    pub fn fuse_epilogues(&mut self) {
        let mut i = 0;
        while i < self.nodes.len() {
            match fusable(self, i) {
                Some((at, operand, slot)) => {
                    // The layer moves to where its last operand is ready.
                    let mut layer = self.nodes[at].clone();
                    layer.inputs.resize(RESIDUAL + 1, None);
                    layer.inputs[slot] = Some(operand);
                    layer.outputs = self.nodes[i].outputs.clone();
                    self.nodes[i] = layer;
                    self.nodes.remove(at);
                }
                None => i += 1,
            }
        }
    }
}

/// The layer, the operand and its input position, when node `i` adds something
/// to a layer's result that nobody else reads.
fn fusable(plan: &Plan, i: usize) -> Option<(usize, TensorId, usize)> {
    let node = &plan.nodes[i];
    let candidates: &[(usize, usize, usize)] = match &node.op {
        Op::AddPerImage(_) => &[(0, 1, PER_IMAGE)],
        Op::Add(op) if op.scale == 1.0 => &[(0, 1, RESIDUAL), (1, 0, RESIDUAL)],
        _ => return None,
    };
    let layer_of = |&(sum, operand, slot): &(usize, usize, usize)| {
        let (sum, operand) = (node.input(sum), node.input(operand));
        let uses = uses(plan, sum);
        if !is_transient(plan, sum) || uses.reads != [i] || uses.writes.len() != 1 {
            return None;
        }
        let at = uses.writes[0];
        let layer = &plan.nodes[at];
        let images = match &layer.op {
            Op::Conv2d(op) => op.n,
            Op::Linear(op) => op.rows,
            _ => return None,
        };
        if let Op::AddPerImage(op) = &node.op
            && op.n != images
        {
            return None;
        }
        let taken = |slot: usize| layer.inputs.get(slot).copied().flatten().is_some();
        // Operands are added in the order of their positions.
        if layer.outputs[0]?.mode != Mode::Write || (slot..=RESIDUAL).any(taken) {
            return None;
        }
        let changed = plan.nodes[at + 1..i]
            .iter()
            .flat_map(|n| n.outputs.iter().flatten())
            .any(|w| layer.inputs.contains(&Some(w.tensor)));
        (!changed).then_some((at, operand, slot))
    };
    // The later of two layers: the other one's result is then its residual.
    candidates.iter().filter_map(layer_of).max_by_key(|&(at, _, _)| at)
}
