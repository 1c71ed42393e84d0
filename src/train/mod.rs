//! The training loop: data in, checkpoints, metrics and pictures out.
//!
//! Everything that decides a bit of the result is a function of (seed, position
//! in the run): the order of the data, the times, the noise, dropout. A run
//! that is stopped and resumed therefore repeats what one long run does.

pub mod metrics;
pub mod progress;
pub mod schedules;
pub mod step;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::backend::{Backend, Engine, Requirement, WeightSet, human_bytes};
use crate::checkpoint::diffusers::Pipeline;
use crate::checkpoint::training::{Cursor, Progress, RunDirectory, TrainingState, load_state};
use crate::checkpoint::weights::Weights;
use crate::checkpoint::{atomic, diffusers};
use crate::config::Config;
use crate::data::{Dataset, Order};
use crate::diffusion::loss::{self, Weighting};
use crate::diffusion::sampler::run::Request as DrawRequest;
use crate::diffusion::sampler::{Kind, Options, Setup};
use crate::diffusion::schedule::Table;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Network};
use crate::ops::noising::coefficient;
use crate::plan::{Parameters, Space};
use crate::random::{self, Purpose, image_keys};
use crate::sample::Drawing;
use metrics::{MetricsLog, Quartiles, Record};
use step::{Batch, Control, StepPrograms, TrainStep};

/// File of the resolved configuration in a run directory.
pub const CONFIG: &str = "config.toml";
/// File of the loss curve in a run directory.
pub const CURVE: &str = "loss.png";
/// File of the newest sample grid in a run directory.
pub const GRID: &str = "samples.png";

/// What to train.
pub struct Request<'a> {
    /// The resolved configuration.
    pub config: Config,
    /// The run directory.
    pub out: PathBuf,
    /// Go on from the newest valid checkpoint.
    pub resume: bool,
    /// A model to take the first weights from.
    pub init: Option<PathBuf>,
    /// Set to ask for a save and a stop (Ctrl-C).
    pub stop: &'a AtomicBool,
}

/// What a finished run has to say.
#[derive(Clone, Debug, serde::Serialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub steps: u64,
    pub images: u64,
    pub seconds: f64,
    /// The memory need that was printed before the run.
    pub memory: Requirement,
    pub first_loss: Option<f32>,
    pub final_loss: Option<f32>,
    pub checkpoint: PathBuf,
    pub grid: PathBuf,
    /// None where no step was logged.
    pub curve: Option<PathBuf>,
}

/// Something worth a line on the terminal.
pub type Report<'a> = &'a mut dyn FnMut(&str);

struct Run<'a> {
    config: &'a Config,
    engine: Engine,
    network: Network,
    parameters: Parameters,
    table: Table,
    dataset: Dataset,
    order: Order,
    step: TrainStep,
    batch: Batch,
    labels: Vec<usize>,
    losses: Vec<f32>,
    indices: Vec<usize>,
    flips: Vec<bool>,
}

