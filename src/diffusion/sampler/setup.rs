//! What a sampler is made for, and the path of states it leads through, whose
//! places [`nodes`](super::nodes) chooses.

use std::sync::Arc;

use super::nodes::{Node, Nodes};
use super::{Coordinates, Kind, Options};
use crate::diffusion::denoiser::{Denoiser, Evaluation, Limit, Linear, Precondition};
use crate::diffusion::process::{Pair, SharedProcess};
use crate::diffusion::schedule::Table;
use crate::diffusion::scheduler::SchedulerConfig;
use crate::error::{Error, Result};

/// A network and the process it is sampled under.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The network as a denoiser.
    pub denoiser: Denoiser,
    /// The process sampled under; the denoiser's own, or another of the same SNRs.
    pub process: SharedProcess,
    /// diffusers' configuration.
    pub scheduler: SchedulerConfig,
    /// What a person chose.
    pub options: Options,
    /// The scheduler's table, where it is the process sampled under: the steps
    /// lie then where diffusers' class has them.
    table: Option<Table>,
}

/// A state of the process that the network is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Its time.
    pub time: f64,
    /// Its pair, in the sampler's coordinates.
    pub pair: Pair,
    /// How to ask the network about it.
    pub evaluation: Evaluation,
}

/// A state that a step leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Next {
    /// Its time.
    pub time: f64,
    /// Its pair, in the sampler's coordinates.
    pub pair: Pair,
}

/// The states a sampler leads through, noisiest first.
#[derive(Clone, Debug)]
pub struct Path {
    /// Where the network is asked; one for each step.
    pub points: Vec<Point>,
    /// Where the last step leads to.
    pub end: Next,
    /// Factor of the standard normal it starts from.
    pub start_std: f64,
    /// For people.
    pub notes: Vec<String>,
}

impl Path {
    /// The steps: number, where from, where to.
    pub fn steps(&self) -> impl Iterator<Item = (usize, &Point, Next)> {
        let next = |i: usize| match self.points.get(i + 1) {
            Some(point) => Next { time: point.time, pair: point.pair },
            None => self.end,
        };
        self.points.iter().enumerate().map(move |(i, point)| (i, point, next(i)))
    }
}

/// x / signal: signal 1, the same SNR.
pub(super) fn scaled(pair: Pair) -> Pair {
    Pair { ln_signal: 0.0, std: (-pair.half_log_snr()).exp() }
}

impl Setup {
    /// A network sampled under a process: its own, which is then the same
    /// [`SharedProcess`], or another. A process named `ddpm` is the scheduler's.
    ///
    /// # Errors
    /// The scheduler's configuration is wrong.
    pub fn new(
        denoiser: Denoiser,
        process: SharedProcess,
        scheduler: &SchedulerConfig,
        options: Options,
    ) -> Result<Setup> {
        let table = match process.name() {
            "ddpm" => Some(scheduler.table()?),
            _ => None,
        };
        Ok(Setup { denoiser, process, scheduler: scheduler.clone(), options, table })
    }

    /// A network trained and sampled under the table of a scheduler's
    /// configuration.
    pub fn of_scheduler(scheduler: &SchedulerConfig, options: Options) -> Result<Setup> {
        let process: SharedProcess = Arc::new(scheduler.table()?);
        let denoiser = Denoiser::plain(process.clone(), scheduler.prediction_type);
        Setup::new(denoiser, process, scheduler, options)
    }

    /// Whether it is sampled under the process it was trained under.
    pub(super) fn is_own(&self) -> bool {
        Arc::ptr_eq(&self.process, &self.denoiser.process)
    }

    /// The scheduler's table, where it is sampled under.
    pub fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// Pair of a time, and how to ask the network about a state there.
    pub fn point(&self, time: f64) -> Result<(Pair, Evaluation)> {
        let pair = self.process.pair(time);
        let evaluation = match self.is_own() {
            true => self.denoiser.at(time)?,
            false => self.denoiser.matched(pair)?,
        };
        Ok((pair, evaluation))
    }

    /// How to ask the network about a state at a pair of any scale.
    pub fn evaluate(&self, pair: Pair) -> Result<Evaluation> {
        self.denoiser.matched(pair)
    }

    /// Steps of a sampler.
    pub fn steps(&self, kind: Kind) -> usize {
        let own = || match kind {
            Kind::Ddpm => self.process.steps().unwrap_or(self.scheduler.num_train_timesteps),
            _ => 50.min(self.process.steps().unwrap_or(50)),
        };
        self.options.steps.unwrap_or_else(own)
    }

