//! One validated configuration: a preset, a TOML or JSON file over it, and
//! `--set key=value` over both.
//!
//! A wrong key, type or range is refused with the key's path and what would be
//! right. The resolved value is saved with the run and is all a resume needs.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::diffusion::denoiser::Denoiser;
use crate::diffusion::loss::{LossConfig, Objective};
use crate::diffusion::process::{DenoiserConfig, ProcessConfig};
use crate::diffusion::scheduler::SchedulerConfig;
use crate::error::{Error, Result};
use crate::model::Network;
pub use crate::train::schedules::Decay;
use crate::train::schedules::{EmaDecay, EmaWarmup, learning_rate_factor};

/// Everything a run is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How pictures are read.
    pub data: DataConfig,
    /// The network, in the fields of diffusers' `UNet2DModel`, or of the class
    /// that `_class_name` names.
    pub model: Network,
    /// DDPM's discrete process, in the fields of diffusers' scheduler configs.
    pub scheduler: SchedulerConfig,
    /// The process, where it is another than the scheduler's table.
    pub process: ProcessConfig,
    /// What the network predicts and how it is scaled, where diffusers has no field for it.
    pub denoiser: DenoiserConfig,
    /// What training minimises.
    pub loss: LossConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// Defaults of `sample`, and of the grids drawn while training.
    pub sample: SampleConfig,
}

/// How pictures are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// What to read: `digits`, `idx:PATH`, `cifar10:DIR`, `folder:DIR`, `npz:FILE`,
    /// `points:NAME` (the command line's `--data`).
    pub spec: Option<String>,
    /// Resize the shorter side and crop the centre to `[height, width]`.
    pub size: Option<[usize; 2]>,
    /// 1 grey, 3 colour; by default as the files are.
    pub channels: Option<usize>,
    /// Mirror half of the training examples left to right.
    pub horizontal_flip: bool,
    /// Use only the first images.
    pub limit: Option<usize>,
}

/// The training loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimizer steps in total.
    pub steps: u64,
    /// Images of one forward and backward pass.
    pub batch: usize,
    /// Passes whose gradients are averaged before one optimizer step.
    pub accumulation: usize,
    /// Seed of weights, order, times and noise.
    pub seed: u64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warmup.
    pub warmup_steps: u64,
    /// Form of the decay.
    pub decay: Decay,
    /// Step at which the decay reaches 0: not tied to `steps`, so that a run
    /// that is prolonged repeats what the longer run would have done.
    pub decay_steps: u64,
    /// AdamW's beta_1.
    pub beta1: f64,
    /// AdamW's beta_2.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 is no clipping.
    pub clip: f64,
    /// Largest decay of the averaged weights.
    pub ema_decay: f64,
    /// Let the decay of the average grow as (1 + step) / (10 + step).
    pub ema_warmup: bool,
    /// Above 0: let it grow as 1 - (1 + step / ema_inv_gamma)^-ema_power instead
    /// (diffusers' `use_ema_warmup`).
    pub ema_power: f64,
    /// Steps in which that growth begins.
    pub ema_inv_gamma: f64,
    /// Least decay once averaging has begun.
    pub ema_min_decay: f64,
    /// Steps during which the average is a copy.
    pub ema_update_after: u64,
    /// Probability of replacing the class by the null class (the embedding's
    /// last row), for guidance.
    pub class_dropout: f64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
    /// Steps between records of the metrics.
    pub log_every: u64,
    /// Steps between sample grids; 0 draws one at the end only.
    pub sample_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            steps: 100_000,
            batch: 32,
            accumulation: 1,
            seed: 0,
            learning_rate: 2e-4,
            warmup_steps: 500,
            decay: Decay::Constant,
            decay_steps: 100_000,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            ema_decay: 0.9999,
            ema_warmup: true,
            ema_power: 0.0,
            ema_inv_gamma: 1.0,
            ema_min_decay: 0.0,
            ema_update_after: 0,
            class_dropout: 0.1,
            checkpoint_every: 1000,
            keep: 2,
            log_every: 10,
            sample_every: 5000,
        }
    }
}

impl TrainConfig {
    /// Learning rate of the optimizer step after `done` finished ones.
    pub fn learning_rate_at(&self, done: u64) -> f64 {
        let (warmup, horizon) = (self.warmup_steps, self.decay_steps);
        self.learning_rate * learning_rate_factor(self.decay, warmup, horizon, done)
    }

    /// Decay of the averaged weights in the optimizer step after `done` finished ones.
    pub fn ema_decay_at(&self, done: u64) -> f64 {
        let warmup = match self.ema_warmup {
            false => EmaWarmup::None,
            true if self.ema_power > 0.0 => {
                EmaWarmup::Power { inv_gamma: self.ema_inv_gamma, power: self.ema_power }
            }
            true => EmaWarmup::Simple,
        };
        let (decay, min_decay) = (self.ema_decay, self.ema_min_decay);
        EmaDecay { decay, min_decay, update_after_step: self.ema_update_after, warmup }.at(done)
    }
}

