//! The training loop: data in, checkpoints, metrics and pictures out.
//!
//! Everything that decides a bit of the result is a function of (seed, position
//! in the run): the order of the data, the times, the noise, dropout. A run
//! that is stopped and resumed therefore repeats what one long run does.

mod begin;
mod fit;
pub mod metrics;
pub mod progress;
mod run;
pub mod schedules;
pub mod step;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::backend::{Backend, Devices, Engine, Requirement, human_bytes};
use crate::checkpoint::atomic;
use crate::checkpoint::training::RunDirectory;
use crate::config::Config;
use crate::data::{Dataset, Order};
use crate::error::{Error, Result};
use crate::plan::Space;
pub use begin::initial_weights;
use begin::{initial_from, load_checkpoint};
use fit::check_fit;
use metrics::{MetricsLog, Record};
use run::{InFlight, Run, grid_drawing};
use step::{Batch, Images, StepPrograms};

/// File of the resolved configuration in a run directory.
pub const CONFIG: &str = "config.toml";
/// File of the loss curve in a run directory.
pub const CURVE: &str = "loss.png";
/// File of the newest sample grid in a run directory.
pub const GRID: &str = "samples.png";

/// Images of a data set that are kept on a device from beginning to end: CIFAR-10
/// takes 154 MB, 64x64 ImageNet would take 15.7 GB and is uploaded batch by batch.
const RESIDENT_BYTES: u64 = 2 << 30;

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

