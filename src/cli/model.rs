//! A model behind a path: network, scheduler, weights.

use std::path::Path;

use langevin::checkpoint::diffusers::{self, ModelFiles};
use langevin::checkpoint::weights::{Report, Weights as WeightFile};
use langevin::diffusion::denoiser::Denoiser;
use langevin::diffusion::process::{SharedProcess, of_checkpoint};
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::model::Network;
use langevin::plan::Parameters;
use langevin::{Error, Result};
use serde_json::Value;

use super::Weights;

/// An opened model; the weights are not read yet.
pub struct Model {
    pub files: ModelFiles,
    pub network: Network,
    pub parameters: Parameters,
    pub scheduler: SchedulerConfig,
    /// How to ask the network and what its answer means.
    pub denoiser: Denoiser,
    /// The process to sample under: the very one of the denoiser unless
    /// `--set process.*` names another.
    pub sampled: SharedProcess,
}

/// Opens MODEL; configuration overrides go over what the model says: `model.*`,
/// `scheduler.*`, `denoiser.*`; `process.*` is the process to sample under.
pub fn open(path: &Path, set: &[String]) -> Result<Model> {
    let files = diffusers::open(path)?;
    for (skipped, why) in &files.skipped {
        eprintln!("passed over `{}`: {why}", skipped.display());
    }
    let mut value = serde_json::json!({ "model": files.network_config });
    if let Some(scheduler) = &files.scheduler_config {
        value["scheduler"] = scheduler.clone();
    }
    for assignment in set {
        let key = assignment.split('=').next().unwrap_or("").trim();
        const SECTIONS: [&str; 5] = ["model.", "scheduler.", "sampler.", "process.", "denoiser."];
        if !SECTIONS.iter().any(|p| key.starts_with(p)) {
            return Err(Error::Usage(format!(
                "--set here takes keys under model., scheduler., sampler., process. or denoiser., \
                 not `{key}`"
            )));
        }
        if SECTIONS[..2].iter().any(|p| key.starts_with(p)) {
            langevin::config::set(&mut value, assignment)?;
        }
    }
    let class = value["model"]["_class_name"].as_str().unwrap_or("UNet2DModel");
    if !["UNet2DModel", "LangevinMlp"].contains(&class) {
        return Err(Error::checkpoint(
            &files.folder,
            format!("holds a {class}; this version reads UNet2DModel"),
        ));
    }
    let network = Network::from_json(&value["model"])?;
    network.validate()?;
    let parameters = network.parameters()?;
    let scheduler = match value.get("scheduler") {
        None | Some(Value::Null) => SchedulerConfig::default(),
        Some(json) => SchedulerConfig::from_json(&json.to_string())?,
    };
    let (process, denoiser) = of_checkpoint(files.extras.as_ref(), &scheduler, set)?;
    let sampled = match process.overridden(set)? {
        None => denoiser.process.clone(),
        Some(process) => process.build(&scheduler)?,
    };
    Ok(Model { files, network, parameters, scheduler, denoiser, sampled })
}

impl Model {
    /// Reads the weights into a new arena.
    pub fn weights(&self, which: Weights) -> Result<(Vec<f32>, Report)> {
        let path = match which {
            Weights::Ema => &self.files.weights,
            Weights::Raw => self.files.raw_weights.as_ref().ok_or_else(|| {
                Error::checkpoint(&self.files.folder, "has no raw weights; use --weights ema")
            })?,
        };
        let mut arena = vec![0f32; self.parameters.arena_len()];
        let report = WeightFile::open(path)?.load_into(&self.parameters, &mut arena)?;
        Ok((arena, report))
    }
}
