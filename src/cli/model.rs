//! A model behind a path: network, scheduler, weights.

use std::path::Path;

use langevin::checkpoint::diffusers::{self, Kind, ModelFiles};
use langevin::checkpoint::weights::{Report, Weights as WeightFile};
use langevin::data::{DataOptions, Dataset};
use langevin::diffusion::denoiser::Denoiser;
use langevin::diffusion::empirical;
use langevin::diffusion::process::{ProcessConfig, SharedProcess, of_checkpoint};
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::model::{EmpiricalConfig, Network};
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
    /// The images, where a data set stands in the model's place.
    images: Option<Vec<f32>>,
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
    Ok(Model { files, network, parameters, scheduler, denoiser, sampled, images: None })
}

/// The exact denoiser of a data set in the place of a model. Overrides are those
/// of `scheduler.*` and `process.*`, which it is sampled under: without them
/// diffusers' default table.
pub fn open_data(spec: &str, set: &[String]) -> Result<Model> {
    let data = Dataset::open(spec, &DataOptions::default())?;
    // Points are not bounded as pixels are.
    let mut value = serde_json::json!({ "scheduler": { "clip_sample": data.levels() > 0 } });
    for assignment in set {
        let key = assignment.split('=').next().unwrap_or("").trim();
        if key.starts_with("scheduler.") {
            langevin::config::set(&mut value, assignment)?;
        } else if !["sampler.", "process."].iter().any(|p| key.starts_with(p)) {
            return Err(Error::Usage(format!(
                "--set with --model-free takes keys under scheduler., sampler. or process., not \
                 `{key}`"
            )));
        }
    }
    let scheduler = SchedulerConfig::from_json(&value["scheduler"].to_string())?;
    scheduler.refuse_unknown()?;
    let [images, height, width, channels] = data.shape();
    let network = Network::Empirical(EmpiricalConfig { images, height, width, channels });
    let parameters = network.parameters()?;
    let process = ProcessConfig::default().overridden(set)?.unwrap_or_default();
    let files = ModelFiles {
        kind: Kind::Flat,
        folder: spec.into(),
        network_config: network.to_json(),
        scheduler_config: None,
        extras: Some(serde_json::json!({ "data": spec })),
        weights: spec.into(),
        raw_weights: None,
        training: None,
        skipped: Vec::new(),
    };
    Ok(Model {
        files,
        network,
        sampled: process.build(&scheduler)?,
        scheduler,
        denoiser: empirical::denoiser(),
        images: Some(data.first_values(images)),
        parameters,
    })
}

impl Model {
    /// `[h, w, c]`: what the configuration names, or the run has kept.
    pub fn image_shape(&self) -> Result<[usize; 3]> {
        if let Some(shape) = self.network.sample_shape() {
            return Ok(shape);
        }
        let extras = self.files.extras.as_ref();
        extras.and_then(|e| serde_json::from_value(e.get("image")?.clone()).ok()).ok_or_else(|| {
            Error::config(
                "model.sample_size",
                "the model names no image size: --set model.sample_size=32",
            )
        })
    }

    /// Reads the weights into a new arena.
    pub fn weights(&self, which: Weights) -> Result<(Vec<f32>, Report)> {
        if let Some(images) = &self.images {
            let mut arena = vec![0f32; self.parameters.arena_len()];
            arena[..images.len()].copy_from_slice(images);
            let path = self.files.weights.clone();
            return Ok((arena, Report { path, tensors: 1, ..Report::default() }));
        }
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
