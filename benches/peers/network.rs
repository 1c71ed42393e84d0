//! The whole ddpm-cifar10 U-Net: its forward pass and a complete training step.

use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::model::{Network, NetworkInputs, UNetConfig};
use langevin::ops::noising::coefficient;
use langevin::ops::optimizer::{AdamW, control};
use langevin::plan::{DType, Mode, Plan, Space, Wrt};
use langevin::random::image_keys;

use crate::cases::Run;

/// The configuration, which the peer reads too.
pub const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/ddpm-cifar10.json");

fn network() -> anyhow::Result<Network> {
    let json = serde_json::from_str(&std::fs::read_to_string(CONFIG)?)?;
    Ok(Network::UNet(UNetConfig::from_json(&json)?))
}

const SIZE: [usize; 2] = [32, 32];

/// Floating-point operations of the forward pass (a training step has three times as many).
pub fn forward_flops(n: usize) -> anyhow::Result<u64> {
    let mut plan = Plan::new();
    let network = network()?;
    let inputs = network.inputs(&mut plan, n, SIZE, false);
    network.build(&mut plan, &inputs)?;
    Ok(plan.flops())
}

/// Weights of about the size that initialisation gives; the time of no op depends on them.
fn weights(len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| ((i.wrapping_mul(2654435761) >> 16) as f32 / 32768.0 - 1.0) * 0.02)
        .collect()
}

/// One prediction for n images.
pub fn forward(threads: usize, n: usize) -> anyhow::Result<Run> {
    let network = network()?;
    let mut plan = Plan::new();
    let inputs = network.inputs(&mut plan, n, SIZE, false);
    let prediction = network.build(&mut plan, &inputs)?;
    plan.keep(prediction);
    let arena_len = plan.parameters.arena_len();
    let mut engine = Engine::new(Box::new(Cpu::new(threads)), arena_len, false)?;
    engine.set_arena(Space::Parameters, &weights(arena_len))?;
    let program = engine.lower(plan)?;
    let loaded = engine.load(program, WeightSet::Raw)?;
    engine.refresh(&loaded)?;
    let x = weights(n * SIZE[0] * SIZE[1] * 3);
    let t = vec![10.0; n];
    Ok(Box::new(move || {
        let uploaded = engine.set(&loaded, inputs.x, &x).and(engine.set(&loaded, inputs.t, &t));
        uploaded.and(engine.run(&loaded)).expect("the forward pass runs");
    }))
}

/// One optimizer step on n images: noising, loss, gradients, clipping, AdamW,
/// the averaged weights, and the packing of the changed weights.
pub fn training_step(threads: usize, n: usize) -> anyhow::Result<Run> {
    let network = network()?;
    let mut plan = Plan::new();
    let x0 = plan.input("x_0", &[n, SIZE[0], SIZE[1], 3], DType::F32);
    let t = plan.input("t", &[n], DType::F32);
    let keys = plan.input("keys", &[n, 4], DType::U32);
    let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
    let x = plan.noising(x0, coefficients, keys)?;
    let inputs = NetworkInputs { x, t, class: None, keys: Some(keys) };
    let prediction = network.build(&mut plan, &inputs)?;
    let loss = plan.loss(prediction, x0, coefficients, Some(keys), 1.0 / n as f32)?;
    plan.keep(loss);
    plan.derive(&[(loss, None)], Wrt::Parameters(Mode::Write))?;
    let arena_len = plan.parameters.arena_len();
    let ranges = plan.parameters.trainable_ranges();
    let norm = plan.global_norm(ranges.clone(), arena_len);
    let optimizer =
        AdamW { ranges, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, clip: Some(1.0) };
    let controls = plan.adamw(optimizer, norm, arena_len);
    let mut engine = Engine::new(Box::new(Cpu::new(threads)), arena_len, true)?;
    engine.set_arena(Space::Parameters, &weights(arena_len))?;
    let program = engine.lower(plan)?;
    let loaded = engine.load(program, WeightSet::Raw)?;
    let images = weights(n * SIZE[0] * SIZE[1] * 3);
    let times = vec![10.0; n];
    let key_words: Vec<u32> = (0..n as u64).flat_map(|i| image_keys(0, i)).collect();
    let mut row = [0.0; coefficient::COLUMNS];
    row[coefficient::SIGNAL] = 0.8;
    row[coefficient::STD] = 0.6;
    row[coefficient::TARGET_NOISE] = 1.0;
    row[coefficient::WEIGHT] = 1.0;
    let rows = row.repeat(n);
    let mut values = [0.0; control::COLUMNS];
    values[control::LEARNING_RATE] = 1e-4;
    values[control::BIAS_CORRECTION_1] = 0.1;
    values[control::BIAS_CORRECTION_2] = 1e-3;
    values[control::EMA_RATE] = 1e-3;
    let mut step = move || -> langevin::Result<()> {
        engine.set(&loaded, x0, &images)?;
        engine.set(&loaded, t, &times)?;
        engine.set_u32(&loaded, keys, &key_words)?;
        engine.set(&loaded, coefficients, &rows)?;
        engine.set(&loaded, controls, &values)?;
        engine.refresh(&loaded)?;
        engine.run(&loaded)
    };
    Ok(Box::new(move || step().expect("the training step runs")))
}
