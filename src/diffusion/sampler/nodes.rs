//! Where the steps of a sampler's path lie: on a scheduler's table as diffusers'
//! classes have them, under any process as [`Grid`] spaces them.

use super::grid::{self, Grid, Levels};
use super::{Kind, Next, Setup};
use crate::diffusion::process::Pair;
use crate::diffusion::scheduler::{Class, FinalSigmas, Interpolation, Spacing, TimestepType};
use crate::error::{Error, Result};

/// Most steps of a program: its rows are held in memory.
const MOST_STEPS: usize = 100_000;

/// How much the noise may grow over a chain's last step for states in between to be
/// asked about: of those the network saw none.
const MOST_LEAP: f64 = 4.0;

/// A state before it has coordinates. `label` stands where diffusers' class tells
/// the network something else than the process would at that time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub time: f64,
    pub pair: Pair,
    pub label: Option<f64>,
}

/// Where a path leads.
pub(super) struct Nodes {
    /// One for each step, noisiest first.
    pub nodes: Vec<Node>,
    /// Where the last step leads to.
    pub end: Next,
    /// Std of the start in noise-level coordinates, where diffusers' class has one of
    /// its own.
    pub start_std: Option<f64>,
    /// For people.
    pub notes: Vec<String>,
}

fn refuse<T>(key: &str, problem: impl Into<String>) -> Result<T> {
    Err(Error::config(format!("scheduler.{key}"), problem))
}

/// Whether a sampler goes by noise levels also on a table.
fn leads_by_level(kind: Kind) -> bool {
    matches!(kind, Kind::Edm | Kind::OdeRk45)
}

impl Setup {
    /// The states of a sampler's path: where diffusers' class has them on the
    /// scheduler's table, else spaced by [`Grid`].
    pub(super) fn nodes(&self, kind: Kind, steps: usize) -> Result<Nodes> {
        let chosen = self.options;
        let spaced = chosen.grid.is_some()
            || [chosen.rho, chosen.sigma_min, chosen.sigma_max, chosen.t_eps]
                .iter()
                .any(|o| o.is_some());
        let levels = match self.table() {
            Some(table) if !spaced && !leads_by_level(kind) => Levels::of(table),
            _ => return self.grid_nodes(kind, steps),
        };
        match kind {
            Kind::OdeEuler | Kind::OdeHeun | Kind::EulerA => {
                self.refuse_foreign(kind)?;
                self.euler_nodes(kind, steps, &levels)
            }
            Kind::Dpmpp2m | Kind::DpmppSde2m | Kind::UniPc => {
                self.refuse_foreign(kind)?;
                self.multistep_nodes(kind, steps, &levels)
            }
            _ => self.label_nodes(kind, steps),
        }
    }

    fn spacing(&self, kind: Kind) -> Spacing {
        let own = || {
            let class = kind.class_name().and_then(Class::named);
            class.map_or(Spacing::Leading, |class| class.spacing)
        };
        self.scheduler.timestep_spacing.unwrap_or_else(own)
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
        Ok(Nodes { nodes: nodes.collect(), end, start_std: None, notes: Vec::new() })
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
        Ok(Nodes { nodes: nodes.collect(), end, start_std: Some(start_std), notes })
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
            return Ok(Nodes { nodes: nodes.collect(), end, start_std: None, notes: Vec::new() });
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
        Ok(Nodes { nodes: nodes.collect(), end, start_std: None, notes: Vec::new() })
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
        } else if let Some(steps) = process.steps().filter(|&steps| steps > 2)
            && (leads_by_level(kind) || !grid.is_of_times())
            && level(from) > MOST_LEAP * level((steps - 1) as f64)
        {
            notes.push(format!(
                "sampling starts at std/signal = {:.4}: between the last two states of `{}` the \
                 noise grows {:.0}-fold, and the network knows nothing in between",
                level((steps - 1) as f64),
                process.name(),
                level(from) / level((steps - 1) as f64)
            ));
            from = (steps - 1) as f64;
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
        Ok(Nodes { nodes: nodes.collect(), end, start_std: None, notes })
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
