//! The loop that runs the program of a sampler's step over batches of images.
//!
//! The state stays on the device from the first stage to the last.

use super::plan::name;
pub use super::plan::{
    KNOWN, MASK, NetworkInputs, Predicted, Settings, StepTensors, guided_plan, step_plan,
};
use super::{Control, Program};
use crate::backend::{Engine, Loaded};
use crate::error::{Error, Result};
use crate::ops::sampler_blend::column as blend;
use crate::ops::sampler_langevin::rule;
use crate::ops::sampler_rk45::{self as rk45, state as control};
use crate::plan::{DType, TensorId};
use crate::random::{Purpose, check_images, fill_normal, image_keys};

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