/// Trains; returns when `config.train.steps` are done, or with
/// [`Error::Interrupted`] after a save when `stop` is set.
///
/// # Errors
/// Data, checkpoint, device and file errors; [`Error::NotFinite`] when the loss
/// or the gradient norm is NaN or infinite: the last checkpoint stays.
pub fn train(backend: Box<dyn Backend>, request: Request, say: Report) -> Result<Summary> {
    let Request { config, out, resume, init, stop } = request;
    let dataset = open_data(&config)?;
    let network = config.model.clone();
    check_fit(&config, &network, &dataset)?;
    let parameters = network.parameters()?;
    let mut directory = match resume && out.exists() {
        true => RunDirectory::open(&out)?,
        false => RunDirectory::create(&out)?,
    };
    for path in &directory.cleaned {
        say(&format!("removed `{}`, left over from an interrupted write", path.display()));
    }

    // Plans are lowered, and the need checked, before anything large is allocated.
    let engine = Engine::new(backend, 0, true)?;
    let image = [dataset.height(), dataset.width(), dataset.channels()];
    let programs = StepPrograms::new(&engine, &network, &parameters, &config.train, image)?;
    let grid = grid_drawing(&config, &network, image)?.prepare(&engine)?;
    let mut all = programs.programs();
    all.push(grid.program());
    let requirement = Requirement::of(parameters.arena_len(), true, &all);
    drop(grid);
    say(&format!(
        "{} images {}x{}x{}; {} parameters; {:.2} GFLOP a step; memory: {} (weights {}, optimizer \
         {}, packed weights {}, activations {}, checkpoints {})",
        dataset.len(),
        image[0],
        image[1],
        image[2],
        parameters.count(),
        (programs.flops() * config.train.accumulation as u64) as f64 / 1e9,
        human_bytes(requirement.total() as u64),
        human_bytes(requirement.weights as u64),
        human_bytes(requirement.optimizer as u64),
        human_bytes(requirement.packed as u64),
        human_bytes(requirement.activations as u64),
        human_bytes(requirement.staging as u64),
    ));
    if !network.is_in_diffusers() {
        say(&format!(
            "note: diffusers has no class `{}`; the checkpoints open in langevin alone",
            network.class_name()
        ));
    }
    engine.check(&requirement, "lower train.batch and raise train.accumulation instead")?;
    let mut engine = Engine::new(engine.into_backend(), parameters.arena_len(), true)?;

    let mut start = 0;
    let mut resumed = false;
    if resume {
        let search = directory.newest_valid()?;
        for (path, why) in &search.skipped {
            say(&format!("passed over `{}`: {why}", path.display()));
        }
        match search.found {
            Some(found) => {
                let images = dataset.len() as u64;
                start = load_checkpoint(&mut engine, &parameters, &found.path, &config, images)?;
                resumed = true;
                say(&format!("resuming from `{}`", found.path.display()));
            }
            None => say("no valid checkpoint yet: starting at step 0"),
        }
    }
    if !resumed {
        let weights = match &init {
            Some(path) => initial_from(path, &parameters, say)?,
            None => initial_weights(&parameters, config.train.seed),
        };
        engine.set_arena(Space::Parameters, &weights)?;
        engine.set_arena(Space::Average, &weights)?;
    }
    if start > config.train.steps {
        return Err(Error::Usage(format!(
            "the run has {start} steps already; --steps is the total and {} is less",
            config.train.steps
        )));
    }
    let n = config.train.batch;
    let image_len = dataset.image_len();
    let step = programs.load(&mut engine)?;
    let mut run = Run {
        config: &config,
        engine,
        network,
        parameters,
        table: config.scheduler.table()?,
        order: Order::new(dataset.len(), config.train.seed),
        dataset,
        step,
        batch: Batch::new(n, image_len),
        labels: vec![0; n],
        losses: vec![0.0; n],
        indices: vec![0; n],
        flips: vec![false; n],
    };
    if init.is_some() && !resumed {
        // A kill before the first checkpoint must not lose the given weights, nor
        // may a resume find the configuration without them.
        run.save(&mut directory, 0)?;
    }
    atomic::write_file(out.join(CONFIG), run.config.to_toml()?)?;
    let mut log = match resumed {
        true => MetricsLog::resume(&out, start)?,
        false => MetricsLog::create(&out)?,
    };

    let began = Instant::now();
    let bar = progress::Progress::new("train", config.train.steps, start);
    let mut last_saved = resumed.then_some(start);
    let mut last_loss = None;
    let mut since = (Instant::now(), start);
    for done in start..config.train.steps {
        let mut record = match run.optimizer_step(done) {
            Ok(record) => record,
            Err(error) => {
                log.flush()?;
                return Err(error);
            }
        };
        last_loss = Some(record.loss);
        let now = done + 1;
        let finished = now == config.train.steps;
        if now.is_multiple_of(config.train.log_every) || finished {
            let seconds = since.0.elapsed().as_secs_f64().max(1e-9);
            let images = (now - since.1) * run.images_per_step();
            record.seconds = began.elapsed().as_secs_f64();
            record.images_per_second = images as f64 / seconds;
            since = (Instant::now(), now);
            // The last record of a run that is prolonged later is not one of the
            // longer run's, unless it falls on its grid.
            if now.is_multiple_of(config.train.log_every) {
                log.push(&record)?;
            }
        }
        bar.update(now, format_args!("loss {:.4}", record.loss));
        let stopping = stop.load(Ordering::Relaxed);
        if now.is_multiple_of(config.train.checkpoint_every) || finished || stopping {
            log.flush()?;
            run.save(&mut directory, now)?;
            directory.prune(config.train.keep)?;
            last_saved = Some(now);
        }
        if stopping && !finished {
            bar.finish();
            return Err(Error::Interrupted { step: now, saved: out });
        }
        let every = config.train.sample_every;
        if every > 0 && now.is_multiple_of(every) && !finished {
            run.draw(&out, &format!("samples-{now}.png"), stop)?;
            draw_curve(&out)?;
            since = (Instant::now(), now);
        }
    }
    bar.finish();
    log.flush()?;
    if last_saved != Some(config.train.steps) {
        run.save(&mut directory, config.train.steps)?;
    }
    if !run.draw(&out, GRID, stop)? {
        return Err(Error::Interrupted { step: config.train.steps, saved: out });
    }
    draw_curve(&out)?;
    let records = metrics::read(&out)?;
    let curve = out.join(CURVE);
    Ok(Summary {
        steps: config.train.steps,
        images: (config.train.steps - start) * run.images_per_step(),
        seconds: began.elapsed().as_secs_f64(),
        memory: requirement,
        first_loss: records.first().map(|r| r.loss).or(last_loss),
        final_loss: smoothed_loss(&records).or(last_loss),
        checkpoint: out.join("checkpoints").join(format!("step-{}", config.train.steps)),
        grid: out.join(GRID),
        curve: curve.is_file().then_some(curve),
    })
}

