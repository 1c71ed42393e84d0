//! Samplers probed with the exact network of Gaussian data. Every linear sampler
//! is then affine in (1, x_T, z_1, z_2, ...): running the unit vectors through a
//! program's coefficients gives the exact mean and variance of what it draws, in
//! f64 and without a draw. A correlated Gaussian is this along each of its axes.
//!
//! The network is asked as any network is: with a label and an input, from which
//! alone it tells its answer.

use std::sync::Arc;

use langevin::diffusion::denoiser::{Denoiser, Limit, Prediction};
use langevin::diffusion::process::{
    Amplitude, Cosine, Edm, Flow, Pair, SharedProcess, SubVp, Ve, Vp,
};
use langevin::diffusion::sampler::grid::Grid;
use langevin::diffusion::sampler::{Churn, Coordinates, Kind, Options, Program, Setup, Stage};
use langevin::diffusion::scheduler::{FinalSigmas, SchedulerConfig};

/// N(mean, variance) in one dimension.
#[derive(Clone, Copy, Debug)]
struct Gaussian {
    mean: f64,
    variance: f64,
}

const DATA: Gaussian = Gaussian { mean: 0.7, variance: 0.25 };
const POINT: Gaussian = Gaussian { mean: 0.7, variance: 0.0 };

impl Gaussian {
    fn at(self, pair: Pair) -> Gaussian {
        let alpha = pair.signal();
        Gaussian {
            mean: alpha * self.mean,
            variance: alpha * alpha * self.variance + pair.variance(),
        }
    }

    /// The exact network's answer to an input at a pair: (factor, constant).
    fn answer(self, pair: Pair, prediction: Prediction) -> (f64, f64) {
        let (alpha, total) = (pair.signal(), self.at(pair).variance);
        let eps = (pair.std / total, -pair.std * alpha * self.mean / total);
        let gain = alpha * self.variance / total;
        let x0 = (gain, self.mean - gain * alpha * self.mean);
        let (a, b) = prediction.target(pair).expect("a target at every noisy time");
        (a * x0.0 + b * eps.0, a * x0.1 + b * eps.1)
    }
}

