//! The plan of one sampler step around any network, and the loop that runs a
//! program over batches of images.
//!
//! Slot 0 is the state; it stays on the device from the first stage to the last.
//! A step reads and writes it in place, and counts up the number of its stage, so
//! that between two stages nothing moves but given noise, where there is any.

use super::{Control, Program};
use crate::backend::{Engine, Loaded};
use crate::diffusion::denoiser::Limit;
use crate::error::{Error, Result};
use crate::ops::sampler_blend::{BlendOperands, column as blend};
use crate::ops::sampler_langevin::rule;
use crate::ops::sampler_rk45::{self as rk45, Rk45Operands, curve, state as control};
use crate::ops::sampler_step::{Advance, SamplerOperands, column};
use crate::plan::{DType, Plan, Role, TensorId};
use crate::random::{Purpose, check_images, fill_normal, image_keys};

/// What a step's plan is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Images in a batch.
    pub batch: usize,
    /// Axes of one image, channels last: `[h, w, c]`.
    pub shape: Vec<usize>,
    /// Type of the network's time input: f32, or u32 where it is a table's row.
    pub label: DType,
    /// Type of the network's class input, where it takes one: u32 for a table's
    /// row, f32 for a value.
    pub class: Option<DType>,
    /// Guidance weight W of uncond + W (cond - uncond); 1 is off.
    pub guidance: f64,
    /// Whether noise is given and not drawn.
    pub given_noise: bool,
}

impl Settings {
    /// Whether the network runs on a doubled batch.
    pub fn is_guided(&self) -> bool {
        self.class.is_some() && self.guidance != 1.0
    }

    /// Elements of one image.
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Images the network sees at once.
    fn network_batch(&self) -> usize {
        if self.is_guided() { 2 * self.batch } else { self.batch }
    }
}

/// What the network of a step reads.
#[derive(Clone, Copy, Debug)]
pub struct NetworkInputs {
    /// Its input, `[b, ...]`; b is twice the batch when guided.
    pub x: TensorId,
    /// The label of every image, `[b]`.
    pub label: TensorId,
    /// The class of every image, `[b]`, where the network takes one.
    pub class: Option<TensorId>,
}

/// Name of the known images that a blend puts in, `[n, ...]`.
pub const KNOWN: &str = "sampler.known";
/// Name of a blend's mask, `[n, ...]`.
pub const MASK: &str = "sampler.mask";

/// Tensors of the plan that the loop sets and reads.
mod name {
    pub const LABEL: &str = "sampler.label";
    pub const CLASS: &str = "sampler.class";
    pub const INPUT: &str = "sampler.input";
    pub const TABLE: &str = "sampler.table";
    pub const STAGE: &str = "sampler.stage";
    pub const ARRIVED: &str = "sampler.arrived";
    pub const KEYS: &str = "sampler.keys";
    pub const NOISE: &str = "sampler.noise";
    pub const ROW: &str = "sampler.row";
    pub const RULES: &str = "sampler.rules";
    pub const CURVE: &str = "sampler.curve";
    pub const ERROR: &str = "sampler.error";
    pub const STATE: &str = "sampler.state";
    pub const RUNNING: &str = "sampler.running";
    pub const BLEND: &str = "sampler.blend";
    pub fn slot(j: usize) -> String {
        format!("sampler.slot.{j}")
    }
}

/// Tensors of a step's plan that a network or what guides it may read.
#[derive(Clone, Copy, Debug)]
pub struct StepTensors {
    /// The state, slot 0.
    pub state: TensorId,
    /// Rows of all stages, `[stages, 1, COLUMNS]`.
    pub table: TensorId,
    /// Number of the stage.
    pub stage: TensorId,
    /// What the network reads.
    pub inputs: NetworkInputs,
}

/// What the network, and what guides it, hand to the update.
#[derive(Clone, Debug)]
pub struct Predicted {
    /// The network's output.
    pub prediction: TensorId,
    /// Tensors of the state's shape that are the program's last slots, written
    /// anew in every evaluation.
    pub guides: Vec<TensorId>,
}

