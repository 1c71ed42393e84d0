//! Item 14 for transformers, and items 1, 2, 4 and 5 of the kernels that their linear layers
//! run: blocks of DiT-B/4 in bf16 (adaLN-Zero, Peebles & Xie 2023), built from a plan's
//! operations.
//!
//! ```text
//! h = x + gate_1 * out(attention(q(u), k(u), v(u))),  u = LayerNorm(x) (1 + scale_1) + shift_1
//! y = h + gate_2 * down(GELU(up(w))),                 w = LayerNorm(h) (1 + scale_2) + shift_2
//! ```
//! Gates, scales and shifts are linear layers of SiLU(c), which is the same for all blocks.

use std::collections::BTreeMap;

use langevin::backend::cuda::Cuda;
use langevin::backend::{Engine, Precision, WeightSet};
use langevin::ops::norm::{Domain, NormOperands};
use langevin::ops::pointwise::Activation;
use langevin::plan::{DType, DiskLayout, Init, Plan, Role, TensorId};

use crate::attention::accesses;
use crate::counters::{Gpu, Launched};
use crate::machine;
use crate::table::Table;
use crate::table::Target::{AtLeast, AtMost, Is};

const WIDTH: usize = 768;
const HEADS: usize = 12;
/// Of an image of 32x32, whose patches are 4x4.
const TOKENS: usize = 64;
/// Blocks of DiT-B.
const DEPTH: usize = 12;

/// Most launches of a block.
const MOST: f64 = 8.0;

fn linear(plan: &mut Plan, name: &str, x: TensorId, c_out: usize) -> TensorId {
    let c_in = *plan.shape(x).last().expect("has axes");
    let mut parameter = |part: &str, shape: &[usize]| {
        let (layout, init) = (DiskLayout::Same, Init::Constant(0.0));
        plan.parameter(&format!("{name}.{part}"), shape, layout, init, true)
    };
    let (weight, bias) = (parameter("weight", &[c_out, c_in]), parameter("bias", &[c_out]));
    plan.linear(x, weight, Some(bias)).expect("fits")
}

/// A layer norm of x that is scaled and shifted by the embedding.
fn modulated(plan: &mut Plan, name: &str, x: TensorId, embedding: TensorId) -> TensorId {
    let scale_shift = linear(plan, &format!("{name}.modulation"), embedding, 2 * WIDTH);
    let operands = NormOperands { scale_shift: Some(scale_shift), ..Default::default() };
    plan.norm(x, Domain::Layer, 1e-6, operands).expect("fits")
}

/// A branch's last layer, gated by the embedding, plus x.
fn gated(plan: &mut Plan, name: &str, branch: TensorId, x: TensorId, c: TensorId) -> TensorId {
    let branch = linear(plan, name, branch, WIDTH);
    let gate = linear(plan, &format!("{name}.gate"), c, WIDTH);
    let branch = plan.scale_per_image(branch, gate).expect("fits");
    plan.add(x, branch, 1.0).expect("fits")
}

/// x `[n, TOKENS, WIDTH]`, embedding `[n, WIDTH]` activated.
fn block(plan: &mut Plan, name: &str, x: TensorId, embedding: TensorId) -> TensorId {
    let u = modulated(plan, &format!("{name}.norm1"), x, embedding);
    let [q, k, v] = ["q", "k", "v"].map(|part| linear(plan, &format!("{name}.{part}"), u, WIDTH));
    let scale = 1.0 / ((WIDTH / HEADS) as f32).sqrt();
    let a = plan.attention(q, k, v, HEADS, scale).expect("fits");
    let h = gated(plan, &format!("{name}.out"), a, x, embedding);
    let w = modulated(plan, &format!("{name}.norm2"), h, embedding);
    let up = linear(plan, &format!("{name}.up"), w, 4 * WIDTH);
    let wide = plan.activate(up, Activation::GeluTanh);
    gated(plan, &format!("{name}.down"), wide, h, embedding)
}

/// Blocks one behind the other, over `n` images.
fn blocks(n: usize, depth: usize) -> (Plan, TensorId) {
    let mut plan = Plan::new();
    let x = plan.activation("x", &[n, TOKENS, WIDTH], DType::F32, Role::State);
    let c = plan.activation("c", &[n, WIDTH], DType::F32, Role::State);
    let embedding = plan.activate(c, Activation::Silu);
    let y = (0..depth).fold(x, |x, i| block(&mut plan, &format!("blocks.{i}"), x, embedding));
    plan.keep(y);
    (plan, y)
}

