//! How many kernels a step is, and that a run is replays of whole steps between which
//! nothing is uploaded or waited for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use langevin::Result;
use langevin::backend::cuda::Cuda;
use langevin::backend::{
    Arenas, Backend, Buffer, DeviceInfo, Engine, Fetch, Precision, Program, WeightSet,
};
use langevin::config::Config;
use langevin::diffusion::sampler::run::Request;
use langevin::diffusion::sampler::{Kind, Options, Setup};
use langevin::model::Network;
use langevin::plan::{Plan, Space, TensorId};
use langevin::sample::Drawing;
use langevin::train::step::{Batch, Control, Images, StepPrograms};

use crate::{driver, errors_of, langevin as program, text, train};

/// Launches by op, and all of them.
fn nodes(cuda: &Cuda, program: &Program) -> (BTreeMap<&'static str, usize>, usize) {
    let mut by_op = BTreeMap::new();
    for (op, launches) in cuda.graph_nodes(program).expect("every op has kernels") {
        *by_op.entry(op).or_default() += launches;
    }
    let total = by_op.values().sum();
    (by_op, total)
}

fn drawing(config: &Config, steps: Option<usize>, batch: usize) -> Drawing<'_> {
    let options = Options { steps, ..Options::default() };
    Drawing {
        network: &config.model,
        kind: Kind::Ddim,
        setup: Setup::of_scheduler(&config.scheduler, options).expect("valid"),
        image: config.model.sample_shape().expect("presets name a size"),
        batch,
        guidance: 1.0,
        given_noise: false,
    }
}

fn programs(engine: &Engine, config: &Config, resident: usize) -> StepPrograms {
    let network: &Network = &config.model;
    let shape = network.sample_shape().expect("presets name a size");
    let images = Images { shape, levels: 256, resident: Some(resident) };
    let objective = config.objective(256).expect("valid");
    let parameters = network.parameters().expect("valid");
    StepPrograms::new(engine, network, &parameters, &config.train, &objective, images)
        .expect("lowers")
}

/// Plans of ddpm-cifar10 are lowered only; nothing of its size is allocated. The
/// bounds are what the plans have now; at most 150 and 480 are promised.
#[test]
fn steps_of_ddpm_cifar10_have_no_more_graph_nodes_than_before() {
    let Some(device) = crate::gpu::device() else { return };
    let preset = langevin::config::read("cifar10").expect("a preset");
    let cases = [
        (Precision::F32, 1, 452, 139),
        (Precision::F32, 128, 476, 139),
        (Precision::Bf16, 1, 458, 139),
        (Precision::Bf16, 128, 470, 139),
    ];
    for (precision, batch, most_train, most_sample) in cases {
        let mut config = Config::from_value(preset.clone()).expect("valid");
        config.train.batch = batch;
        let cuda = || Cuda::sharing(&device).expect("a backend").with_precision(precision);
        let engine = Engine::new(Box::new(cuda()), 0, true).expect("no memory");
        let step = programs(&engine, &config, 50_000);
        let sampling = drawing(&config, None, batch).prepare(&engine).expect("lowers");
        assert_eq!(step.programs().len(), 1, "one graph a step");
        let (by_op, train) = nodes(&cuda(), step.programs()[0]);
        println!("{precision}, batch {batch}: training step {train} nodes: {by_op:?}");
        let (by_op, sample) = nodes(&cuda(), sampling.program());
        println!("{precision}, batch {batch}: sampling step {sample} nodes: {by_op:?}");
        assert_eq!(by_op["sampler_step"], 1);
        assert!(train <= most_train && sample <= most_sample, "{train} and {sample}");
    }
}

#[derive(Default)]
struct Counts {
    uploads: AtomicUsize,
    uploaded: AtomicUsize,
    waits: AtomicUsize,
    runs: AtomicUsize,
}

impl Counts {
    fn take(&self) -> [usize; 4] {
        [&self.uploads, &self.uploaded, &self.waits, &self.runs].map(|c| c.swap(0, SeqCst))
    }
}

/// A backend that counts what it is asked for.
struct Counting(Box<dyn Backend>, Arc<Counts>);

impl Backend for Counting {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }
    fn lower(&self, plan: Plan) -> Result<Program> {
        self.0.lower(plan)
    }
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer> {
        self.0.allocate(bytes, what)
    }
    fn free(&mut self, buffer: Buffer) {
        self.0.free(buffer);
    }
    fn upload(&mut self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        self.1.uploads.fetch_add(1, SeqCst);
        self.1.uploaded.fetch_add(bytes.len(), SeqCst);
        self.0.upload(buffer, offset, bytes)
    }
    fn download(&mut self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.1.waits.fetch_add(1, SeqCst);
        self.0.download(buffer, offset, bytes)
    }
    fn fetch(&mut self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<Fetch> {
        self.0.fetch(buffer, offset, bytes)
    }
    fn collect(&mut self, fetch: Fetch, bytes: &mut [u8]) -> Result<()> {
        self.1.waits.fetch_add(1, SeqCst);
        self.0.collect(fetch, bytes)
    }
    fn refresh(&mut self, program: &Program, arenas: &Arenas) -> Result<()> {
        self.0.refresh(program, arenas)
    }
    fn run(&mut self, program: &Program, arenas: &Arenas) -> Result<()> {
        self.1.runs.fetch_add(1, SeqCst);
        self.0.run(program, arenas)
    }
    fn run_checked(&mut self, program: &Program, arenas: &Arenas) -> Result<Option<TensorId>> {
        self.0.run_checked(program, arenas)
    }
    fn synchronize(&mut self) -> Result<()> {
        self.1.waits.fetch_add(1, SeqCst);
        self.0.synchronize()
    }
}