/// The plan of one stage: the network, appended by `network`, and the update.
/// Pictures of other batches, counts and guidance share the program.
pub fn step_plan(
    program: &Program,
    settings: &Settings,
    network: impl FnOnce(&mut Plan, NetworkInputs) -> Result<TensorId>,
) -> Result<Plan> {
    guided_plan(program, settings, |plan, tensors| {
        Ok(Predicted { prediction: network(plan, tensors.inputs)?, guides: Vec::new() })
    })
}

/// As [`step_plan`], with a guide that is computed beside the prediction.
pub fn guided_plan(
    program: &Program,
    settings: &Settings,
    network: impl FnOnce(&mut Plan, StepTensors) -> Result<Predicted>,
) -> Result<Plan> {
    if matches!(program.control, Control::Adaptive(_)) && settings.label == DType::U32 {
        return Err(Error::Usage(format!(
            "{} asks at any time, and this network's time is the row of a table; use ode-heun",
            program.name
        )));
    }
    let (n, seen) = (settings.batch, settings.network_batch());
    let stages = program.stages.len();
    let with_batch = |b: usize| [&[b], settings.shape.as_slice()].concat();
    let mut plan = Plan::new();
    // Everything but the noise is set once a batch and outlives many runs.
    let mut state =
        |name: &str, shape: &[usize], dtype| plan.activation(name, shape, dtype, Role::State);
    let slot = |j: usize| (name::slot(j), with_batch(n));
    let mut slots: Vec<TensorId> = vec![state(&slot(0).0, &slot(0).1, DType::F32)];
    let label = state(name::LABEL, &[seen], settings.label);
    let class = settings.class.map(|dtype| state(name::CLASS, &[seen], dtype));
    let table = state(name::TABLE, &[stages, 1, column::COLUMNS], DType::F32);
    let keys = state(name::KEYS, &[n, 4], DType::U32);
    let input = (settings.is_guided() || !program.input_is_state())
        .then(|| state(name::INPUT, &with_batch(seen), DType::F32));
    let blends = program.blends().then(|| {
        let table = state(name::BLEND, &[stages, blend::COLUMNS], DType::F32);
        (table, state(KNOWN, &with_batch(n), DType::F32), state(MASK, &with_batch(n), DType::F32))
    });
    let stage = state(name::STAGE, &[1], DType::U32);
    let advance = Some(Advance { stage, arrived: state(name::ARRIVED, &[1], DType::U32) });
    let noise = settings.given_noise.then(|| plan.input(name::NOISE, &with_batch(n), DType::F32));
    let x = input.unwrap_or(slots[0]);
    let inputs = NetworkInputs { x, label, class };
    let tensors = StepTensors { state: slots[0], table, stage, inputs };
    let Predicted { prediction, guides } = network(&mut plan, tensors)?;
    let mut state =
        |name: &str, shape: &[usize], dtype| plan.activation(name, shape, dtype, Role::State);
    let own = program.slots - guides.len();
    slots.extend((1..own).map(|j| state(&slot(j).0, &slot(j).1, DType::F32)));
    slots.extend(&guides);
    let threshold = match program.limit {
        Limit::Threshold { ratio, max } => Some((ratio as f32, max as f32)),
        Limit::Clip { .. } | Limit::None => None,
    };
    let mut operands = SamplerOperands {
        prediction,
        table,
        stage,
        advance,
        keys,
        noise,
        label,
        input,
        slots,
        threshold,
    };
    // Rows of each image take the table's place, of this stage and the next.
    let row = match program.control {
        Control::None => None,
        _ => Some(state(name::ROW, &[1], DType::U32)),
    };
    let rows = match &program.control {
        Control::None => None,
        Control::Langevin { batch_norm } => {
            let rules = state(name::RULES, &[stages], DType::F32);
            Some(plan.sampler_langevin(&operands, rules, *batch_norm)?)
        }
        Control::Adaptive(adaptive) => {
            let control = Rk45Operands {
                curve: state(name::CURVE, &[adaptive.nodes(), curve::COLUMNS], DType::F32),
                error: state(name::ERROR, &[n], DType::F32),
                state: state(name::STATE, &[n, control::COLUMNS], DType::F32),
                running: state(name::RUNNING, &[1], DType::F32),
                rows: plan.transient("sampler.rows", &[2, n, column::COLUMNS]),
            };
            plan.sampler_rk45(&operands, control, adaptive.settings())?;
            Some(control.rows)
        }
    };
    if let Some((table, known, mask)) = blends {
        let slot = operands.slots[0];
        plan.sampler_blend(BlendOperands { table, stage, keys, known, mask, slot })?;
    }
    if let (Some(rows), Some(row)) = (rows, row) {
        (operands.table, operands.stage) = (rows, row);
    }
    plan.sampler_step(&operands)?;
    Ok(plan)
}

