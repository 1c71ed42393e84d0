//! One optimizer step as programs: forward, loss and backward of a micro-batch, and
//! at the end of the last one's gradient norm, AdamW and the average. Without
//! accumulation that is one program, which a device replays as one graph.

use crate::backend::{Engine, Fetch, Loaded, Program, WeightSet};
use crate::config::TrainConfig;
use crate::diffusion::loss::Objective;
use crate::error::Result;
use crate::model::{Conditioning, Network, NetworkInputs};
use crate::ops::noising::{Picked, coefficient, pick};
use crate::ops::optimizer::{AdamW, control};
use crate::ops::variational::{Options, column};
use crate::plan::{DType, Mode, Parameters, Plan, TensorId, Wrt};

/// The host's side of one micro-batch; buffers are reused from step to step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Clean images in model range, `[n, h, w, c]`, where they are uploaded so.
    pub x0: Vec<f32>,
    /// Clean images as bytes, `[n, h, w, c]`, where they are uploaded so.
    pub bytes: Vec<u8>,
    /// Which image of the set each one is, and whether mirrored, `[n, 2]`, where
    /// noising picks.
    pub picks: Vec<u32>,
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
    /// Buffers for `n` images of `image_len` elements that are uploaded as values.
    pub fn new(n: usize, image_len: usize) -> Self {
        Batch {
            x0: vec![0.0; n * image_len],
            bytes: Vec::new(),
            picks: vec![0; n * pick::COLUMNS],
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

/// In which form a step gets its clean images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// `[h, w, c]`
    pub shape: [usize; 3],
    /// Values of a byte; 0 where the images are f32 in model range.
    pub levels: usize,
    /// Images of the set that lies on the device
    /// ([`Engine::set_images`]); none where those of each batch are uploaded.
    pub resident: Option<usize>,
}

impl From<[usize; 3]> for Images {
    /// f32, uploaded batch by batch.
    fn from(shape: [usize; 3]) -> Self {
        Images { shape, levels: 0, resident: None }
    }
}

/// Where a plan's clean images come from.
#[derive(Clone, Copy, Debug)]
enum Clean {
    /// Uploaded as values.
    Given(TensorId),
    /// Uploaded as bytes, in the order of the batch.
    Staged(Picked),
    /// Picked from those on the device.
    Resident(Picked),
}

/// The tensors that are uploaded for each micro-batch.
#[derive(Clone, Copy, Debug)]
struct Inputs {
    clean: Clean,
    t: TensorId,
    coefficients: TensorId,
    keys: TensorId,
    class: Option<TensorId>,
    variational: Option<TensorId>,
    target: Option<TensorId>,
    loss: TensorId,
}

/// Where the update of a program reads its numbers and leaves the norm.
#[derive(Clone, Copy, Debug)]
struct Update {
    control: TensorId,
    norm: TensorId,
}

/// Programs of a training step, lowered but not yet allocated: their memory need
/// is known.
pub struct StepPrograms {
    /// Of the first micro-batch, of those between, and of the last one.
    programs: Vec<Program>,
    accumulation: usize,
    inputs: Inputs,
    update: Update,
    time: Conditioning,
}

impl StepPrograms {
    /// Builds the plans of one optimizer step of `config.accumulation`
    /// micro-batches of `config.batch` images.
    pub fn new(
        engine: &Engine,
        network: &Network,
        parameters: &Parameters,
        config: &TrainConfig,
        objective: &Objective,
        images: impl Into<Images>,
    ) -> Result<Self> {
        let images = images.into();
        let make = |mode| training_plan(network, config, objective, images, mode);
        // The tensors of a micro-batch have the same ids in each plan.
        let mut programs = Vec::new();
        if config.accumulation > 1 {
            programs.push(engine.lower(make(Mode::Write)?.0)?);
        }
        if config.accumulation > 2 {
            programs.push(engine.lower(make(Mode::Add)?.0)?);
        }
        let last = if config.accumulation > 1 { Mode::Add } else { Mode::Write };
        let (mut plan, inputs) = make(last)?;
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
        programs.push(engine.lower(plan)?);
        let (time, accumulation) = (network.time_input(), config.accumulation);
        Ok(StepPrograms { programs, accumulation, inputs, update: Update { control, norm }, time })
    }

    /// All programs, for their memory need.
    pub fn programs(&self) -> Vec<&Program> {
        self.programs.iter().collect()
    }

    /// Floating-point operations of one micro-batch, forward and backward.
    pub fn flops(&self) -> u64 {
        self.programs[0].plan.flops()
    }

    /// Allocates.
    pub fn load(self, engine: &mut Engine) -> Result<TrainStep> {
        let load = |program| engine.load(program, WeightSet::Raw);
        Ok(TrainStep {
            programs: self.programs.into_iter().map(load).collect::<Result<_>>()?,
            accumulation: self.accumulation,
            inputs: self.inputs,
            update: self.update,
            time: self.time,
        })
    }
}

fn training_plan(
    network: &Network,
    config: &TrainConfig,
    objective: &Objective,
    images: Images,
    mode: Mode,
) -> Result<(Plan, Inputs)> {
    let (n, [h, w, c]) = (config.batch, images.shape);
    let mut plan = Plan::new();
    let clean = clean_images(&mut plan, n, images);
    let t = network.time_input().declare(&mut plan, "t", n).expect("every network reads the time");
    let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
    let keys = plan.input("keys", &[n, 4], DType::U32);
    let class = network.class_input().declare(&mut plan, "class", n);
    // A variational term reads x_0 in its own way.
    let plain = objective.half_bin().is_some();
    let (x_t, x0) = match clean {
        Clean::Given(x0) => (plan.noising(x0, coefficients, keys)?, Some(x0)),
        Clean::Staged(picked) | Clean::Resident(picked) => {
            plan.noising_picked(picked, coefficients, keys, plain)?
        }
    };
    let prediction =
        network.build(&mut plan, &NetworkInputs { x: x_t, t, class, keys: Some(keys) })?;
    let scale = 1.0 / (n * config.accumulation) as f32;
    let (mut variational, mut target) = (None, None);
    let loss = if let Some(half_bin) = objective.half_bin() {
        let rows = plan.input("variational", &[n, column::COLUMNS], DType::F32);
        variational = Some(rows);
        let options = Options { hold_mean: objective.holds_mean(), half_bin, scale };
        plan.variational(prediction, x0.expect("kept for it"), rows, keys, options)?
    } else if objective.is_two_variable() {
        let second = plan.input("target", &[n, h, w, c], DType::F32);
        target = Some(second);
        plan.loss(prediction, second, coefficients, Some(keys), scale)?
    } else {
        match clean {
            Clean::Given(x0) => plan.loss(prediction, x0, coefficients, Some(keys), scale)?,
            Clean::Staged(picked) | Clean::Resident(picked) => {
                plan.loss_picked(prediction, picked, coefficients, keys, scale)?
            }
        }
    };
    plan.keep(loss);
    plan.derive(&[(loss, None)], Wrt::Parameters(mode))?;
    Ok((plan, Inputs { clean, t, coefficients, keys, class, variational, target, loss }))
}

/// Declares the clean images of a plan.
fn clean_images(plan: &mut Plan, n: usize, images: Images) -> Clean {
    let [h, w, c] = images.shape;
    let dtype = if images.levels == 0 { DType::F32 } else { DType::U8 };
    if images.resident.is_none() && dtype == DType::F32 {
        return Clean::Given(plan.input("x_0", &[n, h, w, c], dtype));
    }
    let set = match images.resident {
        Some(rows) => plan.image_set(&[rows, h, w, c], dtype),
        None => plan.input("images", &[n, h, w, c], dtype),
    };
    let picks = plan.input("picks", &[n, pick::COLUMNS], DType::U32);
    let picked = Picked { set, picks, levels: images.levels };
    match images.resident {
        Some(_) => Clean::Resident(picked),
        None => Clean::Staged(picked),
    }
}

/// An executable training step.
pub struct TrainStep {
    programs: Vec<Loaded>,
    accumulation: usize,
    inputs: Inputs,
    update: Update,
    time: Conditioning,
}

/// A micro-batch that the device has been given; its numbers are on their way.
#[derive(Debug)]
pub struct Started {
    losses: Fetch,
    norm: Option<Fetch>,
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
        self.programs.iter().try_for_each(|p| engine.refresh(p))
    }

    /// The program of a micro-batch.
    fn program(&self, micro: usize) -> &Loaded {
        let at = match micro {
            _ if micro + 1 == self.accumulation => self.programs.len() - 1,
            0 => 0,
            _ => 1,
        };
        &self.programs[at]
    }

    /// Starts forward and backward of micro-batch `micro`, and after the last one
    /// the update: clips by the gradient norm, changes the weights and their
    /// average. A norm that is not finite leaves everything as it was. Does not
    /// wait for a device that runs beside the host; `batch` may change afterwards.
    pub fn start(
        &self,
        engine: &mut Engine,
        micro: usize,
        batch: &Batch,
        control: &Control,
    ) -> Result<Started> {
        let program = self.program(micro);
        let updates = micro + 1 == self.accumulation;
        self.upload(engine, program, batch)?;
        if updates {
            engine.set(program, self.update.control, &control.row())?;
        }
        engine.run(program)?;
        let losses = engine.fetch(program, self.inputs.loss)?;
        let norm = updates.then(|| engine.fetch(program, self.update.norm)).transpose()?;
        Ok(Started { losses, norm })
    }

    /// Waits for the losses `[n]` of a micro-batch's images and, after the last
    /// one, the gradient norm before clipping.
    pub fn finish(
        &self,
        engine: &mut Engine,
        started: Started,
        losses: &mut [f32],
    ) -> Result<Option<f32>> {
        engine.collect(started.losses, losses)?;
        let Some(norm) = started.norm else { return Ok(None) };
        let mut value = [0f32];
        engine.collect(norm, &mut value)?;
        Ok(Some(value[0]))
    }

    fn upload(&self, engine: &mut Engine, program: &Loaded, batch: &Batch) -> Result<()> {
        let inputs = &self.inputs;
        match inputs.clean {
            Clean::Given(x0) => engine.set(program, x0, &batch.x0)?,
            Clean::Staged(images) => {
                engine.set_u8(program, images.set, &batch.bytes)?;
                engine.set_u32(program, images.picks, &batch.picks)?;
            }
            Clean::Resident(images) => engine.set_u32(program, images.picks, &batch.picks)?,
        }
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

    /// Repeats a micro-batch without its update and names the first tensor that is
    /// not finite.
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
}

impl Control {
    /// As the optimizer reads it.
    fn row(&self) -> [f32; control::COLUMNS] {
        let mut row = [0f32; control::COLUMNS];
        row[control::LEARNING_RATE] = self.learning_rate as f32;
        row[control::BIAS_CORRECTION_1] = self.bias_correction_1 as f32;
        row[control::BIAS_CORRECTION_2] = self.bias_correction_2 as f32;
        row[control::EMA_RATE] = (1.0 - self.ema_decay) as f32;
        row
    }
}
