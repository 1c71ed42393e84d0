//! What a step launches around the network: the samplers' update and the optimizer.

use langevin::backend::cuda::Cuda;
use langevin::backend::{Engine, Precision, WeightSet};
use langevin::diffusion::sampler::run::{Request, Sampling, Settings, step_plan};
use langevin::diffusion::sampler::{Kind, Options, Program, Setup};
use langevin::ops::conv2d::ConvOptions;
use langevin::ops::optimizer::{AdamW, control};
use langevin::ops::sampler_step::{SLOT_0, column};
use langevin::plan::{DType, DiskLayout, Init, Plan, Space};

use crate::counters::Gpu;
use crate::elementwise::passes;
use crate::table::Table;
use crate::table::Target::{AtMost, Is, Within};

/// Samplers that ask the network once a step and do not look at errors or norms.
const ONE_EVALUATION: [Kind; 9] = [
    Kind::Ddpm,
    Kind::Ddim,
    Kind::Reversal,
    Kind::EulerMaruyama,
    Kind::OdeEuler,
    Kind::Dpmpp2m,
    Kind::DpmppSde2m,
    Kind::UniPc,
    Kind::EulerA,
];

/// A backend with arenas of `len` parameters.
fn engine(gpu: &Gpu, precision: Precision, len: usize, training: bool) -> Engine {
    let backend = Cuda::sharing(&gpu.device).expect("a backend").with_precision(precision);
    Engine::new(Box::new(backend), len, training).expect("memory")
}

/// Bytes an image's elements must move in a stage: what the row's coefficients read,
/// and what it writes; `network` bytes an element of the prediction and of the input.
fn minimal_bytes(row: &[f32], writes_input: bool, network: usize) -> usize {
    let outputs: Vec<&[f32]> = (0..2)
        .filter(|k| row[column::TARGET + k] >= 0.0)
        .map(|k| &row[column::OUTPUT + k * column::COEFFICIENTS..][..column::COEFFICIENTS])
        .collect();
    let used = |i: usize| outputs.iter().any(|c| c[i] != 0.0);
    let (x0, eps) = (used(column::OF_X0), used(column::OF_EPS));
    let state = x0 && row[column::X0_STATE] != 0.0 || eps && row[column::EPS_STATE] != 0.0;
    let prediction =
        x0 && row[column::X0_PREDICTION] != 0.0 || eps && row[column::EPS_PREDICTION] != 0.0;
    let input = row[column::INPUT_SLOT] as usize;
    let slots = (0..column::OF_X0).filter(|&j| used(j) || state && j == input).count();
    4 * (slots + outputs.len()) + network * (usize::from(prediction) + usize::from(writes_input))
}

/// Item 12: the update of every sampler that asks once a step, on 8 images.
pub fn sampler(table: &mut Table, gpu: &Gpu) {
    table.note("8 images of 32x32x3 and a network of one convolution, which is not counted");
    for precision in [Precision::F32, Precision::Bf16] {
        for kind in ONE_EVALUATION {
            step(table, gpu, kind, precision);
        }
    }
}

