//! Linear layers that read the same rows become one launch a pass: the projections of
//! the time embedding of all ResNet blocks, and queries, keys and values of an attention.
//! Results have the bits of the layers' own launches, but for gradients by the rows in tf32
//! and bf16, which are summed in one chain, and those by the weights there, whose rows are
//! not split.

use super::conv2d::{self, Arithmetic};
use crate::backend::Precision;
use crate::ops::Op;
use crate::ops::linear::{GroupPass, Linear, LinearGroup};
use crate::plan::{Mode, Node, Plan, TensorId};

/// Rows up to which weight gradients are grouped, and gradients by the rows in f32. With
/// more, a layer fills the device alone: the first has its rows split then, the second
/// larger tiles.
const FEW_ROWS: usize = 256;

/// Groups the linear layers of a plan, pass by pass. After element types are chosen.
pub(super) fn group_linears(plan: &mut Plan, precision: Precision) {
    for pass in [GroupPass::Forward, GroupPass::BackwardData, GroupPass::BackwardWeight] {
        let mut i = 0;
        while i < plan.nodes.len() {
            let members = members(plan, precision, pass, i);
            if members.len() > 1 {
                replace(plan, pass, &members);
            }
            i += 1;
        }
    }
}

/// The layer of a node of that pass.
fn layer(pass: GroupPass, node: &Node) -> Option<Linear> {
    match (&node.op, pass) {
        (Op::Linear(op), GroupPass::Forward) => Some(*op),
        (Op::LinearBackwardData(op), GroupPass::BackwardData) => Some(*op),
        (Op::LinearBackwardWeight(op), GroupPass::BackwardWeight) => Some(*op),
        _ => None,
    }
}

/// The layer of a node that may stand in a group of that pass.
fn groupable(plan: &Plan, precision: Precision, pass: GroupPass, node: &Node) -> Option<Linear> {
    let op = layer(pass, node)?;
    let fused = op.activation.is_some() || node.inputs.iter().skip(3).any(Option::is_some);
    let adds = pass == GroupPass::Forward && node.output_write(0)?.mode != Mode::Write;
    let dtype = plan.tensor(node.input(0)).dtype;
    let mut operands = vec![node.input(1)];
    if pass != GroupPass::BackwardWeight {
        operands.extend(node.output(0));
    }
    let one_type = operands.iter().all(|&id| plan.tensor(id).dtype == dtype);
    let few = op.rows <= FEW_ROWS;
    let has_kernel = match (conv2d::arithmetic(dtype, precision), pass) {
        (Arithmetic::F32, GroupPass::Forward) => few || op.fills_chunks(),
        (Arithmetic::F32, _) => few,
        (_, GroupPass::BackwardWeight) => few && op.fills_chunks(),
        _ => op.fills_chunks(),
    };
    (has_kernel && one_type && !fused && !adds).then_some(op)
}

/// What the layers of a group have in common: x, or d_x.
fn shared(pass: GroupPass, node: &Node) -> Option<TensorId> {
    match pass {
        GroupPass::Forward | GroupPass::BackwardWeight => Some(node.input(0)),
        GroupPass::BackwardData => node.output(0),
    }
}

fn writes(node: &Node, id: TensorId) -> bool {
    node.outputs.iter().flatten().any(|w| w.tensor == id)
}

fn touches(node: &Node, id: TensorId) -> bool {
    writes(node, id) || node.inputs.contains(&Some(id))
}

/// Whether a node can change places with another that stands after it.
fn commute(a: &Node, b: &Node) -> bool {
    let outputs =
        |n: &Node| -> Vec<TensorId> { n.outputs.iter().flatten().map(|w| w.tensor).collect() };
    outputs(a).iter().all(|&id| !touches(b, id)) && outputs(b).iter().all(|&id| !touches(a, id))
}

/// The nodes from `first` on that can become one. Forward layers move to the first of
/// them, backward ones to the last.
fn members(plan: &Plan, precision: Precision, pass: GroupPass, first: usize) -> Vec<usize> {
    let layer = |node: &Node| groupable(plan, precision, pass, node);
    let Some(op) = layer(&plan.nodes[first]) else { return Vec::new() };
    let of = shared(pass, &plan.nodes[first]);
    let mut members = vec![first];
    for (at, node) in plan.nodes.iter().enumerate().skip(first + 1) {
        if members.len() == LinearGroup::MOST {
            break;
        }
        let fits = layer(node)
            .is_some_and(|o| (o.rows, o.c_in) == (op.rows, op.c_in) && shared(pass, node) == of);
        let between = || (first + 1..at).filter(|k| !members.contains(k)).map(|k| &plan.nodes[k]);
        match pass {
            GroupPass::Forward => {
                let apart = members.iter().all(|&m| commute(&plan.nodes[m], node));
                if fits && apart && between().all(|other| commute(other, node)) {
                    members.push(at);
                }
            }
            GroupPass::BackwardData | GroupPass::BackwardWeight => {
                let adds = node.output_write(0).is_some_and(|w| w.mode == Mode::Add);
                let apart = members.iter().all(|&m| commute(&plan.nodes[m], node));
                let joins = if pass == GroupPass::BackwardData { adds } else { apart };
                if fits && joins {
                    members.push(at);
                } else if !apart {
                    break;
                }
            }
        }
    }
    members
}

/// Puts one node in the place of the members.
fn replace(plan: &mut Plan, pass: GroupPass, members: &[usize]) {
    let nodes: Vec<Node> = members.iter().map(|&m| plan.nodes[m].clone()).collect();
    let columns = nodes.iter().filter_map(|n| layer(pass, n)).map(|op| op.c_out).collect();
    let op = layer(pass, &nodes[0]).expect("a member");
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    if pass != GroupPass::BackwardData {
        inputs.push(Some(nodes[0].input(0)));
    }
    for node in &nodes {
        match pass {
            GroupPass::Forward => {
                inputs.extend([Some(node.input(1)), node.inputs.get(2).copied().flatten()]);
                outputs.push(node.output_write(0));
            }
            GroupPass::BackwardData => inputs.extend([node.input(0), node.input(1)].map(Some)),
            GroupPass::BackwardWeight => {
                inputs.push(Some(node.input(1)));
                outputs.extend([node.output_write(0), node.output_write(1)]);
            }
        }
    }
    if pass == GroupPass::BackwardData {
        outputs.push(nodes[0].output_write(0));
    }
    let group = LinearGroup { rows: op.rows, c_in: op.c_in, columns, pass };
    let at = if pass == GroupPass::Forward { members[0] } else { members[members.len() - 1] };
    plan.nodes[at] = Node { op: Op::LinearGroup(group), inputs, outputs, workspace: None };
    for &gone in members.iter().rev().filter(|&&m| m != at) {
        plan.nodes.remove(gone);
    }
}
