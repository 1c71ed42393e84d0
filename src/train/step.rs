//! One optimizer step as programs: forward, loss and backward for each
//! micro-batch, then gradient norm, AdamW and the average.

use crate::backend::{Engine, Loaded, Program, WeightSet};
use crate::config::TrainConfig;
use crate::diffusion::loss::Objective;
use crate::error::Result;
use crate::model::{Conditioning, Network, NetworkInputs};
use crate::ops::noising::coefficient;
use crate::ops::optimizer::{AdamW, control};
use crate::ops::variational::{Options, column};
use crate::plan::{DType, Mode, Parameters, Plan, TensorId, Wrt};

/// The host's side of one micro-batch; buffers are reused from step to step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Clean images in model range, `[n, h, w, c]`.
    pub x0: Vec<f32>,
    /// Time as the network's embedding takes it, `[n]`.
    pub t: Vec<f32>,
    /// The same time as a row, for networks that look it up, `[n]`.
    pub label: Vec<u32>,
    /// Per-image coefficients, `[n, coefficient::COLUMNS]`.
    pub coefficients: Vec<f32>,
    /// Those of a variational loss, `[n, column::COLUMNS]`.
    pub variational: Vec<f32>,
    /// What the target takes in place of x_0, for the two-variable loss, `[n, h, w, c]`.
    pub target: Vec<f32>,
    /// Random keys, `[n, 4]`.
    pub keys: Vec<u32>,
    /// Classes `[n]`, for class-conditional networks.
    pub class: Vec<u32>,
}

impl Batch {
    /// Buffers for `n` images of `image_len` elements.
    pub fn new(n: usize, image_len: usize) -> Self {
        Batch {
            x0: vec![0.0; n * image_len],
            t: vec![0.0; n],
            label: vec![0; n],
            coefficients: vec![0.0; n * coefficient::COLUMNS],
            variational: vec![0.0; n * column::COLUMNS],
            target: vec![0.0; n * image_len],
            keys: vec![0; n * 4],
            class: vec![0; n],
        }
    }
}

/// The tensors that are uploaded for each micro-batch.
#[derive(Clone, Copy, Debug)]
struct Inputs {
    x0: TensorId,
    t: TensorId,
    coefficients: TensorId,
    keys: TensorId,
    class: Option<TensorId>,
    variational: Option<TensorId>,
    target: Option<TensorId>,
    loss: TensorId,
}

/// Programs of a training step, lowered but not yet allocated: their memory need
/// is known.
pub struct StepPrograms {
    first: Program,
    further: Option<Program>,
    update: Program,
    inputs: Inputs,
    control: TensorId,
    norm: TensorId,
    time: Conditioning,
}

impl StepPrograms {
    /// Builds the plans of one optimizer step of `config.accumulation`
    /// micro-batches of `config.batch` images `[h, w, c]`.
    pub fn new(
        engine: &Engine,
        network: &Network,
        parameters: &Parameters,
        config: &TrainConfig,
        objective: &Objective,
        image: [usize; 3],
    ) -> Result<Self> {
        let make = |mode| training_plan(network, config, objective, image, mode);
        let (plan, inputs) = make(Mode::Write)?;
        let first = engine.lower(plan)?;
        let further = match config.accumulation {
            1 => None,
            _ => Some(engine.lower(make(Mode::Add)?.0)?),
        };
        let mut plan = Plan::new();
        let ranges = parameters.trainable_ranges();
        let norm = plan.global_norm(ranges.clone(), parameters.arena_len());
        let op = AdamW {
            ranges,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay: config.weight_decay,
            clip: (config.clip > 0.0).then_some(config.clip),
        };
        let control = plan.adamw(op, norm, parameters.arena_len());
        let update = engine.lower(plan)?;
        let time = network.time_input();
        Ok(StepPrograms { first, further, update, inputs, control, norm, time })
    }

