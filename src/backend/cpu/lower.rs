//! From a plan to what the CPU executes: fewer passes over memory, packed
//! weights, scratch memory.
//!
//! - A copy becomes another name of what it copies, where no later op could tell.
//! - What is added to a convolution's or linear layer's result moves into it, and what
//!   follows a linear layer besides
//!   ([`Plan::fuse_epilogues`]).
//!
//! Convolutions and linear layers read their weight packed (one more input, see
//! [`PackWeight`]). A weight of [`Space::Parameters`] is packed in the prologue,
//! so once for as long as the weights stay the same; any other weight is packed
//! by a node of the plan, before its first use.

use std::collections::{HashMap, HashSet};

use super::{attention, conv2d, empirical, linear, norm};
use crate::backend::Program;
use crate::ops::Op;
use crate::ops::conv2d::Conv2d;
use crate::ops::pack::{PackFor, PackWeight};
use crate::plan::{Mode, Node, Plan, Role, Space, TensorId, Write};

/// Lowers a plan for the CPU.
pub fn lower(mut plan: Plan) -> Program {
    plan.drop_copies();
    plan.fuse_epilogues(|_| true);
    let prologue = pack_weights(&mut plan);
    add_workspace(&mut plan);
    Program::new(plan, prologue)
}

/// The convolution behind a node that reads a weight: its sizes, the pass, and
/// at which input the weight lies and the packed weight goes.
fn reads_weight(op: &Op) -> Option<(Conv2d, PackFor, usize, usize)> {
    match op {
        Op::Conv2d(op) => Some((*op, PackFor::Forward, 1, 3)),
        Op::Linear(op) => Some((linear::as_convolution(op), PackFor::Forward, 1, 3)),
        Op::Conv2dBackwardData(op) => Some((*op, PackFor::BackwardData, 1, 2)),
        Op::LinearBackwardData(op) => {
            Some((linear::as_convolution(op), PackFor::BackwardData, 1, 2))
        }
        _ => None,
    }
}

fn pack_weights(plan: &mut Plan) -> Vec<Node> {
    let written: HashSet<TensorId> =
        plan.nodes.iter().flat_map(|n| n.outputs.iter().flatten().map(|w| w.tensor)).collect();
    let mut prologue = Vec::new();
    let mut packed: HashMap<(TensorId, PackFor), TensorId> = HashMap::new();
    let nodes = std::mem::take(&mut plan.nodes);
    for mut node in nodes {
        if let Some((conv, pass, weight_at, packed_at)) = reads_weight(&node.op) {
            let weight = node.input(weight_at);
            let early =
                plan.tensor(weight).space == Space::Parameters && !written.contains(&weight);
            let tensor = *packed.entry((weight, pass)).or_insert_with(|| {
                let op = PackWeight::of(&conv, pass);
                let tensor = op.tensor(plan, weight, early);
                let node = Node {
                    op: Op::PackWeight(op),
                    inputs: vec![Some(weight)],
                    outputs: vec![Some(Write { tensor, mode: Mode::Write })],
                    workspace: None,
                };
                if early {
                    prologue.push(node)
                } else {
                    plan.nodes.push(node)
                }
                tensor
            });
            node.inputs.resize(node.inputs.len().max(packed_at + 1), None);
            node.inputs[packed_at] = Some(tensor);
        }
        plan.nodes.push(node);
    }
    prologue
}

fn add_workspace(plan: &mut Plan) {
    for i in 0..plan.nodes.len() {
        let node = &plan.nodes[i];
        let mode = node.outputs.first().copied().flatten().map(|w| w.mode);
        let of_weight = |op| mode.map_or(0, |m| conv2d::backward_weight_workspace_len(op, m));
        let len = match &node.op {
            Op::Conv2dBackwardWeight(op) => of_weight(op),
            Op::LinearBackwardWeight(op) => of_weight(&linear::as_convolution(op)),
            Op::Norm(op) => norm::workspace_len(op),
            Op::NormBackward(op) => norm::backward_workspace_len(op),
            Op::Attention(op) => attention::workspace_len(op),
            Op::AttentionBackward(op) => attention::backward_workspace_len(op),
            Op::Empirical(op) | Op::EmpiricalBackward(op) => empirical::workspace_len(op),
            _ => 0,
        };
        if len > 0 {
            let name = format!("workspace.{i}");
            let dtype = crate::plan::DType::F32;
            let tensor = plan.activation(name, &[len], dtype, Role::Transient);
            plan.nodes[i].workspace = Some(tensor);
        }
    }
}