/// Defaults of `sample`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Sampler of the grids drawn while training, and of `sample` without `--sampler`;
    /// by default the class that the scheduler names.
    pub sampler: Option<String>,
    /// Its steps.
    pub steps: Option<usize>,
    /// Images of the grids drawn while training.
    pub count: usize,
    /// Images of one batch.
    pub batch: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        SampleConfig { sampler: None, steps: None, count: 64, batch: 64 }
    }
}

/// Largest batch, accumulation or number of images of a grid: beyond it sizes
/// would no longer be sure to fit their types.
pub const MAX_BATCH: usize = 1 << 20;

/// Named configurations that ship with the program: name, what for, TOML.
pub const PRESETS: [(&str, &str, &str); 4] = [
    ("digits", "8x8 handwritten digits, minutes on two cores", include_str!("presets/digits.toml")),
    ("mnist", "28x28 grey images", include_str!("presets/mnist.toml")),
    (
        "cifar10",
        "32x32 colour images, the network of ddpm-cifar10-32",
        include_str!("presets/cifar10.toml"),
    ),
    ("points", "points in the plane, seconds on two cores", include_str!("presets/points.toml")),
];

/// The TOML text of a preset.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(n, _, _)| *n == name).map(|(_, _, text)| *text)
}

/// The preset that suits data of this kind and size best.
pub fn nearest_preset(data: &str, height: usize, channels: usize) -> &'static str {
    match data {
        "digits" => "digits",
        _ if data.starts_with("points:") => "points",
        _ if height <= 12 => "digits",
        _ if height <= 28 && channels == 1 => "mnist",
        _ => "cifar10",
    }
}

fn toml_value(text: &str, origin: &str) -> Result<Value> {
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| Error::Usage(format!("{origin} is not valid TOML: {e}")))?;
    serde_json::to_value(table).map_err(|e| Error::Usage(format!("{origin}: {e}")))
}

/// Reads `--config`: the name of a preset, or a TOML or JSON file.
pub fn read(name_or_path: &str) -> Result<Value> {
    if let Some(text) = preset(name_or_path) {
        return toml_value(text, "the preset");
    }
    let path = Path::new(name_or_path);
    let text = std::fs::read_to_string(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            let names: Vec<_> = PRESETS.iter().map(|(n, _, _)| *n).collect();
            Error::Usage(format!(
                "`{name_or_path}` is neither a preset ({}) nor a file",
                names.join(", ")
            ))
        } else {
            Error::file("cannot read", path)(e)
        }
    })?;
    if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("`{name_or_path}` is not valid JSON: {e}")))
    } else {
        toml_value(&text, &format!("`{name_or_path}`"))
    }
}

/// Lays `over` on `base`, table by table.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Applies one `--set key=value`. The value is read as TOML, else as a string;
/// `null` is JSON's, where a field has it (`model.attention_head_dim`).
pub fn set(config: &mut Value, assignment: &str) -> Result<()> {
    let (key, text) = assignment.split_once('=').ok_or_else(|| {
        Error::Usage(format!("--set takes key=value, e.g. train.batch=16, not `{assignment}`"))
    })?;
    let (key, text) = (key.trim(), text.trim());
    let value = match text {
        "null" => Value::Null,
        _ => match format!("value = {text}").parse::<toml::Table>() {
            Ok(mut table) => {
                let value = table.remove("value").expect("just parsed");
                serde_json::to_value(value).map_err(|e| Error::config(key, e.to_string()))?
            }
            Err(_) => Value::String(text.to_string()),
        },
    };
    let mut at = config;
    let parts: Vec<&str> = key.split('.').collect();
    for (i, part) in parts.iter().enumerate() {
        let here = parts[..i].join(".");
        let Value::Object(table) = at else {
            return Err(Error::config(key, format!("`{here}` is a value, not a table")));
        };
        if i + 1 == parts.len() {
            table.insert(part.to_string(), value);
            return Ok(());
        }
        at = table.entry(part.to_string()).or_insert_with(|| Value::Object(Map::new()));
    }
    Ok(())
}

