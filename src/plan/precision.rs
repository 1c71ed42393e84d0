//! Which tensors of a plan are bf16, and the casts between them and the rest.
//!
//! A network is trained with weights, moments, statistics and sums in f32; what passes
//! between its layers may be bf16 (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep
//! Learning Training"). [`half_form`] says which operands of an op a backend can take
//! as bf16. [`Plan::halve`] makes every tensor bf16 that only such operands write and
//! that nobody uploads, downloads or keeps; where an op and a tensor disagree it
//! inserts [`Op::Cast`]. So it is right with any table, and a longer one only saves
//! casts.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{DType, Mode, Node, Plan, Role, Space, Tensor, TensorId, Write};
use crate::ops::Op;
use crate::ops::cast::Cast;
use crate::ops::conv2d::{PER_IMAGE, RESIDUAL, SECOND};
use crate::ops::linear::{GATE, GroupPass, LinearGroup};
use crate::ops::sampler_step::{INPUT, SLOT_0};

/// Precision of a network's arithmetic. Weights, moments, statistics, sums, losses and
/// the sampler's state are f32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// f32 tensors; products of convolutions, linear layers and attention round their
    /// factors to 10 bits of fraction and run on tensor cores.
    Tf32,
    /// bf16 tensors between layers, with weights rounded to bf16; tensor cores.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// The form of an op that takes bf16: all of these operands are, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HalfForm {
    /// Positions of inputs.
    pub(super) inputs: &'static [usize],
    /// Positions of outputs.
    pub(super) outputs: &'static [usize],
    /// Taken always, because it is faster by more than casts cost; else only where its
    /// operands are bf16 without it.
    always: bool,
}

/// All positions of a group's operands.
static EVERY: [usize; 2 * LinearGroup::MOST + 1] = {
    let mut positions = [0; 2 * LinearGroup::MOST + 1];
    let mut i = 0;
    while i < positions.len() {
        positions[i] = i;
        i += 1;
    }
    positions
};

/// Positions of x and of the weights of a group, which its biases stand between.
static GROUP_WEIGHTS: [usize; LinearGroup::MOST + 1] = {
    let mut positions = [0; LinearGroup::MOST + 1];
    let mut i = 1;
    while i < positions.len() {
        positions[i] = 2 * i - 1;
        i += 1;
    }
    positions
};

/// The form of an op that takes bf16, if kernels have one.
pub(super) fn half_form(op: &Op) -> Option<HalfForm> {
    let always = |inputs, outputs| Some(HalfForm { inputs, outputs, always: true });
    let along = |inputs, outputs| Some(HalfForm { inputs, outputs, always: false });
    match op {
        Op::Conv2d(_) => always(&[0, 1, PER_IMAGE, RESIDUAL, SECOND], &[0]),
        Op::Linear(_) => always(&[0, 1, PER_IMAGE, RESIDUAL, GATE], &[0]),
        Op::Conv2dBackwardData(_) | Op::LinearBackwardData(_) => always(&[0, 1], &[0]),
        Op::Conv2dBackwardWeight(_) | Op::LinearBackwardWeight(_) => always(&[0, 1, SECOND], &[]),
        Op::LinearGroup(op) => match op.pass {
            GroupPass::Forward => along(&GROUP_WEIGHTS, &EVERY),
            GroupPass::BackwardData => along(&EVERY, &[0]),
            GroupPass::BackwardWeight => along(&EVERY, &[]),
        },
        Op::Norm(op) if op.has_half_form() => always(&[0, 3, 4], &[0]),
        Op::NormBackward(op) if op.has_half_form() => always(&[0, 3, 6, 7, 8], &[0, 3, 4]),
        Op::Attention(_) => always(&[0, 1, 2], &[0]),
        Op::AttentionBackward(_) => always(&[0, 1, 2, 3, 5], &[0, 1, 2]),
        Op::Activate(_) | Op::Scale(_) | Op::ScaleRows(_) => along(&[0], &[0]),
        Op::ActivateBackward(_) | Op::Add(_) => along(&[0, 1], &[0]),
        Op::AddPerImage(_) | Op::ScalePerImage(_) => along(&[0, 1], &[0]),
        Op::SumPerImage(_) => along(&[0, 1], &[0]),
        Op::Resample(_) | Op::ResampleBackward(_) => along(&[0], &[0]),
        Op::Dropout(_) | Op::DropoutBackward(_) => along(&[0], &[0]),
        Op::Concat(_) => along(&[0, 1], &[0]),
        Op::ConcatBackward(_) => along(&[0], &[0, 1]),
        Op::SinusoidalEmbedding(_) | Op::FourierEmbedding(_) => along(&[], &[0]),
        Op::Lookup(_) => along(&[0], &[0]),
        Op::LookupBackward(_) => along(&[1], &[]),
        Op::Noising(_) => along(&[], &[0]),
        Op::Loss(_) | Op::SamplerQuantile(_) | Op::SamplerNorms(_) => along(&[0], &[]),
        Op::LossBackward(_) => along(&[0], &[0]),
        Op::SamplerStep(_) => along(&[0], &[1]),
        _ => None,
    }
}

