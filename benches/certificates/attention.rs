//! Items 1, 2, 4, 5 and 10 for attention, in bf16 at layers of ddpm-cifar10 and DiT-B/4; in
//! tf32 as well. One image where nothing else is said; all zeros, on which no kernel's path
//! depends but its rare raising of its references.

use langevin::backend::cuda::Cuda;
use langevin::backend::{Engine, Precision, WeightSet};
use langevin::plan::{DType, Plan, Role, TensorId, Wrt};

use crate::counters::{Counts, Gpu, Launched};
use crate::machine;
use crate::table::Table;
use crate::table::Target::{AtLeast, AtMost, Is};

/// Launches of an op and of its gradients by all of its operands, in bf16.
pub fn measure(
    gpu: &Gpu,
    shapes: &[&[usize]],
    build: impl Fn(&mut Plan, &[TensorId]) -> langevin::Result<TensorId>,
) -> Launched {
    measure_in(Precision::Bf16, gpu, shapes, build)
}

/// The same in another precision.
fn measure_in(
    precision: Precision,
    gpu: &Gpu,
    shapes: &[&[usize]],
    build: impl Fn(&mut Plan, &[TensorId]) -> langevin::Result<TensorId>,
) -> Launched {
    let backend = Cuda::sharing(&gpu.device).expect("a backend").with_precision(precision);
    let mut engine = Engine::new(Box::new(backend), 1, true).expect("memory");
    let mut plan = Plan::new();
    let mut tensor =
        |name: String, shape: &[usize]| plan.activation(name, shape, DType::F32, Role::State);
    let operands: Vec<TensorId> =
        shapes.iter().enumerate().map(|(i, shape)| tensor(format!("x{i}"), shape)).collect();
    let d_y = tensor("d_y".into(), shapes[0]);
    let y = build(&mut plan, &operands).expect("fits");
    plan.keep(y);
    plan.derive(&[(y, Some(d_y))], Wrt::Tensors(operands)).expect("derives");
    let lowered = engine.lower(plan).expect("kernels");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    gpu.measure(|| {
        engine.run(&loaded).expect("runs");
        let mut values = vec![0.0; shapes[0].iter().product()];
        engine.get(&loaded, y, &mut values).expect("downloads");
    })
}

/// What every kernel's accesses owe.
pub fn accesses(table: &mut Table, name: &str, c: Counts) {
    let what = |text: &str| format!("{name}: {text}");
    let efficiency = c.load.sector_efficiency();
    table.line(1, &what("bytes / (32 x sectors) of loads"), efficiency, AtLeast(0.95));
    table.line(1, &what("share of loads by 128 bits"), c.load.wide_share(), AtLeast(0.95));
    table.line(2, &what("shared wavefronts / ideal"), c.shared_ratio(), Is(1.0));
}

/// Images, tokens, heads, channels of a head.
const ATTENTION: [(&str, [usize; 4]); 9] = [
    ("ddpm-cifar10, 256 tokens, 1 head of 256, B = 1", [1, 256, 1, 256]),
    ("the same, 16 of 128 images", [16, 256, 1, 256]),
    ("DiT-B/4, 64 tokens, 12 heads of 64, B = 1", [1, 64, 12, 64]),
    ("the same, B = 128", [128, 64, 12, 64]),
    ("DiT-B/4, 256 tokens, 12 heads of 64", [1, 256, 12, 64]),
    ("512 tokens, 2 heads of 32", [1, 512, 2, 32]),
    ("512 tokens, 1 head of 64", [1, 512, 1, 64]),
    ("384 tokens, 1 head of 128", [1, 384, 1, 128]),
    ("512 tokens, 1 head of 128", [1, 512, 1, 128]),
];

/// The same, in tf32.
const ATTENTION_IN_TF32: [(&str, [usize; 4]); 3] = [
    ("tf32, 128 tokens, 2 heads of 32", [1, 128, 2, 32]),
    ("tf32, DiT-B/4, 64 tokens, 12 heads of 64", [1, 64, 12, 64]),
    ("tf32, 128 tokens, 1 head of 128", [1, 128, 1, 128]),
];

/// Rows of a block, forward and backward: 16 a warp, 32 in bf16 forward from 512 queries on.
fn rows_of_a_block(precision: Precision, tokens: usize, dim: usize) -> [usize; 2] {
    if precision == Precision::Tf32 {
        return [64, 64];
    }
    let forward = match (dim, tokens >= 512) {
        (64, true) | (256, _) => 128,
        (128, true) => 256,
        _ => 64,
    };
    [forward, if dim >= 128 { 128 } else { 64 }]
}