impl Config {
    /// Types and validates a value made by [`read`], [`merge`] and [`set`].
    pub fn from_value(value: Value) -> Result<Config> {
        if let Some(section) = value.get("model") {
            // Read on its own first: a wrong key in it is then named by its path.
            Network::from_section(section)?;
        }
        let config: Config = serde_path_to_error::deserialize(value).map_err(|e| {
            let path = e.path().to_string();
            Error::config(path, e.into_inner().to_string())
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every range; the first wrong key is named.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.scheduler.validate()?;
        self.scheduler.refuse_unknown()?;
        self.denoiser()?;
        let t = &self.train;
        let positive = |key: &str, ok: bool| match ok {
            true => Ok(()),
            false => Err(Error::config(key, "must be at least 1")),
        };
        positive("train.batch", t.batch > 0)?;
        positive("train.accumulation", t.accumulation > 0)?;
        for (key, value, most) in [
            ("train.batch", t.batch as u64, MAX_BATCH as u64),
            ("train.accumulation", t.accumulation as u64, MAX_BATCH as u64),
            ("sample.batch", self.sample.batch as u64, MAX_BATCH as u64),
            ("sample.count", self.sample.count as u64, MAX_BATCH as u64),
            ("train.steps", t.steps, 1 << 40),
            // TOML's integers, in which the run keeps it, end there.
            ("train.seed", t.seed, i64::MAX as u64),
        ] {
            if value > most {
                return Err(Error::config(key, format!("{value} is more than {most}")));
            }
        }
        positive("train.checkpoint_every", t.checkpoint_every > 0)?;
        positive("train.log_every", t.log_every > 0)?;
        positive("train.keep", t.keep > 0)?;
        positive("sample.count", self.sample.count > 0)?;
        positive("sample.batch", self.sample.batch > 0)?;
        positive("sample.steps", self.sample.steps != Some(0))?;
        let range = |key: &str, value: f64, ok: bool, right: &str| match ok && value.is_finite() {
            true => Ok(()),
            false => Err(Error::config(key, format!("{value} is out of range: {right}"))),
        };
        let single = |v: f64| v as f32 > 0.0 && (v as f32).is_finite();
        let rate = t.learning_rate;
        range("train.learning_rate", rate, single(rate), "above 0, within single precision")?;
        range("train.beta1", t.beta1, (0.0..1.0).contains(&t.beta1), "from 0 to below 1")?;
        range("train.beta2", t.beta2, (0.0..1.0).contains(&t.beta2), "from 0 to below 1")?;
        range("train.eps", t.eps, single(t.eps), "above 0, within single precision")?;
        range("train.weight_decay", t.weight_decay, t.weight_decay >= 0.0, "0 or more")?;
        range("train.clip", t.clip, t.clip >= 0.0, "0 (no clipping) or more")?;
        range("train.ema_decay", t.ema_decay, (0.0..=1.0).contains(&t.ema_decay), "from 0 to 1")?;
        range("train.ema_power", t.ema_power, t.ema_power >= 0.0, "0 (off) or more")?;
        range("train.ema_inv_gamma", t.ema_inv_gamma, t.ema_inv_gamma > 0.0, "above 0")?;
        let least = t.ema_min_decay;
        let below = (0.0..=t.ema_decay).contains(&least);
        range("train.ema_min_decay", least, below, "from 0 to train.ema_decay")?;
        range(
            "train.class_dropout",
            t.class_dropout,
            (0.0..=1.0).contains(&t.class_dropout),
            "from 0 to 1",
        )?;
        if t.decay != Decay::Constant && t.decay_steps <= t.warmup_steps {
            return Err(Error::config(
                "train.decay_steps",
                format!("{} must lie after the warmup of {} steps", t.decay_steps, t.warmup_steps),
            ));
        }
        if let Some(size) = self.data.size
            && (size[0] == 0 || size[1] == 0)
        {
            return Err(Error::config("data.size", "height and width must be at least 1"));
        }
        Ok(())
    }

    /// The denoiser that training makes of the network.
    pub fn denoiser(&self) -> Result<Denoiser> {
        self.denoiser.build(self.process.build(&self.scheduler)?, &self.scheduler)
    }

    /// What training minimises on data of that many levels (0: continuous values).
    pub fn objective(&self, levels: usize) -> Result<Objective> {
        let variance = self.scheduler.variance_type.unwrap_or_default();
        Objective::new(self.denoiser()?, self.loss.clone(), variance, levels)
    }

    /// Refuses changes that a run cannot take up in the middle; what decides when
    /// something is saved, drawn or finished may change.
    pub fn check_resumes(&self, saved: &Config) -> Result<()> {
        let changed = |key: &str| {
            Err(Error::config(
                key,
                "differs from the run's own; a resumed run keeps it (start a new run to change it)",
            ))
        };
        let mut free = saved.clone();
        free.train.steps = self.train.steps;
        free.train.checkpoint_every = self.train.checkpoint_every;
        free.train.keep = self.train.keep;
        free.train.sample_every = self.train.sample_every;
        free.sample = self.sample.clone();
        let (now, before) = (serde_json::to_value(self), serde_json::to_value(&free));
        match (now, before) {
            (Ok(now), Ok(before)) => {
                first_difference("", &now, &before).map_or(Ok(()), |key| changed(&key))
            }
            _ => changed("config"),
        }
    }

    /// The configuration as TOML, for the run directory.
    pub fn to_toml(&self) -> Result<String> {
        let mut value =
            serde_json::to_value(self).map_err(|e| Error::Usage(format!("configuration: {e}")))?;
        remove_nulls(&mut value);
        toml::to_string_pretty(&value).map_err(|e| Error::Usage(format!("configuration: {e}")))
    }
}

/// Path of the first key at which two configurations differ.
fn first_difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
        return keys.into_iter().find_map(|key| {
            let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let null = Value::Null;
            first_difference(&here, a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))
        });
    }
    (a != b).then(|| path.to_string())
}

