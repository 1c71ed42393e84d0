//! The exact network of correlated Gaussian data, as a plan on a device.
//!
//! An image is `[1, 2, c]`: c independent pairs of pixels with variances 1 and 1
//! and correlation rho. Along (1, 1) and (1, -1) the variances are 1 + rho and
//! 1 - rho, and the score at a pair is -(alpha^2 v + sigma^2)^-1 x on each. What
//! the network is told is alpha^2 of a variance-preserving process or sigma^2 of an
//! exploding one, from which that factor follows by ops that plans have.

use std::sync::Arc;

use langevin::Result;
use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::diffusion::denoiser::{Denoiser, Prediction};
use langevin::diffusion::process::{Pair, Process, SharedProcess};
use langevin::diffusion::sampler::run::{
    NetworkInputs, Request, Samples, Sampling, Settings, step_plan,
};
use langevin::diffusion::sampler::{Options, Program, Setup};
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::plan::{DType, Plan, Role, TensorId};

/// A process under which a network is told alpha^2 or sigma^2.
#[derive(Debug)]
pub struct Told<P> {
    pub process: P,
    pub exploding: bool,
}

impl<P: Process> Process for Told<P> {
    fn name(&self) -> &'static str {
        self.process.name()
    }
    fn end(&self) -> f64 {
        self.process.end()
    }
    fn earliest(&self) -> f64 {
        self.process.earliest()
    }
    fn pair(&self, time: f64) -> Pair {
        self.process.pair(time)
    }
    fn drift(&self, time: f64) -> f64 {
        self.process.drift(time)
    }
    fn diffusion2(&self, time: f64) -> f64 {
        self.process.diffusion2(time)
    }
    fn label(&self, time: f64) -> f64 {
        let pair = self.process.pair(time);
        if self.exploding { pair.variance() } else { pair.signal().powi(2) }
    }
    fn time_of(&self, half_log_snr: f64) -> f64 {
        self.process.time_of(half_log_snr)
    }
    fn prior_std(&self) -> f64 {
        self.process.prior_std()
    }
}

/// Pairs of correlation rho under a process.
#[derive(Clone)]
pub struct Gaussian {
    pub process: SharedProcess,
    pub exploding: bool,
    pub rho: f64,
}

/// Projections to (1, 1) and (1, -1).
const PROJECTIONS: [[f32; 4]; 2] = [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, -0.5, 0.5]];
const NAMES: [&str; 2] = ["exact.even", "exact.odd"];

impl Gaussian {
    pub fn new(process: impl Process + 'static, exploding: bool, rho: f64) -> Gaussian {
        Gaussian { process: Arc::new(Told { process, exploding }), exploding, rho }
    }

    /// Variances along (1, 1) and (1, -1).
    pub fn variances(&self) -> [f64; 2] {
        [1.0 + self.rho, 1.0 - self.rho]
    }

    /// Total variances at a pair.
    pub fn totals(&self, pair: Pair) -> [f64; 2] {
        self.variances().map(|v| pair.signal().powi(2) * v + pair.variance())
    }

    pub fn setup(&self, options: Options) -> Setup {
        let denoiser = Denoiser::plain(self.process.clone(), Prediction::Score);
        Setup::new(denoiser, self.process.clone(), &SchedulerConfig::default(), options).unwrap()
    }

    /// Appends the network, which answers the score.
    pub fn network(&self, plan: &mut Plan, inputs: NetworkInputs) -> Result<TensorId> {
        let mut parts = Vec::new();
        for (name, v) in NAMES.into_iter().zip(self.variances()) {
            let matrix = plan.activation(name, &[2, 2], DType::F32, Role::State);
            let projected = plan.axis_map(inputs.x, matrix, 2)?;
            // alpha^2 v + 1 - alpha^2, or v + sigma^2.
            let total = match self.exploding {
                true => plan.scale(inputs.label, 1.0, v as f32),
                false => plan.scale(inputs.label, (v - 1.0) as f32, 1.0),
            };
            parts.push(plan.scale_rows(projected, total, 0, true)?);
        }
        plan.add(parts[0], parts[1], -1.0)
    }

    /// What a request has to hold for the network.
    pub fn constants() -> [(&'static str, &'static [f32]); 2] {
        [(NAMES[0], &PROJECTIONS[0]), (NAMES[1], &PROJECTIONS[1])]
    }

    /// Draws images of `channels` pairs.
    pub fn draw(
        &self,
        program: &Program,
        batch: usize,
        channels: usize,
        request: &Request,
    ) -> Result<Samples> {
        let settings = settings(batch, &[1, 2, channels]);
        let plan = step_plan(program, &settings, |plan, inputs| self.network(plan, inputs))?;
        let constants = [request.constants, &Gaussian::constants()].concat();
        run(program, &settings, plan, &Request { constants: &constants, ..*request })
    }
}

pub fn settings(batch: usize, shape: &[usize]) -> Settings {
    Settings {
        batch,
        shape: shape.to_vec(),
        label: DType::F32,
        class: None,
        guidance: 1.0,
        given_noise: false,
    }
}

/// Runs a plan without weights.
pub fn run(
    program: &Program,
    settings: &Settings,
    plan: Plan,
    request: &Request,
) -> Result<Samples> {
    let mut engine = Engine::new(Box::new(Cpu::new(2)), 0, false)?;
    let lowered = engine.lower(plan)?;
    let loaded = engine.load(lowered, WeightSet::Raw)?;
    engine.refresh(&loaded)?;
    let sampling = Sampling { program, settings, loaded: &loaded };
    sampling.run(&mut engine, request, &mut |_, _| Ok(()))
}

/// Mean square.
pub fn power(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64
}