/// Which images to draw. Tensors are channels last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Seed of the images.
    pub seed: u64,
    /// Index of the first image.
    pub first: u64,
    /// Number of images.
    pub count: usize,
    /// Given x_T `[count, ...]`, standard normal.
    pub start: Option<&'a [f32]>,
    /// Given noise `[rows, count, ...]`: row i belongs to the i-th draw, which
    /// is the i-th update where an update draws once.
    pub noise: Option<&'a [f32]>,
    /// Class of every image, where the network takes one.
    pub classes: &'a [u32],
    /// The class that stands for none.
    pub null_class: u32,
    /// Keep the state after every so many updates, and at the start and the end.
    pub trajectory: Option<usize>,
    /// More tensors of the plan that hold something of every image: name and
    /// values `[count, ...]`.
    pub images: &'a [(&'a str, &'a [f32])],
    /// More tensors of the plan that are the same for all.
    pub constants: &'a [(&'a str, &'a [f32])],
}

/// The state of all images after some updates.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Updates done.
    pub updates: usize,
    /// `[count, ...]`
    pub images: Vec<f32>,
}

/// What was drawn. Tensors are channels last.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// `[count, ...]`
    pub images: Vec<f32>,
    /// The states asked for, noisiest first.
    pub trajectory: Vec<Frame>,
    /// Evaluations of the network, one for each image it saw; those that fill
    /// up the last batch are not counted, guidance counts twice.
    pub evaluations: u64,
    /// Those of every image, `[count]`.
    pub evaluations_by_image: Vec<u64>,
}

/// A program and the loaded plan of its step.
#[derive(Clone, Copy)]
pub struct Sampling<'a> {
    /// The sampler.
    pub program: &'a Program,
    /// What the plan was made for.
    pub settings: &'a Settings,
    /// The plan of [`step_plan`], on the engine.
    pub loaded: &'a Loaded,
}

fn wrong_size(tensor: &str, expected: String, found: usize) -> Error {
    Error::Shape { op: "sample", tensor: tensor.into(), expected, found: vec![found] }
}

/// Copies images `from .. from + n` of `all`, the last one again where they end.
fn fill_batch<T: Copy>(all: &[T], len: usize, from: usize, out: &mut [T]) {
    let there = (all.len() - from * len).min(out.len());
    out[..there].copy_from_slice(&all[from * len..][..there]);
    let last = all.len() - len;
    for image in out[there..].chunks_exact_mut(len) {
        image.copy_from_slice(&all[last..]);
    }
}

