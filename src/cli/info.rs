//! `langevin info`: the device, and what a model is and needs.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use langevin::Result;
use langevin::backend::cuda;
use langevin::backend::{Backend, Engine, Requirement, human_bytes};
use langevin::checkpoint::diffusers::Kind;
use langevin::config::{MAX_BATCH, TrainConfig};
use langevin::diffusion::denoiser::{Denoiser, Prediction};
use langevin::diffusion::loss::{LossConfig, LossKind, Objective};
use langevin::diffusion::scheduler::VarianceType;
use langevin::model::Network;
use langevin::plan::Plan;
use langevin::train::step::StepPrograms;
use serde_json::{Value, json};

use super::{Global, Settings, model, output};

#[derive(Args, Debug)]
pub struct InfoArgs {
    /// Run directory, checkpoint directory, or diffusers directory
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Batch size for the memory and flop figures
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: InfoArgs, global: &Global) -> Result<()> {
    if !(1..=MAX_BATCH).contains(&args.batch) {
        return Err(langevin::Error::Usage(format!("--batch takes 1 to {MAX_BATCH}")));
    }
    let kernels = json!({ "cpu": true, "cuda": cuda::built().is_ok() });
    let facts = global.on_device(|backend| {
        let device = device(backend.as_ref());
        Ok(match &args.model {
            None => json!({ "device": device, "kernels": kernels }),
            Some(path) => {
                let model = model_facts(path, &args, backend)?;
                json!({ "device": device, "kernels": kernels, "model": model })
            }
        })
    })?;
    match global.json {
        true => output::json(&facts),
        false => output::line(&text(&facts)),
    }
}

fn device(backend: &dyn Backend) -> Value {
    let info = backend.info();
    json!({
        "name": info.name,
        "description": info.description,
        "memory_bytes": info.memory_bytes,
        "threads": info.threads,
        "precision": info.precision,
    })
}

fn model_facts(
    path: &std::path::Path,
    args: &InfoArgs,
    backend: Box<dyn Backend>,
) -> Result<Value> {
    let model = model::open(path, &args.settings.set)?;
    let kind = match model.files.kind {
        Kind::Run => "run",
        Kind::Checkpoint => "checkpoint",
        Kind::Pipeline => "diffusers pipeline",
        Kind::Flat => "diffusers model",
    };
    let attention = match &model.network {
        Network::UNet(config) => config.attention_head_dim.describe(),
        Network::Mlp(_) | Network::Empirical(_) => "none".into(),
    };
    let image = model.network.sample_shape().or_else(|| {
        let extras = model.files.extras.as_ref()?;
        serde_json::from_value(extras.get("image")?.clone()).ok()
    });
    let mut facts = json!({
        "kind": kind,
        "folder": model.files.folder,
        "network": model.network.class_name(),
        "parameters": model.parameters.count(),
        "tensors": model.parameters.entries.len(),
        "attention": attention,
        "scheduler": model.scheduler.class_name,
        "train_steps_T": model.scheduler.num_train_timesteps,
        "prediction_type": model.scheduler.prediction_type.name(),
    });
    let Some([h, w, c]) = image else {
        facts["image"] = Value::Null;
        return Ok(facts);
    };
    facts["image"] = json!([h, w, c]);
    // Memory plans only: nothing of the size of the model is allocated here.
    let engine = Engine::new(backend, 0, false)?;
    let len = model.parameters.arena_len();
    let mut plan = Plan::new();
    let inputs = model.network.inputs(&mut plan, args.batch, [h, w], false);
    let prediction = model.network.build(&mut plan, &inputs)?;
    plan.keep(prediction);
    let forward_flops = plan.flops();
    let forward = engine.lower(plan)?;
    let need = Requirement::of(len, false, &[&forward]);
    facts["batch"] = json!(args.batch);
    facts["sample"] = memory(&need, forward_flops);
    let train = TrainConfig { batch: args.batch, ..TrainConfig::default() };
    let learned = model.network.out_channels() == 2 * c;
    if model.network.out_channels() == c || learned {
        // Which loss it is changes little of the need; a learned variance does.
        let (kind, variance) = match learned {
            true => (LossKind::Hybrid, VarianceType::LearnedRange),
            false => (LossKind::Simple, VarianceType::FixedSmall),
        };
        let loss = LossConfig { kind, ..LossConfig::default() };
        let table = Arc::new(model.scheduler.table()?);
        let denoiser = Denoiser::plain(table, Prediction::VPrediction);
        let objective = Objective::new(denoiser, loss, variance, 256)?;
        let network = &model.network;
        let programs =
            StepPrograms::new(&engine, network, &model.parameters, &train, &objective, [h, w, c])?;
        let need = Requirement::of(len, true, &programs.programs());
        facts["train"] = memory(&need, programs.flops());
    }
    Ok(facts)
}

fn memory(need: &Requirement, flops: u64) -> Value {
    json!({
        "flops": flops,
        "peak_bytes": need.total(),
        "weights_bytes": need.weights,
        "optimizer_bytes": need.optimizer,
        "packed_bytes": need.packed,
        "activation_bytes": need.activations,
        "checkpoint_bytes": need.staging,
    })
}

fn text(facts: &Value) -> String {
    let device = &facts["device"];
    let bytes = |v: &Value| human_bytes(v.as_u64().unwrap_or(0));
    let word = |v: &Value| v.as_str().unwrap_or("-").to_string();
    let mut lines = vec![
        format!(
            "device      {} ({}), {} of memory available, precision {}",
            word(&device["name"]),
            word(&device["description"]),
            bytes(&device["memory_bytes"]),
            word(&device["precision"])
        ),
        match cuda::built() {
            Ok(()) => "kernels     cpu, cuda".to_string(),
            Err(reason) => format!("kernels     cpu; no CUDA kernels in this build: {reason}"),
        },
    ];
    let model = &facts["model"];
    if model.is_null() {
        return lines.join("\n");
    }
    lines.push(format!("model       {} `{}`", word(&model["kind"]), word(&model["folder"])));
    lines.push(format!(
        "network     {}, {} parameters in {} tensors; attention {}",
        word(&model["network"]),
        output::grouped(model["parameters"].as_u64().unwrap_or(0)),
        model["tensors"],
        word(&model["attention"])
    ));
    lines.push(format!(
        "process     {}, T = {}, predicts {}",
        word(&model["scheduler"]),
        model["train_steps_T"],
        word(&model["prediction_type"])
    ));
    match model["image"].as_array() {
        Some(i) => lines.push(format!("images      {}x{}, {} channels", i[0], i[1], i[2])),
        None => lines.push(
            "images      the configuration names no size: --set model.sample_size=32 for memory and flops".into(),
        ),
    }
    for (key, name) in [("sample", "evaluation "), ("train", "train step ")] {
        let m = &model[key];
        if m.is_null() {
            continue;
        }
        lines.push(format!(
            "{name} batch {}: {:.3} GFLOP, peak {} (weights {}, optimizer {}, packed {}, activations {})",
            model["batch"],
            m["flops"].as_u64().unwrap_or(0) as f64 / 1e9,
            bytes(&m["peak_bytes"]),
            bytes(&m["weights_bytes"]),
            bytes(&m["optimizer_bytes"]),
            bytes(&m["packed_bytes"]),
            bytes(&m["activation_bytes"]),
        ));
    }
    lines.join("\n")
}