type Table = fn(&Op) -> Option<HalfForm>;

impl Plan {
    /// Makes what passes between layers bf16; for a backend's lowering, when all other
    /// ops are there. A second time changes nothing.
    pub fn halve(&mut self) {
        let mut wider = self.clone();
        wider.halve_sampler_input();
        wider.halve_by(half_form);
        // A step whose prediction stays f32 writes its input in f32, too.
        match wider.check_types() {
            Ok(()) => *self = wider,
            Err(_) => self.halve_by(half_form),
        }
    }

    /// Lets a sampler's step write the network's input in bf16 where layers read it so: the
    /// input that it writes already, or beside slot 0 another one ([`SLOT_0`]).
    fn halve_sampler_input(&mut self) {
        let Some(at) = self.nodes.iter().position(|n| matches!(n.op, Op::SamplerStep(_))) else {
            return;
        };
        let is_layer = |node: &Node, i: usize| {
            half_form(&node.op).is_some_and(|f| f.always && f.inputs.contains(&i))
        };
        let step = &self.nodes[at];
        let (Some(seen), own) = (step.output(1).or(step.output(2)), step.output(1).is_some())
        else {
            return;
        };
        let reads = |node: &Node, i: usize| node.inputs[i] == Some(seen);
        let mut readers = self.nodes[..at].iter().flat_map(|n| {
            (0..n.inputs.len()).filter(move |&i| reads(n, i)).map(move |i| is_layer(n, i))
        });
        let is_state =
            self.tensor(seen).dtype == DType::F32 && self.tensor(seen).role == Role::State;
        if !is_state {
            return;
        }
        if own {
            let first = readers.next();
            if first == Some(true) && readers.all(|takes| takes) {
                self.tensors[seen.index()].dtype = DType::BF16;
            }
        } else if self.tensor(seen).name == SLOT_0 && readers.any(|takes| takes) {
            let shape = self.shape(seen).to_vec();
            let input = self.activation(INPUT, &shape, DType::BF16, Role::State);
            for node in &mut self.nodes[..at] {
                for i in 0..node.inputs.len() {
                    if node.inputs[i] == Some(seen) && is_layer(node, i) {
                        node.inputs[i] = Some(input);
                    }
                }
            }
            self.nodes[at].outputs[1] = Some(Write { tensor: input, mode: Mode::Write });
        }
    }

