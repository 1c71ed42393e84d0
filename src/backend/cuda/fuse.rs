//! Enlargements and concatenations that convolutions and group norms read in place.
//!
//! A nearest-neighbour enlargement by a power of two whose result convolutions alone read,
//! or a concatenation of channels that only they and group norms read, is not made. Its
//! node goes, and its readers are given its operands: as x the small image or the first
//! tensor, at [`second`] the other one. What they are to make of them follows from the
//! shapes. Where the last part of a concatenation's gradient is a group norm's, the norm
//! writes it to the two tensors' own gradients, and nothing is split.

use super::norm::{BACKWARD_X2, D_X2, JOINED, X2};
use crate::backend::Precision;
use crate::ops::Op;
use crate::ops::conv2d::SECOND;
use crate::ops::norm::Domain;
use crate::ops::resample::Method;
use crate::plan::{DType, Mode, Node, Plan, Role, Space, TensorId};

/// Channels that a tile of a convolution's reduction takes from a pixel: 128 bytes.
fn depth(precision: Precision, dtype: DType) -> usize {
    if precision == Precision::Bf16 || dtype == DType::BF16 { 64 } else { 32 }
}

/// Lets enlarged and concatenated tensors be read in place. Results keep their bits (in
/// bf16 but for gradients that are rounded once less). Before element types are chosen.
pub(super) fn fuse(plan: &mut Plan, precision: Precision) {
    // Enlargements first: one of a concatenation then leaves that to the convolutions.
    for is_turn in [|op: &Op| matches!(op, Op::Resample(_)), |op: &Op| matches!(op, Op::Concat(_))]
    {
        let mut i = 0;
        while i < plan.nodes.len() {
            match is_turn(&plan.nodes[i].op).then(|| readers(plan, i, precision)).flatten() {
                Some(readers) => {
                    let operands = plan.nodes[i].inputs.clone();
                    for reader in readers {
                        let node = &mut plan.nodes[reader];
                        node.inputs[0] = operands[0];
                        if let (Some(second), Some(at)) = (operands.get(1), second(&node.op)) {
                            node.inputs.resize(node.inputs.len().max(at + 1), None);
                            node.inputs[at] = *second;
                        }
                    }
                    plan.nodes.remove(i);
                }
                None => i += 1,
            }
        }
    }
    split_in_norms(plan);
}

/// Position at which an op reads the channels of x that lie in a second tensor.
fn second(op: &Op) -> Option<usize> {
    match op {
        Op::Conv2d(_) | Op::Conv2dBackwardWeight(_) => Some(SECOND),
        Op::Norm(_) => Some(X2),
        Op::NormBackward(_) => Some(BACKWARD_X2),
        _ => None,
    }
}

/// The nodes that read node `i`'s result, if it need not be made.
fn readers(plan: &Plan, i: usize, precision: Precision) -> Option<Vec<usize>> {
    let node = &plan.nodes[i];
    let write = node.output_write(0)?;
    let result = plan.tensor(write.tensor);
    let is_own = result.space == Space::Activations && result.role == Role::Transient;
    if !is_own
        || write.mode != Mode::Write
        || !is_readable(&node.op, depth(precision, result.dtype))
    {
        return None;
    }
    let reads = |at: usize| plan.nodes[at].inputs.contains(&Some(write.tensor));
    let readers: Vec<usize> = (0..plan.nodes.len()).filter(|&at| reads(at)).collect();
    let writes =
        |at: usize, id: TensorId| plan.nodes[at].outputs.iter().flatten().any(|w| w.tensor == id);
    let is_final = (0..plan.nodes.len()).all(|at| at == i || !writes(at, write.tensor));
    let last = *readers.last()?;
    let is_kept = |&id: &TensorId| (i..=last).all(|at| !writes(at, id));
    let sound = is_final
        && readers[0] > i
        && readers.iter().all(|&at| takes(plan, &node.op, at, write.tensor))
        && splits(plan, &node.op, &readers)
        && node.inputs.iter().flatten().all(is_kept);
    sound.then_some(readers)
}