/// A small network on a counting backend.
fn counted(train: serde_json::Value) -> Option<(Config, Engine, Arc<Counts>)> {
    let backend = crate::gpu::backend()?;
    let config = Config::from_value(serde_json::json!({
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4,
            "block_out_channels": [8], "down_block_types": ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"], "add_attention": false},
        "train": train,
    }));
    let config = config.expect("valid");
    let counts = Arc::new(Counts::default());
    let len = config.model.parameters().expect("valid").arena_len();
    let counting = Box::new(Counting(backend, counts.clone()));
    let mut engine = Engine::new(counting, len, true).expect("memory");
    let weights: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1000) as f32 / 5e3 - 0.1).collect();
    engine.set_arena(Space::Parameters, &weights).expect("upload");
    Some((config, engine, counts))
}

#[test]
fn nothing_is_uploaded_or_waited_for_between_the_stages_of_a_sampler() {
    let counts = |steps: usize| {
        let (config, mut engine, counts) = counted(serde_json::json!({}))?;
        let prepared = drawing(&config, Some(steps), 2).prepare(&engine).expect("lowers");
        let ready = prepared.load(&mut engine, WeightSet::Raw).expect("memory");
        counts.take();
        let request = Request { count: 2, ..Request::default() };
        let samples = ready.draw(&mut engine, &request, &mut |_, _| Ok(())).expect("draws");
        assert!(samples.images.iter().all(|v| v.is_finite()));
        Some(counts.take())
    };
    let (Some(few), Some(many)) = (counts(3), counts(8)) else { return };
    assert_eq!((few[3], many[3]), (3, 8), "a run a stage");
    assert_eq!((few[0], few[2]), (many[0], many[2]), "uploads and waits of a batch");
    assert_eq!(many[2], 1, "the pictures");
}

#[test]
fn a_training_step_is_one_run_of_few_bytes_and_starts_without_waiting() {
    for (accumulation, runs) in [(1, 1), (3, 3)] {
        let settings = serde_json::json!({"batch": 2, "accumulation": accumulation});
        let Some((config, mut engine, counts)) = counted(settings) else { return };
        let step = programs(&engine, &config, 10).load(&mut engine).expect("memory");
        engine.set_images(&[77; 640]).expect("memory");
        let mut batch = Batch::new(2, 64);
        batch.coefficients.fill(0.5);
        batch.picks = vec![9, 1, 3, 0];
        let control = Control {
            learning_rate: 1e-3,
            bias_correction_1: 0.1,
            bias_correction_2: 0.001,
            ema_decay: 0.9,
        };
        counts.take();
        let mut started = Vec::new();
        // Two steps under way before the first number is read.
        for micro in (0..accumulation).chain(0..accumulation) {
            started.push(step.start(&mut engine, micro, &batch, &control).expect("starts"));
        }
        let [uploads, uploaded, waits, made] = counts.take();
        assert_eq!((made, waits), (2 * runs, 0));
        // Picks, times, coefficients and keys, and the control row of each step.
        assert_eq!(uploads, 2 * (4 * runs + 1));
        assert_eq!(uploaded, 2 * (runs * (2 * (8 + 4 + 32 + 16)) + 16));
        let mut losses = [0f32; 2];
        let mut norms = Vec::new();
        for one in started {
            let norm = step.finish(&mut engine, one, &mut losses).expect("ends");
            assert!(losses.iter().all(|l| l.is_finite() && *l > 0.0), "{losses:?}");
            norms.extend(norm);
        }
        assert_eq!(norms.len(), 2);
        assert_ne!(norms[0], norms[1], "each step's own, of changed weights");
    }
}

#[test]
fn a_run_is_one_graph_launch_a_step() {
    let Some(driver) = driver() else { return };
    if crate::gpu::is_system() {
        eprintln!("SKIPPED: errors are injected by the software GPU alone");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let try_run = |fault: usize| {
        let run = folder.path().join(fault.to_string());
        let fault = format!("cuGraphLaunch:{fault}:719");
        let environment = [("SOFTGPU_FAULT", fault.as_str()), ("SOFTGPU_ASYNC", "eager")];
        let more = ["--set", "sample.steps=1"];
        let output = program(driver.path(), &train(text(&run), "cuda", "6", &more), &environment);
        (output.status.success(), errors_of(&output))
    };
    // The first of six steps is launched kernel by kernel, as is the only one of the
    // grid's sampler.
    let (ended, said) = try_run(6);
    assert!(ended, "{said}");
    let (ended, said) = try_run(5);
    assert!(!ended && said.contains("cannot launch the captured run"), "{said}");
}