/// How the grids of a run are drawn.
fn grid_drawing<'a>(
    config: &'a Config,
    network: &'a Network,
    image: [usize; 3],
) -> Result<Drawing<'a>> {
    let sample = &config.sample;
    let kind = match &sample.sampler {
        Some(name) => Kind::from_name(name)?,
        None => Kind::from_config(&config.scheduler)?,
    };
    Ok(Drawing {
        network,
        kind,
        setup: Setup::of_scheduler(
            &config.scheduler,
            Options { steps: sample.steps, ..Options::default() },
        )?,
        image,
        batch: sample.batch.min(sample.count),
        guidance: 1.0,
        given_noise: false,
    })
}

/// Mean loss of the last tenth of the records.
fn smoothed_loss(records: &[Record]) -> Option<f32> {
    let tail = &records[records.len() - (records.len() / 10).max(1).min(records.len())..];
    let sum: f64 = tail.iter().map(|r| f64::from(r.loss)).sum();
    (!tail.is_empty()).then(|| (sum / tail.len() as f64) as f32)
}

fn draw_curve(out: &Path) -> Result<()> {
    let records = metrics::read(out)?;
    if records.is_empty() {
        return Ok(());
    }
    atomic::write_file(out.join(CURVE), crate::picture::loss_curve(&records))
}

/// Opens the data that a configuration names.
pub fn open_data(config: &Config) -> Result<Dataset> {
    let spec = config.data.spec.as_deref().ok_or_else(|| {
        Error::Usage(
            "no data: give --data with one of digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE, points:NAME".into(),
        )
    })?;
    let data = &config.data;
    let options = crate::data::DataOptions {
        size: data.size,
        channels: data.channels,
        limit: data.limit,
        ..Default::default()
    };
    Dataset::open(spec, &options)
}

/// Refuses a network that does not fit the data, with both sides named.
fn check_fit(config: &Config, network: &Network, dataset: &Dataset) -> Result<()> {
    let [_, h, w, c] = dataset.shape();
    for (key, channels) in [
        ("model.in_channels", network.in_channels()),
        ("model.out_channels", network.out_channels()),
    ] {
        if channels != c {
            return Err(Error::config(
                key,
                format!(
                    "is {channels} and the data has {c} channels: --set {key}={c}, or --set data.channels={channels}"
                ),
            ));
        }
    }
    if let Some([mh, mw, _]) = network.sample_shape()
        && [mh, mw] != [h, w]
    {
        return Err(Error::config(
            "model.sample_size",
            format!(
                "is {mh}x{mw} and the data is {h}x{w}: --set data.size='[{mh}, {mw}]', or set model.sample_size"
            ),
        ));
    }
    match network.class_input() {
        Conditioning::Absent => {}
        Conditioning::Row(rows) => {
            if dataset.labels().is_none() {
                return Err(Error::config(
                    "model.num_class_embeds",
                    "the network has classes and the data has none",
                ));
            }
            let needed = dataset.classes().len() + usize::from(config.train.class_dropout > 0.0);
            if rows < needed {
                return Err(Error::config(
                    "model.num_class_embeds",
                    format!(
                        "is {rows}; the data has {} classes, and class dropout needs one row more: {needed}",
                        dataset.classes().len()
                    ),
                ));
            }
        }
        _ => {
            return Err(Error::config(
                "model.class_embed_type",
                "training takes classes from a table only: leave class_embed_type out and set num_class_embeds",
            ));
        }
    }
    Ok(())
}

