//! Samplers on Gaussian data with the exact network. Every stage is then affine
//! in the state and the noise, so mean and variance are carried exactly, in f64;
//! a covariance is this along each of its axes.

use langevin::diffusion::denoiser::{Limit, Prediction};
use langevin::diffusion::process::Pair;
use langevin::diffusion::sampler::{Kind, Options, Program, Setup, Stage};
use langevin::diffusion::schedule::BetaSchedule;
use langevin::diffusion::scheduler::{SchedulerConfig, Spacing, VarianceType};

/// N(mean, variance) in one dimension.
#[derive(Clone, Copy, Debug)]
struct Gaussian {
    mean: f64,
    variance: f64,
}

impl Gaussian {
    /// The exact marginal at a pair.
    fn at(self, pair: Pair) -> Gaussian {
        let alpha = pair.signal();
        Gaussian {
            mean: alpha * self.mean,
            variance: alpha * alpha * self.variance + pair.variance(),
        }
    }

    /// The exact network's output as (factor of x, constant).
    fn predict(self, pair: Pair, prediction: Prediction) -> (f64, f64) {
        let (alpha, total) = (pair.signal(), self.at(pair).variance);
        // E[eps | x] = sigma (x - alpha m) / total, E[x_0 | x] = m + alpha v (x - alpha m) / total.
        let eps = (pair.std / total, -pair.std * alpha * self.mean / total);
        let gain = alpha * self.variance / total;
        let x0 = (gain, self.mean - gain * alpha * self.mean);
        let (a, b) = prediction.target(pair).unwrap();
        (a * x0.0 + b * eps.0, a * x0.1 + b * eps.1)
    }
}

/// A stage of a one-slot program without limit: (factor of x, of the
/// prediction, of the noise).
fn affine(stage: &Stage) -> (f64, f64, f64) {
    let output = stage.outputs[0].unwrap();
    assert!(stage.outputs[1].is_none() && output.target == 0);
    let x = output.slots[0] + output.x0 * stage.x0.state + output.eps * stage.eps.state;
    let p = output.x0 * stage.x0.prediction + output.eps * stage.eps.prediction;
    (x, p, output.noise)
}

/// Mean and variance of what a program draws, after every stage, started at
/// the exact marginal of its first stage.
fn drawn(program: &Program, data: Gaussian, prediction: Prediction) -> Vec<Gaussian> {
    assert_eq!(program.limit, Limit::None);
    let mut now = data.at(program.stages[0].pair);
    program
        .stages
        .iter()
        .map(|stage| {
            let (x, p, noise) = affine(stage);
            let (gain, constant) = data.predict(stage.pair, prediction);
            let factor = x + p * gain;
            now = Gaussian {
                mean: factor * now.mean + p * constant,
                variance: factor * factor * now.variance + noise * noise,
            };
            now
        })
        .collect()
}

fn config(schedule: BetaSchedule) -> SchedulerConfig {
    SchedulerConfig {
        num_train_timesteps: 400,
        beta_schedule: schedule,
        clip_sample: Some(false),
        timestep_spacing: Some(Spacing::Trailing),
        ..SchedulerConfig::default()
    }
}

fn program(kind: Kind, config: &SchedulerConfig, steps: usize, eta: f64) -> Program {
    let options = Options { steps: Some(steps), eta, ..Options::default() };
    Program::new(kind, &Setup::of_scheduler(config, options).unwrap()).unwrap()
}

const SCHEDULES: [BetaSchedule; 2] = [BetaSchedule::Linear, BetaSchedule::SquaredcosCapV2];
const PREDICTIONS: [Prediction; 3] =
    [Prediction::Epsilon, Prediction::Sample, Prediction::VPrediction];

/// The pair after every stage: the next stage's, at last the data.
fn reached(program: &Program) -> Vec<Pair> {
    program.stages[1..].iter().map(|s| s.pair).chain([Pair::DATA]).collect()
}

