//! The probability-flow ODE by Dormand and Prince's pair, with time, step size and
//! acceptance of every image on the device: see
//! [`ops::sampler_rk45`](crate::ops::sampler_rk45) for the equations.
//!
//! Tolerances are those of y = x / sqrt(signal^2 + std^2): a step is accepted where
//! the root mean square over the image of e / (atol + rtol max(|y|, |y'|)) is at
//! most 1. `--steps` is only the number of which the first step is a part.
//! Evaluations differ from image to image and are counted for each. The network is
//! asked between the times it was trained at, too, so its label has to be a number
//! and not the row of a table. Where x_0 is limited, so is the slope: eps is taken
//! again from the limited x_0.

use super::{Control, Coordinates, Kind, Output, Program, Setup, Stage};
use crate::diffusion::process::Pair;
use crate::error::{Error, Result};
use crate::ops::sampler_rk45::{
    A_21, END, KEEP, NODES, Rk45Settings, SLOTS, STAGES, curve, slot, state,
};

/// Rows of the curve; ln(std / signal) spans about 12, so that what is between two
/// is linear to single precision.
const CURVE: usize = 8192;
/// Largest std / signal: where a process starts without signal.
const MOST_NOISE: f64 = 1e4;
/// The first step is the way divided by this, without `--steps`.
const STEPS: usize = 100;
/// Largest step in u. The slope is that of a hill of about this width; a step over
/// all of it sees nothing of it, and its error looks small: without this bound the
/// error for a Gaussian is 20 to 150 times the tolerance (tests/diffusion/control.rs).
const MOST_STEP: f64 = 1.5;
/// Tolerances without `--set`: the reference implementation's.
const TOLERANCE: f64 = 1e-5;
/// Most steps of an image without `--set`, rejected ones counted.
const MOST_STEPS: usize = 10_000;

/// Factors of k_1.. in the arguments of the slopes k_2.., k_7's being the result.
const A: [&[f64]; 6] = [
    &[A_21],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
    &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];
/// Factors of k_1.. in the error.
const E: [f64; 7] = [
    71.0 / 57600.0,
    0.0,
    -71.0 / 16695.0,
    71.0 / 1920.0,
    -17253.0 / 339200.0,
    22.0 / 525.0,
    -1.0 / 40.0,
];

/// What the device controls the steps with.
#[derive(Clone, Debug, PartialEq)]
pub struct Adaptive {
    /// `[nodes, 5]` over even steps of u = ln(std / signal).
    pub curve: Vec<f32>,
    /// u where sampling starts.
    pub from: f64,
    /// u where it ends.
    pub to: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Relative tolerance.
    pub rtol: f64,
    /// First step.
    pub step: f64,
    /// Largest step in u.
    pub most: f64,
    /// Most steps of an image, rejected ones counted.
    pub most_steps: usize,
}

impl Adaptive {
    /// Rows of the curve.
    pub fn nodes(&self) -> usize {
        self.curve.len() / curve::COLUMNS
    }

    /// What the control op is told.
    pub fn settings(&self) -> Rk45Settings {
        let spacing = (self.from - self.to) / (self.nodes() - 1) as f64;
        Rk45Settings {
            first: self.to as f32,
            spacing: spacing as f32,
            end: self.to as f32,
            most: self.most as f32,
            atol: self.atol as f32,
            rtol: self.rtol as f32,
        }
    }

    /// An image's control state before the first stage.
    pub fn start(&self) -> [f32; state::COLUMNS] {
        let mut start = [0.0; state::COLUMNS];
        start[state::TIME] = self.from as f32;
        start[state::STEP] = self.step as f32;
        start
    }
}

/// Half of ln(signal^2 + std^2).
fn ln_norm(pair: Pair) -> f64 {
    0.5 * (pair.signal().powi(2) + pair.variance()).ln()
}

