//! `langevin train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use langevin::config::{self, Config};
use langevin::train::{self, Request, Summary};
use langevin::{Error, Result};
use serde_json::{Map, Value};

use super::{Global, Settings, output};

#[derive(Args, Debug)]
pub struct TrainArgs {
    /// digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE or points:NAME; a resumed run remembers it
    #[arg(long, value_name = "SPEC")]
    data: Option<String>,
    /// Run directory, made new
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// A preset (digits, mnist, cifar10, points) or a TOML or JSON file; by default the preset nearest to the data
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Optimizer steps in total, those before a resume included
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Images a micro-batch
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Seed of weights, order, times and noise
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Go on from the newest valid checkpoint in RUN
    #[arg(long)]
    resume: bool,
    /// Take network, schedule and first weights from this model; with --resume only where there is no checkpoint yet
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
}

impl TrainArgs {
    /// Flags and --set over a base configuration.
    fn override_onto(&self, value: Value) -> Result<Config> {
        Config::from_value(self.overridden(value)?)
    }

    fn overridden(&self, mut value: Value) -> Result<Value> {
        for assignment in &self.settings.set {
            config::set(&mut value, assignment)?;
        }
        let flags =
            [("steps", self.steps), ("batch", self.batch.map(|v| v as u64)), ("seed", self.seed)];
        for (key, flag) in flags {
            if let Some(flag) = flag {
                let mut train = Map::new();
                train.insert(key.into(), flag.into());
                config::merge(&mut value, serde_json::json!({"train": train}));
            }
        }
        if let Some(spec) = &self.data {
            config::merge(&mut value, serde_json::json!({"data": {"spec": spec}}));
        }
        Ok(value)
    }

    /// The configuration of a run that is resumed: its own, with what may change.
    fn resumed(&self) -> Result<Option<Config>> {
        let path = self.out.join(train::CONFIG);
        if !self.resume || !path.exists() {
            return Ok(None);
        }
        let saved = config::read(&path.to_string_lossy())?;
        let own = Config::from_value(saved.clone())?;
        let mut base = saved;
        if let Some(file) = &self.config {
            config::merge(&mut base, config::read(file)?);
        }
        let config = self.override_onto(base)?;
        config.check_resumes(&own)?;
        Ok(Some(config))
    }

    /// The configuration of a new run.
    fn fresh(&self, say: train::Report) -> Result<Config> {
        let base = match &self.config {
            Some(name) => config::read(name)?,
            None => {
                // The data decides the preset, and --set what is read of it.
                let probe = self.overridden(Value::Object(Map::new()))?;
                // The network's own settings may need the preset they go over.
                let probe: Map<_, _> =
                    probe.get("data").map(|d| ("data".into(), d.clone())).into_iter().collect();
                let data = train::open_data(&Config::from_value(Value::Object(probe))?)?;
                let name = config::nearest_preset(&data.name, data.height(), data.channels());
                let mut base = config::read(name)?;
                let fits = match &self.init {
                    None => adapt(&mut base, &data)?,
                    Some(init) => {
                        adopt(&mut base, init)?;
                        format!(", network and schedule of `{}`", init.display())
                    }
                };
                say(&format!("configuration: preset {name}{fits}"));
                base
            }
        };
        self.override_onto(base)
    }
}

/// Fits a preset's network to the data's size and channels; says what changed.
fn adapt(base: &mut Value, data: &langevin::data::Dataset) -> Result<String> {
    let before = base.clone();
    if base["model"].get("_class_name").is_some() {
        // Only U-Nets take any size; a fit that fails is named by the training.
        return Ok(String::new());
    }
    let (h, w, c) = (data.height(), data.width(), data.channels());
    let size = if h == w { serde_json::json!(h) } else { serde_json::json!([h, w]) };
    config::merge(
        base,
        serde_json::json!({"model": {"sample_size": size, "in_channels": c, "out_channels": c}}),
    );
    Ok(match *base == before {
        true => String::new(),
        false => format!(", its network set to {h}x{w} with {c} channels"),
    })
}

/// Puts the network and the schedule of a model in the place of a preset's.
fn adopt(base: &mut Value, init: &Path) -> Result<()> {
    let mut model = super::model::open(init, &[])?;
    // Fields of other scheduler classes mean nothing to training.
    model.scheduler.other.clear();
    let plain = |e: serde_json::Error| Error::Usage(format!("configuration: {e}"));
    base["model"] = serde_json::to_value(model.network).map_err(plain)?;
    base["scheduler"] = serde_json::to_value(model.scheduler).map_err(plain)?;
    Ok(())
}

pub fn run(args: TrainArgs, global: &Global) -> Result<()> {
    let mut say = |text: &str| eprintln!("{text}");
    let config = match args.resumed()? {
        Some(config) => config,
        None => args.fresh(&mut say)?,
    };
    let devices = global.devices()?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    // A second Ctrl-C does not wait for the save.
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; saving (Ctrl-C again to leave at once)");
    })
    .map_err(|e| Error::Usage(format!("cannot install the Ctrl-C handler: {e}")))?;
    let request = Request {
        config,
        out: args.out.clone(),
        resume: args.resume,
        init: args.init,
        stop: &stop,
    };
    let summary = train::train(devices, request, &mut say).map_err(|error| {
        if let Error::Interrupted { .. } = error {
            eprintln!("go on with: langevin train --out {} --resume", args.out.display());
        }
        error
    })?;
    match global.json {
        true => output::json(&summary),
        false => output::line(&describe(&summary, &args.out)),
    }
}

fn describe(s: &Summary, out: &std::path::Path) -> String {
    let loss = |l: Option<f32>| l.map_or("-".into(), |l| format!("{l:.4}"));
    format!(
        "trained {} steps ({} images in {:.0} s, {:.0} images/s); loss {} -> {}\n\
         checkpoint  {}\nsamples     {}\n{}\
         draw more   langevin sample {} --out grid.png --count 64",
        s.steps,
        output::grouped(s.images),
        s.seconds,
        s.images as f64 / s.seconds.max(1e-9),
        loss(s.first_loss),
        loss(s.final_loss),
        s.checkpoint.display(),
        s.grid.display(),
        s.curve.as_ref().map_or(String::new(), |c| format!("loss curve  {}\n", c.display())),
        out.display()
    )
}