/// Layers of the same rows, enough of them for large tiles.
fn layers() -> (Plan, TensorId) {
    let mut plan = Plan::new();
    let x = plan.activation("x", &[384, 384], DType::F32, Role::State);
    let results = ["q", "k", "v"].map(|name| linear(&mut plan, name, x, 2 * WIDTH));
    results.into_iter().for_each(|y| plan.keep(y));
    (plan, results[2])
}

fn backend(gpu: &Gpu) -> Cuda {
    Cuda::sharing(&gpu.device).expect("a backend").with_precision(Precision::Bf16)
}

/// Launches by operation.
fn nodes(gpu: &Gpu, plan: Plan) -> BTreeMap<&'static str, usize> {
    let engine = Engine::new(Box::new(backend(gpu)), 1, false).expect("memory");
    let program = engine.lower(plan).expect("kernels");
    let mut by_op = BTreeMap::new();
    for (op, launches) in backend(gpu).graph_nodes(&program).expect("kernels") {
        *by_op.entry(op).or_default() += launches;
    }
    by_op
}

/// What a plan counts on memory full of zeros.
fn measure(gpu: &Gpu, (plan, y): (Plan, TensorId)) -> Launched {
    let (len, mut values) = (plan.parameters.arena_len(), vec![0.0; plan.tensor(y).len()]);
    let mut engine = Engine::new(Box::new(backend(gpu)), len, false).expect("memory");
    let lowered = engine.lower(plan).expect("kernels");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    gpu.measure(|| {
        engine.run(&loaded).expect("runs");
        engine.get(&loaded, y, &mut values).expect("downloads");
    })
}

pub fn certify(table: &mut Table, gpu: &Gpu) {
    for n in [1, 32] {
        let alone = nodes(gpu, blocks(n, 1).0);
        table.note(&format!("{alone:?}"));
        // Casts of what enters and leaves in f32, and SiLU(c), are the network's.
        let own: usize = alone
            .iter()
            .filter(|(op, _)| !["cast", "activate_forward"].contains(op))
            .map(|(_, n)| n)
            .sum();
        let what = format!("DiT-B/4 block, bf16, batch {n}: graph nodes forward");
        table.line(14, &what, own as f64, AtMost(MOST));
        let all: usize = nodes(gpu, blocks(n, DEPTH).0).values().sum();
        let what = format!("{DEPTH} DiT-B/4 blocks, bf16, batch {n}: graph nodes a block");
        table.line(14, &what, all as f64 / DEPTH as f64, AtMost(MOST));
    }
    table.note("one DiT-B/4 block of one image, and 3 layers of 384 x 384 -> 1536 in one launch");
    for (made, kernel) in
        [(blocks(1, 1), "linear_forward_bf16_32x32"), (layers(), "linear_forward_bf16_128x128")]
    {
        let counts = measure(gpu, made).of(kernel);
        accesses(table, kernel, counts);
        table.value(
            4,
            &format!("{kernel}: mma / PTX instructions"),
            counts.mma / counts.instructions,
        );
    }
    main_loops(table);
}

/// The main loops of the large tiles.
fn main_loops(table: &mut Table) {
    if let Some(why) = machine::missing() {
        table.not_measured(4, "main loops of linear layers", why);
        return;
    }
    let compiled = machine::compile(machine::image("linear"), "80");
    for (name, body) in compiled.main_loops() {
        if !name.contains("_bf16_128x128") {
            continue;
        }
        let [hmma, ldsm] = ["HMMA", "LDSM"].map(|word| body.count(word) as f64);
        let what = |text: &str| format!("{name}: {text}");
        let share = hmma / body.len() as f64;
        table.line(4, &what("HMMA / SASS of the main loop"), share, AtLeast(0.5));
        table.line(4, &what("HMMA / LDSM"), hmma / ldsm, AtLeast(4.0));
        let divisions = body.count("MUFU") + body.count("I2F");
        table.line(4, &what("divisions in the main loop"), divisions as f64, Is(0.0));
        table.line(
            5,
            &what("barriers a tile of the reduction"),
            body.count("BAR") as f64,
            AtMost(1.0),
        );
    }
}
