//! Samplers probed with the exact network of Gaussian data. Every linear sampler
//! is then affine in (1, x_T, z_1, z_2, ...): running the unit vectors through a
//! program's coefficients gives the exact mean and variance of what it draws, in
//! f64 and without a draw. A correlated Gaussian is this along each of its axes.
//!
//! The network is asked as any network is: with a label and an input, from which
//! alone it tells its answer.

use std::sync::Arc;

use langevin::diffusion::denoiser::{Denoiser, Limit, Precondition, Prediction};
use langevin::diffusion::process::{
    Amplitude, Cosine, Edm, Flow, Pair, SharedProcess, SubVp, Ve, Vp,
};
use langevin::diffusion::sampler::grid::Grid;
use langevin::diffusion::sampler::{Churn, Coordinates, Kind, Options, Program, Setup, Stage};
use langevin::diffusion::schedule::BetaSchedule;
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
    for _ in 0..100 {
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
    println!(
        "{:15}{:9}{:11}{:>11}{:>11}{:>7}",
        "sampler", "", "process", "error", "half step", "order"
    );
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
            let (coarse, fine) = (error(128), error(256));
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

/// What the next stage of another update sees, at last where the path ends.
fn reached(program: &Program, end: Pair) -> Vec<Pair> {
    let scaled = program.stages[0].pair.ln_signal == 0.0;
    let end = match scaled {
        true => Pair { ln_signal: 0.0, std: (-end.half_log_snr()).exp() },
        false => end,
    };
    let ends = program.stages.windows(2).filter(|w| w[1].update != w[0].update);
    ends.map(|w| w[1].pair).chain([end]).collect()
}

/// The states after every update.
fn updates(program: &Program, states: &[Vec<f64>]) -> Vec<f64> {
    let last =
        |i: usize| program.stages.get(i + 1).is_none_or(|s| s.update != program.stages[i].update);
    (0..states.len()).filter(|&i| last(i)).map(|i| states[i][0]).collect()
}

#[test]
fn along_every_ode_one_point_leaves_the_standardised_state_alone() {
    let odes = [Kind::Ddim, Kind::OdeEuler, Kind::OdeHeun, Kind::Edm, Kind::Dpmpp2m, Kind::UniPc];
    for process in processes() {
        for kind in odes {
            for prediction in [Prediction::Sample, Prediction::VPrediction] {
                let options = Options {
                    steps: Some(12),
                    end: Some(FinalSigmas::SigmaMin),
                    ..Options::default()
                };
                let setup = setup(&process, prediction, options);
                let program = build(kind, &setup);
                let standard = 1.3;
                let from = program.stages[0].pair;
                let start = from.signal() * POINT.mean + from.std * standard;
                let mut network = |stage: &Stage, x: &[f64]| {
                    let pair = process.pair(time_of_label(&process, stage.label));
                    let (factor, constant) = POINT.answer(pair, prediction);
                    x.iter().map(|x| factor * x + constant).collect()
                };
                let states = run(&program, vec![start], &mut network, &mut |_| unreachable!());
                let ends = reached(&program, process.pair(process.earliest()));
                for (x, pair) in updates(&program, &states).iter().zip(ends) {
                    let found = (x - pair.signal() * POINT.mean) / pair.std;
                    assert!(
                        (found - standard).abs() < 1e-6,
                        "{} under {} at {pair:?}: {found}",
                        kind.name(),
                        process.name()
                    );
                }
            }
        }
    }
}

#[test]
fn euler_a_is_ddim_at_eta_1_is_the_ancestral_step_of_beta_tilde() {
    for process in processes() {
        let options = Options { steps: Some(9), grid: Some(Grid::Karras), ..Options::default() };
        let noise = |draw: usize| vec![((draw * 37 + 11) as f64).sin()];
        let mut ends = Vec::new();
        for (kind, eta) in [(Kind::Ddpm, 0.0), (Kind::Ddim, 1.0), (Kind::EulerA, 0.0)] {
            let setup = setup(&process, Prediction::Sample, Options { eta, ..options });
            let program = build(kind, &setup);
            let mut network = |stage: &Stage, x: &[f64]| {
                let pair = process.pair(time_of_label(&process, stage.label));
                let (factor, constant) = DATA.answer(pair, Prediction::Sample);
                x.iter().map(|x| (factor * x + constant).sin()).collect()
            };
            let own = program.stages[0].pair;
            let first = process.pair(setup.process.time_of(own.half_log_snr()));
            let start = 0.8 * (own.ln_signal - first.ln_signal).exp();
            let states = run(&program, vec![start], &mut network, &mut noise.clone());
            ends.push(states.last().unwrap()[0]);
        }
        let off = (ends[0] - ends[1]).abs().max((ends[0] - ends[2]).abs());
        assert!(off < 1e-9, "{}: {ends:?}", process.name());
    }
}

/// The label that a network is told belongs to the state it sees, at every stage
/// of every sampler; a table's labels are compared with diffusers' elsewhere.
#[test]
fn every_sampler_asks_at_the_time_of_the_state_it_shows() {
    for process in processes() {
        for (kind, note, options, _) in orders() {
            let options = Options { steps: Some(7), ..options };
            let setup = setup(&process, Prediction::Sample, options);
            for stage in build(kind, &setup).stages.iter().filter(|stage| stage.evaluates) {
                let time = process.time_of(stage.pair.half_log_snr());
                let expected = process.label(time);
                let off = (stage.label - expected).abs() / expected.abs().max(1.0);
                assert!(off < 1e-6, "{} {note} under {}: {stage:?}", kind.name(), process.name());
            }
        }
    }
}

/// On a table diffusers' classes name labels, and a network with EDM's preconditioning
/// is told its noise level all the same.
#[test]
fn a_preconditioned_network_is_told_its_noise_level_also_on_a_table() {
    for schedule in [BetaSchedule::Linear, BetaSchedule::SquaredcosCapV2] {
        let scheduler = SchedulerConfig {
            num_train_timesteps: 60,
            beta_schedule: schedule,
            ..SchedulerConfig::default()
        };
        for correction in [false, true] {
            for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::OdeRk45) {
                let process: SharedProcess = Arc::new(scheduler.table().unwrap());
                let denoiser = Denoiser {
                    precondition: Precondition::Edm { sigma_data: 0.5 },
                    correction,
                    ..Denoiser::plain(process.clone(), Prediction::Sample)
                };
                let options = Options { steps: Some(7), ..Options::default() };
                let setup = Setup::new(denoiser, process, &scheduler, options).unwrap();
                for stage in build(kind, &setup).stages.iter().filter(|stage| stage.evaluates) {
                    let expected = -0.25 * stage.pair.half_log_snr();
                    let off = (stage.label - expected).abs();
                    assert!(off < 1e-9, "{} {schedule:?} {correction}: {stage:?}", kind.name());
                }
            }
        }
    }
}

