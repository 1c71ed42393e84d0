//! Samplers as programs of stages.
//!
//! A program is built once a run, in f64, from pairs (signal, std) alone. A
//! stage is at most one evaluation of the network and at most two outputs, each a linear
//! combination of the state slots, the limited x_0, the unlimited eps and fresh
//! noise. [`ops::sampler_step`](crate::ops::sampler_step) executes any stage, so
//! a new sampler is a new builder and nothing else.
//!
//! - [`ancestral`] is DDPM's sampler, [`ddim`] is DDIM's.
//! - [`run`]: the plan of a step and the loop over stages and batches.

pub mod ancestral;
pub mod ddim;
pub mod run;

use super::denoiser::{Limit, Linear, Prediction};
use super::process::Pair;
use super::schedule::Table;
use super::scheduler::SchedulerConfig;
use crate::error::{Error, Result};
use crate::ops::sampler_step::{MOST_SLOTS, column};

/// The samplers there are, by `--sampler`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ancestral sampling; diffusers' DDPMScheduler.
    Ddpm,
    /// Song et al. 2021; diffusers' DDIMScheduler.
    Ddim,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 2] = [Kind::Ddpm, Kind::Ddim];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ddpm => "ddpm",
            Kind::Ddim => "ddim",
        }
    }

    /// diffusers' class.
    pub fn class_name(self) -> &'static str {
        match self {
            Kind::Ddpm => "DDPMScheduler",
            Kind::Ddim => "DDIMScheduler",
        }
    }

    /// The sampler of that name.
    pub fn from_name(name: &str) -> Result<Kind> {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            Error::Usage(format!("--sampler `{name}` is not known; there are {names}"))
        })
    }

    /// The sampler a model's scheduler names.
    pub fn from_config(config: &SchedulerConfig) -> Result<Kind> {
        let found = Kind::ALL.into_iter().find(|kind| kind.class_name() == config.class_name);
        found.ok_or_else(|| {
            let (classes, names) = (Kind::ALL.map(Kind::class_name), Kind::ALL.map(Kind::name));
            Error::config(
                "scheduler._class_name",
                format!(
                    "no sampler follows `{}`; supported are {}; name one with --sampler ({}) \
                     to run it on this model's schedule",
                    config.class_name,
                    classes.join(", "),
                    names.join(", "),
                ),
            )
        })
    }

    /// Steps without `--steps`: all of them for DDPM, else 50.
    pub fn default_steps(self, config: &SchedulerConfig) -> usize {
        match self {
            Kind::Ddpm => config.num_train_timesteps,
            Kind::Ddim => config.num_train_timesteps.min(50),
        }
    }
}

/// What a person may choose about a sampler, beside the scheduler's fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Number of steps; `None` for the sampler's own.
    pub steps: Option<usize>,
    /// DDIM: share of the ancestral noise, 0 to 1.
    pub eta: f64,
    /// DDIM: take eps again from the limited x_0 (diffusers'
    /// `use_clipped_model_output`, off there and here).
    pub clipped_eps: bool,
    /// DDIM: which time a step leads to.
    pub previous: Previous,
}

impl Default for Options {
    fn default() -> Self {
        Options { steps: None, eta: 0.0, clipped_eps: false, previous: Previous::Grid }
    }
}

impl Options {
    /// Sets one key of `--set sampler.KEY=VALUE`: `clipped_eps` (true or false)
    /// or `previous` (grid or ratio).
    ///
    /// # Errors
    /// The key is not known or the value is none of its own.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let wrong = |problem: String| Err(Error::config(format!("sampler.{key}"), problem));
        match (key, value) {
            ("clipped_eps", "true") => self.clipped_eps = true,
            ("clipped_eps", "false") => self.clipped_eps = false,
            ("previous", "grid") => self.previous = Previous::Grid,
            ("previous", "ratio") => self.previous = Previous::Ratio,
            ("clipped_eps", _) => return wrong(format!("`{value}` is neither true nor false")),
            ("previous", _) => return wrong(format!("`{value}` is neither grid nor ratio")),
            _ => return wrong("there are sampler.clipped_eps and sampler.previous".into()),
        }
        Ok(())
    }
}

/// Which time a DDIM step leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Previous {
    /// The next time of the grid: the one the next step starts from.
    #[default]
    Grid,
    /// `t - T / N` rounded down, as diffusers has it. It misses the next step's
    /// start wherever the grid is not that regular: `linspace`, and `trailing`
    /// when N does not divide T (huggingface/diffusers#11347). To compare only.
    Ratio,
}

/// One output of a stage: where it goes and its coefficients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Output {
    /// Slot it is written to.
    pub target: usize,
    /// Factors of the slots as they were before the stage.
    pub slots: [f64; MOST_SLOTS],
    /// Factor of the limited x_0.
    pub x0: f64,
    /// Factor of the unlimited eps.
    pub eps: f64,
    /// Factor of fresh standard normal noise.
    pub noise: f64,
}

/// One evaluation of the network and what follows from it; or, without an
/// evaluation, a combination of the slots and noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Whether the network runs. Where it does not, the outputs take neither x_0
    /// nor eps.
    pub evaluates: bool,
    /// What the network is told.
    pub label: f64,
    /// Signal and noise of the state it sees.
    pub pair: Pair,
    /// Slot it sees.
    pub input_slot: usize,
    /// Factor of that slot in its input.
    pub input_scale: f64,
    /// x_0 from the state and the prediction.
    pub x0: Linear,
    /// eps from the state and the prediction.
    pub eps: Linear,
    /// Update this stage belongs to, counted from the noisiest.
    pub update: usize,
    /// Draw of its noise, also the row of given noise it takes.
    pub draw: usize,
    /// At most two outputs.
    pub outputs: [Option<Output>; 2],
}

