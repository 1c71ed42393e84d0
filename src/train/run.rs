//! A run in progress: examples, optimizer steps, checkpoints, grids.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::metrics::{Quartiles, Record};
use super::step::{Batch, Control, Images, Started, TrainStep};
use crate::backend::{Engine, WeightSet};
use crate::checkpoint::atomic;
use crate::checkpoint::diffusers::Pipeline;
use crate::checkpoint::training::{Cursor, Progress, RunDirectory, TrainingState};
use crate::config::Config;
use crate::data::{Dataset, Order};
use crate::diffusion::denoiser::Precondition;
use crate::diffusion::loss::Objective;
use crate::diffusion::process::ProcessKind;
use crate::diffusion::sampler::run::Request as DrawRequest;
use crate::diffusion::sampler::{Kind, Options, Setup};
use crate::error::{Error, Result};
use crate::model::Network;
use crate::ops::noising::{coefficient, pick};
use crate::ops::variational::column;
use crate::plan::{Parameters, Space};
use crate::random::{self, Purpose, image_keys};
use crate::sample::Drawing;

/// Everything that a step needs.
pub(super) struct Run<'a> {
    pub(super) config: &'a Config,
    pub(super) engine: Engine,
    pub(super) network: Network,
    pub(super) parameters: Parameters,
    pub(super) objective: Objective,
    pub(super) dataset: Dataset,
    pub(super) order: Order,
    pub(super) step: TrainStep,
    /// In which form the step gets its images.
    pub(super) images: Images,
    pub(super) batch: Batch,
    /// Where the examples' times lie in their distribution.
    pub(super) quantiles: Vec<f64>,
    pub(super) losses: Vec<f32>,
    pub(super) indices: Vec<usize>,
    pub(super) flips: Vec<bool>,
}

/// An optimizer step that the device has been given.
pub(super) struct InFlight {
    /// Steps before it.
    done: u64,
    control: Control,
    /// Each micro-batch, and where its times lie in their distribution.
    micros: Vec<(Started, Vec<f64>)>,
}

/// How the grids of a run are drawn.
pub(super) fn grid_drawing<'a>(
    config: &'a Config,
    network: &'a Network,
    image: [usize; 3],
) -> Result<Drawing<'a>> {
    let sample = &config.sample;
    let kind = match &sample.sampler {
        Some(name) => Kind::from_name(name)?,
        None if config.process.kind == ProcessKind::Table => Kind::from_config(&config.scheduler)?,
        // No class of diffusers' means another process; this one takes any.
        None => Kind::Ddim,
    };
    let denoiser = config.denoiser()?;
    let process = denoiser.process.clone();
    let options = Options { steps: sample.steps, ..Options::default() };
    Ok(Drawing {
        network,
        kind,
        setup: Setup::new(denoiser, process, &config.scheduler, options)?,
        image,
        batch: sample.batch.min(sample.count),
        guidance: 1.0,
        given_noise: false,
    })
}

