//! No allocation inside a training or sampling step, on any thread, shown with
//! a counting allocator. One test: another one beside it would be counted too.
#![allow(unsafe_code)] // A global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::config::{Config, TrainConfig};
use langevin::diffusion::sampler::run::{self, Request, Sampling, Settings, step_plan};
use langevin::diffusion::sampler::{self, Kind, Options, Setup};
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::model::{Network, NetworkInputs, UNetConfig};
use langevin::ops::noising::coefficient;
use langevin::plan::{DType, Space};
use langevin::random::image_keys;
use langevin::train::step::{Batch, Control, StepPrograms};
use serde_json::{Value, json};

struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if ARMED.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all threads while `f` runs.
fn allocations(f: impl FnOnce()) -> usize {
    COUNT.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
    f();
    ARMED.store(false, Ordering::SeqCst);
    COUNT.load(Ordering::SeqCst)
}

/// A CPU whose threads have all started: starting one allocates.
fn cpu() -> Box<Cpu> {
    const THREADS: usize = 3;
    let cpu = Cpu::new(THREADS);
    let all = Barrier::new(THREADS);
    cpu.pool().run(THREADS, &|_| {
        all.wait();
    });
    Box::new(cpu)
}

/// Convolutions of all kinds, attention, classes, dropout; all resampling.
fn networks(time: &str) -> [(&'static str, Network); 2] {
    let ddpm = json!({"sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "num_class_embeds": 3, "dropout": 0.1, "resnet_time_scale_shift": "scale_shift"});
    let ncsnpp = json!({"sample_size": 8, "block_out_channels": [8, 16, 16],
        "down_block_types": ["SkipDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D"],
        "norm_num_groups": 4, "time_embedding_type": time});
    let network = |v: Value| Network::UNet(UNetConfig::from_json(&v).expect("valid"));
    [("ddpm", network(ddpm)), ("ncsnpp", network(ncsnpp))]
}

/// Small weights of no meaning.
fn weights(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 5000.0 - 0.1).collect()
}

fn training(network: &Network) -> usize {
    let parameters = network.parameters().expect("builds");
    let mut engine = Engine::new(cpu(), parameters.arena_len(), true).expect("memory");
    let config = TrainConfig { batch: 3, accumulation: 3, clip: 1.0, ..TrainConfig::default() };
    let image = network.sample_shape().expect("a size");
    let objective = Config::default().objective(256).expect("the defaults are valid");
    let programs = StepPrograms::new(&engine, network, &parameters, &config, &objective, image)
        .expect("builds");
    let step = programs.load(&mut engine).expect("memory");
    engine.set_arena(Space::Parameters, &weights(parameters.arena_len())).expect("upload");
    let mut batch = Batch::new(config.batch, image.iter().product());
    batch.x0 = weights(batch.x0.len());
    batch.t.fill(0.5);
    for (i, row) in batch.coefficients.chunks_exact_mut(coefficient::COLUMNS).enumerate() {
        row[coefficient::SIGNAL] = 0.8;
        row[coefficient::STD] = 0.6;
        row[coefficient::TARGET_NOISE] = 1.0;
        row[coefficient::WEIGHT] = 1.0;
        batch.keys[4 * i..4 * i + 4].copy_from_slice(&image_keys(1, i as u64));
    }
    let control = Control {
        learning_rate: 1e-3,
        bias_correction_1: 0.1,
        bias_correction_2: 0.001,
        ema_decay: 0.9,
    };
    let mut losses = [0.0; 3];
    let mut one = || {
        step.refresh(&mut engine).expect("refresh");
        let mut norm = None;
        for micro in 0..config.accumulation {
            let started = step.start(&mut engine, micro, &batch, &control).expect("runs");
            norm = step.finish(&mut engine, started, &mut losses).expect("runs");
        }
        assert!(norm.is_some_and(|norm| norm > 0.0 && norm.is_finite()), "{norm:?}");
    };
    // The first step makes room for what is fetched.
    one();
    allocations(|| (0..4).for_each(|_| one()))
}

/// Stages of DDPM's sampler, from the first's end to the last's start.
fn sampling(network: &Network) -> usize {
    let parameters = network.parameters().expect("builds");
    let mut engine = Engine::new(cpu(), parameters.arena_len(), false).expect("memory");
    let options = Options { steps: Some(6), ..Options::default() };
    let setup = Setup::of_scheduler(&SchedulerConfig::default(), options).expect("valid");
    let program = sampler::Program::new(Kind::Ddpm, &setup).expect("a program");
    let shape = network.sample_shape().expect("a size").to_vec();
    let class = network.classes().map(|_| DType::U32);
    let settings =
        Settings { batch: 2, shape, label: DType::F32, class, guidance: 1.0, given_noise: false };
    let plan = step_plan(&program, &settings, |plan, inputs| {
        let run::NetworkInputs { x, label: t, class } = inputs;
        network.build(plan, &NetworkInputs { x, t, class, keys: None })
    })
    .expect("builds");
    let lowered = engine.lower(plan).expect("lowers");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    engine.set_arena(Space::Parameters, &weights(parameters.arena_len())).expect("upload");
    engine.refresh(&loaded).expect("refresh");
    let sampling = Sampling { program: &program, settings: &settings, loaded: &loaded };
    let classes: &[u32] = if class.is_some() { &[0, 2] } else { &[] };
    let request = Request { seed: 1, count: 2, classes, ..Request::default() };
    COUNT.store(0, Ordering::SeqCst);
    let mut counted = 0;
    sampling
        .run(&mut engine, &request, &mut |done, stages| {
            ARMED.store(done + 1 < stages, Ordering::SeqCst);
            counted = done;
            Ok(())
        })
        .expect("samples");
    assert_eq!(counted, 6, "stages");
    COUNT.load(Ordering::SeqCst)
}

#[test]
fn steps_allocate_nothing() {
    assert!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))) > 0, "counting works");
    for (name, network) in networks("fourier") {
        assert_eq!(training(&network), 0, "{name}: training");
    }
    // DDPM ends at label 0, of which the Fourier embedding has no logarithm.
    for (name, network) in networks("positional") {
        assert_eq!(sampling(&network), 0, "{name}: sampling");
    }
}
