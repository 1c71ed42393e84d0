//! Enlargements and concatenations that convolutions read in place.
//!
//! A nearest-neighbour enlargement by a power of two, or a concatenation of channels,
//! whose result convolutions alone read is not made. Its node goes, and its readers are
//! given its operands: as x the small image or the first tensor, at [`SECOND`] the other
//! one. What they are to make of them follows from the shapes.

use crate::backend::Precision;
use crate::ops::Op;
use crate::ops::conv2d::SECOND;
use crate::ops::resample::Method;
use crate::plan::{Mode, Plan, Role, Space, TensorId};

/// Channels that a tile of a convolution's reduction takes from a pixel: 128 bytes.
fn depth(precision: Precision) -> usize {
    if precision == Precision::Bf16 { 64 } else { 32 }
}

/// Lets convolutions read enlarged and concatenated tensors in place. Results keep their
/// bits. Before element types are chosen.
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
                        let inputs = &mut plan.nodes[reader].inputs;
                        inputs[0] = operands[0];
                        if let Some(second) = operands.get(1) {
                            inputs.resize(SECOND + 1, None);
                            inputs[SECOND] = *second;
                        }
                    }
                    plan.nodes.remove(i);
                }
                None => i += 1,
            }
        }
    }
}

/// The convolutions that read node `i`'s result, if it need not be made.
fn readers(plan: &Plan, i: usize, precision: Precision) -> Option<Vec<usize>> {
    let node = &plan.nodes[i];
    let write = node.output_write(0)?;
    let result = plan.tensor(write.tensor);
    let is_own = result.space == Space::Activations && result.role == Role::Transient;
    if !is_own || write.mode != Mode::Write || !is_readable(&node.op, depth(precision)) {
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
        && readers.iter().all(|&at| takes(plan, at, write.tensor))
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

/// Whether node `at` reads the tensor as the image of a convolution alone.
fn takes(plan: &Plan, at: usize, id: TensorId) -> bool {
    let node = &plan.nodes[at];
    let groups = match &node.op {
        Op::Conv2d(op) | Op::Conv2dBackwardWeight(op) => op.options.groups,
        _ => return false,
    };
    let has_second = node.inputs.get(SECOND).copied().flatten().is_some();
    groups == 1
        && !has_second
        && node.inputs.iter().filter(|&&input| input == Some(id)).count() == 1
        && node.inputs[0] == Some(id)
}
