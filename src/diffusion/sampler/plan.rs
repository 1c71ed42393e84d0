//! The plan of one sampler step around any network.
//!
//! Slot 0 is the state. A step reads and writes it in place, and counts up the number
//! of its stage, so that between two stages nothing moves but given noise, where there
//! is any.

use super::{Control, Program};
use crate::diffusion::denoiser::Limit;
use crate::error::{Error, Result};
use crate::ops::sampler_blend::{BlendOperands, column as blend};
use crate::ops::sampler_rk45::{Rk45Operands, curve, state as control};
use crate::ops::sampler_step::{Advance, SamplerOperands, column};
use crate::plan::{DType, Plan, Role, TensorId};

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
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Images the network sees at once.
    pub(super) fn network_batch(&self) -> usize {
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
pub(super) mod name {
    pub const LABEL: &str = "sampler.label";
    pub const CLASS: &str = "sampler.class";
    pub use crate::ops::sampler_step::{INPUT, SLOT_0};
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
        if j == 0 { SLOT_0.into() } else { format!("sampler.slot.{j}") }
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