#[test]
fn one_point_is_drawn_exactly_at_every_time_by_ddpm_and_by_ddim_of_any_eta() {
    let data = Gaussian { mean: 0.7, variance: 0.0 };
    for schedule in SCHEDULES {
        for prediction in PREDICTIONS {
            let config = SchedulerConfig { prediction_type: prediction, ..config(schedule) };
            let programs =
                [(Kind::Ddpm, 0.0), (Kind::Ddim, 0.0), (Kind::Ddim, 0.5), (Kind::Ddim, 1.0)];
            for (kind, eta) in programs {
                for steps in [1, 7, 50, 400] {
                    let program = program(kind, &config, steps, eta);
                    let states = drawn(&program, data, prediction);
                    for (found, pair) in states.iter().zip(reached(&program)) {
                        let exact = data.at(pair);
                        let context = format!("{kind:?} {eta} {steps} {prediction:?} {pair:?}");
                        assert!((found.mean - exact.mean).abs() < 1e-9, "{context} {found:?}");
                        let off = (found.variance - exact.variance).abs();
                        assert!(off < 1e-9, "{context} {found:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn ddim_turns_standard_normal_data_by_the_angle_between_two_times() {
    // With v = 1 and m = 0: x_s = (alpha_s alpha_t + sigma_s sigma_t) x_t.
    let data = Gaussian { mean: 0.0, variance: 1.0 };
    for schedule in SCHEDULES {
        let program = program(Kind::Ddim, &config(schedule), 20, 0.0);
        let states = drawn(&program, data, Prediction::Epsilon);
        let mut variance = 1.0;
        for ((stage, next), found) in program.stages.iter().zip(reached(&program)).zip(states) {
            let turn = next.signal() * stage.pair.signal() + next.std * stage.pair.std;
            variance *= turn * turn;
            assert!((found.variance - variance).abs() < 1e-12 && found.mean == 0.0);
        }
    }
}

#[test]
fn ddpms_step_has_the_closed_form_mean_and_variance() {
    // x_s = c_x x_t + c_0 E[x_0 | x_t] + sqrt(variance) z loses exactly the
    // spread of x_0 around its estimate: c_0^2 Var[x_0 | x_t].
    let data = Gaussian { mean: -0.4, variance: 0.3 };
    let program = program(Kind::Ddpm, &config(BetaSchedule::Linear), 400, 0.0);
    for (stage, next) in program.stages.iter().zip(reached(&program)) {
        let (x, p, noise) = affine(stage);
        let (gain, constant) = data.predict(stage.pair, Prediction::Epsilon);
        let (from, exact) = (data.at(stage.pair), data.at(next));
        let mean = (x + p * gain) * from.mean + p * constant;
        let variance = (x + p * gain).powi(2) * from.variance + noise * noise;
        let c_0 = stage.outputs[0].unwrap().x0;
        let spread = data.variance * stage.pair.variance() / from.variance;
        assert!((mean - exact.mean).abs() < 1e-10);
        assert!((variance + c_0 * c_0 * spread - exact.variance).abs() < 1e-10);
    }
}

#[test]
fn ddpm_and_ddim_converge_to_the_data_at_first_order() {
    for (kind, eta) in [(Kind::Ddpm, 0.0), (Kind::Ddim, 0.0), (Kind::Ddim, 0.5), (Kind::Ddim, 1.0)]
    {
        for variance in [0.01, 0.25, 2.0] {
            let data = Gaussian { mean: 0.7, variance };
            let error = |steps: usize| {
                let config = SchedulerConfig {
                    num_train_timesteps: 6400,
                    beta_start: 1e-4 / 6.4,
                    beta_end: 0.02 / 6.4,
                    ..config(BetaSchedule::Linear)
                };
                let program = program(kind, &config, steps, eta);
                let last = *drawn(&program, data, Prediction::Epsilon).last().unwrap();
                assert!((last.mean - data.mean).abs() < 1e-9, "the mean is exact: {last:?}");
                (last.variance - data.variance).abs()
            };
            let (coarse, fine) = (error(1600), error(3200));
            let order = (coarse / fine).log2();
            let context = format!("{kind:?} eta {eta} variance {variance}: {coarse} {fine}");
            assert!(fine < 0.05 * data.variance, "{context}");
            assert!((0.8..1.3).contains(&order), "{context}: order {order}");
        }
    }
}

#[test]
fn ddim_of_eta_1_is_the_ancestral_step_of_fixed_small() {
    for schedule in SCHEDULES {
        for prediction in PREDICTIONS {
            let config = SchedulerConfig { prediction_type: prediction, ..config(schedule) };
            let ddpm = program(Kind::Ddpm, &config, 25, 0.0);
            let ddim = program(Kind::Ddim, &config, 25, 1.0);
            for (a, b) in ddpm.stages.iter().zip(&ddim.stages) {
                let (a, b) = (affine(a), affine(b));
                for (a, b) in [(a.0, b.0), (a.1, b.1), (a.2, b.2)] {
                    assert!((a - b).abs() <= 1e-9 * (1.0 + a.abs()), "{a} {b}");
                }
            }
        }
    }
}

#[test]
fn the_last_step_adds_no_noise() {
    let mut config = config(BetaSchedule::Linear);
    for spacing in [Spacing::Leading, Spacing::Trailing, Spacing::Linspace] {
        config.timestep_spacing = Some(spacing);
        for variance in [VarianceType::FixedSmall, VarianceType::FixedLarge] {
            config.variance_type = Some(variance);
            for program in
                [program(Kind::Ddpm, &config, 9, 0.0), program(Kind::Ddim, &config, 9, 1.0)]
            {
                assert!(!program.stages[8].draws());
                assert!(program.stages[7].draws());
                assert_eq!((program.noise_rows(), program.updates()), (8, 9));
            }
        }
    }
}

#[test]
fn wrong_choices_are_refused_with_their_reason() {
    let fails = |kind, config: &SchedulerConfig, options: Options| {
        let setup = Setup::of_scheduler(config, options).unwrap();
        Program::new(kind, &setup).unwrap_err().to_string()
    };
    let base = SchedulerConfig::default();
    for eta in [-0.1, 1.1, f64::NAN] {
        assert!(fails(Kind::Ddim, &base, Options { eta, ..Default::default() }).contains("--eta"));
    }
    for steps in [0, 1001] {
        let options = Options { steps: Some(steps), ..Default::default() };
        assert!(fails(Kind::Ddpm, &base, options).contains("--steps"));
    }
    let silent = SchedulerConfig { rescale_betas_zero_snr: true, ..base.clone() };
    assert!(fails(Kind::Ddpm, &silent, Options::default()).contains("prediction_type"));
    assert!(Kind::from_name("dpm").unwrap_err().to_string().contains("ddpm, ddim"));
    let other = SchedulerConfig { class_name: "PNDMScheduler".into(), ..base };
    assert!(Kind::from_config(&other).unwrap_err().to_string().contains("DDIMScheduler"));
    // The same file still drives a sampler by name.
    let setup = Setup::of_scheduler(&other, Options::default()).unwrap();
    assert!(Program::new(Kind::Ddim, &setup).is_ok());
}
