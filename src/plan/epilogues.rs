//! What a convolution or a linear layer can do while it stores its result.

use super::{Mode, Node, Plan, Role, Space, TensorId};
use crate::ops::Op;
use crate::ops::conv2d::{PER_IMAGE, RESIDUAL};
use crate::ops::linear::{GATE, Linear};
use crate::ops::pointwise::Activation;

/// What may follow a layer, in the order in which it does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    PerImage,
    Activation,
    Gate,
    Residual,
}

/// A step that a layer can do.
struct Fusion {
    /// Node of the layer.
    layer: usize,
    /// What it needs for it, and at which position.
    operand: Option<(usize, TensorId)>,
    activation: Option<Activation>,
}

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
    /// layer before them, when nothing else reads its result, and `activate` and
    /// `scale_per_image` into the linear layers for which `finishes` holds: for a backend's
    /// lowering. The fused node does the same in the same order, so results keep their bits.
    pub fn fuse_epilogues(&mut self, finishes: impl Fn(&Linear) -> bool) {
        let mut i = 0;
        while i < self.nodes.len() {
            match fusable(self, i, &finishes) {
                Some(fusion) => {
                    // The layer moves to where its last operand is ready.
                    let mut layer = self.nodes[fusion.layer].clone();
                    if let Some((slot, operand)) = fusion.operand {
                        layer.inputs.resize(layer.inputs.len().max(slot + 1), None);
                        layer.inputs[slot] = Some(operand);
                    }
                    if let Op::Linear(op) = &mut layer.op {
                        op.activation = op.activation.or(fusion.activation);
                    }
                    layer.outputs = self.nodes[i].outputs.clone();
                    self.nodes[i] = layer;
                    self.nodes.remove(fusion.layer);
                }
                None => i += 1,
            }
        }
    }
}

/// The last step that a layer has been given.
fn last_step(layer: &Node) -> Option<Step> {
    let has = |slot: usize| layer.inputs.get(slot).copied().flatten().is_some();
    let activates = matches!(&layer.op, Op::Linear(op) if op.activation.is_some());
    let steps = [
        (Step::Residual, has(RESIDUAL)),
        (Step::Gate, has(GATE)),
        (Step::Activation, activates),
        (Step::PerImage, has(PER_IMAGE)),
    ];
    steps.into_iter().find(|(_, taken)| *taken).map(|(step, _)| step)
}

/// What node `i` does to a layer's result that nobody else reads, if the layer can do it.
fn fusable(plan: &Plan, i: usize, finishes: &impl Fn(&Linear) -> bool) -> Option<Fusion> {
    let node = &plan.nodes[i];
    // Position of the result, and position and slot of the other operand.
    type Candidate = (usize, Option<(usize, usize)>);
    let (step, candidates): (Step, &[Candidate]) = match &node.op {
        Op::AddPerImage(_) => (Step::PerImage, &[(0, Some((1, PER_IMAGE)))]),
        Op::Activate(_) => (Step::Activation, &[(0, None)]),
        Op::ScalePerImage(_) => (Step::Gate, &[(0, Some((1, GATE)))]),
        Op::Add(op) if op.scale == 1.0 => {
            (Step::Residual, &[(0, Some((1, RESIDUAL))), (1, Some((0, RESIDUAL)))])
        }
        _ => return None,
    };
    let fusion = |&(result, other): &Candidate| {
        let result = node.input(result);
        let uses = uses(plan, result);
        if !is_transient(plan, result) || uses.reads != [i] || uses.writes.len() != 1 {
            return None;
        }
        let at = uses.writes[0];
        let layer = &plan.nodes[at];
        let (images, can_finish) = match &layer.op {
            Op::Conv2d(op) => (op.n, false),
            Op::Linear(op) => (op.rows, finishes(op)),
            _ => return None,
        };
        let last = last_step(layer);
        if layer.outputs[0]?.mode != Mode::Write || last >= Some(step) {
            return None;
        }
        // Activation and gate come in between, and are not for sums.
        let finishing = |step: Step| matches!(step, Step::Activation | Step::Gate);
        let is_sum = node.output_write(0)?.mode == Mode::Add;
        let fits = match &node.op {
            Op::AddPerImage(op) => op.n == images,
            Op::ScalePerImage(op) => op.n * op.spatial == images && op.n > 0,
            _ => true,
        };
        if !fits
            || finishing(step) && !can_finish
            || is_sum && (finishing(step) || last.is_some_and(finishing))
        {
            return None;
        }
        let changed = plan.nodes[at + 1..=i]
            .iter()
            .flat_map(|n| n.outputs.iter().flatten())
            .any(|w| layer.inputs.contains(&Some(w.tensor)));
        let activation = match &node.op {
            Op::Activate(op) => Some(op.activation),
            _ => None,
        };
        let operand = other.map(|(operand, slot)| (slot, node.input(operand)));
        (!changed).then_some(Fusion { layer: at, operand, activation })
    };
    // The later of two layers: the other one's result is then its residual.
    candidates.iter().filter_map(fusion).max_by_key(|fusion| fusion.layer)
}