    /// Lets the optimizer write the bf16 weights too.
    pub fn update_halves(&mut self) {
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            if let (Op::AdamW(_), [Some(weights), _, _, _]) = (&node.op, &node.outputs[..]) {
                let len = self.tensor(weights.tensor).len();
                let tensor = self.whole("half_parameters", Space::Half, len);
                self.nodes[i].outputs.push(Some(Write { tensor, mode: Mode::Add }));
            }
        }
    }

    /// The node that makes all bf16 weights from the f32 ones.
    pub fn halve_weights(&mut self) -> Node {
        let len = self.parameters.arena_len();
        let from = self.whole("parameters", Space::Parameters, len);
        let to = self.whole("half_parameters", Space::Half, len);
        Node {
            op: Op::Cast(Cast { len }),
            inputs: vec![Some(from)],
            outputs: vec![Some(Write { tensor: to, mode: Mode::Write })],
            workspace: None,
        }
    }

    fn halve_by(&mut self, table: Table) {
        let forms = self.forms(table);
        let written: HashSet<TensorId> =
            self.nodes.iter().flat_map(|n| n.outputs.iter().flatten().map(|w| w.tensor)).collect();
        let mut casts = Casts { weights: HashMap::new(), copies: HashMap::new(), written };
        for (mut node, form) in std::mem::take(&mut self.nodes).into_iter().zip(forms) {
            if matches!(node.op, Op::Cast(_)) {
                casts.push(self, node);
                continue;
            }
            for (i, input) in node.inputs.iter_mut().enumerate() {
                if let Some(id) = input {
                    *id = casts.read(self, *id, form.is_some_and(|f| f.inputs.contains(&i)));
                }
            }
            let mut after = Vec::new();
            for (i, output) in node.outputs.iter_mut().enumerate() {
                let half = form.is_some_and(|f| f.outputs.contains(&i));
                let Some(write) = output.as_mut().filter(|_| half) else { continue };
                if self.tensor(write.tensor).dtype == DType::F32 {
                    let from = self.twin(write.tensor, DType::BF16);
                    after.push(cast(self, from, *write));
                    *write = Write { tensor: from, mode: Mode::Write };
                }
            }
            casts.push(self, node);
            after.into_iter().for_each(|node| casts.push(self, node));
        }
    }

    /// The nodes that take bf16; sets the type of the tensors that only they write.
    fn forms(&mut self, table: Table) -> Vec<Option<HalfForm>> {
        // Whether all writers so far wrote bf16.
        let mut halves: HashMap<TensorId, bool> = HashMap::new();
        let mut forms = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let inputs = |f: &HalfForm| {
                f.inputs.iter().filter_map(|&i| node.inputs.get(i).copied().flatten())
            };
            let is_half = |id: TensorId| {
                let tensor = self.tensor(id);
                tensor.dtype == DType::BF16
                    || tensor.space == Space::Parameters
                    || (self.may_be_half(id) && halves.get(&id) == Some(&true))
            };
            let goes_on = |f: &HalfForm| {
                inputs(f).all(is_half)
                    && f.outputs.iter().filter_map(|&i| node.output(i)).all(|id| {
                        self.tensor(id).dtype == DType::BF16
                            || (self.may_be_half(id) && halves.get(&id) != Some(&false))
                    })
            };
            let form = table(&node.op).filter(|f| f.always || goes_on(f));
            for (i, write) in node.outputs.iter().enumerate() {
                if let Some(write) = write {
                    let half = form.is_some_and(|f| f.outputs.contains(&i));
                    *halves.entry(write.tensor).or_insert(true) &= half;
                }
            }
            forms.push(form);
        }
        for (id, half) in halves {
            if half && self.may_be_half(id) {
                self.tensors[id.index()].dtype = DType::BF16;
            }
        }
        forms
    }

    fn may_be_half(&self, id: TensorId) -> bool {
        let t = self.tensor(id);
        t.space == Space::Activations && t.role == Role::Transient && t.dtype == DType::F32
    }

    /// A transient tensor of the same shape.
    fn twin(&mut self, of: TensorId, dtype: DType) -> TensorId {
        let shape = self.shape(of).to_vec();
        let name = format!("{}.as_{dtype:?}.{}", self.tensor(of).name, self.tensors.len());
        self.activation(name, &shape, dtype, Role::Transient)
    }
}

fn cast(plan: &Plan, from: TensorId, to: Write) -> Node {
    Node {
        op: Op::Cast(Cast { len: plan.tensor(from).len() }),
        inputs: vec![Some(from)],
        outputs: vec![Some(to)],
        workspace: None,
    }
}