/// Time at which a process tells a network this label.
fn time_of_label(process: &SharedProcess, label: f64) -> f64 {
    let (mut low, mut high) = (0.0, process.end());
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if process.label(middle) < label { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Runs a program on vectors: `network(stage, input)` answers a whole vector, and
/// the constant 1 of affine forms stands in no slot. Returns slot 0 after every
/// stage.
pub fn run(
    program: &Program,
    start: Vec<f64>,
    network: &mut dyn FnMut(&Stage, &[f64]) -> Vec<f64>,
    noise: &mut dyn FnMut(usize) -> Vec<f64>,
) -> Vec<Vec<f64>> {
    let clip = match program.limit {
        Limit::None => f64::INFINITY,
        Limit::Clip { range } => range,
        Limit::Threshold { .. } => panic!("thresholds are not elementwise"),
    };
    let mut slots = vec![vec![0.0; start.len()]; program.slots];
    slots[0] = start;
    let mut after = Vec::new();
    for stage in &program.stages {
        let x = slots[stage.input_slot].clone();
        let (mut x0, mut eps) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        if stage.evaluates {
            let input: Vec<f64> = x.iter().map(|x| stage.input_scale * x).collect();
            for (i, p) in network(stage, &input).into_iter().enumerate() {
                x0[i] = (stage.x0.state * x[i] + stage.x0.prediction * p).clamp(-clip, clip);
                eps[i] = stage.eps.state * x[i] + stage.eps.prediction * p;
            }
        }
        let before = slots.clone();
        let z = if stage.draws() { noise(stage.draw) } else { vec![0.0; x.len()] };
        for output in stage.outputs.iter().flatten() {
            let sum = |i: usize| {
                let slots: f64 = before.iter().zip(output.slots).map(|(s, c)| c * s[i]).sum();
                slots + output.x0 * x0[i] + output.eps * eps[i] + output.noise * z[i]
            };
            slots[output.target] = (0..x.len()).map(sum).collect();
        }
        after.push(slots[0].clone());
    }
    after
}

/// Mean and variance of what a program draws from the exact p_T.
fn drawn(program: &Program, setup: &Setup, data: Gaussian) -> Gaussian {
    let draws = program.stages.iter().map(|s| s.draw + 1).max().unwrap_or(0);
    // (constant, x_T, z_0, z_1, ...)
    let from = data.at(program.stages[0].pair);
    let mut start = vec![0.0; 2 + draws];
    start[0] = from.mean;
    start[1] = from.variance.sqrt();
    let process = &setup.denoiser.process;
    let mut network = |stage: &Stage, input: &[f64]| {
        let pair = process.pair(time_of_label(process, stage.label));
        let (factor, constant) = data.answer(pair, setup.denoiser.prediction);
        let mut answer: Vec<f64> = input.iter().map(|x| factor * x).collect();
        answer[0] += constant;
        answer
    };
    let mut noise = |draw: usize| {
        let mut unit = vec![0.0; 2 + draws];
        unit[2 + draw] = 1.0;
        unit
    };
    let end = run(program, start, &mut network, &mut noise).pop().expect("stages");
    Gaussian { mean: end[0], variance: end[1..].iter().map(|c| c * c).sum() }
}

fn processes() -> Vec<SharedProcess> {
    vec![
        Arc::new(Vp::new(0.1, 20.0).unwrap()),
        Arc::new(SubVp::new(0.1, 20.0).unwrap()),
        Arc::new(Ve::new(0.01, 50.0).unwrap()),
        Arc::new(Cosine::new(0.008, 0.9946).unwrap()),
        Arc::new(Amplitude::new(5.0).unwrap()),
        Arc::new(Edm::new(0.002, 80.0).unwrap()),
        Arc::new(Flow::new(1.0).unwrap()),
    ]
}

fn setup(process: &SharedProcess, prediction: Prediction, options: Options) -> Setup {
    let scheduler = SchedulerConfig { clip_sample: Some(false), ..SchedulerConfig::default() };
    let denoiser = Denoiser::plain(process.clone(), prediction);
    Setup::new(denoiser, process.clone(), &scheduler, options).unwrap()
}

fn build(kind: Kind, setup: &Setup) -> Program {
    let program = Program::new(kind, setup);
    program.unwrap_or_else(|e| panic!("{} under {}: {e}", kind.name(), setup.process.name()))
}

const CHURN: Churn = Churn { amount: 20.0, from: 0.0, to: f64::INFINITY, noise: 1.0 };

/// Sampler, its options, the order it converges at.
fn orders() -> Vec<(Kind, &'static str, Options, f64)> {
    let plain = Options::default();
    vec![
        (Kind::Ddpm, "", plain, 1.0),
        (Kind::Ddim, "", plain, 1.0),
        (Kind::Ddim, "eta 1", Options { eta: 1.0, ..plain }, 1.0),
        (Kind::EulerMaruyama, "", plain, 1.0),
        (Kind::EulerA, "", plain, 1.0),
        (Kind::OdeEuler, "", plain, 1.0),
        (Kind::OdeHeun, "", plain, 2.0),
        (
            Kind::OdeHeun,
            "process",
            Options { coordinates: Some(Coordinates::Process), ..plain },
            2.0,
        ),
        (Kind::Edm, "", plain, 2.0),
        (Kind::Edm, "churn", Options { churn: CHURN, ..plain }, 2.0),
        (Kind::Dpmpp2m, "", plain, 2.0),
        (Kind::DpmppSde2m, "", plain, 2.0),
        (Kind::UniPc, "", plain, 3.0),
    ]
}

#[test]
fn samplers_converge_to_the_data_at_their_order_under_every_process() {
    println!("{:15}{:9}{:11}{:>11}{:>11}{:>7}", "sampler", "", "process", "error", "half step", "order");
    let mut wrong = Vec::new();
    for process in processes() {
        for (kind, note, options, order) in orders() {
            let error = |steps: usize| {
                let options = Options {
                    steps: Some(steps),
                    grid: Some(Grid::LogSnr),
                    end: Some(FinalSigmas::SigmaMin),
                    ..options
                };
                let setup = setup(&process, Prediction::Sample, options);
                let program = build(kind, &setup);
                let found = drawn(&program, &setup, DATA);
                let end = process.pair(process.earliest());
                let exact = DATA.at(end);
                // In the coordinates that the program ends in.
                let back = match program.stages[0].pair.ln_signal == 0.0 {
                    true => end.signal(),
                    false => 1.0,
                };
                let mean = (found.mean * back - exact.mean).abs();
                mean + (found.variance * back * back - exact.variance).abs()
            };
            let (coarse, fine) = (error(256), error(512));
            let found = (coarse / fine).log2();
            println!(
                "{:15}{:9}{:11}{coarse:11.2e}{fine:11.2e}{found:7.2}",
                kind.name(),
                note,
                process.name()
            );
            // More than its order is no fault: Euler-Maruyama's first-order error
            // vanishes where noise is geometric in time and steps are even.
            let expected = if process.name() == "vp" { order + 0.35 } else { f64::INFINITY };
            if !(order - 0.35..expected).contains(&found) || fine > 0.02 {
                wrong.push(format!("{} {note} under {}: {found}", kind.name(), process.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