/// First weights, each element keyed by (seed, weight, position).
pub fn initial_weights(parameters: &Parameters, seed: u64) -> Vec<f32> {
    use crate::plan::Init;
    let mut arena = vec![0f32; parameters.arena_len()];
    for (i, p) in parameters.entries.iter().enumerate() {
        let values = &mut arena[p.offset..p.offset + p.len()];
        let keys = image_keys(seed, i as u64);
        match p.init {
            Init::Constant(c) => values.fill(c),
            Init::Normal(std) => {
                random::fill_normal(keys, Purpose::Init, 0, 0, values);
                values.iter_mut().for_each(|v| *v *= std);
            }
            Init::Uniform(bound) => {
                random::fill_uniform(keys, Purpose::Init, 0, 0, values);
                values.iter_mut().for_each(|v| *v = (2.0 * *v - 1.0) * bound);
            }
        }
    }
    arena
}

fn initial_from(path: &Path, parameters: &Parameters, say: Report) -> Result<Vec<f32>> {
    let files = diffusers::open(path)?;
    let mut arena = vec![0f32; parameters.arena_len()];
    let report = Weights::open(&files.weights)?.load_into(parameters, &mut arena)?;
    say(&format!("first weights: {report}"));
    Ok(arena)
}

fn load_checkpoint(
    engine: &mut Engine,
    parameters: &Parameters,
    path: &Path,
    config: &Config,
    images: u64,
) -> Result<u64> {
    let files = diffusers::open(path)?;
    let (Some(raw), Some(training)) = (&files.raw_weights, &files.training) else {
        return Err(Error::checkpoint(
            path,
            "has no raw weights or no training state to resume from",
        ));
    };
    let len = parameters.arena_len();
    let mut arena = vec![0f32; len];
    Weights::open(raw)?.load_into(parameters, &mut arena)?;
    engine.set_arena(Space::Parameters, &arena)?;
    Weights::open(&files.weights)?.load_into(parameters, &mut arena)?;
    engine.set_arena(Space::Average, &arena)?;
    let mut second = vec![0f32; len];
    let progress = load_state(training, parameters, &mut arena, &mut second)?;
    engine.set_arena(Space::FirstMoments, &arena)?;
    engine.set_arena(Space::SecondMoments, &second)?;
    if progress.seed != config.train.seed {
        return Err(Error::config(
            "train.seed",
            format!(
                "the run was begun with seed {} and cannot go on with {}",
                progress.seed, config.train.seed
            ),
        ));
    }
    let seen = progress.step * (config.train.batch * config.train.accumulation) as u64;
    if progress.cursor != (Cursor { epoch: seen / images, position: seen % images }) {
        return Err(Error::Data {
            spec: config.data.spec.clone().unwrap_or_default(),
            problem: format!(
                "has {images} images, another number than when the run was begun; a resumed run \
                 needs the same data"
            ),
        });
    }
    Ok(progress.step)
}

