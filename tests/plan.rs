//! The static plan: derived gradients of small graphs against f64, dropped
//! copies, and the memory plan of real networks.

use langevin::backend::cpu::Cpu;
use langevin::backend::{Backend, Engine, Program, WeightSet};
use langevin::model::{Network, UNetConfig};
use langevin::ops::Op;
use langevin::ops::noising::coefficient;
use langevin::ops::pointwise::Activation;
use langevin::plan::memory::{conflicts, plan_memory};
use langevin::plan::{DType, DiskLayout, Init, Mode, Plan, Role, Space, TensorId, Wrt};
use serde_json::json;

fn ddpm_cifar10() -> Network {
    let file: serde_json::Value =
        serde_json::from_str(include_str!("golden/unet-ddpm-cifar10.json")).expect("valid JSON");
    Network::UNet(UNetConfig::from_json(&file["config"]).expect("valid"))
}

/// Fourier time, Skip blocks, classes, dropout.
fn ncsnpp() -> Network {
    let config = json!({"sample_size": 8, "block_out_channels": [8, 16, 16],
        "down_block_types": ["SkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"],
        "up_block_types": ["SkipUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"],
        "norm_num_groups": null, "time_embedding_type": "fourier", "num_class_embeds": 4,
        "dropout": 0.1, "attention_head_dim": null});
    Network::UNet(UNetConfig::from_json(&config).expect("valid"))
}

fn sampling(network: &Network, n: usize, size: usize) -> Plan {
    let mut plan = Plan::new();
    let inputs = network.inputs(&mut plan, n, [size, size], false);
    let y = network.build(&mut plan, &inputs).expect("builds");
    plan.keep(y);
    plan
}

fn training(network: &Network, n: usize, size: usize) -> Plan {
    let mut plan = Plan::new();
    let inputs = network.inputs(&mut plan, n, [size, size], true);
    let y = network.build(&mut plan, &inputs).expect("builds");
    let shape = plan.shape(y).to_vec();
    let target = plan.input("target", &shape, DType::F32);
    let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
    let loss = plan.loss(y, target, coefficients, None, 1.0).expect("shapes fit");
    plan.keep(loss);
    plan.derive(&[(loss, None)], Wrt::Parameters(Mode::Write)).expect("derives");
    plan
}

fn each_network(mut check: impl FnMut(&str, &Plan)) {
    for (name, network, size) in [("ddpm", ddpm_cifar10(), 32), ("ncsnpp", ncsnpp(), 8)] {
        for n in [1, 3, 16] {
            check(&format!("{name} sampling, n = {n}"), &sampling(&network, n, size));
            check(&format!("{name} training, n = {n}"), &training(&network, n, size));
        }
    }
}

#[test]
fn no_two_live_tensors_of_a_network_share_bytes() {
    each_network(|what, plan| {
        let program = Cpu::new(1).lower(plan.clone()).expect("lowers");
        let found = conflicts(&program.plan, &program.memory);
        assert!(found.is_empty(), "{what}: {found:?}");
    });
}

#[test]
fn an_arena_is_at_most_two_per_cent_over_what_is_alive_at_once() {
    each_network(|what, plan| {
        let memory = Cpu::new(1).lower(plan.clone()).expect("lowers").memory;
        let ratio = memory.activation_bytes as f64 / memory.lower_bound_bytes as f64;
        assert!((1.0..1.02).contains(&ratio), "{what}: {ratio}");
    });
}

#[test]
fn a_planted_overlap_is_found() {
    let plan = training(&ncsnpp(), 2, 8);
    let mut memory = plan_memory(&plan);
    let node = plan.nodes.iter().find(|n| matches!(n.op, Op::Conv2d(_))).expect("a convolution");
    let (x, y) = (node.input(0), node.output(0).expect("an output"));
    memory.offsets[y.index()] = memory.offsets[x.index()];
    assert!(conflicts(&plan, &memory).iter().any(|&(a, b)| (a, b) == (x, y) || (b, a) == (x, y)));
}