impl Default for Stage {
    /// An evaluation of slot 0 that changes nothing.
    fn default() -> Self {
        let nothing = Linear { state: 0.0, prediction: 0.0 };
        Stage {
            evaluates: true,
            label: 0.0,
            pair: Pair::DATA,
            input_slot: 0,
            input_scale: 1.0,
            x0: nothing,
            eps: nothing,
            update: 0,
            draw: 0,
            outputs: [None, None],
        }
    }
}

impl Stage {
    /// Whether an output takes noise.
    pub fn draws(&self) -> bool {
        self.outputs.iter().flatten().any(|output| output.noise != 0.0)
    }
}

/// A sampler, ready to run. Slot 0 is the state x.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The sampler's name.
    pub name: &'static str,
    /// Number of slots.
    pub slots: usize,
    /// What is done to x_0.
    pub limit: Limit,
    /// Factor of the standard normal the state starts from; diffusers' `init_noise_sigma`.
    pub start_std: f64,
    /// In order of execution, noisiest first.
    pub stages: Vec<Stage>,
    /// Where this departs from diffusers, for people.
    pub notes: Vec<String>,
}

impl Program {
    /// The program of a sampler on a model's schedule.
    pub fn new(kind: Kind, config: &SchedulerConfig, options: &Options) -> Result<Program> {
        let table = config.table()?;
        let steps = options.steps.unwrap_or_else(|| kind.default_steps(config));
        match kind {
            Kind::Ddpm => ancestral::program(config, &table, steps),
            Kind::Ddim => ddim::program(config, &table, steps, options),
        }
    }

    /// Evaluations of the network for one image, guidance not counted.
    pub fn evaluations(&self) -> usize {
        self.stages.iter().filter(|stage| stage.evaluates).count()
    }

    /// Number of updates of the state.
    pub fn updates(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.update + 1)
    }

    /// Rows of given noise the program takes at least.
    pub fn noise_rows(&self) -> usize {
        self.stages.iter().filter(|s| s.draws()).map(|s| s.draw + 1).max().unwrap_or(0)
    }

    /// Whether the network reads slot 0 as it stands, at every stage.
    pub fn input_is_state(&self) -> bool {
        self.stages.iter().all(|s| s.input_slot == 0 && s.input_scale == 1.0)
    }

    /// The table `[stages, 1, COLUMNS]` of [`ops::sampler_step`](crate::ops::sampler_step).
    pub fn table(&self, guidance: f64) -> Vec<f32> {
        let mut table = vec![0f32; self.stages.len() * column::COLUMNS];
        let clip = match self.limit {
            Limit::Clip { range } => range as f32,
            Limit::None | Limit::Threshold { .. } => f32::INFINITY,
        };
        for (stage, row) in self.stages.iter().zip(table.chunks_exact_mut(column::COLUMNS)) {
            row[column::LABEL] = stage.label as f32;
            row[column::INPUT_SLOT] = stage.input_slot as f32;
            row[column::INPUT_SCALE] = stage.input_scale as f32;
            row[column::X0_STATE] = stage.x0.state as f32;
            row[column::X0_PREDICTION] = stage.x0.prediction as f32;
            row[column::EPS_STATE] = stage.eps.state as f32;
            row[column::EPS_PREDICTION] = stage.eps.prediction as f32;
            row[column::CLIP] = clip;
            row[column::DRAW] = stage.draw as f32;
            row[column::GUIDANCE] = guidance as f32;
            for (k, output) in stage.outputs.iter().enumerate() {
                row[column::TARGET + k] = output.map_or(-1.0, |o| o.target as f32);
                let Some(output) = output else { continue };
                let at = column::OUTPUT + k * column::COEFFICIENTS;
                let c = &mut row[at..at + column::COEFFICIENTS];
                for (c, &slot) in c.iter_mut().zip(&output.slots) {
                    *c = slot as f32;
                }
                c[column::OF_X0] = output.x0 as f32;
                c[column::OF_EPS] = output.eps as f32;
                c[column::OF_NOISE] = output.noise as f32;
            }
        }
        table
    }
}

/// x_0 and eps of a stage from the prediction at its label.
fn conversions(prediction: Prediction, pair: Pair, label: usize) -> Result<(Linear, Linear)> {
    let x0 = prediction.x0(pair).ok_or_else(|| {
        Error::config(
            "scheduler.prediction_type",
            format!(
                "`{}` cannot give x_0 at label {label}, which holds no signal \
                 (rescale_betas_zero_snr); use v_prediction or sample",
                prediction.name()
            ),
        )
    })?;
    let eps = prediction.eps(pair).expect("labels are noisy, so eps is determined");
    Ok((x0, eps))
}

/// The states a grid of labels leads through: for each step its label, its pair
/// and the pair it leads to, at last `end`.
fn steps(table: &Table, labels: &[usize], end: Pair) -> Vec<(usize, Pair, Pair)> {
    let next = labels[1..].iter().map(|&label| table.labelled(label)).chain([end]);
    labels.iter().zip(next).map(|(&label, next)| (label, table.labelled(label), next)).collect()
}
