//! Item 14: what one sampling step and one training step are to the driver, by the product's
//! own code. Nodes of ddpm-cifar10's graphs are counted from the lowered plans, in f32 and
//! bf16, for one image and for 128; in f32 for one image also as they are launched, and the
//! program ends before they run. What surrounds a replayed graph is counted in whole runs of
//! the digits preset.

use std::collections::BTreeMap;

use langevin::backend::cuda::Cuda;
use langevin::backend::{Engine, Precision, Program, WeightSet};
use langevin::config::{self, Config};
use langevin::diffusion::sampler::run::Request;
use langevin::diffusion::sampler::{Kind, Options, Setup};
use langevin::model::Network;
use langevin::ops::noising::coefficient;
use langevin::random::image_keys;
use langevin::sample::{Drawing, Prepared};
use langevin::train::step::{Batch, Control, StepPrograms};

use crate::counters::{Gpu, Launched};
use crate::table::Table;
use crate::table::Target::{AtMost, Is};

/// Steps of each kind. The first is launched one by one, the second captured, so that the
/// last is a replay.
const STEPS: usize = 4;

/// Most nodes of a sampling step, and of a training step.
const MOST_SAMPLING: f64 = 150.0;
const MOST_TRAINING: f64 = 480.0;

/// A preset, and its network on the software GPU.
struct Subject {
    config: Config,
    network: Network,
    engine: Engine,
    image: [usize; 3],
}

impl Subject {
    /// In f32, one image a batch, with memory for its weights.
    fn new(gpu: &Gpu, preset: &str, training: bool) -> Self {
        Subject::with(preset, 1, backend(gpu, Precision::F32), Some(training))
    }

    /// `memory`: whether to train, or `None` to lower plans alone.
    fn with(preset: &str, batch: usize, backend: Cuda, memory: Option<bool>) -> Self {
        let read = config::read(preset).expect("a preset");
        let mut config = Config::from_value(read).expect("valid");
        config.train.batch = batch;
        let network = config.model.clone();
        let image = network.sample_shape().expect("presets name a size");
        let of_weights = network.parameters().expect("valid").arena_len();
        let (len, training) = memory.map_or((1, false), |training| (of_weights, training));
        let engine = Engine::new(Box::new(backend), len, training).expect("memory");
        Subject { config, network, engine, image }
    }

    fn sampler(&self) -> Prepared {
        let options = Options { steps: Some(STEPS), ..Options::default() };
        let drawing = Drawing {
            network: &self.network,
            kind: Kind::Ddim,
            setup: Setup::of_scheduler(&self.config.scheduler, options).expect("valid"),
            image: self.image,
            batch: self.config.train.batch,
            guidance: 1.0,
            given_noise: false,
        };
        drawing.prepare(&self.engine).expect("valid")
    }

    fn step(&self) -> StepPrograms {
        let parameters = self.network.parameters().expect("valid");
        let objective = self.config.objective(256).expect("a preset is valid");
        let Subject { config, network, engine, image } = self;
        StepPrograms::new(engine, network, &parameters, &config.train, &objective, *image)
            .expect("valid")
    }
}

pub fn certify(table: &mut Table, gpu: &Gpu) {
    table.note("the digits preset, the last of four steps: a replay");
    replayed_sampling(table, gpu);
    replayed_training(table, gpu);
    for precision in [Precision::F32, Precision::Bf16] {
        for batch in [1, 128] {
            table.note(&format!(
                "ddpm-cifar10 in {precision}, batch {batch}: launches by operation"
            ));
            let subject = Subject::with("cifar10", batch, backend(gpu, precision), None);
            let cuda = backend(gpu, precision);
            counted(
                table,
                &cuda,
                "sampling step (ddim)",
                MOST_SAMPLING,
                subject.sampler().program(),
            );
            let programs = subject.step();
            let program = programs.programs().pop().expect("a program");
            counted(table, &cuda, "training step", MOST_TRAINING, program);
        }
    }
    table.note("ddpm-cifar10 in f32, one image, as its graphs are launched");
    let sampling = Subject::new(gpu, "cifar10", false);
    let program = sampling.sampler().program().clone();
    nodes(table, gpu, "sampling step (ddim)", MOST_SAMPLING, sampling.engine, program);
    let training = Subject::new(gpu, "cifar10", true);
    let programs = training.step();
    let program = programs.programs().pop().expect("a program").clone();
    nodes(table, gpu, "training step", MOST_TRAINING, training.engine, program);
}