impl Run<'_> {
    fn images_per_step(&self) -> u64 {
        (self.config.train.batch * self.config.train.accumulation) as u64
    }

    /// Fills the host's side of the micro-batch that starts at `position`.
    fn fill(&mut self, position: u64) {
        let seed = self.config.train.seed;
        let train = &self.config.train;
        self.order.fill(position, &mut self.indices);
        for (i, flip) in self.flips.iter_mut().enumerate() {
            *flip = self.config.data.horizontal_flip && self.order.flip(position + i as u64);
        }
        self.dataset.fill_batch(&self.indices, &self.flips, &mut self.batch.x0);
        let classes = self.network.classes();
        for i in 0..self.indices.len() {
            let image = position + i as u64;
            let keys = image_keys(seed, image);
            self.batch.keys[4 * i..4 * i + 4].copy_from_slice(&keys);
            let label =
                (random::uniform(keys, Purpose::TrainTime, 0) * self.table.steps() as f64) as usize;
            self.labels[i] = label;
            self.batch.t[i] = label as f32;
            self.batch.label[i] = label as u32;
            let row = loss::row(
                self.table.labelled(label),
                self.config.scheduler.prediction_type,
                Weighting::Simple,
            );
            let columns = coefficient::COLUMNS;
            self.batch.coefficients[columns * i..columns * (i + 1)].copy_from_slice(&row);
            if let (Some(rows), Some(labels)) = (classes, self.dataset.labels()) {
                let dropped = train.class_dropout > 0.0
                    && random::uniform(keys, Purpose::ClassDrop, 0) < train.class_dropout;
                self.batch.class[i] = match dropped {
                    true => rows as u32 - 1,
                    false => labels[self.indices[i]],
                };
            }
        }
    }

    /// The optimizer step after `done` finished ones.
    fn optimizer_step(&mut self, done: u64) -> Result<Record> {
        let train = &self.config.train;
        let (n, accumulation) = (train.batch, train.accumulation);
        self.step.refresh(&mut self.engine)?;
        let mut quartiles = Quartiles::default();
        let mut sum = 0f64;
        for micro in 0..accumulation {
            let position = (done * accumulation as u64 + micro as u64) * n as u64;
            self.fill(position);
            self.step.accumulate(&mut self.engine, micro, &self.batch, &mut self.losses)?;
            for (&loss, &label) in self.losses.iter().zip(&self.labels) {
                sum += f64::from(loss);
                quartiles.add(label as f64 / self.table.steps() as f64, loss);
            }
            if self.losses.iter().any(|l| !l.is_finite()) {
                let tensor = self.step.diagnose(&mut self.engine, micro, &self.batch)?;
                return Err(self.not_finite(done, "the loss", tensor));
            }
        }
        let learning_rate = train.learning_rate_at(done);
        let ema_decay = train.ema_decay_at(done);
        let updates = (done + 1) as f64;
        let control = Control {
            learning_rate,
            bias_correction_1: 1.0 - train.beta1.powf(updates),
            bias_correction_2: 1.0 - train.beta2.powf(updates),
            ema_decay,
        };
        let norm = self.step.update(&mut self.engine, control)?;
        if !norm.is_finite() {
            for micro in 0..accumulation {
                self.fill((done * accumulation as u64 + micro as u64) * n as u64);
                let tensor = self.step.diagnose(&mut self.engine, micro, &self.batch)?;
                if tensor.is_some() || micro + 1 == accumulation {
                    return Err(self.not_finite(done, "the gradient norm", tensor));
                }
            }
        }
        let images = (n * accumulation) as u64;
        Ok(Record {
            step: done + 1,
            images_seen: (done + 1) * images,
            epoch: ((done + 1) * images) as f64 / self.dataset.len() as f64,
            loss: (sum / images as f64) as f32,
            loss_quartiles: quartiles.mean(),
            gradient_norm: norm,
            learning_rate,
            ema_decay,
            seconds: 0.0,
            images_per_second: 0.0,
        })
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

    fn save(&mut self, directory: &mut RunDirectory, step: u64) -> Result<()> {
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
            optimizer_updates: step,
            average_updates: step,
            cursor: Cursor { epoch: position / len, position: position % len },
            ..Progress::default()
        };
        let scheduler = serde_json::from_str(&self.config.scheduler.to_json())
            .map_err(|e| Error::Usage(format!("scheduler configuration: {e}")))?;
        let network = &self.network;
        let not_in_diffusers: Vec<String> = (!network.is_in_diffusers())
            .then(|| format!("network: diffusers has no class `{}`", network.class_name()))
            .into_iter()
            .collect();
        let extras = serde_json::json!({
            "langevin_version": env!("CARGO_PKG_VERSION"),
            "sample": self.config.sample,
            "image": [self.dataset.height(), self.dataset.width(), self.dataset.channels()],
            "data": self.dataset.name,
            "classes": self.dataset.classes(),
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
}

impl Run<'_> {
    /// Draws the grid of the averaged weights; false where `stop` ended it.
    fn draw(&mut self, out: &Path, name: &str, stop: &AtomicBool) -> Result<bool> {
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
