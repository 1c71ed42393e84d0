//! Item 15: a model of the whole training step of ddpm-cifar10 at a batch of 128 in bf16 on an
//! A100. Nothing runs and nothing is timed: the step's lowered plan says what each
//! operation multiplies and moves, and the slowest of six resources is taken for its time.
//!
//! ```text
//! time = max(tensor, f32, issue, shared, L2, DRAM)
//! tensor  products of bf16 operands / 312 TFLOP/s       f32   other products / 19.5 TFLOP/s
//! issue   warp instructions / 4 a cycle and multiprocessor: for products one HMMA (4096 FLOP) in
//!         every 1 / 0.45 (items 4 and 10 promise a larger share), for the rest 64 for every
//!         512 bytes moved, a round figure for norms with SiLU
//! shared  bytes that 64x64 results a warp of 128x128 tiles write and read / 128 B a cycle
//!         and multiprocessor (item 2: no conflicts)
//! L2      bytes that 128x128 tiles ask for / 5120 B a cycle (64 FLOP/B where both sides fill them)
//! DRAM    operands, each once (added to: twice) and workspace both ways / 1555 GB/s
//! ```
//! Tiles that a layer does not fill are item 8's and stand in the model as the given useful share.

use std::collections::BTreeMap;

use langevin::backend::cuda::Cuda;
use langevin::backend::{Engine, Precision};
use langevin::config::{self, Config};
use langevin::ops::Op;
use langevin::plan::{DType, Mode, Node, Plan};
use langevin::train::step::StepPrograms;

use crate::counters::Gpu;
use crate::table::Table;
use crate::table::Target::AtLeast;

const MULTIPROCESSORS: f64 = 108.0;
const CLOCK: f64 = 1.41e9;
const TENSOR_FLOPS: f64 = 312e12;
const F32_FLOPS: f64 = 19.5e12;
const ISSUES: f64 = 4.0 * MULTIPROCESSORS * CLOCK;
const SHARED_BYTES: f64 = 128.0 * MULTIPROCESSORS * CLOCK;
const L2_BYTES: f64 = 5120.0 * CLOCK;
const DRAM_BYTES: f64 = 1555e9;

/// FLOP of an HMMA, and its share of the instructions around it.
const HMMA_FLOPS: f64 = 4096.0;
const HMMA_SHARE: f64 = 0.45;
/// Instructions for 512 bytes, of operations that multiply no matrices.
const INSTRUCTIONS: f64 = 64.0;
/// Bytes through shared memory a FLOP: of 64 terms of a 128x128 tile both operands are written
/// once and read by two warps each.
const SHARED: f64 = (3 * (128 + 128) * 64 * 2) as f64 / (2 * 128 * 128 * 64) as f64;
/// FLOP a byte of a 128x128 tile of bf16.
const INTENSITY: f64 = 64.0;
/// Useful share of the blocks' products over all convolutions, on 108 multiprocessors: item 8.
const USEFUL: f64 = 0.952;

/// Resources, in the order of [`resources`].
const RESOURCES: [&str; 6] = ["tensor", "f32", "issue", "shared", "L2", "DRAM"];

/// Model seconds of one node by resource.
fn resources(plan: &Plan, node: &Node) -> [f64; 6] {
    let flops = node.op.flops() as f64;
    let reads = node.inputs.iter().flatten();
    let halves = reads.clone().any(|&id| plan.tensor(id).dtype == DType::BF16);
    let mut bytes: usize = reads.map(|&id| plan.tensor(id).bytes()).sum();
    for write in node.outputs.iter().flatten() {
        let times = if write.mode == Mode::Add { 2 } else { 1 };
        bytes += times * plan.tensor(write.tensor).bytes();
    }
    bytes += 2 * node.workspace.map_or(0, |id| plan.tensor(id).bytes());
    let (tensor, f32) = if halves { (flops, 0.0) } else { (0.0, flops) };
    let products = tensor / USEFUL;
    let instructions = products / HMMA_FLOPS / HMMA_SHARE + bytes as f64 / 512.0 * INSTRUCTIONS;
    [
        products / TENSOR_FLOPS,
        f32 / F32_FLOPS,
        instructions / ISSUES,
        products * SHARED / SHARED_BYTES,
        tensor / INTENSITY / L2_BYTES,
        bytes as f64 / DRAM_BYTES,
    ]
}

/// The family an operation is listed under.
fn family(op: &Op) -> &'static str {
    match op {
        Op::Conv2d(_) | Op::Conv2dBackwardData(_) | Op::Conv2dBackwardWeight(_) => "convolutions",
        Op::Linear(_)
        | Op::LinearBackwardData(_)
        | Op::LinearBackwardWeight(_)
        | Op::LinearGroup(_) => "linear layers",
        Op::Norm(_) | Op::NormBackward(_) => "norms",
        Op::Attention(_) | Op::AttentionBackward(_) => "attention",
        Op::AdamW(_) | Op::GlobalNorm(_) => "optimizer",
        Op::Cast(_) => "casts",
        _ => "others",
    }
}

pub fn certify(table: &mut Table, gpu: &Gpu) {
    table.note("a MODEL of an A100, no measurement; constants and formula in model.rs");
    let mut config = Config::from_value(config::read("cifar10").expect("a preset")).expect("valid");
    config.train.batch = 128;
    let network = config.model.clone();
    let image = network.sample_shape().expect("presets name a size");
    let parameters = network.parameters().expect("valid");
    let backend = Cuda::sharing(&gpu.device).expect("a backend").with_precision(Precision::Bf16);
    let engine = Engine::new(Box::new(backend), 1, false).expect("memory");
    let objective = config.objective(256).expect("a preset is valid");
    let programs =
        StepPrograms::new(&engine, &network, &parameters, &config.train, &objective, image);
    let programs = programs.expect("valid");
    let plan = &programs.programs().pop().expect("a program").plan;
    let mut by_family: BTreeMap<&str, f64> = BTreeMap::new();
    let (mut whole, mut peak, mut bound) = (0.0, 0.0, [0.0; RESOURCES.len()]);
    for node in &plan.nodes {
        let times = resources(plan, node);
        let slowest = times.into_iter().fold(0.0, f64::max);
        let by = times.iter().position(|&t| t == slowest).expect("one of them");
        bound[by] += slowest;
        *by_family.entry(family(&node.op)).or_default() += slowest;
        whole += slowest;
        peak += node.op.flops() as f64 / TENSOR_FLOPS;
    }
    for (name, part) in by_family {
        table.value(15, &format!("model: share of the step in {name}"), part / whole);
    }
    for (name, part) in RESOURCES.iter().zip(bound) {
        table.value(15, &format!("model: share of the step bound by {name}"), part / whole);
    }
    let name = "model: training step, batch 128, bf16: share of the tensor peak";
    table.line(15, name, peak / whole, AtLeast(0.6));
}
