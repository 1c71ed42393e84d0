//! Every op alone, both passes, on all threads: `cargo bench --bench ops -- attention`.
//!
//! Groups are `<op>/<pass>/<backend>`. Ops that count flops report them as
//! elements (Gelem/s reads GFLOP/s); all others the bytes of their operands,
//! each counted once.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use langevin::backend::cpu::Cpu;
use langevin::backend::{Arenas, Backend, Program};
use langevin::ops::norm::{Domain, NormOperands};
use langevin::ops::pointwise::Activation;
use langevin::ops::resample::Method;
use langevin::plan::{DType, Plan, Role, TensorId, Wrt};

/// Bytes that the nodes of a plan read and write, each operand counted once a node.
fn operand_bytes(plan: &Plan) -> u64 {
    let operands = plan.nodes.iter().flat_map(|node| {
        let outputs = node.outputs.iter().flatten().map(|w| w.tensor);
        node.inputs.iter().flatten().copied().chain(outputs)
    });
    operands.map(|t| plan.tensor(t).bytes() as u64).sum()
}

/// Deterministic bytes of f32 values in [-1, 1).
fn values(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).flat_map(|_| next().to_le_bytes()).collect()
}

/// Benches the op that `build` appends to operands of the given shapes, forward
/// and, where it has one, backward by all of them.
fn op(
    c: &mut Criterion,
    name: &str,
    case: &str,
    shapes: &[&[usize]],
    build: impl Fn(&mut Plan, &[TensorId]) -> TensorId,
) {
    let mut plan = Plan::new();
    let inputs: Vec<TensorId> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| plan.activation(format!("operand_{i}"), s, DType::F32, Role::State))
        .collect();
    let y = build(&mut plan, &inputs);
    let shape = plan.shape(y).to_vec();
    let d_y = plan.activation("upstream", &shape, DType::F32, Role::State);
    plan.derive(&[(y, Some(d_y))], Wrt::Tensors(inputs.clone())).expect("a derivative");
    for tensor in &mut plan.tensors {
        tensor.role = Role::State;
    }
    let mut cpu = Cpu::new(0);
    let whole = cpu.lower(plan).expect("the plan lowers");
    let arenas = Arenas {
        activations: Some(cpu.allocate(whole.memory.activation_bytes, "a bench").expect("memory")),
        packed: Some(cpu.allocate(whole.memory.packed_bytes, "a bench").expect("memory")),
        ..Arenas::default()
    };
    for (i, &t) in inputs.iter().chain([&d_y]).enumerate() {
        let bytes = values(i as u32 + 1, whole.plan.tensor(t).len());
        let (_, offset) = whole.place(t);
        let buffer = arenas.activations.as_ref().expect("allocated above");
        cpu.upload(buffer, offset, &bytes).expect("upload");
    }
    cpu.run(&whole, &arenas).expect("the plan runs");
    // The passes apart, in the same memory; packing that lowering has put in
    // front goes with the pass that needs it.
    let pass = |from: usize, to: usize| {
        let mut program: Program = whole.clone();
        program.plan.nodes = whole.plan.nodes[from..to].to_vec();
        program
    };
    let all = whole.plan.nodes.len();
    let forward_end = |n: &langevin::plan::Node| n.output(0) == Some(y);
    let split = whole.plan.nodes.iter().position(forward_end).expect("the op") + 1;
    for (pass_name, program) in [("forward", pass(0, split)), ("backward", pass(split, all))] {
        if program.plan.nodes.is_empty() {
            continue;
        }
        let flops = program.plan.flops();
        let mut group = c.benchmark_group(format!("{name}/{pass_name}/cpu"));
        group.throughput(match flops {
            0 => Throughput::Bytes(operand_bytes(&program.plan)),
            _ => Throughput::Elements(flops),
        });
        group.bench_function(BenchmarkId::from_parameter(case), |b| {
            b.iter(|| cpu.run(&program, &arenas).expect("the plan runs"));
        });
        group.finish();
    }
}

fn norm(c: &mut Criterion) {
    let operands = |t: &[TensorId]| NormOperands {
        gamma: Some(t[1]),
        beta: Some(t[2]),
        activation: Some(Activation::Silu),
        ..NormOperands::default()
    };
    for [n, size, channels] in [[16, 32, 128], [1, 32, 128], [16, 16, 256], [16, 4, 256]] {
        let case = format!("group_silu_{n}x{channels}x{size}x{size}");
        let shapes: [&[usize]; 3] = [&[n, size, size, channels], &[channels], &[channels]];
        op(c, "norm", &case, &shapes, |p, t| {
            p.norm(t[0], Domain::Group(32), 1e-6, operands(t)).expect("fitting shapes")
        });
    }
    let shapes: [&[usize]; 2] = [&[16, 256, 1152], &[16, 2 * 1152]];
    op(c, "norm", "layer_scale_shift_16x256x1152", &shapes, |p, t| {
        let operands = NormOperands { scale_shift: Some(t[1]), ..NormOperands::default() };
        p.norm(t[0], Domain::Layer, 1e-6, operands).expect("fitting shapes")
    });
}

fn attention(c: &mut Criterion) {
    let cases =
        [[1, 256, 8, 64], [1, 1024, 8, 64], [1, 4096, 2, 64], [16, 256, 1, 256], [16, 256, 32, 8]];
    for [n, tokens, heads, dim] in cases {
        let case = format!("{n}x{tokens}_heads_{heads}x{dim}");
        let shape: &[usize] = &[n, tokens, heads * dim];
        op(c, "attention", &case, &[shape, shape, shape], |p, t| {
            let scale = 1.0 / (dim as f32).sqrt();
            p.attention(t[0], t[1], t[2], heads, scale).expect("fitting shapes")
        });
    }
}

fn pointwise(c: &mut Criterion) {
    let shape: &[usize] = &[16, 32, 32, 128];
    for f in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Mish] {
        let case = format!("{f:?}_16x128x32x32").to_lowercase();
        op(c, "activate", &case, &[shape], |p, t| p.activate(t[0], f));
    }
    op(c, "add", "16x128x32x32", &[shape, shape], |p, t| {
        p.add(t[0], t[1], 1.0).expect("same shapes")
    });
}

fn movement(c: &mut Criterion) {
    let shape: &[usize] = &[16, 32, 32, 128];
    op(c, "add_per_image", "16x128x32x32", &[shape, &[16, 128]], |p, t| {
        p.add_per_image(t[0], t[1]).expect("fitting shapes")
    });
    op(c, "concat", "16x128+128x32x32", &[shape, shape], |p, t| {
        p.concat(t[0], t[1]).expect("fitting shapes")
    });
    let methods = [
        ("nearest_2", Method::Nearest { factor: 2 }),
        ("average_pool_2", Method::AveragePool { factor: 2 }),
        (
            "fir_up_2",
            Method::Fir {
                up: 2,
                down: 1,
                pad: [2, 1],
                edge: langevin::ops::resample::Edge::Zero,
                taps: [0.25, 0.75, 0.75, 0.25],
            },
        ),
    ];
    for (case, method) in methods {
        op(c, "resample", &format!("{case}_16x128x16x16"), &[&[16, 16, 16, 128]], |p, t| {
            p.resample(t[0], method).expect("large enough")
        });
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = norm, attention, pointwise, movement
}
criterion_main!(benches);