#[test]
fn a_network_is_sampled_under_every_other_process_by_its_snr() {
    let trained: SharedProcess = Arc::new(Vp::new(0.1, 20.0).unwrap());
    for process in processes() {
        for kind in [Kind::Ddim, Kind::OdeHeun, Kind::Dpmpp2m, Kind::EulerMaruyama, Kind::EulerA] {
            let scheduler =
                SchedulerConfig { clip_sample: Some(false), ..SchedulerConfig::default() };
            let denoiser = Denoiser::plain(trained.clone(), Prediction::Epsilon);
            let options = Options {
                steps: Some(300),
                grid: Some(Grid::LogSnr),
                sigma_min: Some(0.02),
                end: Some(FinalSigmas::SigmaMin),
                ..Options::default()
            };
            let setup = Setup::new(denoiser, process.clone(), &scheduler, options).unwrap();
            let program = build(kind, &setup);
            let found = drawn(&program, &setup, DATA);
            let end = process.pair(process.time_of(-0.02f64.ln()));
            let exact = DATA.at(end);
            let back = if program.stages[0].pair.ln_signal == 0.0 { end.signal() } else { 1.0 };
            let off = (found.mean * back - exact.mean).abs()
                + (found.variance * back * back - exact.variance).abs();
            assert!(off < 0.02, "{} under {}: {off}", kind.name(), process.name());
        }
    }
}

