//! What a backend makes of a plan computes the same bits as the plan op by op.

use langevin::backend::Backend;
use langevin::backend::cpu::Cpu;
use langevin::ops::Op;
use langevin::ops::conv2d::{ConvOptions, Padding};
use langevin::plan::{DType, DiskLayout, Init, Mode, Plan, Role, TensorId, Wrt};

use crate::common::{Machine, assert_same_bits, on_every_backend, values};

/// A residual block with a time embedding and a shortcut, and a linear layer
/// around a residual: everything that is fused, forward and backward.
fn block() -> Plan {
    let mut plan = Plan::new();
    let x = plan.activation("x", &[2, 5, 4, 3], DType::F32, Role::State);
    let e = plan.activation("e", &[2, 6], DType::F32, Role::State);
    let mut weight = |name: &str, shape: &[usize]| {
        plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true)
    };
    let (w1, b1) = (weight("w1", &[6, 3, 3, 3]), weight("b1", &[6]));
    let (w2, w3) = (weight("w2", &[6, 3, 3, 6]), weight("w3", &[6, 1, 1, 3]));
    let (w4, w5) = (weight("w4", &[6, 6]), weight("w5", &[6, 6]));
    let same = ConvOptions { padding: Padding::same(1), ..ConvOptions::default() };
    let fits = "the shapes fit";
    let h = plan.conv2d(x, w1, Some(b1), same).expect(fits);
    // The embedding is ready only after the convolution.
    let e = plan.linear(e, w4, None).expect(fits);
    let h = plan.add_per_image(h, e).expect(fits);
    let h = plan.conv2d(h, w2, None, same).expect(fits);
    let shortcut = plan.conv2d(x, w3, None, ConvOptions::default()).expect(fits);
    let y = plan.add(shortcut, h, 1.0).expect(fits);
    let half = plan.scale(y, 0.5, 0.0);
    let z = plan.linear(half, w5, None).expect(fits);
    let z = plan.add(z, y, 1.0).expect(fits);
    let z = plan.scale(z, 2.0, 0.0);
    plan.tensors[z.index()].name = "z".into();
    plan.keep(z);
    let d_z = plan.activation("d_z", &[2, 5, 4, 6], DType::F32, Role::State);
    plan.derive(&[(z, Some(d_z))], Wrt::Parameters(Mode::Write)).expect("a derivative");
    plan
}

/// Output and all gradients.
fn results(plan: Plan) -> Vec<(String, Vec<f32>)> {
    let wanted: Vec<TensorId> = (0..plan.tensors.len() as u32)
        .map(TensorId)
        .filter(|&t| {
            let t = plan.tensor(t);
            t.name == "z" || t.name.starts_with("d_w") && !t.name.contains('.') || t.name == "d_b1"
        })
        .collect();
    let uploads: Vec<TensorId> = (0..plan.tensors.len() as u32)
        .map(TensorId)
        .filter(|&t| {
            let t = plan.tensor(t);
            ["x", "e", "d_z", "w1", "b1", "w2", "w3", "w4", "w5"].contains(&t.name.as_str())
        })
        .collect();
    let mut machine = Machine::new(plan, 2);
    for (seed, &t) in uploads.iter().enumerate() {
        let len = machine.program.plan.tensor(t).len();
        machine.upload(t, &values(seed as u64, len));
    }
    machine.run();
    let name = |m: &Machine, t: TensorId| m.program.plan.tensor(t).name.clone();
    wanted.iter().map(|&t| (name(&machine, t), machine.download(t))).collect()
}

#[test]
fn a_lowered_plan_has_no_additions_nor_copies_left() {
    let program = Cpu::new(1).lower(block()).expect("the plan lowers");
    let left: Vec<&str> = program
        .plan
        .nodes
        .iter()
        .filter(|n| matches!(&n.op, Op::AddPerImage(_) | Op::Add(_)))
        .map(|n| n.op.name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let copies = program.plan.nodes.iter().filter(
        |n| matches!((&n.op, n.outputs[0]), (Op::Scale(op), Some(w)) if op.scale == 1.0 && w.mode == Mode::Write),
    );
    assert_eq!(copies.count(), 0);
}

#[test]
fn a_lowered_plan_has_the_bits_of_its_ops_one_by_one() {
    on_every_backend(|| {
        let fused = results(block());
        assert_eq!(fused.len(), 7);
        // Intermediate results that someone wants to see are left alone.
        let mut plan = block();
        for i in 0..plan.tensors.len() {
            if plan.tensors[i].role == Role::Transient {
                plan.keep(TensorId(i as u32));
            }
        }
        let nodes = plan.nodes.len();
        let program = Cpu::new(1).lower(plan.clone()).expect("the plan lowers");
        assert_eq!(program.plan.nodes.len(), nodes);
        for ((name, fused), (_, single)) in fused.iter().zip(&results(plan)) {
            assert_same_bits(name, fused, single);
        }
    });
}

#[test]
fn additions_that_cannot_move_stay() {
    let mut plan = Plan::new();
    let x = plan.activation("x", &[1, 3, 3, 2], DType::F32, Role::State);
    let w = plan.parameter("w", &[2, 1, 1, 2], DiskLayout::Same, Init::Constant(0.0), true);
    let h = plan.conv2d(x, w, None, ConvOptions::default()).expect("fits");
    // Scaled sums, and results that someone else reads.
    let scaled = plan.add(h, x, 0.5).expect("fits");
    let twice = plan.conv2d(scaled, w, None, ConvOptions::default()).expect("fits");
    let y = plan.add(twice, twice, 1.0).expect("fits");
    plan.keep(y);
    let program = Cpu::new(1).lower(plan).expect("the plan lowers");
    let adds = program.plan.nodes.iter().filter(|n| matches!(n.op, Op::Add(_))).count();
    assert_eq!(adds, 2);
}