/// Whether the kernels can read in place what an op makes, in the order in which they
/// read it made: enlargements by powers of two, concatenations whose first tensor ends
/// where a tile of the reduction does.
fn is_readable(op: &Op, depth: usize) -> bool {
    match op {
        Op::Resample(op) => match op.method {
            Method::Nearest { factor } => factor.is_power_of_two(),
            _ => false,
        },
        // Eight channels of bf16 fill 16 bytes.
        Op::Concat(op) => op.c_a.is_multiple_of(depth) && op.c_b.is_multiple_of(8),
        _ => false,
    }
}

/// Whether node `at` reads the tensor as the image of a convolution or, concatenated, of a
/// group norm alone.
fn takes(plan: &Plan, maker: &Op, at: usize, id: TensorId) -> bool {
    let node = &plan.nodes[at];
    let can = match &node.op {
        Op::Conv2d(op) | Op::Conv2dBackwardWeight(op) => op.options.groups == 1,
        Op::Norm(op) | Op::NormBackward(op) => {
            matches!(op.domain, Domain::Group(_)) && matches!(maker, Op::Concat(_))
        }
        _ => false,
    };
    let has_second = second(&node.op).is_some_and(|at| has(node, at));
    can && !has_second
        && node.inputs.iter().filter(|&&input| input == Some(id)).count() == 1
        && node.inputs[0] == Some(id)
}

fn has(node: &Node, input: usize) -> bool {
    node.inputs.get(input).copied().flatten().is_some()
}

/// Lets norms of two tensors write the two parts of a concatenation's gradient.
fn split_in_norms(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        let at = match plan.nodes[i].op {
            Op::ConcatBackward(op) => splitter(plan, i, op.c_b),
            _ => None,
        };
        let Some(at) = at.filter(|&at| has(&plan.nodes[at], BACKWARD_X2)) else {
            i += 1;
            continue;
        };
        let split = plan.nodes.remove(i);
        let norm = &mut plan.nodes[at];
        if norm.output_write(0).is_some_and(|w| w.mode == Mode::Add) {
            norm.inputs.resize(JOINED + 1, None);
            norm.inputs[JOINED] = split.inputs[0];
        }
        norm.outputs.resize(D_X2 + 1, None);
        (norm.outputs[0], norm.outputs[D_X2]) = (split.outputs[0], split.outputs[1]);
    }
}

/// The norm that can write the parts of the gradient whose last `c_b` channels node `i` splits
/// off.
fn splitter(plan: &Plan, i: usize, c_b: usize) -> Option<usize> {
    let node = &plan.nodes[i];
    let Op::ConcatBackward(op) = &node.op else { return None };
    let whole = node.input(0);
    let tensor = plan.tensor(whole);
    let is_own = tensor.space == Space::Activations && tensor.role == Role::Transient;
    let writes = |node: &Node, id| node.outputs.iter().flatten().any(|w| w.tensor == id);
    let reads = |node: &Node, id| node.inputs.contains(&Some(id));
    let at = plan.nodes.iter().rposition(|n| writes(n, whole)).filter(|&at| at < i)?;
    let norm = &plan.nodes[at];
    let fits = matches!(norm.op, Op::NormBackward(_))
        && norm.output(0) == Some(whole)
        && op.c_b == c_b
        && (0..plan.nodes.len()).all(|k| k == i || !reads(&plan.nodes[k], whole));
    let untouched = |id| plan.nodes[at..i].iter().all(|n| !reads(n, id) && !writes(n, id));
    let apart = |part: usize| node.output(part).is_some_and(untouched);
    // A tensor beside itself has one gradient for both parts.
    let two = node.output(0) != node.output(1);
    (is_own && fits && two && apart(0) && apart(1)).then_some(at)
}

/// Whether norms among the readers can write the two parts of a concatenation's gradient.
fn splits(plan: &Plan, maker: &Op, readers: &[usize]) -> bool {
    let Op::Concat(op) = maker else { return true };
    readers.iter().all(|&at| {
        let node = &plan.nodes[at];
        let (Op::NormBackward(_), Some(whole)) = (&node.op, node.output(0)) else { return true };
        let i = plan.nodes.iter().position(|n| n.inputs.contains(&Some(whole)));
        i.is_some_and(|i| splitter(plan, i, op.c_b) == Some(at))
    })
}