/// Tensors in their other type.
struct Casts {
    /// Weights of [`Space::Half`].
    weights: HashMap<TensorId, TensorId>,
    /// Casts that still have the values of their originals.
    copies: HashMap<TensorId, TensorId>,
    /// Tensors that some node of the plan writes.
    written: HashSet<TensorId>,
}

impl Casts {
    /// The tensor as f32, or as bf16.
    fn read(&mut self, plan: &mut Plan, id: TensorId, half: bool) -> TensorId {
        let tensor = plan.tensor(id);
        let wanted = if half { DType::BF16 } else { DType::F32 };
        if tensor.dtype == wanted || matches!(tensor.dtype, DType::U32 | DType::U8) {
            return id;
        }
        if tensor.space == Space::Parameters && !self.written.contains(&id) {
            return *self.weights.entry(id).or_insert_with(|| plan.half_weight(id));
        }
        if let Some(&copy) = self.copies.get(&id) {
            return copy;
        }
        let copy = plan.twin(id, wanted);
        let node = cast(plan, id, Write { tensor: copy, mode: Mode::Write });
        plan.nodes.push(node);
        self.copies.insert(id, copy);
        copy
    }

    /// Appends a node, after which casts of what it writes are old.
    fn push(&mut self, plan: &mut Plan, node: Node) {
        for write in node.outputs.iter().flatten() {
            self.copies.remove(&write.tensor);
        }
        plan.nodes.push(node);
    }
}

impl Plan {
    /// The bf16 copy of a weight.
    fn half_weight(&mut self, id: TensorId) -> TensorId {
        let tensor = self.tensor(id);
        let half = Tensor {
            name: format!("{}.half", tensor.name),
            dtype: DType::BF16,
            space: Space::Half,
            offset: tensor.offset.map(|bytes| bytes / 2),
            ..tensor.clone()
        };
        self.add_tensor(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Network, UNetConfig};
    use crate::ops::conv2d::{ConvOptions, Padding};
    use crate::ops::noising::coefficient;
    use crate::ops::pointwise::Activation;
    use crate::plan::{DiskLayout, Init, Wrt};

    /// A table of layers alone, which need casts everywhere.
    fn narrow(op: &Op) -> Option<HalfForm> {
        half_form(op).filter(|form| form.always)
    }

    fn weight(plan: &mut Plan, name: &str, shape: &[usize]) -> TensorId {
        plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true)
    }

    /// Three convolutions, an activation, a skip connection and a loss.
    fn network() -> Plan {
        let mut plan = Plan::new();
        let options = ConvOptions { padding: Padding::same(1), ..Default::default() };
        let x = plan.input("x", &[2, 4, 4, 3], DType::F32);
        let shapes = [("first", [8, 3, 3, 3]), ("second", [8, 3, 3, 8]), ("last", [3, 3, 3, 8])];
        let [first, second, last] = shapes.map(|(name, shape)| weight(&mut plan, name, &shape));
        let a = plan.conv2d(x, first, None, options).expect("fits");
        let b = plan.activate(a, Activation::Silu);
        let c = plan.conv2d(b, second, None, options).expect("fits");
        let sum = plan.add(a, c, 0.5).expect("fits");
        let y = plan.conv2d(sum, last, None, options).expect("fits");
        let target = plan.input("target", &[2, 4, 4, 3], DType::F32);
        let rows = plan.input("rows", &[2, coefficient::COLUMNS], DType::F32);
        let loss = plan.loss(y, target, rows, None, 1.0).expect("fits");
        plan.keep(loss);
        plan.derive(&[(loss, None)], Wrt::Parameters(Mode::Write)).expect("derives");
        plan
    }

    /// A U-Net with attention, classes, resampling by convolutions and dropout.
    fn unet() -> Plan {
        let config = serde_json::json!({"sample_size": 8, "block_out_channels": [8, 16],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4,
            "num_class_embeds": 4, "dropout": 0.1, "attention_head_dim": 8});
        let network = Network::UNet(UNetConfig::from_json(&config).expect("valid"));
        let mut plan = Plan::new();
        let inputs = network.inputs(&mut plan, 2, [8, 8], true);
        let y = network.build(&mut plan, &inputs).expect("builds");
        let shape = plan.shape(y).to_vec();
        let target = plan.input("target", &shape, DType::F32);
        let rows = plan.input("rows", &[2, coefficient::COLUMNS], DType::F32);
        let loss = plan.loss(y, target, rows, None, 1.0).expect("fits");
        plan.keep(loss);
        plan.derive(&[(loss, None)], Wrt::Parameters(Mode::Write)).expect("derives");
        plan
    }