fn step(table: &mut Table, gpu: &Gpu, kind: Kind, precision: Precision) {
    const N: usize = 8;
    const SHAPE: [usize; 3] = [32, 32, 3];
    let options = Options { steps: Some(4), ..Options::default() };
    let setup = Setup::of_scheduler(&Default::default(), options).expect("valid");
    let program = Program::new(kind, &setup).expect("valid");
    let settings = Settings {
        batch: N,
        shape: SHAPE.to_vec(),
        label: DType::F32,
        class: None,
        guidance: 1.0,
        given_noise: false,
    };
    let mut len = 0;
    let plan = step_plan(&program, &settings, |plan, t| {
        let weight =
            plan.parameter("w", &[3, 1, 1, 3], DiskLayout::Same, Init::Constant(0.0), true);
        len = plan.parameters.arena_len();
        plan.conv2d(t.x, weight, None, ConvOptions::default())
    });
    let mut engine = engine(gpu, precision, len, false);
    engine.set_arena(Space::Parameters, &vec![0.1; len]).expect("memory");
    let lowered = engine.lower(plan.expect("valid")).expect("kernels");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    // The cast of the weights is over before anything is counted.
    engine.refresh(&loaded).expect("runs");
    let state = loaded.tensor(SLOT_0).expect("a state");
    engine.get(&loaded, state, &mut vec![0.0; N * SHAPE.iter().product::<usize>()]).expect("waits");
    let sampling = Sampling { program: &program, settings: &settings, loaded: &loaded };
    let request = Request { count: N, ..Request::default() };
    let launched = gpu.measure(|| {
        sampling.run(&mut engine, &request, &mut |_, _| Ok(())).expect("runs");
    });
    // All but the network's. A cast would be one too many.
    let others: f64 = launched
        .kernels
        .iter()
        .filter(|(name, _)| !name.starts_with("conv2d"))
        .map(|(_, c)| c.launches)
        .sum();
    let stages = program.stages.len();
    let name = format!("{}, {precision}", program.name);
    let what = |text: &str| format!("{name}: {text}");
    table.line(12, &what("kernels a step"), others / stages as f64, Is(1.0));
    let rows = program.table(1.0);
    let half = precision == Precision::Bf16;
    let writes_input = half || !program.input_is_state();
    let image: usize = SHAPE.iter().product();
    let network = if half { 2 } else { 4 };
    let minimal: usize = rows
        .chunks_exact(column::COLUMNS)
        .map(|row| minimal_bytes(row, writes_input, network))
        .sum();
    let c = launched.of("sampler_step");
    let bytes = (minimal * N * image) as f64;
    table.line(12, &what("bytes touched / minimal"), c.unique() / bytes, AtMost(1.02));
    table.value(12, &what("bytes of sectors asked for / minimal"), c.sector_bytes() / bytes);
    let mut step = launched;
    step.kernels.retain(|kernel, _| kernel.starts_with("sampler_step"));
    passes(table, &name, &step);
}

/// Item 13: the update of 4 million parameters, and the norm before it.
pub fn optimizer(table: &mut Table, gpu: &Gpu) {
    table.note("4,194,304 parameters; ddpm-cifar10's 35,746,307 are more blocks of the same");
    for (precision, bytes) in [(Precision::F32, 36.0), (Precision::Bf16, 38.0)] {
        update(table, gpu, precision, bytes);
    }
}

/// With `minimal` bytes a parameter: 5 arenas read, 4 written, and in bf16 the copy.
fn update(table: &mut Table, gpu: &Gpu, precision: Precision, minimal: f64) {
    const LEN: usize = 4 << 20;
    let mut engine = engine(gpu, precision, LEN, true);
    let mut plan = Plan::new();
    let ranges = vec![(0, LEN)];
    let norm = plan.global_norm(ranges.clone(), LEN);
    let op =
        AdamW { ranges, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: Some(1.0) };
    let row = plan.adamw(op, norm, LEN);
    let lowered = engine.lower(plan).expect("kernels");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    let gradients: Vec<f32> = (0..LEN).map(|i| (i % 17) as f32 * 1e-3).collect();
    engine.set_arena(Space::Gradients, &gradients).expect("memory");
    engine.set(&loaded, row, &[1e-3; control::COLUMNS]).expect("uploads");
    let launched = gpu.measure(|| {
        engine.run(&loaded).expect("runs");
        engine.get(&loaded, norm, &mut [0.0]).expect("downloads");
    });
    passes(table, &format!("{precision}"), &launched);
    let c = launched.of("adamw");
    table.line(13, &format!("AdamW with the average, {precision}: launches"), c.launches, Is(1.0));
    let bytes = c.unique() / LEN as f64;
    let name = format!("AdamW with the average, {precision}: bytes a parameter");
    table.line(13, &name, bytes, Within(minimal, 0.02));
    let asked = c.sector_bytes() / LEN as f64;
    let name = format!("AdamW with the average, {precision}: bytes of sectors asked for");
    table.line(13, &name, asked, Within(minimal, 0.02));
    let c = launched.of("square_sums");
    table.value(13, "gradient norm: bytes a parameter", c.unique() / LEN as f64);
}
