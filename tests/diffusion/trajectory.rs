//! Programs run step by step on an engine: against diffusers, and against
//! themselves in other batches.

use langevin::Result;
use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::diffusion::sampler::grid::Grid;
use langevin::diffusion::sampler::run::{
    NetworkInputs, Request, Samples, Sampling, Settings, step_plan,
};
use langevin::diffusion::sampler::{Churn, Kind, Options, Previous, Program, Setup, Stage};
use langevin::diffusion::scheduler::{SchedulerConfig, Spacing};
use langevin::model::{self, Network, UNetConfig};
use langevin::ops::pointwise::Activation;
use langevin::plan::{DType, Plan, Space, TensorId};
use langevin::random::{Purpose, fill_normal, image_keys};
use safetensors::SafeTensors;

use crate::{golden, probe};

/// `network` of tests/golden/schedulers.py: 0.0008 t x + 0.3 silu(x) - 0.1.
fn toy(plan: &mut Plan, inputs: NetworkInputs) -> Result<TensorId> {
    let timed = plan.scale_rows(inputs.x, inputs.label, 0, false)?;
    let timed = plan.scale(timed, 0.0008, -0.1);
    let bent = plan.activate(inputs.x, Activation::Silu);
    let bent = plan.scale(bent, 0.3, 0.0);
    plan.add(timed, bent, 1.0)
}

/// The same with a variance in a second half, 0.3 silu(x) + 0.1.
fn toy_with_variance(plan: &mut Plan, inputs: NetworkInputs) -> Result<TensorId> {
    let answer = toy(plan, inputs)?;
    let bent = plan.activate(inputs.x, Activation::Silu);
    let variance = plan.scale(bent, 0.3, 0.1);
    plan.concat(answer, variance)
}

fn new(kind: Kind, config: &SchedulerConfig, options: Options) -> Program {
    let setup = Setup::of_scheduler(config, options).unwrap();
    Program::new(kind, &setup).unwrap_or_else(|e| panic!("{kind:?} {config:?}: {e}"))
}

fn settings(batch: usize, shape: &[usize]) -> Settings {
    Settings {
        batch,
        shape: shape.to_vec(),
        label: DType::F32,
        class: None,
        guidance: 1.0,
        given_noise: false,
    }
}

fn sample_with(
    program: &Program,
    settings: &Settings,
    request: &Request,
    network: impl FnOnce(&mut Plan, NetworkInputs) -> Result<TensorId>,
) -> Result<Samples> {
    let mut engine = Engine::new(Box::new(Cpu::new(2)), 0, false)?;
    let plan = step_plan(program, settings, network)?;
    let lowered = engine.lower(plan)?;
    let loaded = engine.load(lowered, WeightSet::Raw)?;
    engine.refresh(&loaded)?;
    let sampling = Sampling { program, settings, loaded: &loaded };
    sampling.run(&mut engine, request, &mut |_, _| Ok(()))
}

/// `[images, c, h, w]` to `[images, h, w, c]`.
fn channels_last(values: &[f64], [c, h, w]: [usize; 3]) -> Vec<f32> {
    let image = |from: &[f64]| {
        let mut to = vec![0f32; c * h * w];
        for (e, &v) in from.iter().enumerate() {
            to[e % (h * w) * c + e / (h * w)] = v as f32;
        }
        to
    };
    values.chunks_exact(c * h * w).flat_map(image).collect()
}