    /// All programs, for their memory need.
    pub fn programs(&self) -> Vec<&Program> {
        [Some(&self.first), self.further.as_ref(), Some(&self.update)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Floating-point operations of one micro-batch, forward and backward.
    pub fn flops(&self) -> u64 {
        self.first.plan.flops()
    }

    /// Allocates.
    pub fn load(self, engine: &mut Engine) -> Result<TrainStep> {
        Ok(TrainStep {
            first: engine.load(self.first, WeightSet::Raw)?,
            further: self.further.map(|p| engine.load(p, WeightSet::Raw)).transpose()?,
            update: engine.load(self.update, WeightSet::Raw)?,
            inputs: self.inputs,
            control: self.control,
            norm: self.norm,
            time: self.time,
        })
    }
}

fn training_plan(
    network: &Network,
    config: &TrainConfig,
    objective: &Objective,
    [h, w, c]: [usize; 3],
    mode: Mode,
) -> Result<(Plan, Inputs)> {
    let n = config.batch;
    let mut plan = Plan::new();
    let x0 = plan.input("x_0", &[n, h, w, c], DType::F32);
    let t = network.time_input().declare(&mut plan, "t", n).expect("every network reads the time");
    let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
    let keys = plan.input("keys", &[n, 4], DType::U32);
    let class = network.class_input().declare(&mut plan, "class", n);
    let x_t = plan.noising(x0, coefficients, keys)?;
    let prediction =
        network.build(&mut plan, &NetworkInputs { x: x_t, t, class, keys: Some(keys) })?;
    let scale = 1.0 / (n * config.accumulation) as f32;
    let (mut variational, mut target) = (None, None);
    let loss = if let Some(half_bin) = objective.half_bin() {
        let rows = plan.input("variational", &[n, column::COLUMNS], DType::F32);
        variational = Some(rows);
        let options = Options { hold_mean: objective.holds_mean(), half_bin, scale };
        plan.variational(prediction, x0, rows, keys, options)?
    } else if objective.is_two_variable() {
        let second = plan.input("target", &[n, h, w, c], DType::F32);
        target = Some(second);
        plan.loss(prediction, second, coefficients, Some(keys), scale)?
    } else {
        plan.loss(prediction, x0, coefficients, Some(keys), scale)?
    };
    plan.keep(loss);
    plan.derive(&[(loss, None)], Wrt::Parameters(mode))?;
    Ok((plan, Inputs { x0, t, coefficients, keys, class, variational, target, loss }))
}

/// An executable training step.
pub struct TrainStep {
    first: Loaded,
    further: Option<Loaded>,
    update: Loaded,
    inputs: Inputs,
    control: TensorId,
    norm: TensorId,
    time: Conditioning,
}

/// Numbers the optimizer needs for one step.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Learning rate.
    pub learning_rate: f64,
    /// 1 - beta1^step.
    pub bias_correction_1: f64,
    /// 1 - beta2^step.
    pub bias_correction_2: f64,
    /// Decay of the average.
    pub ema_decay: f64,
}

impl TrainStep {
    /// Call at the start of each optimizer step: the weights have changed.
    pub fn refresh(&self, engine: &mut Engine) -> Result<()> {
        engine.refresh(&self.first)?;
        self.further.as_ref().map_or(Ok(()), |p| engine.refresh(p))
    }

    fn program(&self, micro: usize) -> &Loaded {
        match micro {
            0 => &self.first,
            _ => self.further.as_ref().expect("accumulation has a second program"),
        }
    }

    /// Forward and backward of micro-batch `micro`; losses `[n]` of its images.
    pub fn accumulate(
        &self,
        engine: &mut Engine,
        micro: usize,
        batch: &Batch,
        losses: &mut [f32],
    ) -> Result<()> {
        let program = self.program(micro);
        self.upload(engine, program, batch)?;
        engine.run(program)?;
        engine.get(program, self.inputs.loss, losses)
    }

    fn upload(&self, engine: &mut Engine, program: &Loaded, batch: &Batch) -> Result<()> {
        let inputs = &self.inputs;
        engine.set(program, inputs.x0, &batch.x0)?;
        match self.time {
            Conditioning::Row(_) => engine.set_u32(program, inputs.t, &batch.label)?,
            _ => engine.set(program, inputs.t, &batch.t)?,
        }
        engine.set(program, inputs.coefficients, &batch.coefficients)?;
        engine.set_u32(program, inputs.keys, &batch.keys)?;
        if let Some(rows) = inputs.variational {
            engine.set(program, rows, &batch.variational)?;
        }
        if let Some(target) = inputs.target {
            engine.set(program, target, &batch.target)?;
        }
        inputs.class.map_or(Ok(()), |class| engine.set_u32(program, class, &batch.class))
    }

    /// Repeats a micro-batch and names the first tensor that is not finite.
    pub fn diagnose(
        &self,
        engine: &mut Engine,
        micro: usize,
        batch: &Batch,
    ) -> Result<Option<String>> {
        let program = self.program(micro);
        self.upload(engine, program, batch)?;
        engine.run_checked(program)
    }

    /// Clips, updates the weights and their average; returns the gradient norm
    /// before clipping. A norm that is not finite leaves everything as it was.
    pub fn update(&self, engine: &mut Engine, values: Control) -> Result<f32> {
        let mut row = [0f32; control::COLUMNS];
        row[control::LEARNING_RATE] = values.learning_rate as f32;
        row[control::BIAS_CORRECTION_1] = values.bias_correction_1 as f32;
        row[control::BIAS_CORRECTION_2] = values.bias_correction_2 as f32;
        row[control::EMA_RATE] = (1.0 - values.ema_decay) as f32;
        engine.set(&self.update, self.control, &row)?;
        engine.run(&self.update)?;
        let mut norm = [0f32];
        engine.get(&self.update, self.norm, &mut norm)?;
        Ok(norm[0])
    }
}
