//! Drawing images from a network: sampler program, plan and loop put together.

use crate::backend::{Engine, Loaded, Requirement, WeightSet};
use crate::diffusion::edit::dps::{self, Operator};
use crate::diffusion::sampler::run::{self, Request, Samples, Sampling, Settings, step_plan};
use crate::diffusion::sampler::{Kind, Program, Setup};
use crate::error::{Error, Result};
use crate::model::{Conditioning, Network, NetworkInputs};
use crate::plan::{DType, Plan};

/// How to draw.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Drawing<'a> {
    pub network: &'a Network,
    pub kind: Kind,
    /// The network as a denoiser, what it is sampled under, and choices.
    pub setup: Setup,
    /// `[h, w, c]`
    pub image: [usize; 3],
    /// Images of one batch.
    pub batch: usize,
    /// Weight W of uncond + W (cond - uncond); 1 is off.
    pub guidance: f64,
    /// Whether x_T and z are given.
    pub given_noise: bool,
}

/// A sampler whose plan is built and lowered, its memory need known.
pub struct Prepared {
    /// The sampler program.
    pub sampler: Program,
    settings: Settings,
    program: crate::backend::Program,
}

/// A sampler on a device.
pub struct Ready {
    sampler: Program,
    settings: Settings,
    loaded: Loaded,
}

fn dtype(form: Conditioning, what: &str) -> Result<Option<DType>> {
    match form {
        Conditioning::Absent => Ok(None),
        Conditioning::Value => Ok(Some(DType::F32)),
        Conditioning::Row(_) => Ok(Some(DType::U32)),
        Conditioning::Vector(_) => Err(Error::Usage(format!(
            "the network takes a vector as its {what}, which sampling cannot make; use predict"
        ))),
    }
}

impl Drawing<'_> {
    /// Builds and lowers; allocates nothing on the device.
    pub fn prepare(&self, engine: &Engine) -> Result<Prepared> {
        self.prepare_program(engine, Program::new(self.kind, &self.setup)?, None)
    }

    /// The same for any program; with an operator, the plan of diffusion posterior
    /// sampling.
    pub fn prepare_program(
        &self,
        engine: &Engine,
        sampler: Program,
        operator: Option<&Operator>,
    ) -> Result<Prepared> {
        let [h, w, c] = self.image;
        let (seen, predicted) = (self.network.in_channels(), self.network.out_channels());
        // Twice the channels: the second half is a variance.
        if seen != c || predicted != c && predicted != 2 * c {
            return Err(Error::Usage(format!(
                "the network maps {seen} channels to {predicted}; sampling needs {c} and {c}, or \
                 {} where it predicts a variance",
                2 * c
            )));
        }
        if sampler.learns_variance() && predicted != 2 * c {
            return Err(Error::config(
                "scheduler.variance_type",
                format!(
                    "learned and learned_range need a network of {} output channels, and this one \
                     has {predicted}; use fixed_small or fixed_large",
                    2 * c
                ),
            ));
        }
        let label = dtype(self.network.time_input(), "time")?.unwrap_or(DType::F32);
        let broken = sampler.stages.iter().find(|s| s.evaluates && s.label.fract() != 0.0);
        if let (DType::U32, Some(stage)) = (label, broken) {
            return Err(Error::Usage(format!(
                "the network's time is the row of a table, and {} asks at label {}: take a spacing \
                 of whole labels (timestep_spacing leading or trailing, without sampler.grid)",
                sampler.name, stage.label
            )));
        }
        let settings = Settings {
            batch: self.batch,
            shape: vec![h, w, c],
            label,
            class: dtype(self.network.class_input(), "class")?,
            guidance: self.guidance,
            given_noise: self.given_noise && sampler.noise_rows() > 0,
        };
        let network = |plan: &mut Plan, inputs: run::NetworkInputs| {
            let inputs =
                NetworkInputs { x: inputs.x, t: inputs.label, class: inputs.class, keys: None };
            self.network.build(plan, &inputs)
        };
        let plan = match operator {
            None => step_plan(&sampler, &settings, network)?,
            Some(operator) => dps::plan(&sampler, &settings, operator, network)?,
        };
        let program = engine.lower(plan)?;
        Ok(Prepared { sampler, settings, program })
    }
}

impl Prepared {
    /// What the run needs on its device.
    pub fn requirement(&self, arena_len: usize) -> Requirement {
        Requirement::of(arena_len, false, &[&self.program])
    }

    /// Bytes on the host while `count` images are drawn: the weights as they are read,
    /// the images and their copy for a file, those of a batch, and given noise.
    pub fn host_bytes(&self, arena_len: usize, count: usize) -> usize {
        let image: usize = self.settings.shape.iter().product();
        let rows = if self.settings.given_noise { 1 + self.sampler.noise_rows() } else { 0 };
        4 * (arena_len + image * (count * (2 + rows) + 2 * self.settings.batch))
    }

    /// The lowered plan of one stage.
    pub fn program(&self) -> &crate::backend::Program {
        &self.program
    }

    /// Allocates and takes up the weights as they are now.
    pub fn load(self, engine: &mut Engine, weights: WeightSet) -> Result<Ready> {
        let loaded = engine.load(self.program, weights)?;
        engine.refresh(&loaded)?;
        Ok(Ready { sampler: self.sampler, settings: self.settings, loaded })
    }
}

impl Ready {
    /// Draws images; see [`Sampling::run`].
    pub fn draw(
        &self,
        engine: &mut Engine,
        request: &Request,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Samples> {
        let sampling =
            Sampling { program: &self.sampler, settings: &self.settings, loaded: &self.loaded };
        sampling.run(engine, request, progress)
    }

    /// Frees what belongs to the sampler alone.
    pub fn unload(self, engine: &mut Engine) {
        engine.unload(self.loaded);
    }
}
