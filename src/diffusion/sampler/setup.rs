//! What a sampler is made for, and the path of states it leads through.

use std::sync::Arc;

use super::grid::{self, Grid, Levels};
use super::{Coordinates, Kind, Options};
use crate::diffusion::denoiser::{Denoiser, Evaluation, Limit, Linear, Precondition};
use crate::diffusion::process::{Pair, SharedProcess};
use crate::diffusion::schedule::Table;
use crate::diffusion::scheduler::{
    Class, FinalSigmas, Interpolation, SchedulerConfig, Spacing, TimestepType,
};
use crate::error::{Error, Result};

/// Most steps of a program: its rows are held in memory.
const MOST_STEPS: usize = 100_000;

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

/// A state before it has coordinates. `label` stands where diffusers' class tells
/// the network something else than the process would at that time.
#[derive(Clone, Copy, Debug)]
struct Node {
    time: f64,
    pair: Pair,
    label: Option<f64>,
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

fn refuse<T>(key: &str, problem: impl Into<String>) -> Result<T> {
    Err(Error::config(format!("scheduler.{key}"), problem))
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
    fn is_own(&self) -> bool {
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
            Kind::OdeHeun => scheduler.clip(false),
            Kind::Dpmpp2m | Kind::DpmppSde2m | Kind::UniPc => scheduler.threshold(),
            _ => None,
        };
        match self.options.clip {
            Some(f64::INFINITY) => Limit::None,
            Some(range) => Limit::Clip { range },
            None => own.unwrap_or(Limit::None),
        }
    }

    fn spacing(&self, kind: Kind) -> Spacing {
        let own = || {
            let class = kind.class_name().and_then(Class::named);
            class.map_or(Spacing::Leading, |class| class.spacing)
        };
        self.scheduler.timestep_spacing.unwrap_or_else(own)
    }