/// Trains on a backend, or on the best of some devices that has memory and kernels for the
/// run; returns when `config.train.steps` are done, or with
/// [`Error::Interrupted`] after a save when `stop` is set.
///
/// # Errors
/// Data, checkpoint, device and file errors; [`Error::NotFinite`] when the loss
/// or the gradient norm is NaN or infinite: the last checkpoint stays.
pub fn train(devices: impl Into<Devices>, request: Request, say: Report) -> Result<Summary> {
    let Request { config, out, resume, init, stop } = request;
    let dataset = open_data(&config)?;
    let network = config.model.clone();
    let objective = config.objective(dataset.levels())?;
    check_fit(&config, &network, &dataset, &objective)?;
    let parameters = network.parameters()?;
    let mut directory = match resume && out.exists() {
        true => RunDirectory::open(&out)?,
        false => RunDirectory::create(&out)?,
    };
    for path in &directory.cleaned {
        say(&format!("removed `{}`, left over from an interrupted write", path.display()));
    }

    let image = [dataset.height(), dataset.width(), dataset.channels()];
    let prepare = |backend| {
        // Plans are lowered, and the need checked, before anything large is allocated.
        let engine = Engine::new(backend, 0, true)?;
        let images = form_of(&dataset, engine.backend());
        let programs =
            StepPrograms::new(&engine, &network, &parameters, &config.train, &objective, images)?;
        let flops = programs.flops() * config.train.accumulation as u64;
        let grid = grid_drawing(&config, &network, image)?.prepare(&engine)?;
        let mut all = programs.programs();
        all.push(grid.program());
        let requirement = Requirement::of(parameters.arena_len(), true, &all);
        drop(grid);
        engine.check(&requirement, "lower train.batch and raise train.accumulation instead")?;
        let mut engine = Engine::new(engine.into_backend(), parameters.arena_len(), true)?;
        let step = programs.load(&mut engine)?;
        if images.resident.is_some() {
            engine.set_images(dataset.bytes())?;
        }
        Ok((engine, step, images, requirement, flops))
    };
    let (mut engine, step, images, requirement, flops) = devices.into().take(say, prepare)?;
    say(&format!(
        "{} images {}x{}x{}; {} parameters; {:.2} GFLOP a step; memory: {} (weights {}, optimizer \
         {}, packed weights {}, activations {}, images {}, checkpoints {})",
        dataset.len(),
        image[0],
        image[1],
        image[2],
        parameters.count(),
        flops as f64 / 1e9,
        human_bytes(requirement.total() as u64),
        human_bytes(requirement.weights as u64),
        human_bytes(requirement.optimizer as u64),
        human_bytes(requirement.packed as u64),
        human_bytes(requirement.activations as u64),
        human_bytes(requirement.images as u64),
        human_bytes(requirement.staging as u64),
    ));
    if !network.is_in_diffusers() {
        say(&format!(
            "note: diffusers has no class `{}`; the checkpoints open in langevin alone",
            network.class_name()
        ));
    }

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
            None if search.skipped.is_empty() => say("no checkpoint yet: starting at step 0"),
            None => {
                return Err(Error::Checkpoint {
                    path: directory.path().to_path_buf(),
                    problem: "no checkpoint of the run is whole: put one back, or start anew \
                              in another --out"
                        .into(),
                });
            }
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
    let mut batch = Batch::new(n, image_len);
    if images.resident.is_some() || images.levels > 0 {
        batch.x0 = Vec::new();
    }
    if images.resident.is_none() && images.levels > 0 {
        batch.bytes = vec![0; n * image_len];
    }
    let mut run = Run {
        config: &config,
        engine,
        network,
        parameters,
        objective,
        order: Order::new(dataset.len(), config.train.seed),
        dataset,
        step,
        images,
        batch,
        quantiles: vec![0.0; n],
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
    let log = match resumed {
        true => MetricsLog::resume(&out, start)?,
        false => MetricsLog::create(&out)?,
    };

    let began = Instant::now();
    let bar = progress::Progress::new("train", config.train.steps, start);
    let since = (Instant::now(), start);
    let mut report = StepReport { log, bar, began, since, last_loss: None };
    let mut last_saved = resumed.then_some(start);
    // A device beside the host is given the next step before the numbers of the last
    // one are read, so that it does not wait for the host.
    let ahead = !run.engine.backend().info().is_host;
    let mut running = None;
    for done in start..config.train.steps {
        let started = match run.start(done, stop) {
            Ok(started) => started,
            Err(error) => {
                report.log.flush()?;
                return Err(error);
            }
        };
        if let Some(earlier) = running.take() {
            report.settle(&mut run, earlier)?;
        }
        let Some(step) = started else {
            report.log.flush()?;
            if last_saved != Some(done) {
                run.save(&mut directory, done)?;
                directory.prune(config.train.keep)?;
            }
            report.bar.finish();
            return Err(Error::Interrupted { step: done, saved: out });
        };
        let now = done + 1;
        let finished = now == config.train.steps;
        let stopping = stop.load(Ordering::Relaxed);
        let saves = now.is_multiple_of(config.train.checkpoint_every) || finished || stopping;
        let every = config.train.sample_every;
        let draws = every > 0 && now.is_multiple_of(every) && !finished;
        if ahead && !saves && !draws {
            running = Some(step);
            continue;
        }
        report.settle(&mut run, step)?;
        if saves {
            report.log.flush()?;
            run.save(&mut directory, now)?;
            directory.prune(config.train.keep)?;
            last_saved = Some(now);
        }
        if stopping && !finished {
            report.bar.finish();
            return Err(Error::Interrupted { step: now, saved: out });
        }
        if draws {
            run.draw(&out, &format!("samples-{now}.png"), stop)?;
            draw_curve(&out)?;
            report.since = (Instant::now(), now);
        }
    }
    let StepReport { mut log, bar, last_loss, .. } = report;
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

/// In which form steps get the images of a data set. On a device beside the host all
/// of them lie there, up to [`RESIDENT_BYTES`] and an eighth of its memory.
fn form_of(dataset: &Dataset, backend: &dyn Backend) -> Images {
    let [count, h, w, c] = dataset.shape();
    let info = backend.info();
    let bytes = dataset.bytes().len() as u64;
    let fits = bytes <= RESIDENT_BYTES && bytes <= info.memory_bytes / 8;
    let resident = (!info.is_host && fits).then_some(count);
    Images { shape: [h, w, c], levels: dataset.levels(), resident }
}

/// What is told of the steps as their numbers come in.
struct StepReport {
    log: MetricsLog,
    bar: progress::Progress,
    began: Instant,
    /// When the last record was made, and the steps then.
    since: (Instant, u64),
    last_loss: Option<f32>,
}

impl StepReport {
    /// Waits for a step's numbers, and logs and shows them.
    fn settle(&mut self, run: &mut Run, step: InFlight) -> Result<()> {
        let mut record = match run.finish(step) {
            Ok(record) => record,
            Err(error) => {
                self.log.flush()?;
                return Err(error);
            }
        };
        self.last_loss = Some(record.loss);
        let now = record.step;
        let train = &run.config.train;
        if now.is_multiple_of(train.log_every) || now == train.steps {
            let seconds = self.since.0.elapsed().as_secs_f64().max(1e-9);
            let images = (now - self.since.1) * run.images_per_step();
            record.seconds = self.began.elapsed().as_secs_f64();
            record.images_per_second = images as f64 / seconds;
            self.since = (Instant::now(), now);
            // The last record of a run that is prolonged later is not one of the
            // longer run's, unless it falls on its grid.
            if now.is_multiple_of(train.log_every) {
                self.log.push(&record)?;
            }
        }
        self.bar.update(now, format_args!("loss {:.4}", record.loss));
        Ok(())
    }
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