    /// Asserts that operands have the types their ops take, and that what leaves or
    /// enters the plan, statistics and gradients by weights are f32.
    fn assert_consistent(plan: &Plan, table: Table) {
        for node in &plan.nodes {
            let outputs = |i: usize| node.output(i).map(|id| plan.tensor(id));
            if matches!(node.op, Op::Cast(_)) {
                let (x, y) = (plan.tensor(node.input(0)), outputs(0).expect("an output"));
                assert_ne!(x.dtype, y.dtype, "a cast of `{}` to its own type", x.name);
                continue;
            }
            let halves = |id: &TensorId| plan.tensor(*id).dtype == DType::BF16;
            let all = node.inputs.iter().flatten().copied();
            let mut all = all.chain(node.outputs.iter().flatten().map(|w| w.tensor));
            let form = table(&node.op);
            if form.is_none_or(|f| !f.always) && !all.any(|id| halves(&id)) {
                continue;
            }
            let form = form.expect("an op that takes bf16");
            for (i, input) in node.inputs.iter().enumerate() {
                let Some(id) = input else { continue };
                assert_eq!(halves(id), form.inputs.contains(&i), "{} {i}", node.op.name());
            }
            for (i, write) in node.outputs.iter().enumerate() {
                let Some(write) = write else { continue };
                let half = form.outputs.contains(&i);
                assert_eq!(halves(&write.tensor), half, "{} {i}", node.op.name());
            }
        }
        for t in plan.tensors.iter().filter(|t| t.dtype == DType::BF16) {
            let half = t.space == Space::Half;
            assert!(half || t.role == Role::Transient, "`{}` is uploaded or kept", t.name);
        }
    }

    fn text(plan: &Plan) -> String {
        format!("{:?}\n{:?}", plan.nodes, plan.tensors)
    }

    fn casts(plan: &Plan) -> usize {
        plan.nodes.iter().filter(|n| matches!(n.op, Op::Cast(_))).count()
    }

    #[test]
    fn every_operand_gets_the_type_its_op_takes_and_a_second_time_changes_nothing() {
        for make in [network, unet] {
            for table in [half_form as Table, narrow] {
                let (mut plan, mut again) = (make(), make());
                plan.halve_by(table);
                assert_consistent(&plan, table);
                again.halve_by(table);
                assert_eq!(text(&plan), text(&again), "two runs differ");
                again.halve_by(table);
                assert_eq!(text(&plan), text(&again), "a second time");
            }
        }
    }

    #[test]
    fn casts_stand_only_where_neighbours_disagree() {
        let mut plan = network();
        plan.halve();
        // The input alone: the loss takes the result, and gives its gradient, as they are.
        let is_cast = |n: &&Node| matches!(n.op, Op::Cast(_));
        let cast = plan.nodes.iter().filter(is_cast).map(|n| plan.tensor(n.input(0)).name.as_str());
        assert_eq!(cast.collect::<Vec<_>>(), ["x"]);
        let halves = plan.tensors.iter().filter(|t| t.space == Space::Half);
        let found: Vec<_> = halves.map(|t| (t.name.clone(), t.offset)).collect();
        let offset = |name: &str| plan.parameters.find(name).expect("a weight").offset * 2;
        let expected = ["first", "second", "last"].map(|n| (format!("{n}.half"), Some(offset(n))));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_wider_table_only_saves_casts() {
        for make in [network, unet] {
            let (mut few, mut many) = (make(), make());
            few.halve();
            many.halve_by(narrow);
            assert!(casts(&few) < casts(&many), "{} and {}", casts(&few), casts(&many));
        }
    }
}
