//! Samplers as programs of stages.
//!
//! A program is built once a run, in f64, from pairs (signal, std) alone. A
//! stage is at most one evaluation of the network and at most two outputs, each a linear
//! combination of the state slots, the limited x_0, the unlimited eps and fresh
//! noise. [`ops::sampler_step`](crate::ops::sampler_step) executes any stage, so
//! a new sampler is a new builder and nothing else.
//!
//! - [`kind`], [`options`]: the samplers there are, and what may be chosen.
//! - [`setup`]: a network and the process it is sampled under become the path of
//!   states that a sampler leads through, whose places `nodes` chooses with [`grid`].
//! - [`ancestral`], [`ddim`], [`reversal`], [`sde`], [`ode`], [`dpmpp`], [`unipc`]:
//!   the builders. [`pc`], [`ald`], [`rk45`]: those with Langevin steps, and the one
//!   whose steps every image chooses for itself.
//! - [`run`]: the plan of a step (`plan`) and the loop over stages and batches.

pub mod ald;
pub mod ancestral;
pub mod ddim;
pub mod dpmpp;
pub mod grid;
pub mod kind;
mod nodes;
pub mod ode;
pub mod options;
pub mod pc;
mod plan;
pub mod reversal;
pub mod rk45;
pub mod run;
pub mod sde;
pub mod setup;
pub mod unipc;

pub use kind::Kind;
pub use options::{Churn, Coordinates, Options, Previous};
pub use setup::{Next, Path, Point, Setup};

use super::denoiser::{Limit, Linear};
use super::process::Pair;
use crate::error::Result;
pub use crate::ops::sampler_step::MOST_SLOTS;
use crate::ops::sampler_step::column;

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

/// What a network's second half says about the noise of a step; diffusers'
/// `learned` and `learned_range`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Learned {
    /// Its variance.
    Variance,
    /// Where the logarithm of its variance lies between two, from -1 to 1.
    Range {
        /// ln of the posterior's variance, beta-tilde.
        small: f64,
        /// ln of the forward step's, beta.
        large: f64,
    },
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
    /// Noise of a variance that the network predicts, in place of a second output.
    pub learned: Option<Learned>,
    /// At most two outputs.
    pub outputs: [Option<Output>; 2],
    /// Whether the coefficients of eps and noise follow each image's norms, as
    /// [`ops::sampler_langevin`](crate::ops::sampler_langevin) says.
    pub langevin: bool,
    /// Known pixels put into slot 0 before the stage, which does not evaluate.
    pub blend: Option<Blend>,
}

/// Noise on the known pixels that a stage puts in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blend {
    /// Signal and noise of the state they are put into.
    pub pair: Pair,
    /// Draw of their noise.
    pub draw: usize,
}

/// What is decided image by image on the device.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Control {
    /// Nothing: the table's rows are for all images.
    #[default]
    None,
    /// Stages marked `langevin` follow norms.
    Langevin {
        /// The batch's mean norms in place of each image's own.
        batch_norm: bool,
    },
    /// Time and step size of ODE-RK45.
    Adaptive(rk45::Adaptive),
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
            learned: None,
            outputs: [None, None],
            langevin: false,
            blend: None,
        }
    }
}

impl Stage {
    /// An evaluation of slot 0 at a point of a path, outputs still to come.
    pub fn at(point: &Point, update: usize) -> Stage {
        let evaluation = point.evaluation;
        Stage {
            label: evaluation.label,
            pair: point.pair,
            input_scale: evaluation.input_scale,
            x0: evaluation.x0,
            eps: evaluation.eps,
            update,
            draw: update,
            ..Stage::default()
        }
    }

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
    /// What is decided image by image on the device.
    pub control: Control,
    /// Where this departs from diffusers, for people.
    pub notes: Vec<String>,
}

impl Program {
    /// The program of a sampler for a network and a process.
    ///
    /// # Errors
    /// What does not fit: steps, options, process and sampler, with the reason.
    pub fn new(kind: Kind, setup: &Setup) -> Result<Program> {
        match kind {
            Kind::Ddpm => ancestral::ddpm(setup),
            Kind::Ddim => ddim::program(setup),
            Kind::Reversal => reversal::program(setup),
            Kind::EulerMaruyama => sde::program(setup),
            Kind::OdeEuler => ode::euler(setup),
            Kind::OdeHeun => ode::heun(setup),
            Kind::Edm => ode::edm(setup),
            Kind::Dpmpp2m => dpmpp::program(setup, false),
            Kind::DpmppSde2m => dpmpp::program(setup, true),
            Kind::UniPc => unipc::program(setup),
            Kind::EulerA => ancestral::euler(setup),
            Kind::Pc => pc::program(setup),
            Kind::Ald => ald::program(setup),
            Kind::OdeRk45 => rk45::program(setup),
        }
    }

    /// Evaluations of the network for one image, guidance not counted; of one step
    /// where an image chooses its steps itself.
    pub fn evaluations(&self) -> usize {
        self.stages.iter().filter(|stage| stage.evaluates).count()
    }

    /// Whether the network has to predict the variance of the noise.
    pub fn learns_variance(&self) -> bool {
        self.stages.iter().any(|stage| stage.learned.is_some())
    }

    /// What an image costs, for people.
    pub fn cost(&self) -> String {
        match self.control {
            Control::Adaptive(_) => "as many evaluations as its error control asks for".into(),
            _ => format!("{} evaluations each", self.evaluations()),
        }
    }

    /// Steps of progress that a batch is reported in: stages, or images that have
    /// arrived.
    pub fn progress_steps(&self, batch: usize) -> usize {
        match self.control {
            Control::Adaptive(_) => batch,
            _ => self.stages.len(),
        }
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

    /// Whether a stage puts known pixels in.
    pub fn blends(&self) -> bool {
        self.stages.iter().any(|stage| stage.blend.is_some())
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
            let second = column::OUTPUT + column::COEFFICIENTS;
            match stage.learned {
                None => {}
                Some(Learned::Variance) => row[column::TARGET + 1] = column::LEARNED,
                Some(Learned::Range { small, large }) => {
                    row[column::TARGET + 1] = column::LEARNED_RANGE;
                    row[second] = small as f32;
                    row[second + 1] = large as f32;
                }
            }
        }
        table
    }
}
