//! Item 15: a model of the whole training step of ddpm-cifar10 at a batch of 128 in bf16 on an
//! A100. Nothing runs and nothing is timed: the step's lowered plan says what each
//! operation multiplies and moves, and the slowest of four resources is taken for its time.
//!
//! ```text
//! time = max(tensor, f32, L2, DRAM)
//! tensor  products of bf16 operands / 312 TFLOP/s       f32   other products / 19.5 TFLOP/s
//! L2      bytes that 128x128 tiles ask for / 5120 B a cycle (64 FLOP/B where both sides fill them)
//! DRAM    operands, each once (added to: twice) and workspace both ways / 1555 GB/s
//! ```
//! Issue slots and shared memory do not bind as long as items 2 and 4 hold: an HMMA keeps the
//! tensor cores for 8 issue slots, and 4 of them need one ldmatrix.x4 of 4 wavefronts. Tiles
//! that a layer does not fill are item 8's and stand in the model as the given useful share.

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

const TENSOR_FLOPS: f64 = 312e12;
const F32_FLOPS: f64 = 19.5e12;
const L2_BYTES: f64 = 5120.0 * 1.41e9;
const DRAM_BYTES: f64 = 1555e9;
/// FLOP a byte of a 128x128 tile of bf16.
const INTENSITY: f64 = 64.0;
/// Useful share of the blocks' products over all convolutions, on 108 multiprocessors: item 8.
const USEFUL: f64 = 0.948;

/// Model seconds of one node by resource: tensor, f32, L2, DRAM.
fn resources(plan: &Plan, node: &Node) -> [f64; 4] {
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
    [
        tensor / USEFUL / TENSOR_FLOPS,
        f32 / F32_FLOPS,
        tensor / INTENSITY / L2_BYTES,
        bytes as f64 / DRAM_BYTES,
    ]
}

/// The family an operation is listed under.
fn family(op: &Op) -> &'static str {
    match op {
        Op::Conv2d(_) | Op::Conv2dBackwardData(_) | Op::Conv2dBackwardWeight(_) => "convolutions",
        Op::Linear(_) | Op::LinearBackwardData(_) | Op::LinearBackwardWeight(_) => "linear layers",
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
    let (mut whole, mut peak) = (0.0, 0.0);
    for node in &plan.nodes {
        let slowest = resources(plan, node).into_iter().fold(0.0, f64::max);
        *by_family.entry(family(&node.op)).or_default() += slowest;
        whole += slowest;
        peak += node.op.flops() as f64 / TENSOR_FLOPS;
    }
    for (name, part) in by_family {
        table.value(15, &format!("model: share of the step in {name}"), part / whole);
    }
    let name = "model: training step, batch 128, bf16: share of the tensor peak";
    table.line(15, name, peak / whole, AtLeast(0.6));
}