/// Noise put back with an inflated std is noise that was not there: the variance
/// drawn stays above the data's, by what is printed, however many steps.
#[test]
fn inflated_churn_converges_to_its_bias() {
    let process: SharedProcess = Arc::new(Edm::new(0.002, 80.0).unwrap());
    let excess = |steps: usize, noise: f64| {
        // Churn at every step as much as at 50: the same noise is put back.
        let churn = Churn { noise, ..CHURN };
        let options = Options {
            steps: Some(steps),
            churn,
            end: Some(FinalSigmas::SigmaMin),
            ..Options::default()
        };
        let setup = setup(&process, Prediction::Sample, options);
        drawn(&build(Kind::Edm, &setup), &setup, DATA).variance
            - DATA.at(process.pair(0.002)).variance
    };
    println!("S_noise  excess variance at 100, 200, 400 steps, and the last over S_noise 1");
    let plain = [100, 200, 400].map(|steps| excess(steps, 1.0));
    assert!(plain[2] < 3e-4 && plain[1] > 3.0 * plain[2], "second order: {plain:?}");
    for noise in [1.003, 1.01, 1.05] {
        let found = [100, 200, 400].map(|steps| excess(steps, noise));
        let bias = [found[1] - plain[1], found[2] - plain[2]];
        println!(
            "{noise:7} {:10.2e} {:10.2e} {:10.2e} {:10.2e}",
            found[0], found[1], found[2], bias[1]
        );
        assert!(bias[1] > 1e-3 && (bias[1] / bias[0] - 1.0).abs() < 0.05, "{noise}: {bias:?}");
    }
}

/// A constant eps that drives x_0 past the clip: DDIM keeps the eps it was told,
/// or takes it again from the clipped x_0; ancestral sampling has x_0 alone.
#[test]
fn a_clipped_x0_leaves_eps_alone_unless_asked() {
    let scheduler = SchedulerConfig { num_train_timesteps: 40, ..SchedulerConfig::default() };
    let (x, eps) = (0.4, -9.0);
    for clipped_eps in [false, true] {
        let options = Options { steps: Some(4), clipped_eps, ..Options::default() };
        let setup = Setup::of_scheduler(&scheduler, options).unwrap();
        let program = build(Kind::Ddim, &setup);
        let mut network = |_: &Stage, x: &[f64]| vec![eps; x.len()];
        let states = run(&program, vec![x], &mut network, &mut |_| unreachable!());
        let (t, s) = (program.stages[0].pair, program.stages[1].pair);
        let limited = ((x - t.std * eps) / t.signal()).clamp(-1.0, 1.0);
        assert_eq!(limited, 1.0);
        let direction = if clipped_eps { (x - t.signal() * limited) / t.std } else { eps };
        let expected = s.signal() * limited + s.std * direction;
        assert!((states[0][0] - expected).abs() < 1e-12);
        // No noise is left to direct at the end.
        assert!((states[3][0] - 1.0).abs() < 1e-12);
    }
}

