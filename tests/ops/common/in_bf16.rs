//! The same case in bf16 on CUDA: operands, result and gradients by images are bf16
//! tensors, as they are between the layers of a plan that is lowered for bf16.

use half::bf16;
use langevin::backend::Precision;
use langevin::ops::Op;
use langevin::plan::{DType, Mode, Node, Plan, Role, TensorId, Write, Wrt};

use super::*;

/// Error allowed for each op between the operands and a result, of the largest value:
/// twice what rounding a result to bf16 costs.
const EACH_OP: f64 = 1.0 / 256.0;

/// What a plan in bf16 needs to know of itself.
struct Half {
    plan: Plan,
    operands: Vec<TensorId>,
    upstream: TensorId,
    /// What stood in the gradients before, where they are added to.
    before: Vec<Option<TensorId>>,
    y: TensorId,
    gradients: Vec<Option<TensorId>>,
    /// The tensors that must have become bf16.
    halves: Vec<TensorId>,
    ops: usize,
}

fn cast(plan: &mut Plan, x: TensorId) -> TensorId {
    plan.cast(x, DType::BF16)
}

/// A kept f32 copy of a tensor that is bf16 once the plan is lowered.
fn uncast(plan: &mut Plan, x: TensorId) -> TensorId {
    let y = plan.cast(x, DType::F32);
    plan.keep(y);
    y
}

impl Input {
    /// Rounded to bf16.
    fn rounded(&self) -> Self {
        self.clone().map(|v| bf16::from_f32(v).to_f32())
    }

    fn is_half(&self) -> bool {
        !self.parameter && matches!(self.data, Data::F32(_))
    }
}