    /// What a sampler does to x_0.
    pub fn limit(&self, kind: Kind) -> Limit {
        let scheduler = &self.scheduler;
        let own = match kind {
            Kind::Ddpm | Kind::Ddim | Kind::Reversal => Some(scheduler.limit()),
            Kind::OdeHeun | Kind::Edm | Kind::OdeRk45 => scheduler.clip(false),
            Kind::Dpmpp2m | Kind::DpmppSde2m | Kind::UniPc => scheduler.threshold(),
            _ => None,
        };
        match self.options.clip {
            Some(f64::INFINITY) => Limit::None,
            Some(range) => Limit::Clip { range },
            None => own.unwrap_or(Limit::None),
        }
    }

    /// The path of a sampler, in coordinates it asks for.
    pub fn path(&self, kind: Kind, coordinates: Coordinates) -> Result<Path> {
        let steps = self.steps(kind);
        let Nodes { nodes, end, start_std, notes } = self.nodes(kind, steps)?;
        let to = |pair: Pair| match coordinates {
            Coordinates::Process => pair,
            Coordinates::Scaled => scaled(pair),
        };
        let points = nodes.iter().map(|&node| {
            let pair = to(node.pair);
            if !pair.std.is_finite() {
                return Err(Error::Usage(format!(
                    "{} divides by the signal, and the process `{}` has none at time {}: start from \
                     less noise with --set sampler.sigma_max=80",
                    kind.name(),
                    self.process.name(),
                    node.time
                )));
            }
            let evaluation = rescaled(self.ask(node)?, node.pair, pair);
            Ok(Point { time: node.time, pair, evaluation })
        });
        let points: Vec<Point> = points.collect::<Result<_>>()?;
        let first = nodes[0].pair;
        let start_std = match (start_std, coordinates) {
            (Some(std), Coordinates::Scaled) => std,
            (_, Coordinates::Process) => self.prior_std(first),
            (None, Coordinates::Scaled) => self.prior_std(first) * (-first.ln_signal).exp(),
        };
        Ok(Path { points, end: Next { pair: to(end.pair), ..end }, start_std, notes })
    }

    /// How to ask the network about a node.
    fn ask(&self, node: Node) -> Result<Evaluation> {
        let Some(label) = node.label else { return Ok(self.point(node.time)?.1) };
        let denoiser = &self.denoiser;
        if !self.is_own() {
            return denoiser.matched(node.pair);
        }
        // A preconditioned network is told its noise level and no label.
        let preconditioned = denoiser.precondition != Precondition::None;
        let told = |found: Evaluation| match preconditioned {
            true => found,
            false => Evaluation { label, ..found },
        };
        if self.process.pair(node.time) == node.pair {
            return Ok(told(denoiser.at(node.time)?));
        }
        let direct = !preconditioned && !denoiser.correction;
        let prediction = denoiser.prediction;
        match (direct, prediction.x0(node.pair), prediction.eps(node.pair)) {
            (true, Some(x0), Some(eps)) => Ok(Evaluation { label, input_scale: 1.0, x0, eps }),
            _ => Ok(told(denoiser.matched(node.pair)?)),
        }
    }

    /// Std of the normal that a state at this pair is drawn from where sampling
    /// starts: that of data with the variance that the process's prior supposes.
    fn prior_std(&self, first: Pair) -> f64 {
        let last = self.process.pair(self.process.end());
        let prior = self.process.prior_std();
        if first == last || self.table.is_some() {
            return prior;
        }
        let signal2 = last.signal().powi(2);
        let data = if signal2 > 0.0 {
            ((prior * prior - last.variance()) / signal2).max(0.0)
        } else {
            0.0
        };
        (first.variance() + first.signal().powi(2) * data).sqrt()
    }
}

/// An evaluation of a state at `from`, for the same state scaled to `to`.
pub(super) fn rescaled(evaluation: Evaluation, from: Pair, to: Pair) -> Evaluation {
    if from.ln_signal == to.ln_signal {
        return evaluation;
    }
    let back = (from.ln_signal - to.ln_signal).exp();
    let scale = |linear: Linear| Linear { state: linear.state * back, ..linear };
    Evaluation {
        label: evaluation.label,
        input_scale: evaluation.input_scale * back,
        x0: scale(evaluation.x0),
        eps: scale(evaluation.eps),
    }
}