#[test]
fn a_networks_backward_pass_copies_nothing() {
    let is_copy = |op: &Op| matches!(op, Op::Scale(s) if s.scale == 1.0 && s.offset == 0.0);
    let count = |plan: &Plan| plan.nodes.iter().filter(|n| is_copy(&n.op)).count();
    let mut plan = training(&ddpm_cifar10(), 2, 32);
    // Two for each residual sum, one for each embedding that is added.
    assert_eq!(count(&plan), 2 * 28 + 22);
    let before = plan_memory(&plan);
    plan.drop_copies();
    // What stays adds to the gradient of a tensor that a skip connection reads too.
    assert_eq!(count(&plan), 8);
    assert!(plan.nodes.iter().all(|n| !is_copy(&n.op) || n.outputs[0].unwrap().mode == Mode::Add));
    let after = plan_memory(&plan);
    assert!(conflicts(&plan, &after).is_empty());
    assert!(after.lower_bound_bytes <= before.lower_bound_bytes);
}

/// Runs a plan on the CPU and returns the given tensors.
fn run(
    program: impl FnOnce(&Engine) -> Program,
    arena_len: usize,
    parameters: &[f32],
    uploads: &[(TensorId, Vec<f32>)],
    downloads: &[TensorId],
    times: usize,
) -> (Vec<Vec<f32>>, Vec<f32>) {
    let mut engine = Engine::new(Box::new(Cpu::new(2)), arena_len, true).expect("memory");
    let program = program(&engine);
    let loaded = engine.load(program, WeightSet::Raw).expect("memory");
    let mut arena = vec![0.0; arena_len];
    arena[..parameters.len()].copy_from_slice(parameters);
    engine.set_arena(Space::Parameters, &arena).expect("upload");
    engine.refresh(&loaded).expect("refresh");
    for _ in 0..times {
        for (id, values) in uploads {
            engine.set(&loaded, *id, values).expect("upload");
        }
        engine.run(&loaded).expect("runs");
    }
    let get = |engine: &mut Engine, id: TensorId| {
        let mut values = vec![f32::NAN; loaded.program.plan.tensor(id).len()];
        engine.get(&loaded, id, &mut values).expect("download");
        values
    };
    let tensors = downloads.iter().map(|&id| get(&mut engine, id)).collect();
    (tensors, engine.get_arena(Space::Gradients).expect("download"))
}

/// d (sum of c * f(w)) / dw of a graph over one weight of four elements.
fn gradient(
    mode: Mode,
    times: usize,
    graph: impl FnOnce(&mut Plan, TensorId) -> TensorId,
) -> Vec<f32> {
    let mut plan = Plan::new();
    let init = Init::Constant(0.0);
    let w = plan.parameter("w", &[1, 4], DiskLayout::Same, init, true);
    let y = graph(&mut plan, w);
    let c = plan.input("c", &[1, 4], DType::F32);
    plan.derive(&[(y, Some(c))], Wrt::Parameters(mode)).expect("derives");
    let arena_len = plan.parameters.arena_len();
    let uploads = [(c, COTANGENT.to_vec())];
    let lower = |e: &Engine| e.lower(plan).expect("lowers");
    run(lower, arena_len, &W, &uploads, &[], times).1[..4].to_vec()
}

const W: [f32; 4] = [0.5, -1.0, 2.0, 0.25];
const COTANGENT: [f32; 4] = [1.0, 2.0, -3.0, 0.5];

fn silu_slope(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * (1.0 + x * (1.0 - s))
}