/// Without noise the posterior mean alone draws samples together, by what the
/// noise would have kept apart; the literal form does so at every step.
#[test]
fn the_reversal_loses_the_spread_and_its_literal_form_by_far_more() {
    let scheduler = SchedulerConfig { clip_sample: Some(false), ..SchedulerConfig::default() };
    let spread = |kind, literal| {
        let options = Options { steps: Some(1000), literal, ..Options::default() };
        let setup = Setup::of_scheduler(&scheduler, options).unwrap();
        let found = drawn(&build(kind, &setup), &setup, DATA);
        println!("{:10} literal {literal:5}: {found:?}", kind.name());
        found.variance
    };
    let full = spread(Kind::Ddpm, false);
    assert!((full / DATA.variance - 1.0).abs() < 0.05, "{full}");
    let mean = spread(Kind::Reversal, false);
    let literal = spread(Kind::Reversal, true);
    assert!(mean < 1e-3 * full && literal < 1e-6 * mean, "{mean} {literal}");
}

#[test]
fn what_does_not_fit_is_refused_by_its_key() {
    let vp: SharedProcess = Arc::new(Vp::new(0.1, 20.0).unwrap());
    let fails = |kind, options: Options| {
        let setup = setup(&vp, Prediction::Epsilon, options);
        Program::new(kind, &setup).unwrap_err().to_string()
    };
    let plain = Options::default();
    for (kind, options, word) in [
        (Kind::OdeHeun, Options { steps: Some(0), ..plain }, "--steps"),
        (Kind::Ddim, Options { eta: 1.5, ..plain }, "--eta"),
        (Kind::Edm, Options { sigma_max: Some(1e4), ..plain }, "sampler.sigma_max"),
        (
            Kind::Edm,
            Options { sigma_max: Some(1.0), sigma_min: Some(2.0), ..plain },
            "sampler.sigma_min",
        ),
        (Kind::Ddpm, Options { t_eps: Some(2.0), ..plain }, "sampler.t_eps"),
        (Kind::Ddpm, Options { rho: Some(7.0), ..plain }, "sampler.rho"),
        (Kind::Dpmpp2m, Options { order: Some(4), ..plain }, "solver_order"),
    ] {
        let error = fails(kind, options);
        assert!(error.contains(word), "{kind:?}: {error}");
    }
    let mut options = plain;
    for (kind, key, value, word) in [
        (Kind::Ddpm, "s_churn", "1", "edm"),
        (Kind::Edm, "s_noise", "0", "above 0"),
        (Kind::Edm, "grid", "cubic", "karras"),
        (Kind::Ddim, "corrector", "1", "unknown"),
        (Kind::UniPc, "order", "7", "1 to 6"),
    ] {
        let error = options.set(kind, key, value).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(key), "{error}");
    }
    assert_eq!(options, plain);
    let fails = |kind, config: SchedulerConfig| {
        let setup = Setup::of_scheduler(&config, plain).unwrap();
        Program::new(kind, &setup).unwrap_err().to_string()
    };
    let base = SchedulerConfig::default;
    for (kind, config, key) in [
        (
            Kind::OdeEuler,
            SchedulerConfig { use_beta_sigmas: Some(true), ..base() },
            "use_beta_sigmas",
        ),
        (Kind::UniPc, SchedulerConfig { use_flow_sigmas: Some(true), ..base() }, "use_flow_sigmas"),
        (
            Kind::OdeHeun,
            SchedulerConfig {
                use_karras_sigmas: Some(true),
                use_exponential_sigmas: Some(true),
                ..base()
            },
            "use_karras_sigmas",
        ),
        (
            Kind::Dpmpp2m,
            SchedulerConfig {
                algorithm_type: Some(langevin::diffusion::scheduler::Algorithm::Dpmsolver),
                ..base()
            },
            "final_sigmas_type",
        ),
        (
            Kind::UniPc,
            SchedulerConfig { lower_order_final: Some(false), ..base() },
            "lower_order_final",
        ),
        (Kind::UniPc, SchedulerConfig { solver_order: Some(0), ..base() }, "solver_order"),
    ] {
        let error = fails(kind, config);
        assert!(error.contains(key), "{error}");
    }
}