impl Case<'_> {
    fn half_plan(&self, inputs: &[Input], add: bool) -> Half {
        let mut plan = Plan::new();
        let operands = operands(&mut plan, inputs);
        let cast_operands: Vec<TensorId> = operands
            .iter()
            .zip(inputs)
            .map(|(&t, input)| if input.is_half() { cast(&mut plan, t) } else { t })
            .collect();
        let casts = plan.nodes.len();
        let y = (self.build)(&mut plan, &cast_operands);
        let shape = plan.shape(y).to_vec();
        let upstream = plan.activation("upstream", &shape, DType::F32, Role::State);
        let d_y = cast(&mut plan, upstream);
        let forward = plan.nodes.len();
        let wanted: Vec<TensorId> = cast_operands
            .iter()
            .zip(inputs)
            .filter(|(_, i)| i.differentiable)
            .map(|(&t, _)| t)
            .collect();
        if !wanted.is_empty() {
            plan.derive(&[(y, Some(d_y))], Wrt::Tensors(wanted)).expect("a derivative");
        }
        let ops = plan.nodes.len() - casts - 1;
        let made: Vec<Option<TensorId>> = cast_operands.iter().map(|&t| plan.gradient(t)).collect();
        let mut halves = vec![y];
        let mut before = vec![None; made.len()];
        for (i, (g, input)) in made.iter().zip(inputs).enumerate() {
            let Some(g) = *g else { continue };
            if !input.is_half() {
                continue;
            }
            halves.push(g);
            plan.tensors[g.index()].role = Role::Transient;
            if add {
                plan.tensors[g.index()].dtype = DType::BF16;
                let shape = plan.shape(g).to_vec();
                let from = plan.activation(format!("before_{i}"), &shape, DType::F32, Role::State);
                for write in plan.nodes[forward..].iter_mut().flat_map(|n| n.outputs.iter_mut()) {
                    if let Some(write) = write.as_mut().filter(|w| w.tensor == g) {
                        write.mode = Mode::Add;
                    }
                }
                let len = plan.tensor(g).len();
                let node = Node {
                    op: Op::Cast(langevin::ops::cast::Cast { len }),
                    inputs: vec![Some(from)],
                    outputs: vec![Some(Write { tensor: g, mode: Mode::Write })],
                    workspace: None,
                };
                plan.nodes.insert(forward, node);
                before[i] = Some(from);
            }
        }
        let y = uncast(&mut plan, y);
        let gradients = made
            .iter()
            .zip(inputs)
            .map(|(g, i)| g.map(|g| if i.is_half() { uncast(&mut plan, g) } else { g }))
            .collect();
        Half { plan, operands, upstream, before, y, gradients, halves, ops }
    }

    /// Runs it; the gradients by images are added to `before` where it is given.
    fn run_half(&self, inputs: &[Input], upstream: &[f32], before: Option<&Outcome>) -> Outcome {
        let half = self.half_plan(inputs, before.is_some());
        let backend = gpu::backend_in(Precision::Bf16).expect("found before");
        let mut machine = Machine::of(backend, half.plan);
        for (&t, input) in half.operands.iter().zip(inputs) {
            match &input.data {
                Data::F32(v) => machine.upload(t, v),
                Data::U32(v) => machine.upload_u32(t, v),
            }
        }
        machine.upload(half.upstream, upstream);
        for (i, from) in half.before.iter().enumerate() {
            if let (Some(from), Some(before)) = (from, before) {
                machine.upload(*from, before.gradients[i].as_ref().expect("a gradient"));
            }
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        let gradients = half.gradients.iter().map(|g| g.map(|g| machine.download(g))).collect();
        Outcome { output: machine.download(half.y), gradients }
    }

    /// Whether the op takes bf16 for all that passes between layers.
    pub fn takes_halves(&self) -> bool {
        let half = self.half_plan(&self.inputs, false);
        let backend = gpu::backend_in(Precision::Bf16).expect("found before");
        let program = backend.lower(half.plan).expect("lowered in f32");
        // A dropped copy is no tensor any more.
        let is_used = |t: TensorId| {
            let nodes = program.plan.nodes.iter();
            let written = |n: &Node| n.outputs.iter().flatten().any(|w| w.tensor == t);
            nodes.filter(|n| written(n)).count() > 0
        };
        let mut used = half.halves.iter().copied().filter(|&t| is_used(t));
        used.all(|t| program.plan.tensor(t).dtype == DType::BF16)
    }

    /// An op that takes bf16 gives what f64 makes of the rounded operands, rounded; adds
    /// to gradients; gives the same bits in every order of blocks and in every batch.
    #[track_caller]
    pub(super) fn check_half(&self, reference: &dyn Fn(&[Vec<f64>]) -> Vec<f64>) {
        if !self.takes_halves() {
            return;
        }
        let rounded: Vec<Input> = self.inputs.iter().map(Input::rounded).collect();
        let upstream = |len: usize| -> Vec<f32> {
            values(99, len).iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
        };
        let exact = self.run_with(&rounded, &upstream, (1, Isa::detect()), None);
        let d_y = upstream(exact.output.len());
        gpu::set_seed(0);
        let found = self.run_half(&rounded, &d_y, None);
        let ops = self.half_plan(&rounded, false).ops;
        let tolerance = EACH_OP * ops as f64;
        let operands: Vec<Vec<f64>> = rounded.iter().map(Input::as_f64).collect();
        assert_close("output in bf16", &found.output, &reference(&operands), tolerance, 0.0);
        let gradients = |what: &str, a: &Outcome, b: &Outcome, factor: f64| {
            for (i, (a, b)) in a.gradients.iter().zip(&b.gradients).enumerate() {
                if let (Some(a), Some(b)) = (a, b) {
                    let expected: Vec<f64> = b.iter().map(|&v| factor * f64::from(v)).collect();
                    // A gradient that is zero in exact arithmetic is what rounding left.
                    assert_close(&format!("{what} {i} in bf16"), a, &expected, tolerance, 1e-3);
                }
            }
        };
        gradients("gradient by operand", &found, &exact, 1.0);

        for seed in 2..gpu::SEEDS {
            gpu::set_seed(seed);
            let again = self.run_half(&rounded, &d_y, None);
            assert_same_bits("output of a second run in bf16", &again.output, &found.output);
            for (a, b) in again.gradients.iter().zip(&found.gradients) {
                if let (Some(a), Some(b)) = (a, b) {
                    assert_same_bits("gradient of a second run in bf16", a, b);
                }
            }
        }
        gpu::set_seed(1);
        let twice = self.run_half(&rounded, &d_y, Some(&found));
        for (i, input) in rounded.iter().enumerate().filter(|(_, input)| input.is_half()) {
            if let (Some(a), Some(b)) = (&twice.gradients[i], &found.gradients[i]) {
                let doubled: Vec<f64> = b.iter().map(|&v| 2.0 * f64::from(v)).collect();
                let what = format!("gradient by operand {i} in bf16, added to itself,");
                assert!(input.differentiable);
                assert_close(&what, a, &doubled, tolerance, 0.0);
            }
        }
        self.check_half_images(&rounded, &d_y, &found);
    }

    #[track_caller]
    fn check_half_images(&self, rounded: &[Input], d_y: &[f32], found: &Outcome) {
        let Some(n) = rounded.iter().find(|i| i.per_image).map(|i| i.shape[0]) else { return };
        for image in (0..n).filter(|_| n > 1) {
            gpu::set_seed(3 + image as u64 % 2);
            let part = |all: &[f32]| {
                let len = all.len() / n;
                all[image * len..(image + 1) * len].to_vec()
            };
            let inputs: Vec<Input> = rounded.iter().map(|i| i.image_only(image)).collect();
            let alone = self.run_half(&inputs, &part(d_y), None);
            assert_same_bits("an image alone in bf16", &alone.output, &part(&found.output));
            for (i, input) in rounded.iter().enumerate() {
                let (a, b) = (&alone.gradients[i], &found.gradients[i]);
                if let (true, Some(a), Some(b)) = (input.per_image, a, b) {
                    assert_same_bits("gradient of an image alone in bf16", a, &part(b));
                }
            }
        }
    }
}