/// The program of ODE-RK45.
pub fn program(setup: &Setup) -> Result<Program> {
    // Only the ends of the path count.
    let mut ends = setup.clone();
    ends.options.steps = Some(2);
    let path = ends.path(Kind::OdeRk45, Coordinates::Process)?;
    let (first, last) = (path.points[0].pair, path.points[path.points.len() - 1].pair);
    let to_data = path.end.pair == Pair::DATA;
    let last = if to_data { last } else { path.end.pair };
    let from = (-first.half_log_snr()).min(MOST_NOISE.ln());
    let to = -last.half_log_snr();
    if from <= to {
        return Err(Error::Usage(format!(
            "ode-rk45 leads from std/signal {} down to {}: nothing to follow",
            from.exp(),
            to.exp()
        )));
    }
    let mut values = Vec::with_capacity(CURVE * curve::COLUMNS);
    for i in 0..CURVE {
        let u = to + (from - to) * i as f64 / (CURVE - 1) as f64;
        let pair = Pair::variance_preserving_at(-u);
        // The noisiest end again rounds to no more noise than there is.
        let pair = if i + 1 == CURVE && from == -first.half_log_snr() {
            let scale = ln_norm(first);
            Pair { ln_signal: first.ln_signal - scale, std: first.std * (-scale).exp() }
        } else {
            pair
        };
        let evaluation = setup.evaluate(pair)?;
        let row = [
            evaluation.label,
            evaluation.input_scale,
            evaluation.x0.state,
            evaluation.x0.prediction,
            pair.signal(),
        ];
        values.extend(row.map(|v| v as f32));
    }
    let adaptive = Adaptive {
        from,
        to,
        atol: setup.options.atol.unwrap_or(TOLERANCE),
        rtol: setup.options.rtol.unwrap_or(TOLERANCE),
        step: ((to - from) / setup.options.steps.unwrap_or(STEPS).max(1) as f64).max(-MOST_STEP),
        most: MOST_STEP,
        most_steps: setup.options.max_steps.unwrap_or(MOST_STEPS),
        curve: values,
    };
    let begin = &adaptive.curve[(CURVE - 1) * curve::COLUMNS..];
    let mut stages = stages();
    stages[0].label = f64::from(begin[curve::LABEL]);
    stages[0].input_scale = f64::from(begin[curve::INPUT_SCALE]);
    let finish = stages[END].outputs[0].as_mut().expect("the end has an output");
    if to_data {
        // x_0 = cos y - sin dy/dphi, and k_1 is sin cos dy/dphi at the last time.
        let pair = Pair::variance_preserving_at(-to);
        finish.slots[slot::STATE] = pair.signal();
        finish.slots[slot::SLOPE[0]] = -1.0 / pair.signal();
    } else {
        finish.slots[slot::STATE] = ln_norm(last).exp();
    }
    Ok(Program {
        name: Kind::OdeRk45.name(),
        slots: SLOTS,
        limit: setup.limit(Kind::OdeRk45),
        start_std: path.start_std * (-ln_norm(first)).exp(),
        stages,
        control: Control::Adaptive(adaptive),
        notes: path.notes,
    })
}

/// The ten stages before the control has put time and step into them.
fn stages() -> Vec<Stage> {
    let mut stages = vec![Stage { input_slot: slot::ARGUMENT, ..Stage::default() }; STAGES];
    stages[0].input_slot = slot::STATE;
    // sum_j c_j k_j, the last of them this stage's slope.
    let combined = |target: usize, kept: f64, c: &[f64]| {
        let mut output = Output { target, eps: c[c.len() - 1], ..Output::default() };
        output.slots[slot::STATE] = kept;
        for (&c, &slot) in c[..c.len() - 1].iter().zip(&slot::SLOPE) {
            output.slots[slot] += c;
        }
        Some(output)
    };
    for (i, stage) in stages[..NODES.len()].iter_mut().enumerate() {
        let slope = Output { target: slot::SLOPE[i], eps: 1.0, ..Output::default() };
        let second = match A.get(i) {
            Some(a) => combined(slot::ARGUMENT, 1.0, a),
            None => combined(slot::ERROR, 0.0, &E),
        };
        stage.outputs = [Some(slope), second];
    }
    let copy = |target: usize, from: usize| {
        let mut output = Output { target, ..Output::default() };
        output.slots[from] = 1.0;
        output
    };
    let mut argument = copy(slot::ARGUMENT, slot::ARGUMENT);
    argument.slots[slot::SLOPE[6]] = A_21;
    stages[KEEP - 1].outputs = [Some(copy(slot::STATE, slot::ARGUMENT)), Some(argument)];
    stages[KEEP].outputs = [Some(copy(slot::SLOPE[0], slot::SLOPE[6])), None];
    stages[END].outputs = [Some(Output::default()), None];
    for stage in &mut stages[KEEP - 1..] {
        stage.evaluates = false;
    }
    stages
}