impl Run<'_> {
    pub(super) fn images_per_step(&self) -> u64 {
        (self.config.train.batch * self.config.train.accumulation) as u64
    }

    /// Fills the host's side of the micro-batch that starts at `position`.
    fn fill(&mut self, position: u64) -> Result<()> {
        let seed = self.config.train.seed;
        let train = &self.config.train;
        self.order.fill(position, &mut self.indices);
        for (i, flip) in self.flips.iter_mut().enumerate() {
            *flip = self.config.data.horizontal_flip && self.order.flip(position + i as u64);
        }
        self.fill_images();
        let classes = self.network.classes();
        for i in 0..self.indices.len() {
            let image = position + i as u64;
            let keys = image_keys(seed, image);
            self.batch.keys[4 * i..4 * i + 4].copy_from_slice(&keys);
            let mut normal = [0f32];
            random::fill_normal(keys, Purpose::TrainTime, 1, 0, &mut normal);
            let uniform = random::uniform(keys, Purpose::TrainTime, 0);
            let example = self.objective.example(uniform, normal[0].into())?;
            self.quantiles[i] = example.draw.quantile;
            self.batch.t[i] = example.label as f32;
            self.batch.label[i] = example.label as u32;
            let columns = coefficient::COLUMNS;
            self.batch.coefficients[columns * i..columns * (i + 1)].copy_from_slice(&example.row);
            let columns = column::COLUMNS;
            self.batch.variational[columns * i..columns * (i + 1)]
                .copy_from_slice(&example.variational);
            if self.objective.is_two_variable() {
                let len = self.dataset.image_len();
                let second = &mut self.batch.target[len * i..len * (i + 1)];
                random::fill_normal(keys, Purpose::TrainNoise, 1, 0, second);
                second.iter_mut().for_each(|z| *z *= example.second);
            }
            if let (Some(rows), Some(labels)) = (classes, self.dataset.labels()) {
                let dropped = train.class_dropout > 0.0
                    && random::uniform(keys, Purpose::ClassDrop, 0) < train.class_dropout;
                self.batch.class[i] = match dropped {
                    true => rows as u32 - 1,
                    false => labels[self.indices[i]],
                };
            }
        }
        Ok(())
    }

    /// The clean images of the micro-batch, in the form that the step reads.
    fn fill_images(&mut self) {
        let Images { levels, resident, .. } = self.images;
        if levels == 0 && resident.is_none() {
            self.dataset.fill_batch(&self.indices, &self.flips, &mut self.batch.x0);
            return;
        }
        let picks = self.batch.picks.chunks_exact_mut(pick::COLUMNS).enumerate();
        for ((i, row), (&index, &flip)) in picks.zip(self.indices.iter().zip(&self.flips)) {
            row[pick::ROW] = if resident.is_some() { index } else { i } as u32;
            row[pick::MIRRORED] = u32::from(flip);
        }
        if resident.is_none() {
            let len = self.dataset.image_len();
            for (&index, to) in self.indices.iter().zip(self.batch.bytes.chunks_exact_mut(len)) {
                to.copy_from_slice(self.dataset.image(index));
            }
        }
    }

    /// Starts the optimizer step after `done` earlier ones. None where `stop` was set
    /// between two micro-batches: then the weights are those of step `done`.
    pub(super) fn start(&mut self, done: u64, stop: &AtomicBool) -> Result<Option<InFlight>> {
        let train = &self.config.train;
        let updates = (done + 1) as f64;
        let control = Control {
            learning_rate: train.learning_rate_at(done),
            bias_correction_1: 1.0 - train.beta1.powf(updates),
            bias_correction_2: 1.0 - train.beta2.powf(updates),
            ema_decay: train.ema_decay_at(done),
        };
        self.step.refresh(&mut self.engine)?;
        let mut micros = Vec::with_capacity(train.accumulation);
        for micro in 0..train.accumulation {
            if micro > 0 && stop.load(Ordering::Relaxed) {
                for (started, _) in micros {
                    self.step.finish(&mut self.engine, started, &mut self.losses)?;
                }
                return Ok(None);
            }
            self.fill(self.position(done, micro))?;
            let started = self.step.start(&mut self.engine, micro, &self.batch, &control)?;
            micros.push((started, self.quantiles.clone()));
        }
        Ok(Some(InFlight { done, control, micros }))
    }

    /// Position in the run of the first example of a micro-batch.
    fn position(&self, done: u64, micro: usize) -> u64 {
        let train = &self.config.train;
        (done * train.accumulation as u64 + micro as u64) * train.batch as u64
    }

    /// Waits for a step's numbers; the step after it may have been started.
    pub(super) fn finish(&mut self, step: InFlight) -> Result<Record> {
        let InFlight { done, control, micros } = step;
        let mut quartiles = Quartiles::default();
        let (mut sum, mut norm) = (0f64, 0f32);
        for (micro, (started, quantiles)) in micros.into_iter().enumerate() {
            let of_update = self.step.finish(&mut self.engine, started, &mut self.losses)?;
            norm = of_update.unwrap_or(norm);
            for (&loss, &quantile) in self.losses.iter().zip(&quantiles) {
                sum += f64::from(loss);
                quartiles.add(quantile, loss);
            }
            if self.losses.iter().any(|l| !l.is_finite()) {
                let tensor = self.diagnose(done, micro)?;
                return Err(self.not_finite(done, "the loss", tensor));
            }
        }
        if !norm.is_finite() {
            let mut tensor = None;
            for micro in 0..self.config.train.accumulation {
                tensor = tensor.or(self.diagnose(done, micro)?);
            }
            return Err(self.not_finite(done, "the gradient norm", tensor));
        }
        let images = self.images_per_step();
        Ok(Record {
            step: done + 1,
            images_seen: (done + 1) * images,
            epoch: ((done + 1) * images) as f64 / self.dataset.len() as f64,
            loss: (sum / images as f64) as f32,
            loss_quartiles: quartiles.mean(),
            gradient_norm: norm,
            learning_rate: control.learning_rate,
            ema_decay: control.ema_decay,
            seconds: 0.0,
            images_per_second: 0.0,
        })
    }

    /// The first tensor of a micro-batch that is not finite.
    fn diagnose(&mut self, done: u64, micro: usize) -> Result<Option<String>> {
        self.fill(self.position(done, micro))?;
        self.step.diagnose(&mut self.engine, micro, &self.batch)
    }

    fn not_finite(&self, done: u64, what: &str, tensor: Option<String>) -> Error {
        Error::NotFinite {
            step: done + 1,
            what: what.into(),
            tensor,
            remedy: "the last checkpoint is as it was; lower train.learning_rate or train.clip, \
                     raise train.warmup_steps, and go on with --resume"
                .into(),
        }
    }

    pub(super) fn save(&mut self, directory: &mut RunDirectory, step: u64) -> Result<()> {
        let raw = self.engine.get_arena(Space::Parameters)?;
        let average = self.engine.get_arena(Space::Average)?;
        let first_moments = self.engine.get_arena(Space::FirstMoments)?;
        let second_moments = self.engine.get_arena(Space::SecondMoments)?;
        for (arena, what) in [(&raw, "a weight"), (&second_moments, "a second moment")] {
            let broken = arena.iter().position(|v| !v.is_finite());
            let Some(at) = broken else { continue };
            let entries = &self.parameters.entries;
            let tensor = entries.iter().rev().find(|p| p.offset <= at).map(|p| p.name.clone());
            return Err(self.not_finite(step.saturating_sub(1), what, tensor));
        }
        let position = step * self.images_per_step();
        let len = self.dataset.len() as u64;
        let progress = Progress {
            step,
            seed: self.config.train.seed,
            cursor: Cursor { epoch: position / len, position: position % len },
        };
        let scheduler = serde_json::from_str(&self.config.scheduler.to_json())
            .map_err(|e| Error::Usage(format!("scheduler configuration: {e}")))?;
        let network = &self.network;
        let denoiser = self.objective.denoiser();
        let mut not_in_diffusers = Vec::new();
        if !network.is_in_diffusers() {
            let class = network.class_name();
            not_in_diffusers.push(format!("network: diffusers has no class `{class}`"));
        }
        if self.config.process.kind != ProcessKind::Table {
            not_in_diffusers.push(format!("process: `{}`", denoiser.process.name()));
        }
        if denoiser.prediction != self.config.scheduler.prediction_type {
            not_in_diffusers.push(format!("prediction: `{}`", denoiser.prediction.name()));
        }
        if denoiser.precondition != Precondition::None {
            not_in_diffusers.push("preconditioning: EDM's c_in, c_skip, c_out, c_noise".into());
        }
        if denoiser.correction {
            not_in_diffusers.push("linear correction: the network sees x divided by signal".into());
        }
        let extras = serde_json::json!({
            "langevin_version": env!("CARGO_PKG_VERSION"),
            "sample": self.config.sample,
            "image": [self.dataset.height(), self.dataset.width(), self.dataset.channels()],
            "data": self.dataset.name,
            "classes": self.dataset.classes(),
            "process": self.config.process,
            "denoiser": self.config.denoiser,
            "loss": self.config.loss,
            "not_in_diffusers": not_in_diffusers,
        });
        directory.save(&Pipeline {
            network_config: &self.config.model.to_json(),
            scheduler_config: &scheduler,
            extras: &extras,
            parameters: &self.parameters,
            average: &average,
            raw: Some(&raw),
            training: Some(TrainingState {
                progress: &progress,
                first_moments: &first_moments,
                second_moments: &second_moments,
            }),
        })?;
        Ok(())
    }

    /// Draws the grid of the averaged weights; false where `stop` ended it.
    pub(super) fn draw(&mut self, out: &Path, name: &str, stop: &AtomicBool) -> Result<bool> {
        let sample = &self.config.sample;
        let image = [self.dataset.height(), self.dataset.width(), self.dataset.channels()];
        let prepared = grid_drawing(self.config, &self.network, image)?.prepare(&self.engine)?;
        let ready = prepared.load(&mut self.engine, WeightSet::Average)?;
        let known = self.dataset.classes().len().max(1);
        let classes: Vec<u32> = match self.network.classes() {
            Some(_) => (0..sample.count).map(|i| (i % known) as u32).collect(),
            None => Vec::new(),
        };
        let request = DrawRequest {
            seed: self.config.train.seed,
            count: sample.count,
            classes: &classes,
            ..DrawRequest::default()
        };
        let samples = ready.draw(&mut self.engine, &request, &mut |_, _| match stop
            .load(Ordering::Relaxed)
        {
            true => Err(Error::Interrupted { step: 0, saved: out.to_path_buf() }),
            false => Ok(()),
        });
        ready.unload(&mut self.engine);
        if let Err(Error::Interrupted { .. }) = samples {
            return Ok(false);
        }
        let shape = [sample.count, image[0], image[1], image[2]];
        let reference = crate::picture::is_plane(&image).then(|| self.dataset.first_values(4000));
        let png = crate::picture::samples_png(&samples?.images, shape, reference.as_deref());
        atomic::write_file(out.join(name), png)?;
        Ok(true)
    }
}