impl Sampling<'_> {
    fn check(&self, request: &Request) -> Result<()> {
        check_images(request.first, request.count as u64)?;
        let total = request.count * self.settings.len();
        if let Some(start) = request.start
            && start.len() != total
        {
            let expected = format!("{} images, {total} values", request.count);
            return Err(wrong_size("x_T", expected, start.len()));
        }
        if request.noise.is_some() != self.settings.given_noise {
            return Err(Error::Usage("given noise needs a plan made for it".into()));
        }
        if let Some(noise) = request.noise {
            let rows = self.program.noise_rows();
            if noise.len() < rows * total || noise.len() % total.max(1) != 0 {
                let expected = format!(
                    "at least {rows} rows of {} images, {} values",
                    request.count,
                    rows * total
                );
                return Err(wrong_size("z", expected, noise.len()));
            }
        }
        if self.settings.class.is_some() && request.classes.len() != request.count {
            let expected = format!("{} classes", request.count);
            return Err(wrong_size("class", expected, request.classes.len()));
        }
        for (name, values) in request.images {
            let tensor = self.loaded.program.plan.tensor(self.loaded.tensor(name)?);
            let needed = tensor.len() / self.settings.batch * request.count;
            if values.len() != needed {
                let expected = format!("{} images, {needed} values", request.count);
                return Err(wrong_size(name, expected, values.len()));
            }
        }
        if request.trajectory.is_some() && matches!(self.program.control, Control::Adaptive(_)) {
            return Err(Error::Usage(format!(
                "--trajectory: with {} every image is at a time of its own; use ode-heun",
                self.program.name
            )));
        }
        if request.trajectory == Some(0) {
            return Err(Error::Usage(
                "--trajectory 0: a state is kept every 1 or more updates".into(),
            ));
        }
        Ok(())
    }

    /// Draws the images. `progress` is called after every stage with the stages
    /// done and their number; an error it returns ends the run.
    pub fn run(
        &self,
        engine: &mut Engine,
        request: &Request,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Samples> {
        self.check(request)?;
        let Sampling { program, settings, loaded } = *self;
        let (n, len, count) = (settings.batch, settings.len(), request.count);
        let copies = settings.network_batch() / n;
        let tensor = |name: &str| loaded.tensor(name);
        // Those after them are a guide's, which the plan writes itself.
        let slots: Vec<TensorId> =
            (0..program.slots).map_while(|j| loaded.program.plan.find(&name::slot(j))).collect();
        let (label, keys_id) = (tensor(name::LABEL)?, tensor(name::KEYS)?);
        let table = program.table(settings.guidance);
        let mut evaluations = vec![(program.evaluations() * copies) as u64; count];

        let batches = count.div_ceil(n);
        let stages = program.stages.len();
        let mut x = vec![0f32; n * len];
        let mut doubled = vec![0f32; copies * n * len];
        let mut images = vec![0f32; count * len];
        let mut trajectory: Vec<Frame> = Vec::new();
        for batch in 0..batches {
            let from = batch * n;
            let here = n.min(count - from);
            let mut keys = Vec::with_capacity(n * 4);
            for i in 0..n {
                let image = request.first + (from + i.min(here - 1)) as u64;
                keys.extend(image_keys(request.seed, image));
            }
            match request.start {
                Some(start) => fill_batch(start, len, from, &mut x),
                None => {
                    for (x, keys) in x.chunks_exact_mut(len).zip(keys.chunks_exact(4)) {
                        let keys = keys.try_into().expect("four words");
                        fill_normal(keys, Purpose::SampleStart, 0, 0, x);
                    }
                }
            }
            x.iter_mut().for_each(|x| *x *= program.start_std as f32);
            let mut frames = Frames { request, from, here, len, frames: &mut trajectory };
            frames.keep(0, false, &x);

            engine.set(loaded, tensor(name::TABLE)?, &table)?;
            self.set_stage(engine, 0)?;
            engine.set_u32(loaded, tensor(name::ARRIVED)?, &[0])?;
            self.set_control(engine)?;
            for &(name, values) in request.constants {
                engine.set(loaded, tensor(name)?, values)?;
            }
            for &(name, values) in request.images {
                let id = tensor(name)?;
                let len = loaded.program.plan.tensor(id).len() / n;
                let mut own = vec![0f32; n * len];
                fill_batch(values, len, from, &mut own);
                engine.set(loaded, id, &own)?;
            }
            engine.set_u32(loaded, keys_id, &keys)?;
            engine.set(loaded, slots[0], &x)?;
            let first = &program.stages[0];
            match settings.label {
                DType::U32 => {
                    engine.set_u32(loaded, label, &vec![first.label as u32; copies * n])?
                }
                _ => engine.set(loaded, label, &vec![first.label as f32; copies * n])?,
            }
            if loaded.program.plan.find(name::INPUT).is_some() {
                for copy in doubled.chunks_exact_mut(n * len) {
                    copy.copy_from_slice(&x);
                    copy.iter_mut().for_each(|x| *x *= first.input_scale as f32);
                }
                engine.set(loaded, tensor(name::INPUT)?, &doubled)?;
            }
            if let Some(dtype) = settings.class {
                let mut classes = vec![request.null_class; copies * n];
                fill_batch(request.classes, 1, from, &mut classes[..n]);
                let class = tensor(name::CLASS)?;
                match dtype {
                    DType::U32 => engine.set_u32(loaded, class, &classes)?,
                    _ => {
                        let values: Vec<f32> = classes.iter().map(|&c| c as f32).collect();
                        engine.set(loaded, class, &values)?;
                    }
                }
            }
            x.fill(0.0);
            for &slot in &slots[1..] {
                engine.set(loaded, slot, &x)?;
            }

            if let Control::Adaptive(adaptive) = &program.control {
                let mut report = |arrived| progress(batch * n + arrived, batches * n);
                let counted =
                    self.run_adaptive(engine, adaptive, request, (from, here), &mut report)?;
                for (evaluations, counted) in evaluations[from..].iter_mut().zip(counted) {
                    *evaluations = copies as u64 * counted;
                }
                engine.get(loaded, slots[0], &mut x)?;
            }
            for (i, stage) in program.stages.iter().enumerate() {
                if matches!(program.control, Control::Adaptive(_)) {
                    break;
                }
                if let Some(noise) = request.noise
                    && stage.draws()
                {
                    let row = &noise[stage.draw * count * len..][..count * len];
                    fill_batch(row, len, from, &mut x);
                    engine.set(loaded, tensor(name::NOISE)?, &x)?;
                }
                self.run_stage(engine, i)?;
                let last = i + 1 == stages;
                let ends_update = last || program.stages[i + 1].update != stage.update;
                if ends_update && (last || frames.wants(stage.update + 1)) {
                    engine.get(loaded, slots[0], &mut x)?;
                    frames.keep(stage.update + 1, last, &x);
                }
                progress(batch * stages + i + 1, batches * stages)?;
            }
            let drawn = &x[..here * len];
            if let Some(at) = drawn.iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite {
                    step: program.updates() as u64,
                    what: format!("sampled image {}", request.first + (from + at / len) as u64),
                    tensor: None,
                    remedy: "the network's weights or the given noise are broken".into(),
                });
            }
            images[from * len..][..here * len].copy_from_slice(drawn);
        }
        Ok(Samples {
            images,
            trajectory,
            evaluations: evaluations.iter().sum(),
            evaluations_by_image: evaluations,
        })
    }
}

