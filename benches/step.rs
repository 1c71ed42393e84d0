//! `cargo bench --bench step [FILTER]`: the whole training step and the whole
//! sampling step of the digits and cifar10 presets, by the product's own code, as
//! flop/s and as a share of what the machine's multiply-add units can do.

mod limit;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::config::{self, Config};
use langevin::diffusion::sampler::run::Request;
use langevin::diffusion::sampler::{Kind, Options, Setup};
use langevin::model::Network;
use langevin::ops::noising::coefficient;
use langevin::plan::Space;
use langevin::random::image_keys;
use langevin::sample::Drawing;
use langevin::train::initial_weights;
use langevin::train::step::{Batch, Control, StepPrograms};

/// Preset, training batch, sampling batch.
const CASES: [(&str, usize, usize); 2] = [("digits", 64, 64), ("cifar10", 16, 1)];

struct Subject {
    config: Config,
    network: Network,
    engine: Engine,
    image: [usize; 3],
}

fn subject(preset: &str, batch: usize) -> Subject {
    let mut config = Config::from_value(config::read(preset).expect("a preset")).expect("valid");
    config.train.batch = batch;
    let network = config.model.clone();
    let image = network.sample_shape().expect("presets name a size");
    let parameters = network.parameters().expect("valid");
    let mut engine =
        Engine::new(Box::new(Cpu::new(0)), parameters.arena_len(), true).expect("memory");
    let weights = initial_weights(&parameters, 0);
    engine.set_arena(Space::Parameters, &weights).expect("same length");
    engine.set_arena(Space::Average, &weights).expect("same length");
    Subject { config, network, engine, image }
}

fn measure(
    c: &mut Criterion,
    limit: f64,
    group: &str,
    name: &str,
    flops: u64,
    run: &mut dyn FnMut(),
) {
    let mut group = c.benchmark_group(group);
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(3)).throughput(Throughput::Elements(flops));
    let mut best = f64::INFINITY;
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..iterations {
                run();
            }
            let elapsed = start.elapsed();
            best = best.min(elapsed.as_secs_f64() / iterations as f64);
            elapsed
        });
    });
    if best.is_finite() {
        let rate = flops as f64 / best;
        println!(
            "{:>40.2} ms at best, {:.1} GFLOP/s, {:.0} % of the limit",
            best * 1e3,
            rate / 1e9,
            rate / limit * 100.0
        );
    }
    group.finish();
}

fn steps(c: &mut Criterion) {
    let limit = limit::flops(Cpu::new(0).pool());
    println!("limit: {:.1} GFLOP/s", limit / 1e9);
    for (preset, train_batch, sample_batch) in CASES {
        training(c, limit, preset, train_batch);
        sampling(c, limit, preset, sample_batch);
    }
}

fn training(c: &mut Criterion, limit: f64, preset: &str, n: usize) {
    let Subject { config, network, mut engine, image } = subject(preset, n);
    let parameters = network.parameters().expect("valid");
    let objective = config.objective(256).expect("a preset is valid");
    let programs =
        StepPrograms::new(&engine, &network, &parameters, &config.train, &objective, image);
    let programs = programs.expect("valid");
    let flops = programs.flops();
    let step = programs.load(&mut engine).expect("memory");
    let mut batch = Batch::new(n, image.iter().product());
    for (i, row) in batch.coefficients.chunks_exact_mut(coefficient::COLUMNS).enumerate() {
        row[coefficient::SIGNAL] = 0.6;
        row[coefficient::STD] = 0.8;
        row[coefficient::TARGET_NOISE] = 1.0;
        row[coefficient::WEIGHT] = 1.0;
        batch.keys[4 * i..4 * i + 4].copy_from_slice(&image_keys(0, i as u64));
        batch.t[i] = 100.0;
    }
    let mut losses = vec![0f32; n];
    let control = Control {
        learning_rate: 1e-5,
        bias_correction_1: 0.1,
        bias_correction_2: 0.001,
        ema_decay: 0.99,
    };
    measure(c, limit, "step/train/cpu", &format!("{preset}-b{n}"), flops, &mut || {
        step.refresh(&mut engine).expect("runs");
        let started = step.start(&mut engine, 0, &batch, &control).expect("runs");
        step.finish(&mut engine, started, &mut losses).expect("runs");
    });
}

fn sampling(c: &mut Criterion, limit: f64, preset: &str, n: usize) {
    let Subject { config, network, mut engine, image } = subject(preset, 1);
    let steps = 10;
    let drawing = Drawing {
        network: &network,
        kind: Kind::Ddim,
        setup: Setup::of_scheduler(
            &config.scheduler,
            Options { steps: Some(steps), ..Options::default() },
        )
        .expect("valid"),
        image,
        batch: n,
        guidance: 1.0,
        given_noise: false,
    };
    let prepared = drawing.prepare(&engine).expect("valid");
    let flops = prepared.program().plan.flops() * steps as u64;
    let ready = prepared.load(&mut engine, WeightSet::Raw).expect("memory");
    let request = Request { count: n, ..Request::default() };
    let name = format!("{preset}-b{n}-{steps}-ddim-steps");
    measure(c, limit, "step/sample/cpu", &name, flops, &mut || {
        ready.draw(&mut engine, &request, &mut |_, _| Ok(())).expect("runs");
    });
}

criterion_group!(benches, steps);
criterion_main!(benches);