    /// The path of a sampler, in coordinates it asks for.
    pub fn path(&self, kind: Kind, coordinates: Coordinates) -> Result<Path> {
        let steps = self.steps(kind);
        let chosen = self.options;
        let spaced = chosen.grid.is_some()
            || [chosen.rho, chosen.sigma_min, chosen.sigma_max, chosen.t_eps]
                .iter()
                .any(|o| o.is_some());
        let levels = match (&self.table, kind) {
            (Some(table), kind) if !spaced && kind != Kind::Edm => Some(Levels::of(table)),
            _ => None,
        };
        let (nodes, end, start_std, notes) = match (levels, kind) {
            (None, _) => self.grid_nodes(kind, steps)?,
            (Some(levels), Kind::OdeEuler | Kind::OdeHeun | Kind::EulerA) => {
                self.refuse_foreign(kind)?;
                self.euler_nodes(kind, steps, &levels)?
            }
            (Some(levels), Kind::Dpmpp2m | Kind::DpmppSde2m | Kind::UniPc) => {
                self.refuse_foreign(kind)?;
                self.multistep_nodes(kind, steps, &levels)?
            }
            (Some(_), _) => self.label_nodes(kind, steps)?,
        };
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
        if !self.is_own() {
            return self.denoiser.matched(node.pair);
        }
        let own = self.process.pair(node.time);
        if own == node.pair {
            return Ok(Evaluation { label, ..self.denoiser.at(node.time)? });
        }
        let denoiser = &self.denoiser;
        let direct = denoiser.precondition == Precondition::None && !denoiser.correction;
        let prediction = denoiser.prediction;
        match (direct, prediction.x0(node.pair), prediction.eps(node.pair)) {
            (true, Some(x0), Some(eps)) => Ok(Evaluation { label, input_scale: 1.0, x0, eps }),
            _ => Ok(Evaluation { label, ..denoiser.matched(node.pair)? }),
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

    /// Where sampling ends when the steps are spaced as diffusers has them.
    fn table_end(&self) -> Next {
        match self.options.end.or(self.scheduler.final_sigmas_type).unwrap_or_default() {
            FinalSigmas::Zero => Next { time: 0.0, pair: Pair::DATA },
            FinalSigmas::SigmaMin => Next { time: 1.0, pair: self.process.pair(1.0) },
        }
    }

    /// Whole labels: DDPM, DDIM and what goes along them.
    fn label_nodes(&self, kind: Kind, steps: usize) -> Result<Nodes> {
        let labels = grid::labels(&self.scheduler, self.spacing(kind), steps, true)?;
        let nodes = labels.into_iter().map(|label| {
            let time = label + 1.0;
            Node { time, pair: self.process.pair(time), label: None }
        });
        let end = match self.options.end.unwrap_or_default() {
            FinalSigmas::SigmaMin => self.table_end(),
            FinalSigmas::Zero => Next { time: 0.0, pair: Pair::DATA },
        };
        Ok((nodes.collect(), end, None, Vec::new()))
    }

    /// diffusers' options that change numbers and are not followed.
    fn refuse_foreign(&self, kind: Kind) -> Result<()> {
        let s = &self.scheduler;
        let sampler = kind.name();
        for (key, on) in [
            ("use_beta_sigmas", s.use_beta_sigmas),
            ("use_flow_sigmas", s.use_flow_sigmas),
            ("use_dynamic_shifting", s.use_dynamic_shifting),
        ] {
            if on == Some(true) {
                return refuse(
                    key,
                    format!(
                        "{sampler} does not follow it; use use_karras_sigmas or \
                         use_exponential_sigmas, and for flow matching process.kind = flow"
                    ),
                );
            }
        }
        for key in ["solver_p", "shift_terminal"] {
            if s.other.get(key).is_some_and(|value| !value.is_null()) {
                return refuse(key, format!("{sampler} does not follow it; leave it out"));
            }
        }
        let spaced = [s.use_karras_sigmas, s.use_exponential_sigmas, s.use_lu_lambdas];
        if spaced.iter().filter(|on| **on == Some(true)).count() > 1 {
            return refuse(
                "use_karras_sigmas",
                "only one of use_karras_sigmas, use_exponential_sigmas and use_lu_lambdas may be true",
            );
        }
        for (key, sigma) in [("sigma_min", s.sigma_min), ("sigma_max", s.sigma_max)] {
            if sigma.is_some_and(|sigma| !(sigma > 0.0 && sigma.is_finite())) {
                return refuse(key, "must be above 0");
            }
        }
        Ok(())
    }

    /// Spaced noise levels of diffusers' configuration, where it asks for them.
    fn configured_levels(
        &self,
        kind: Kind,
        steps: usize,
        largest: f64,
        least: f64,
    ) -> Result<Option<(Grid, Vec<f64>)>> {
        let s = &self.scheduler;
        let is = |on: Option<bool>| on == Some(true);
        let lu = is(s.use_lu_lambdas) && matches!(kind, Kind::Dpmpp2m | Kind::DpmppSde2m);
        let grid = match kind {
            Kind::EulerA => None,
            _ if is(s.use_karras_sigmas) => Some(Grid::Karras),
            _ if lu => Some(Grid::LogSnr),
            _ if is(s.use_exponential_sigmas) => Some(Grid::Exponential),
            _ => None,
        };
        let Some(grid) = grid else { return Ok(None) };
        // Only Euler and UniPC have these two fields.
        let (largest, least) = match kind {
            Kind::OdeEuler | Kind::UniPc => {
                (s.sigma_max.unwrap_or(largest), s.sigma_min.unwrap_or(least))
            }
            _ => (largest, least),
        };
        if least > largest {
            return refuse("sigma_min", format!("{least} is above the largest level {largest}"));
        }
        Ok(Some((grid, grid.values(largest, least, steps, 7.0))))
    }

    /// Euler, Heun, EulerAncestral of diffusers.
    fn euler_nodes(&self, kind: Kind, steps: usize, levels: &Levels) -> Result<Nodes> {
        let s = &self.scheduler;
        let spacing = self.spacing(kind);
        let mut labels = grid::labels(s, spacing, steps, false)?;
        let mut sigmas: Vec<f64> = labels.iter().map(|&label| levels.at(label)).collect();
        let mut end = match kind {
            Kind::OdeEuler => self.table_end(),
            _ => match self.options.end.unwrap_or_default() {
                FinalSigmas::Zero => Next { time: 0.0, pair: Pair::DATA },
                FinalSigmas::SigmaMin => self.table_end(),
            },
        };
        let mut notes = Vec::new();
        let spaced = self.configured_levels(kind, steps, sigmas[0], sigmas[steps - 1])?;
        if let Some((_, spaced)) = spaced {
            labels = spaced.iter().map(|&sigma| levels.label(sigma)).collect();
            sigmas = spaced;
        } else if kind == Kind::OdeEuler && s.interpolation_type == Some(Interpolation::LogLinear) {
            // diffusers spaces N + 1 levels and appends the end, which N steps
            // do not reach.
            let all = Grid::LogSnr.values(levels.largest(), levels.least(), steps + 1, 0.0);
            sigmas.copy_from_slice(&all[..steps]);
            end = Next { time: 1.0, pair: self.process.pair(1.0) };
            notes.push(
                "interpolation_type log_linear ends at the table's least noise, and tells the \
                 network the spaced labels, as diffusers does"
                    .into(),
            );
        }
        let continuous = kind == Kind::OdeEuler
            && s.timestep_type == Some(TimestepType::Continuous)
            && self.denoiser.prediction.name() == "v_prediction";
        let nodes = labels.iter().zip(&sigmas).map(|(&label, &sigma)| {
            let told = if continuous { 0.25 * sigma.ln() } else { label };
            self.level_node(label, sigma, told)
        });
        let largest = sigmas[0];
        let start_std = match spacing {
            Spacing::Linspace | Spacing::Trailing => largest,
            Spacing::Leading => largest.hypot(1.0),
        };
        Ok((nodes.collect(), end, Some(start_std), notes))
    }

    /// DPMSolverMultistep and UniPC of diffusers.
    fn multistep_nodes(&self, kind: Kind, steps: usize, levels: &Levels) -> Result<Nodes> {
        let s = &self.scheduler;
        let unipc = kind == Kind::UniPc;
        let most = match s.lambda_min_clipped {
            Some(least) if !unipc => levels.clipped(least),
            _ => levels.len(),
        };
        if most == 0 {
            return refuse("lambda_min_clipped", "leaves no label; use -5.1 or leave it out");
        }
        let spaced = self.configured_levels(kind, steps, levels.largest(), levels.least())?;
        let mut end = self.table_end();
        let Some((grid, sigmas)) = spaced else {
            let labels = grid::multistep_labels(s, self.spacing(kind), steps, most)?;
            let nodes = labels.iter().map(|&label| self.level_node(label, levels.at(label), label));
            return Ok((nodes.collect(), end, None, Vec::new()));
        };
        if steps > MOST_STEPS {
            return Err(Error::Usage(format!("--steps {steps}: at most {MOST_STEPS}")));
        }
        let rounds = grid != Grid::Exponential
            && (unipc
                || s.beta_schedule != crate::diffusion::schedule::BetaSchedule::SquaredcosCapV2);
        // What is not rounded loses its fraction in diffusers' integers.
        let told = |label: f64| if rounds { label.round_ties_even() } else { label.floor() };
        let least = sigmas[sigmas.len() - 1];
        if unipc && end.pair != Pair::DATA {
            end.pair = grid::preserving(least);
        }
        let nodes = sigmas.iter().map(|&sigma| {
            let label = levels.label(sigma);
            self.level_node(label, sigma, told(label))
        });
        Ok((nodes.collect(), end, None, Vec::new()))
    }

    /// A node of the table at a noise level. At an entry of the table it is that
    /// entry, also where diffusers replaces the absent signal of the last.
    fn level_node(&self, label: f64, sigma: f64, told: f64) -> Node {
        let time = label + 1.0;
        let own = self.process.pair(time);
        let close = (own.half_log_snr() + sigma.ln()).abs() < 1e-9;
        let pair = if close { own } else { grid::preserving(sigma) };
        Node { time, pair, label: Some(told) }
    }

    /// Steps spaced by [`Grid`] under any process.
    fn grid_nodes(&self, kind: Kind, steps: usize) -> Result<Nodes> {
        let process = &self.process;
        let chosen = self.options;
        if steps == 0 || steps > MOST_STEPS {
            return Err(Error::Usage(format!(
                "--steps {steps}: sampling takes 1 to {MOST_STEPS} steps"
            )));
        }
        let level = |time: f64| (-process.pair(time).half_log_snr()).exp();
        let (end_time, least_time) = (process.end(), process.earliest());
        let grid = chosen.grid.unwrap_or(match kind {
            Kind::Edm => Grid::Karras,
            Kind::Dpmpp2m | Kind::DpmppSde2m | Kind::UniPc => Grid::LogSnr,
            // Where time is the noise level itself, even steps waste themselves on
            // the noisiest.
            _ if (level(end_time) / end_time - 1.0).abs() < 1e-9 => Grid::Karras,
            _ => Grid::Uniform,
        });
        if chosen.rho.is_some() && grid != Grid::Karras {
            return Err(Error::config("sampler.rho", "is a choice of sampler.grid=karras"));
        }
        if chosen.t_eps.is_some() && chosen.sigma_min.is_some() {
            return Err(Error::config(
                "sampler.t_eps",
                "says the same as sampler.sigma_min: give one",
            ));
        }
        let mut notes = Vec::new();
        let mut from = end_time;
        if let Some(sigma) = chosen.sigma_max {
            let largest = level(end_time);
            if sigma > largest * (1.0 + 1e-9) {
                return Err(Error::config(
                    "sampler.sigma_max",
                    format!("{sigma} is noisier than `{}` gets: {largest}", process.name()),
                ));
            }
            from = process.time_of(-sigma.ln());
        } else if level(from).is_infinite() && (!grid.is_of_times() || self.needs_signal(kind)) {
            // The signal is lost at the end; start as far from it as sampling
            // ends from the data.
            from = match process.steps() {
                Some(steps) => (steps - 1) as f64,
                None => end_time - least_time,
            };
            notes.push(format!(
                "`{}` has no signal at time {end_time}: sampling starts at time {from}",
                process.name()
            ));
        }
        let trained = &self.denoiser.process;
        let known = trained.pair(trained.end()).half_log_snr();
        if !self.is_own() && chosen.sigma_max.is_none() && process.pair(from).half_log_snr() < known
        {
            from = process.time_of(known);
            notes.push(format!(
                "sampling starts at std/signal = {:.4}, the most noise that the network knows",
                (-known).exp()
            ));
        }
        let to = match (chosen.t_eps, chosen.sigma_min) {
            (Some(time), _) => time,
            (None, Some(sigma)) => process.time_of(-sigma.ln()),
            (None, None) => least_time,
        };
        if to >= from {
            let key = if chosen.t_eps.is_some() { "sampler.t_eps" } else { "sampler.sigma_min" };
            return Err(Error::config(
                key,
                format!("leaves nothing to sample: time {to} is not before the start {from}"),
            ));
        }
        // A step of Euler-Maruyama ends where its process does; the others jump
        // from the last time to the data.
        let default = match kind {
            Kind::EulerMaruyama => FinalSigmas::SigmaMin,
            _ => FinalSigmas::Zero,
        };
        let stops = chosen.end.unwrap_or(default) == FinalSigmas::SigmaMin;
        let count = if stops { steps + 1 } else { steps };
        let rho = chosen.rho.unwrap_or(7.0);
        let times: Vec<f64> = match grid.is_of_times() {
            // The network of a chain knows its own states best.
            true if process.steps().is_some() => {
                let times = grid.values(from, to, count, rho);
                times.into_iter().map(f64::round_ties_even).collect()
            }
            true => grid.values(from, to, count, rho),
            false => {
                let levels = grid.values(level(from), level(to), count, rho);
                let inner = levels.iter().map(|sigma| process.time_of(-sigma.ln()));
                let mut times: Vec<f64> = inner.collect();
                times[0] = from;
                if count > 1 {
                    times[count - 1] = to;
                }
                times
            }
        };
        if times.windows(2).any(|w| w[1] >= w[0]) {
            return Err(Error::Usage(format!(
                "--steps {steps}: the grid {} of `{}` has no {count} different times; take fewer \
                 steps",
                grid.name(),
                process.name()
            )));
        }
        let end = match stops {
            true => Next { time: to, pair: process.pair(to) },
            false => Next { time: 0.0, pair: Pair::DATA },
        };
        let nodes = times[..steps].iter();
        let nodes = nodes.map(|&time| Node { time, pair: process.pair(time), label: None });
        Ok((nodes.collect(), end, None, notes))
    }

    /// Whether a sampler cannot start without signal: it divides by it, or by
    /// what is infinite there.
    fn needs_signal(&self, kind: Kind) -> bool {
        match kind {
            Kind::EulerMaruyama | Kind::Edm | Kind::EulerA | Kind::Ald => true,
            _ => self.denoiser.matched(self.process.pair(self.process.end())).is_err(),
        }
    }
}

/// Nodes, end, start and notes of a path.
type Nodes = (Vec<Node>, Next, Option<f64>, Vec<String>);

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