impl Sampling<'_> {
    /// Sets the number of the next stage. Each stage counts it up itself.
    fn set_stage(&self, engine: &mut Engine, stage: usize) -> Result<()> {
        engine.set_u32(self.loaded, self.loaded.tensor(name::STAGE)?, &[stage as u32])
    }

    /// Runs the stage whose turn it is on the device.
    fn run_stage(&self, engine: &mut Engine, stage: usize) -> Result<()> {
        match self.program.stages[stage].evaluates {
            true => engine.run(self.loaded),
            false => engine.run_update(self.loaded),
        }
    }

    /// Sets what the device decides with, at the start of a batch.
    fn set_control(&self, engine: &mut Engine) -> Result<()> {
        let Sampling { program, settings, loaded } = *self;
        let tensor = |name: &str| loaded.tensor(name);
        if program.control != Control::None {
            engine.set_u32(loaded, tensor(name::ROW)?, &[0])?;
        }
        if program.blends() {
            let mut table = vec![0f32; program.stages.len() * blend::COLUMNS];
            for (stage, row) in program.stages.iter().zip(table.chunks_exact_mut(blend::COLUMNS)) {
                let Some(known) = stage.blend else { continue };
                row[blend::ACTIVE] = 1.0;
                row[blend::SIGNAL] = known.pair.signal() as f32;
                row[blend::STD] = known.pair.std as f32;
                row[blend::DRAW] = known.draw as f32;
            }
            engine.set(loaded, tensor(name::BLEND)?, &table)?;
        }
        match &program.control {
            Control::None => Ok(()),
            Control::Langevin { .. } => {
                let rule = |langevin| if langevin { rule::LANGEVIN } else { rule::NONE };
                let rules: Vec<f32> = program.stages.iter().map(|s| rule(s.langevin)).collect();
                engine.set(loaded, tensor(name::RULES)?, &rules)
            }
            Control::Adaptive(adaptive) => {
                engine.set(loaded, tensor(name::CURVE)?, &adaptive.curve)?;
                engine.set(loaded, tensor(name::ERROR)?, &vec![0.0; settings.batch])?;
                engine.set(loaded, tensor(name::RUNNING)?, &[settings.batch as f32])?;
                engine.set(loaded, tensor(name::STATE)?, &adaptive.start().repeat(settings.batch))
            }
        }
    }

    /// Steps until every image has arrived; one number is read back a step. Gives
    /// the evaluations of the images `from .. from + here`.
    fn run_adaptive(
        &self,
        engine: &mut Engine,
        adaptive: &super::rk45::Adaptive,
        request: &Request,
        (from, here): (usize, usize),
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<u64>> {
        let Sampling { program, settings, loaded } = *self;
        let running = loaded.tensor(name::RUNNING)?;
        let mut left = [settings.batch as f32];
        let mut steps = 0;
        self.run_stage(engine, 0)?;
        while left[0] > 0.0 && steps < adaptive.most_steps {
            self.set_stage(engine, rk45::STEP)?;
            for stage in rk45::STEP..=rk45::KEEP {
                self.run_stage(engine, stage)?;
            }
            engine.get(loaded, running, &mut left)?;
            steps += 1;
            progress(settings.batch - left[0] as usize)?;
        }
        self.set_stage(engine, rk45::END)?;
        self.run_stage(engine, rk45::END)?;
        let mut states = vec![0f32; settings.batch * control::COLUMNS];
        engine.get(loaded, loaded.tensor(name::STATE)?, &mut states)?;
        let own = || states.chunks_exact(control::COLUMNS).take(here);
        if let Some(i) = own().position(|s| s[control::STATUS] != control::ARRIVED) {
            let image = request.first + (from + i) as u64;
            let state = own().nth(i).expect("found at that place");
            let remedy = "raise sampler.atol and sampler.rtol";
            return Err(Error::Usage(match state[control::STATUS] == control::RUNNING {
                true => format!(
                    "{}: image {image} is not there after {steps} steps; {remedy}, or sampler.max_steps",
                    program.name
                ),
                false => format!(
                    "{}: image {image} needs steps that single precision cannot tell from none; \
                     {remedy}",
                    program.name
                ),
            }));
        }
        Ok(own().map(|s| s[control::EVALUATIONS] as u64).collect())
    }
}

/// Collects the states of a trajectory over the batches.
struct Frames<'a> {
    request: &'a Request<'a>,
    from: usize,
    here: usize,
    len: usize,
    frames: &'a mut Vec<Frame>,
}

impl Frames<'_> {
    fn wants(&self, updates: usize) -> bool {
        self.request.trajectory.is_some_and(|every| updates.is_multiple_of(every))
    }

    /// Keeps the batch's state `x` if this many updates are asked for.
    fn keep(&mut self, updates: usize, last: bool, x: &[f32]) {
        if !(self.wants(updates) || last && self.request.trajectory.is_some()) {
            return;
        }
        let at = match self.frames.iter().position(|f| f.updates == updates) {
            Some(at) => at,
            None => {
                let images = vec![0.0; self.request.count * self.len];
                self.frames.push(Frame { updates, images });
                self.frames.len() - 1
            }
        };
        let part = &mut self.frames[at].images[self.from * self.len..][..self.here * self.len];
        part.copy_from_slice(&x[..self.here * self.len]);
    }
}