/// TOML has no null: a key that is null by default is left out. (Where null is a
/// choice, as for `attention_head_dim`, the field writes a word for it.)
fn remove_nulls(value: &mut Value) {
    if let Value::Object(table) = value {
        table.retain(|_, v| !v.is_null());
        table.values_mut().for_each(remove_nulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits() -> Value {
        read("digits").expect("a preset")
    }

    #[test]
    fn every_preset_is_valid() {
        for (name, _, _) in PRESETS {
            Config::from_value(read(name).expect(name)).expect(name);
        }
    }

    #[test]
    fn a_saved_configuration_reads_back_as_itself() {
        for assignment in ["train.batch=3", "model.attention_head_dim=null"] {
            let mut value = digits();
            set(&mut value, assignment).expect("valid");
            let config = Config::from_value(value).expect("valid");
            let text = config.to_toml().expect("TOML");
            let again =
                Config::from_value(toml_value(&text, "saved").expect("TOML")).expect("valid");
            assert_eq!(config, again);
        }
    }

    #[test]
    fn a_wrong_key_type_or_range_is_refused_with_its_path() {
        for (assignment, key) in [
            ("train.bach=3", "train"),
            ("train.batch=many", "train.batch"),
            ("train.batch=0", "train.batch"),
            ("train.beta2=1.5", "train.beta2"),
            ("scheduler.beta_schedule=zigzag", "scheduler.beta_schedule"),
            ("scheduler.beta_ende=0.1", "scheduler.beta_ende"),
            ("model.norm_num_groups=7", "model.norm_num_groups"),
            ("trian.batch=3", "trian"),
            ("process.kind=vpp", "process.kind"),
            ("process.sigma_max=50", "process.sigma_max"),
            ("denoiser.precondition=ddm", "denoiser.precondition"),
            ("denoiser.sigma_data=0.5", "denoiser.sigma_data"),
        ] {
            let mut value = digits();
            set(&mut value, assignment).expect("syntax is fine");
            let error = Config::from_value(value).expect_err(assignment);
            assert_eq!(error.exit_code(), 2, "{assignment}: {error}");
            assert!(error.to_string().contains(key), "{assignment}: {error}");
        }
    }

    #[test]
    fn a_resumed_run_may_be_longer_but_not_different() {
        let saved = Config::from_value(digits()).expect("valid");
        let mut longer = saved.clone();
        longer.train.steps += 100;
        longer.train.checkpoint_every = 7;
        longer.check_resumes(&saved).expect("allowed");
        let mut other = saved.clone();
        other.train.learning_rate *= 2.0;
        let error = other.check_resumes(&saved).expect_err("another learning rate");
        assert!(error.to_string().contains("train.learning_rate"), "{error}");
    }

    #[test]
    fn every_growth_of_the_average_can_be_configured() {
        let with = |edit: fn(&mut TrainConfig)| {
            let mut train = TrainConfig { ema_decay: 0.99, ..TrainConfig::default() };
            edit(&mut train);
            train.ema_decay_at(9)
        };
        assert_eq!(with(|t| t.ema_warmup = false), 0.99);
        assert_eq!(with(|_| ()), 10.0 / 19.0);
        assert_eq!(with(|t| t.ema_power = 0.75), 1.0 - 10f64.powf(-0.75));
        assert_eq!(with(|t| t.ema_min_decay = 0.9), 0.9);
        assert_eq!(with(|t| t.ema_update_after = 9), 0.0);
    }

    #[test]
    fn set_reads_numbers_strings_lists_and_makes_tables() {
        let mut value = Value::Object(Map::new());
        for assignment in ["a.b=3", "a.c=1e-4", "a.d=linear", "a.e=[1, 2]", "a.f=true"] {
            set(&mut value, assignment).expect(assignment);
        }
        let expected =
            serde_json::json!({"a": {"b": 3, "c": 1e-4, "d": "linear", "e": [1, 2], "f": true}});
        assert_eq!(value, expected);
        assert!(set(&mut value, "a.b.c=1").is_err());
        assert!(set(&mut value, "no equals sign").is_err());
    }
}
