//! Linear layers that read the same rows become one launch a pass: the projections of
//! the time embedding of all ResNet blocks, and queries, keys and values of a small
//! attention. Results have the bits of the layers' own launches.

use super::arguments::Call;
use super::conv2d::Arithmetic;
use super::entries::{
    Entry, LINEAR_GROUP_BACKWARD_DATA_F32, LINEAR_GROUP_BACKWARD_WEIGHT_F32,
    LINEAR_GROUP_FORWARD_F32, params,
};
use super::matmul;
use crate::error::Result;
use crate::ops::Op;
use crate::ops::linear::{GroupPass, Linear, LinearGroup};
use crate::plan::{DType, Mode, Node, Plan, TensorId};

/// Rows up to which layers are grouped. With more, a layer fills the device alone, and
/// its own kernels have larger tiles.
const FEW_ROWS: usize = 256;

/// Results of a block, along each side; as in linear_group.cu.
const SIDE: usize = 32;

const _: () = assert!(LinearGroup::MOST == params::MOST_MEMBERS as usize);

/// Groups the f32 linear layers of a plan, pass by pass.
pub(super) fn group_linears(plan: &mut Plan) {
    for pass in [GroupPass::Forward, GroupPass::BackwardData, GroupPass::BackwardWeight] {
        let mut i = 0;
        while i < plan.nodes.len() {
            let members = members(plan, pass, i);
            if members.len() > 1 {
                replace(plan, pass, &members);
            }
            i += 1;
        }
    }
}

/// The layer of a node that may stand in a group of that pass.
fn layer(plan: &Plan, pass: GroupPass, node: &Node) -> Option<Linear> {
    let op = match (&node.op, pass) {
        (Op::Linear(op), GroupPass::Forward) => op,
        (Op::LinearBackwardData(op), GroupPass::BackwardData) => op,
        (Op::LinearBackwardWeight(op), GroupPass::BackwardWeight) => op,
        _ => return None,
    };
    let fused = node.inputs.iter().skip(3).any(Option::is_some);
    let adds = pass == GroupPass::Forward && node.output_write(0)?.mode != Mode::Write;
    let is_f32 = |id: TensorId| plan.tensor(id).dtype == DType::F32;
    let all_f32 = node.inputs.iter().flatten().all(|&id| is_f32(id));
    (op.rows <= FEW_ROWS && !fused && !adds && all_f32).then_some(*op)
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
fn members(plan: &Plan, pass: GroupPass, first: usize) -> Vec<usize> {
    let Some(op) = layer(plan, pass, &plan.nodes[first]) else { return Vec::new() };
    let of = shared(pass, &plan.nodes[first]);
    let mut members = vec![first];
    for (at, node) in plan.nodes.iter().enumerate().skip(first + 1) {
        if members.len() == LinearGroup::MOST {
            break;
        }
        let fits = layer(plan, pass, node)
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
    let columns = nodes.iter().filter_map(|n| layer(plan, pass, n)).map(|op| op.c_out).collect();
    let op = layer(plan, pass, &nodes[0]).expect("a member");
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

/// Launches a group.
pub(super) fn linear_group(op: &LinearGroup, call: &Call) -> Result<()> {
    let mut p = params::LinearGroup {
        rows: op.rows as u32,
        c_in: op.c_in as u32,
        count: op.columns.len() as u32,
        ..Default::default()
    };
    let mut blocks = 0;
    for (i, &c_out) in op.columns.iter().enumerate() {
        let m = &mut p.members[i];
        (m.columns, m.first_block) = (c_out as u32, blocks as u32);
        blocks += c_out.div_ceil(SIDE);
        match op.pass {
            GroupPass::Forward => {
                (m.weight, m.bias) = (call.input(1 + 2 * i), call.optional(2 + 2 * i));
                m.y = call.written(i);
            }
            GroupPass::BackwardData => {
                (m.d_y, m.weight) = (call.input(2 * i), call.input(2 * i + 1));
            }
            GroupPass::BackwardWeight => {
                m.d_y = call.input(1 + i);
                let null = (std::ptr::null_mut(), 0);
                (m.d_weight, m.add) = call.output(2 * i).unwrap_or(null);
                (m.d_bias, m.add_bias) = call.output(2 * i + 1).unwrap_or(null);
                m.lanes = lanes(op, c_out) as u32;
            }
        }
    }
    let tiles = |len: usize| len.div_ceil(SIDE);
    type Of = &'static Entry<params::LinearGroup>;
    let (entry, grid): (Of, _) = match op.pass {
        GroupPass::Forward => (&LINEAR_GROUP_FORWARD_F32, [blocks, tiles(op.rows), 1]),
        GroupPass::BackwardData => {
            (p.d_x, p.add) = call.required(0);
            (&LINEAR_GROUP_BACKWARD_DATA_F32, [tiles(op.c_in), tiles(op.rows), 1])
        }
        GroupPass::BackwardWeight => {
            (&LINEAR_GROUP_BACKWARD_WEIGHT_F32, [blocks, tiles(op.c_in), 1])
        }
    };
    if op.pass != GroupPass::BackwardData {
        p.x = call.input(0);
    }
    call.launch(entry, grid, 0, &p)
}

/// Lanes in which the layer alone would split its weight gradient.
fn lanes(op: &LinearGroup, c_out: usize) -> usize {
    let layer = Linear { rows: op.rows, c_in: op.c_in, c_out };
    matmul::backward_weight_lanes(&layer, Arithmetic::F32)
}