fn assert_gradient(found: &[f32], slope: impl Fn(f64) -> f64) {
    for ((&g, &w), &c) in found.iter().zip(&W).zip(&COTANGENT) {
        let expected = f64::from(c) * slope(f64::from(w));
        assert!((f64::from(g) - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found:?}");
    }
}

#[test]
fn a_sum_with_itself_has_twice_the_gradient() {
    let found = gradient(Mode::Write, 1, |p, w| p.add(w, w, 1.0).expect("shapes fit"));
    assert_gradient(&found, |_| 2.0);
    let found = gradient(Mode::Write, 1, |p, w| {
        let h = p.scale(w, 3.0, 1.0);
        p.add(h, h, 0.5).expect("shapes fit")
    });
    assert_gradient(&found, |_| 3.0);
}

#[test]
fn both_sides_of_a_diamond_reach_the_gradient() {
    let found = gradient(Mode::Write, 1, |p, w| {
        let (a, b) = (p.activate(w, Activation::Silu), p.scale(w, -2.0, 0.0));
        p.add(a, b, 1.0).expect("shapes fit")
    });
    assert_gradient(&found, |x| silu_slope(x) - 2.0);
}

#[test]
fn a_residual_of_a_residual_reaches_the_gradient() {
    // Every operand is read again later, so every copy has a reader.
    let found = gradient(Mode::Write, 1, |p, w| {
        let h = p.scale(w, 2.0, 0.0);
        let a = p.activate(h, Activation::Silu);
        let s = p.add(h, a, 1.0).expect("shapes fit");
        let b = p.activate(s, Activation::Silu);
        let t = p.add(s, b, 1.0).expect("shapes fit");
        p.add(t, h, 1.0).expect("shapes fit")
    });
    assert_gradient(&found, |x| {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let (h, d_h) = (2.0 * x, 2.0);
        let (s, d_s) = (h + silu(h), d_h * (1.0 + silu_slope(h)));
        d_s * (1.0 + silu_slope(s)) + d_h
    });
}

#[test]
fn accumulation_adds_to_the_gradient_once_a_run() {
    for times in [1, 3] {
        let found = gradient(Mode::Add, times, |p, w| {
            let a = p.activate(w, Activation::Silu);
            p.add(a, w, 1.0).expect("shapes fit")
        });
        assert_gradient(&found, |x| times as f64 * (silu_slope(x) + 1.0));
        // Written, it is that of the last run.
        let found = gradient(Mode::Write, times, |p, w| p.scale(w, 4.0, 0.0));
        assert_gradient(&found, |_| 4.0);
    }
}

#[test]
fn a_weight_that_nothing_reads_has_no_gradient() {
    let found = gradient(Mode::Write, 1, |p, _| p.input("other", &[1, 4], DType::F32));
    assert_eq!(found, [0.0; 4]);
}

#[test]
fn a_frozen_weight_has_no_gradient_and_passes_it_on() {
    let mut plan = Plan::new();
    let x = plan.input("x", &[2, 3], DType::F32);
    let w = plan.parameter("w", &[3, 3], DiskLayout::Same, Init::Constant(0.0), false);
    let v = plan.parameter("v", &[3, 3], DiskLayout::Same, Init::Constant(0.0), true);
    let h = plan.linear(x, v, None).expect("shapes fit");
    let y = plan.linear(h, w, None).expect("shapes fit");
    let c = plan.input("c", &[2, 3], DType::F32);
    plan.derive(&[(y, Some(c))], Wrt::Parameters(Mode::Write)).expect("derives");
    assert_eq!(plan.gradient(w), None);
    assert!(plan.gradient(v).is_some());
    assert_eq!(plan.gradient(x), None, "nobody asked for it");
}

/// xorshift64*
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

/// One step of a random graph over values of 8 elements.
#[derive(Clone, Copy, Debug)]
enum Step {
    Add(usize, usize),
    Scale(usize, f32),
    Silu(usize),
}

fn random_graph(seed: u64) -> Vec<Step> {
    let mut numbers = Numbers(seed.wrapping_mul(2).wrapping_add(1));
    (1..14)
        .map(|len: usize| {
            // Mostly recent values, so that the graph is deep.
            let mut pick = || len - 1 - numbers.below(len.min(4));
            let (a, b) = (pick(), pick());
            match numbers.below(6) {
                0 => Step::Scale(a, 1.0),
                1 => Step::Scale(a, -0.5),
                2 => Step::Silu(a),
                _ => Step::Add(a, b),
            }
        })
        .collect()
}

/// Value 0 is x; value i + 1 comes from step i. Returns d (sum c * last) / dx in f64.
fn reference(steps: &[Step], x: &[f32], c: &[f32]) -> Vec<f64> {
    let mut gradient = Vec::new();
    for (&x, &c) in x.iter().zip(c) {
        let mut values = vec![f64::from(x)];
        for step in steps {
            values.push(match *step {
                Step::Add(a, b) => (values[a] + values[b]) * 0.5,
                Step::Scale(a, s) => values[a] * f64::from(s),
                Step::Silu(a) => values[a] / (1.0 + (-values[a]).exp()),
            });
        }
        let mut d = vec![0.0; values.len()];
        d[steps.len()] = f64::from(c);
        for (i, step) in steps.iter().enumerate().rev() {
            let d_y = d[i + 1];
            match *step {
                Step::Add(a, b) => {
                    d[a] += d_y * 0.5;
                    d[b] += d_y * 0.5;
                }
                Step::Scale(a, s) => d[a] += d_y * f64::from(s),
                Step::Silu(a) => d[a] += d_y * silu_slope(values[a]),
            }
        }
        gradient.push(d[0]);
    }
    gradient
}

#[test]
fn random_graphs_have_the_gradients_of_f64_with_and_without_copies() {
    let values = |salt: u64| -> Vec<f32> {
        let mut numbers = Numbers(salt);
        (0..8).map(|_| numbers.below(4000) as f32 / 1000.0 - 2.0).collect()
    };
    let (x_values, c_values) = (values(11), values(23));
    let mut dropped = 0;
    for seed in 0..300 {
        let steps = random_graph(seed);
        let mut plan = Plan::new();
        let x = plan.input("x", &[1, 8], DType::F32);
        let c = plan.input("c", &[1, 8], DType::F32);
        // Halving through a copy and a scale leaves plain copies in the backward.
        let mut ids = vec![x];
        for step in &steps {
            let y = match *step {
                Step::Add(a, b) => {
                    let sum = plan.add(ids[a], ids[b], 1.0).expect("shapes fit");
                    plan.scale(sum, 0.5, 0.0)
                }
                Step::Scale(a, s) => plan.scale(ids[a], s, 0.0),
                Step::Silu(a) => plan.activate(ids[a], Activation::Silu),
            };
            ids.push(y);
        }
        let last = *ids.last().expect("x at least");
        plan.derive(&[(last, Some(c))], Wrt::Tensors(vec![x])).expect("derives");
        let expected = reference(&steps, &x_values, &c_values);
        let Some(d_x) = plan.gradient(x) else {
            assert!(expected.iter().all(|&g| g == 0.0), "seed {seed}");
            continue;
        };
        assert_eq!(plan.tensor(d_x).role, Role::Output);
        let copying = Program::new(plan.clone(), vec![]);
        let uploads = [(x, x_values.clone()), (c, c_values.clone())];
        let lowered = |e: &Engine| e.lower(plan.clone()).expect("lowers");
        dropped +=
            plan.nodes.len() - Cpu::new(1).lower(plan.clone()).expect("lowers").plan.nodes.len();
        let (with, _) = run(|_| copying, 16, &[], &uploads, &[d_x], 1);
        let (without, _) = run(lowered, 16, &[], &uploads, &[d_x], 1);
        assert_eq!(with, without, "seed {seed}: {steps:?}");
        for (&found, &expected) in without[0].iter().zip(&expected) {
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 1e-5 * expected.abs().max(1.0), "seed {seed}: {found} {expected}");
        }
    }
    assert!(dropped > 500, "the graphs hold few copies: {dropped} dropped");
}