#[test]
fn trajectories_equal_diffusers_for_the_same_noise() {
    let json: serde_json::Value = serde_json::from_slice(&golden::read("schedulers.json")).unwrap();
    let bytes = golden::read("schedulers.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = tensors.tensor("noise").unwrap().shape().to_vec();
    let (count, axes) = (shape[1], [shape[2], shape[3], shape[4]]);
    let noise = channels_last(&golden::values(&tensors, "noise"), axes);
    let (start, z) = noise.split_at(count * axes.iter().product::<usize>());
    let settings = Settings { given_noise: true, ..settings(count, &[axes[1], axes[2], axes[0]]) };
    for (i, case) in json["cases"].as_array().unwrap().iter().enumerate() {
        let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
        let arguments = &case["arguments"];
        let options = Options {
            steps: Some(case["steps"].as_u64().unwrap() as usize),
            eta: arguments["eta"].as_f64().unwrap_or(0.0),
            clipped_eps: arguments["use_clipped_model_output"].as_bool().unwrap_or(false),
            previous: Previous::Ratio,
            ..Options::default()
        };
        let kind = Kind::from_config(&config).unwrap();
        // diffusers computes coefficients in single precision. Those of DDPM and
        // DDIM lose little by it; differences in lambda do.
        let tolerance = if matches!(kind, Kind::Ddpm | Kind::Ddim) { 1e-5 } else { 1e-4 };
        let program = new(kind, &config, options);
        let asked: Vec<f64> = program.stages.iter().map(|stage| stage.label).collect();
        let expected: Vec<f64> = serde_json::from_value(case["timesteps"].clone()).unwrap();
        assert_eq!(asked.len(), expected.len(), "case {i} {case}");
        for (asked, expected) in asked.iter().zip(&expected) {
            let off = (asked - expected).abs() / expected.abs().max(1.0);
            assert!(off < 1e-4, "case {i} {case}: label {asked}, {expected} in diffusers");
        }
        let request = Request {
            count,
            start: Some(start),
            noise: Some(z),
            trajectory: Some(1),
            ..Request::default()
        };
        let network = if program.learns_variance() { toy_with_variance } else { toy };
        let samples = sample_with(&program, &settings, &request, network).unwrap();
        let expected = channels_last(&golden::values(&tensors, &format!("case.{i}")), axes);
        let frames = &samples.trajectory[1..];
        assert_eq!(frames.len(), program.updates());
        for (frame, expected) in frames.iter().zip(expected.chunks_exact(start.len())) {
            // Where diffusers adds noise in reaching the data, this does not.
            if frame.updates == frames.len() && !program.notes.is_empty() && kind == Kind::Ddpm {
                continue;
            }
            let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (found, expected) in frame.images.iter().zip(expected) {
                let off = (found - expected).abs() / scale;
                assert!(off < tolerance, "case {i} {case} update {}: {off:e}", frame.updates);
            }
        }
        assert_eq!(samples.images, frames.last().unwrap().images);
    }
}

/// On the device in f32 as by the coefficients in f64, also through stages without
/// an evaluation and through predictors in other slots.
#[test]
fn an_engine_draws_what_the_coefficients_say() {
    let table = SchedulerConfig { num_train_timesteps: 60, ..SchedulerConfig::default() };
    let churn = Churn { amount: 4.0, ..Churn::default() };
    let plain = Options { steps: Some(6), ..Options::default() };
    for (kind, options) in [
        (Kind::Ddpm, plain),
        (Kind::Reversal, plain),
        (Kind::EulerMaruyama, plain),
        (Kind::OdeHeun, plain),
        (Kind::Edm, Options { churn, ..plain }),
        (Kind::DpmppSde2m, plain),
        (Kind::UniPc, Options { order: Some(3), ..plain }),
        (Kind::EulerA, Options { grid: Some(Grid::Karras), ..plain }),
    ] {
        let program = new(kind, &table, options);
        const SHAPE: [usize; 3] = [2, 2, 1];
        let mut values = [0f32; 4 * 7];
        fill_normal(image_keys(5, 0), Purpose::SampleStart, 0, 0, &mut values);
        let given = program.noise_rows() > 0;
        let request = Request {
            count: 1,
            start: Some(&values[..4]),
            noise: given.then_some(&values[4..]),
            ..Request::default()
        };
        let settings = Settings { given_noise: given, ..settings(1, &SHAPE) };
        let found = sample_with(&program, &settings, &request, toy).unwrap();
        assert_eq!(found.evaluations, program.evaluations() as u64);
        let wide = |row: usize| values[row * 4..][..4].iter().map(|&v| f64::from(v)).collect();
        let start: Vec<f64> = wide(0);
        let start = start.iter().map(|x| x * program.start_std).collect();
        let mut network = |stage: &Stage, x: &[f64]| {
            let silu = |x: f64| x / (1.0 + (-x).exp());
            x.iter().map(|&x| 0.0008 * stage.label * x + 0.3 * silu(x) - 0.1).collect()
        };
        let states = probe::run(&program, start, &mut network, &mut |draw| wide(1 + draw));
        for (found, expected) in found.images.iter().zip(states.last().unwrap()) {
            let off = (f64::from(*found) - expected).abs() / expected.abs().max(1.0);
            assert!(off < 1e-4, "{}: {found} {expected}", kind.name());
        }
    }
}

/// Every field of every class that is followed, at its default or not.
#[test]
fn a_configuration_of_a_followed_class_is_written_as_diffusers_wrote_it() {
    let json: serde_json::Value = serde_json::from_slice(&golden::read("schedulers.json")).unwrap();
    for case in json["cases"].as_array().unwrap() {
        let read = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
        let mut written: serde_json::Value = serde_json::from_str(&read.to_json()).unwrap();
        // JSON has no -Infinity: the file of the cases has null, and what is
        // written is the lowest number.
        if let Some(lowest) = written.get_mut("lambda_min_clipped")
            && lowest.as_f64() == Some(f64::MIN)
        {
            *lowest = serde_json::Value::Null;
        }
        assert_eq!(written, case["config"]);
    }
}

/// huggingface/diffusers#11347.
#[test]
fn ddim_steps_lead_where_the_next_one_starts_also_on_linspace() {
    let config =
        SchedulerConfig { timestep_spacing: Some(Spacing::Linspace), ..SchedulerConfig::default() };
    let program = |previous| {
        let options = Options { steps: Some(9), previous, ..Options::default() };
        new(Kind::Ddim, &config, options)
    };
    let (grid, ratio) = (program(Previous::Grid), program(Previous::Ratio));
    // Without noise the signal a step leads to is its factor of x_0.
    let misses = |program: &Program| {
        let pairs = program.stages.windows(2);
        pairs.filter(|w| w[0].outputs[0].unwrap().x0 != w[1].pair.signal()).count()
    };
    assert_eq!((misses(&grid), misses(&ratio)), (0, 8));
    assert_eq!((grid.notes.len(), ratio.notes.len()), (1, 0));
    let leading = new(Kind::Ddim, &SchedulerConfig::default(), Options::default());
    assert!(leading.notes.is_empty());
}

fn short_program(kind: Kind) -> Program {
    let config = SchedulerConfig { num_train_timesteps: 8, ..SchedulerConfig::default() };
    new(kind, &config, Options { steps: Some(4), eta: 1.0, ..Options::default() })
}

#[test]
fn an_image_has_the_same_bits_alone_and_in_any_batch() {
    const SHAPE: [usize; 3] = [5, 3, 3];
    const LEN: usize = 45;
    for kind in Kind::ALL {
        let program = short_program(kind);
        let draw = |batch, first, count| {
            let request = Request { seed: 3, first, count, ..Request::default() };
            sample_with(&program, &settings(batch, &SHAPE), &request, toy).unwrap().images
        };
        let alone = draw(1, 17, 1);
        assert_eq!(draw(7, 0, 19)[17 * LEN..18 * LEN], alone, "padded batches from 0");
        assert_eq!(draw(4, 16, 3)[LEN..2 * LEN], alone, "one padded batch from 16");
        assert_ne!(draw(1, 18, 1), alone);
    }
}

#[test]
fn noise_of_the_seed_handed_in_draws_the_same_images() {
    const SHAPE: [usize; 3] = [4, 4, 1];
    let program = short_program(Kind::Ddpm);
    let (seed, first, count, len) = (9, 5, 3, 16);
    let normals = |purpose, draw| -> Vec<f32> {
        let mut all = vec![0f32; count * len];
        for (i, image) in all.chunks_exact_mut(len).enumerate() {
            fill_normal(image_keys(seed, first + i as u64), purpose, draw, 0, image);
        }
        all
    };
    let start = normals(Purpose::SampleStart, 0);
    let z: Vec<f32> = (0..3).flat_map(|draw| normals(Purpose::SampleStep, draw)).collect();
    let request = Request { seed, first, count, ..Request::default() };
    let drawn = sample_with(&program, &settings(2, &SHAPE), &request, toy).unwrap();
    let given = Request { start: Some(&start), noise: Some(&z), ..request };
    let with_noise = Settings { given_noise: true, ..settings(2, &SHAPE) };
    let handed = sample_with(&program, &with_noise, &Request { seed: 1, ..given }, toy).unwrap();
    assert_eq!(drawn.images, handed.images);
    assert_eq!(drawn.evaluations, 12);

    let few = Request { noise: Some(&z[..2 * count * len]), ..given };
    let error = sample_with(&program, &with_noise, &few, toy).unwrap_err().to_string();
    assert!(error.contains("at least 3 rows"), "{error}");
    let short = Request { start: Some(&start[1..]), ..given };
    let error = sample_with(&program, &with_noise, &short, toy).unwrap_err().to_string();
    assert!(error.contains("x_T"), "{error}");
}

#[test]
fn trajectories_hold_the_start_every_kth_update_and_the_end() {
    let program = short_program(Kind::Ddim);
    let request = Request { count: 3, trajectory: Some(3), ..Request::default() };
    let samples = sample_with(&program, &settings(2, &[2, 2, 1]), &request, toy).unwrap();
    let updates: Vec<usize> = samples.trajectory.iter().map(|f| f.updates).collect();
    assert_eq!(updates, [0, 3, 4]);
    assert_eq!(samples.trajectory[2].images, samples.images);
    let all = Request { trajectory: Some(1), ..request };
    let all = sample_with(&program, &settings(2, &[2, 2, 1]), &all, toy).unwrap();
    assert_eq!(all.trajectory[3], samples.trajectory[1]);
}

/// A network that answers class * x.
fn classy(plan: &mut Plan, inputs: NetworkInputs) -> Result<TensorId> {
    plan.scale_rows(inputs.x, inputs.class.unwrap(), 0, false)
}

#[test]
fn guidance_weighs_the_class_against_none() {
    let program = short_program(Kind::Ddim);
    let draw = |guidance, class, null_class| {
        let settings = Settings { class: Some(DType::F32), guidance, ..settings(2, &[3, 1, 2]) };
        let classes = vec![class; 3];
        let request = Request { count: 3, classes: &classes, null_class, ..Request::default() };
        sample_with(&program, &settings, &request, classy).unwrap()
    };
    let off = draw(1.0, 2, 7);
    assert_eq!(off.evaluations, 12);
    // uncond + W (cond - uncond) = 4 + 0.5 (8 - 4) = 6, and 1 + 5 (2 - 1) = 6.
    let (a, b) = (draw(0.5, 8, 4), draw(5.0, 2, 1));
    let plain = draw(1.0, 6, 0);
    assert_eq!(a.evaluations, 24);
    for ((a, b), plain) in a.images.iter().zip(&b.images).zip(&plain.images) {
        assert!((a - plain).abs() < 1e-5 && (b - plain).abs() < 1e-5, "{a} {b} {plain}");
    }
    assert_ne!(off.images, plain.images);
}

#[test]
fn a_network_that_breaks_is_named_with_the_image() {
    let program = short_program(Kind::Ddim);
    let broken = |plan: &mut Plan, inputs: NetworkInputs| Ok(plan.scale(inputs.x, f32::NAN, 0.0));
    let request = Request { first: 4, count: 1, ..Request::default() };
    let error = sample_with(&program, &settings(1, &[2, 2, 1]), &request, broken).unwrap_err();
    assert!(error.to_string().contains("image 4"), "{error}");
}

/// All kernels of a U-Net under the sampler, its time a row of a learned table
/// (a u32 label that the step itself writes) and guidance on.
#[test]
fn a_guided_u_net_draws_an_image_of_the_same_bits_in_any_batch() {
    let config: UNetConfig = serde_json::from_value(serde_json::json!({
        "sample_size": 6, "in_channels": 2, "out_channels": 2, "block_out_channels": [4, 8],
        "layers_per_block": 1, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 2,
        "attention_head_dim": 4, "time_embedding_type": "learned", "num_train_timesteps": 8,
        "class_embed_type": null, "num_class_embeds": 4
    }))
    .unwrap();
    let network = Network::UNet(config);
    let parameters = network.parameters().unwrap();
    let mut weights = vec![0f32; parameters.arena_len()];
    fill_normal(image_keys(1, 0), Purpose::Init, 0, 0, &mut weights);
    weights.iter_mut().for_each(|w| *w *= 0.3);
    let program = short_program(Kind::Ddpm);
    let draw = |batch, first, count| {
        let settings = Settings {
            label: DType::U32,
            class: Some(DType::U32),
            guidance: 1.5,
            ..settings(batch, &[6, 6, 2])
        };
        let mut engine = Engine::new(Box::new(Cpu::new(2)), parameters.arena_len(), false).unwrap();
        engine.set_arena(Space::Parameters, &weights).unwrap();
        let plan = step_plan(&program, &settings, |plan, inputs| {
            let NetworkInputs { x, label, class } = inputs;
            network.build(plan, &model::NetworkInputs { x, t: label, class, keys: None })
        });
        let lowered = engine.lower(plan.unwrap()).unwrap();
        let loaded = engine.load(lowered, WeightSet::Raw).unwrap();
        engine.refresh(&loaded).unwrap();
        let classes: Vec<u32> = (first..first + count as u64).map(|i| i as u32 % 3).collect();
        let request = Request {
            seed: 3,
            first,
            count,
            classes: &classes,
            null_class: 3,
            ..Request::default()
        };
        let sampling = Sampling { program: &program, settings: &settings, loaded: &loaded };
        sampling.run(&mut engine, &request, &mut |_, _| Ok(())).unwrap().images
    };
    let alone = draw(1, 17, 1);
    assert_eq!(draw(3, 14, 5)[3 * 72..4 * 72], alone);
    assert!(alone.iter().any(|&v| v != alone[0]));
}