fn backend(gpu: &Gpu, precision: Precision) -> Cuda {
    Cuda::sharing(&gpu.device).expect("a backend").with_precision(precision)
}

/// Counts the launches of a program.
fn counted(table: &mut Table, cuda: &Cuda, name: &str, most: f64, program: &Program) {
    let mut by_op = BTreeMap::new();
    for (op, launches) in cuda.graph_nodes(program).expect("every operation has kernels") {
        *by_op.entry(op).or_insert(0) += launches;
    }
    let all: usize = by_op.values().sum();
    let parts: Vec<String> = by_op.iter().map(|(op, n)| format!("{op} {n}")).collect();
    table.note(&parts.join(", "));
    table.line(14, &format!("{name}: graph nodes"), all as f64, AtMost(most));
}

/// Counts the nodes of a program's graph as it is launched. Nothing waits for it: the software
/// GPU runs work when somebody does, and f32 networks take it minutes.
fn nodes(
    table: &mut Table,
    gpu: &Gpu,
    name: &str,
    most: f64,
    mut engine: Engine,
    program: Program,
) {
    let loaded = engine.load(program, WeightSet::Raw).expect("memory");
    let before = gpu.counts();
    for _ in 0..2 {
        engine.run(&loaded).expect("launches");
    }
    let launched = gpu.counts().since(&before);
    let all: u64 = launched.graph_nodes.values().sum();
    table.line(14, &format!("{name}: graph nodes"), all as f64, AtMost(most));
    let kernels = launched.graph_nodes.get("kernel").copied().unwrap_or(0);
    let others = (all - kernels) as f64;
    table.line(14, &format!("{name}: nodes that are not kernels"), others, Is(0.0));
    // Freeing its memory would wait for the work.
    std::mem::forget((engine, loaded));
}

/// The lines of one replayed step.
fn lines(table: &mut Table, name: &str, step: &Launched) {
    let outside = step.calls_of("cuLaunchKernel") as f64;
    table.line(14, &format!("{name}: launches outside graphs"), outside, Is(0.0));
    let graphs = step.calls_of("cuGraphLaunch") as f64;
    table.line(14, &format!("{name}: graphs launched"), graphs, Is(1.0));
    let memory = step.calls_of("cuMemAlloc") + step.calls_of("cuMemFree");
    table.line(14, &format!("{name}: allocations and frees"), memory as f64, Is(0.0));
    let copies = step.calls_of("cuMemcpy") as f64;
    table.value(14, &format!("{name}: copies beside the graph (inputs, results)"), copies);
    let waits = step.calls_of("cuStreamSynchronize") + step.calls_of("cuEventSynchronize");
    table.value(14, &format!("{name}: waits of the host"), waits as f64);
}

fn replayed_sampling(table: &mut Table, gpu: &Gpu) {
    let mut subject = Subject::new(gpu, "digits", false);
    let prepared = subject.sampler();
    let ready = prepared.load(&mut subject.engine, WeightSet::Raw).expect("memory");
    let request = Request { count: 1, ..Request::default() };
    let mut after = Vec::new();
    let drawn = ready.draw(&mut subject.engine, &request, &mut |_, _| {
        after.push(gpu.counts());
        Ok(())
    });
    drawn.expect("runs");
    let last = after.pop().expect("a step").since(after.last().expect("an earlier step"));
    lines(table, "digits, sampling step", &last);
}

fn replayed_training(table: &mut Table, gpu: &Gpu) {
    let mut subject = Subject::new(gpu, "digits", true);
    let step = subject.step().load(&mut subject.engine).expect("memory");
    let engine = &mut subject.engine;
    let mut batch = Batch::new(1, subject.image.iter().product());
    batch.coefficients[coefficient::SIGNAL] = 0.6;
    batch.coefficients[coefficient::STD] = 0.8;
    batch.coefficients[coefficient::TARGET_NOISE] = 1.0;
    batch.coefficients[coefficient::WEIGHT] = 1.0;
    batch.keys.copy_from_slice(&image_keys(0, 0));
    batch.t[0] = 100.0;
    let control = Control {
        learning_rate: 1e-5,
        bias_correction_1: 0.1,
        bias_correction_2: 0.001,
        ema_decay: 0.99,
    };
    let mut losses = [0f32];
    let mut run = || {
        step.refresh(engine).expect("runs");
        let started = step.start(engine, 0, &batch, &control).expect("runs");
        step.finish(engine, started, &mut losses).expect("runs");
    };
    (1..STEPS).for_each(|_| run());
    let last = gpu.measure(&mut run);
    lines(table, "digits, training step", &last);
}