/// Accesses of every pass over an attention, and what it requests against its tiling's model.
fn passes(
    table: &mut Table,
    gpu: &Gpu,
    precision: Precision,
    (name, [n, s, heads, dim]): (&str, [usize; 4]),
) {
    let shape: &[usize] = &[n, s, heads * dim];
    let launched = measure_in(precision, gpu, &[shape, shape, shape], |p, t| {
        p.attention(t[0], t[1], t[2], heads, 1.0 / (dim as f32).sqrt())
    });
    // Bytes of one operand; blocks of rows that read all of the other side.
    let element = if precision == Precision::Bf16 { 2 } else { 4 };
    let operand = (element * n * s * heads * dim) as f64;
    let blocks = rows_of_a_block(precision, s, dim).map(|rows| s.div_ceil(rows) as f64);
    let [forward, backward] = blocks;
    let statistics = (16 * n * s * heads) as f64;
    let key = 2.0 * operand + backward * (2.0 * operand + statistics);
    let passes = [
        ("forward", operand + forward * 2.0 * operand),
        ("backward_query", 2.0 * operand + backward * 2.0 * operand + statistics / 2.0),
        ("backward_key", key),
        ("backward_value", key - operand),
    ];
    for (pass, model) in passes {
        let c = launched.of(&format!("attention_{pass}"));
        if c.launches == 0.0 {
            continue;
        }
        let what = format!("{pass}, {name}");
        accesses(table, &what, c);
        let requested = format!("{what}: bytes requested / tile model");
        table.line(10, &requested, c.load.bytes / model, AtMost(1.05));
        table.value(4, &format!("{what}: mma / PTX instructions"), c.mma / c.instructions);
    }
    let largest = (4 * n * s * s * heads) as f64;
    let written: f64 = launched.kernels.values().map(|c| c.unique_written).fold(0.0, f64::max);
    let what = format!("{name}: most bytes a kernel writes / an S x S tensor in f32");
    table.value(10, &what, written / largest);
}

pub fn attention(table: &mut Table, gpu: &Gpu) {
    for layer in ATTENTION {
        passes(table, gpu, Precision::Bf16, layer);
    }
    for layer in ATTENTION_IN_TF32 {
        passes(table, gpu, Precision::Tf32, layer);
    }
    if let Some(why) = machine::missing() {
        table.not_measured(10, "attention: share of HMMA in main loops", why);
        return;
    }
    table.note("heads of 64 and 128 take the tall kernels from 512 queries on");
    table.note("heads of 256 have 256 tokens where they occur, and nothing is promised below 512:");
    table
        .note("a warp's 16 rows of results take half of its registers, so each ldmatrix feeds two");
    table.note("mma, and per 16 x 16 scores 64 mma forward stand beside 32 ldmatrix and 28");
    table.note("instructions of the softmax: at most .516, .558 for d_q and d_k, .552 for d_v");
    table.note("in tf32 every mma has half the terms, and nothing is promised");
    for image in ["attention_tensor", "attention_tensor_backward"] {
        let compiled = machine::compile(machine::image(image), "80");
        for (name, body) in compiled.main_loops() {
            let dim = name.split('_').find_map(|word| word.parse::<f64>().ok());
            let (Some(dim), false) = (dim, name.contains("odd")) else { continue };
            let share = body.count("HMMA") as f64 / body.len() as f64;
            let barriers = body.count("BAR") as f64;
            table.line(5, &format!("{name}: barriers a tile"), barriers, AtMost(1.0));
            let what = format!("{name}: HMMA / SASS of the main loop");
            let short = ["attention_forward_64_bf16", "attention_forward_128_bf16"];
            if short.contains(&name.as_str()) || dim == 256.0 || name.ends_with("tf32") {
                table.value(10, &what, share);
            } else {
                let ideal = dim / 8.0 / (dim / 8.0 + 18.0);
                table.line(10, &what, share, AtLeast((900.0 * ideal).floor() / 1000.0));
            }
            let ratio = body.count("HMMA") as f64 / body.count("LDSM") as f64;
            table.value(4, &format!("{name}: HMMA / LDSM"), ratio);
        }
    }
}
