//! Losses: weights, gradients and times, in closed form.

use std::sync::Arc;

use langevin::diffusion::denoiser::{Denoiser, Precondition, Prediction, step};
use langevin::diffusion::loss::{Draw, Lambda, LossConfig, LossKind, Objective, TimesKind};
use langevin::diffusion::process::{Edm, Flow, SharedProcess, Ve, Vp};
use langevin::diffusion::schedule::{BetaSchedule, Table};
use langevin::diffusion::scheduler::VarianceType;
use langevin::diffusion::vlb::{Decoder, Step, normal_kl, prior};
use langevin::ops::noising::coefficient;
use langevin::ops::variational::column;

fn table(steps: usize) -> Arc<Table> {
    Arc::new(Table::new(BetaSchedule::Linear.betas(steps, 1e-3, 0.1)).unwrap())
}

fn objective(process: SharedProcess, prediction: Prediction, loss: LossConfig) -> Objective {
    let denoiser = Denoiser::plain(process, prediction);
    Objective::new(denoiser, loss, VarianceType::FixedSmall, 17).unwrap()
}

fn of_kind(kind: LossKind) -> LossConfig {
    LossConfig { kind, ..LossConfig::default() }
}

fn at(time: f64) -> Draw {
    Draw { time, weight: 1.0, quantile: 0.0 }
}

#[track_caller]
fn near(found: f64, exact: f64, tolerance: f64) {
    assert!((found - exact).abs() <= tolerance * exact.abs(), "{found} is not {exact}");
}

#[test]
fn min_snr_is_divided_by_the_snr_for_eps_and_by_one_more_for_v() {
    let table = table(50);
    for gamma in [1.0, 5.0] {
        let loss = LossConfig { gamma: Some(gamma), ..of_kind(LossKind::MinSnr) };
        let weight = |prediction, t: f64| {
            objective(table.clone(), prediction, loss.clone()).weight(t).unwrap()
        };
        for t in [1.0, 7.0, 25.0, 50.0] {
            let snr = table.state(t as usize).snr();
            near(weight(Prediction::Epsilon, t), snr.min(gamma) / snr, 1e-12);
            near(weight(Prediction::VPrediction, t), snr.min(gamma) / (snr + 1.0), 1e-12);
            near(weight(Prediction::Sample, t), snr.min(gamma), 1e-12);
        }
    }
}

#[test]
fn score_matching_weighs_the_scores_error_whatever_is_predicted() {
    let process: SharedProcess = Arc::new(Vp::new(0.1, 20.0).unwrap());
    let given = Some(vec![[0.0, 2.0], [1.0, 4.0]]);
    for t in [0.01, 0.3, 1.0] {
        let (variance, signal) = (process.pair(t).variance(), process.pair(t).signal());
        for (lambda, exact) in [
            (Lambda::One, 1.0),
            (Lambda::Sigma2, variance),
            (Lambda::G2, 0.1 + 19.9 * t),
            (Lambda::Given, 2.0 + 2.0 * t),
        ] {
            let weights = given.clone().filter(|_| lambda == Lambda::Given);
            let loss = LossConfig { lambda: Some(lambda), weights, ..of_kind(LossKind::Score) };
            let weight = |p| objective(process.clone(), p, loss.clone()).weight(t).unwrap();
            near(weight(Prediction::Score), exact, 1e-12);
            near(weight(Prediction::Epsilon), exact / variance, 1e-12);
            let of_x0 = signal / variance;
            near(weight(Prediction::Sample), exact * of_x0 * of_x0, 1e-12);
        }
    }
}

#[test]
fn edms_loss_has_unit_weight_under_its_preconditioning_and_targets_of_unit_variance() {
    let sigma_data = 0.5;
    let process: SharedProcess = Arc::new(Edm::new(0.002, 80.0).unwrap());
    let denoiser = Denoiser {
        process,
        prediction: Prediction::Sample,
        precondition: Precondition::Edm { sigma_data },
        correction: false,
    };
    let loss = of_kind(LossKind::Edm);
    let objective = Objective::new(denoiser, loss, VarianceType::FixedSmall, 256).unwrap();
    for sigma in [0.002, 0.1, 1.0, 80.0] {
        near(objective.weight(sigma).unwrap(), 1.0, 1e-12);
        let row = objective.at(at(sigma)).unwrap().row;
        let c = |i: usize| f64::from(row[i]);
        let input =
            c(coefficient::SIGNAL).powi(2) * sigma_data * sigma_data + c(coefficient::STD).powi(2);
        near(input, 1.0, 1e-6);
        let target = c(coefficient::TARGET_X0).powi(2) * sigma_data * sigma_data
            + c(coefficient::TARGET_NOISE).powi(2);
        near(target, 1.0, 1e-6);
    }
    // ln(sigma) is normal around -1.2, half of it below.
    let median = objective.example(0.5, 0.0).unwrap();
    near(median.draw.time, (-1.2f64).exp(), 1e-12);
    near(median.draw.quantile, 0.5, 1e-12);
    near(median.label, -0.3, 1e-12);
}

#[test]
fn mu_tilde_regression_is_the_bounds_term_times_twice_its_variance() {
    let table = table(40);
    for prediction in [Prediction::Epsilon, Prediction::VPrediction, Prediction::PosteriorMean] {
        let mean = objective(table.clone(), prediction, of_kind(LossKind::PosteriorMean));
        let bound = objective(table.clone(), prediction, of_kind(LossKind::Vlb));
        for t in [2.0, 9.0, 40.0] {
            let term = Step::between(table.state(t as usize - 1), table.state(t as usize));
            let row = bound.at(at(t)).unwrap().variational.map(f64::from);
            // d = c_0 g_f (F - target); the term is d^2 / (2 variance).
            let of_f = row[column::C_0] * row[column::GAP_PREDICTION];
            near(of_f * of_f, mean.weight(t).unwrap(), 1e-5);
            near(row[column::LN_POSTERIOR], term.ln_posterior, 1e-6);
            assert_eq!(row[column::LN_SMALL], row[column::LN_POSTERIOR]);
            assert_eq!(row[column::WEIGHT], 40.0);
        }
    }
    // Regressing mu-tilde itself needs no weight.
    let own = objective(table, Prediction::PosteriorMean, of_kind(LossKind::PosteriorMean));
    near(own.weight(9.0).unwrap(), 1.0, 1e-12);
}

/// A perfect network has no gap, whatever it predicts.
#[test]
fn the_gap_of_the_bound_vanishes_at_the_target() {
    let table = table(40);
    let (x0, eps) = (0.3, -1.1);
    for prediction in Prediction::ALL {
        let bound = objective(table.clone(), prediction, of_kind(LossKind::Vlb));
        for t in [1.0, 2.0, 40.0] {
            let row = bound.at(at(t)).unwrap().variational.map(f64::from);
            let f = row[column::TARGET_X0] * x0 + row[column::TARGET_NOISE] * eps;
            let gap = row[column::GAP_X0] * x0
                + row[column::GAP_NOISE] * eps
                + row[column::GAP_PREDICTION] * f;
            assert!(gap.abs() < 3e-6, "{prediction:?} {t}: {gap}");
        }
    }
}

#[test]
fn the_bound_of_one_point_is_its_closed_form() {
    // The network knows the point m: L_t is 0 under the posterior's variance, L_0 the
    // bin around m, L_T the distance of N(signal m, std^2) from the prior.
    let table = table(30);
    let m = 0.25;
    let end = table.state(30);
    let l_t = prior(end, 1.0, m * m);
    let exact = 0.5 * (end.variance() + (end.signal() * m).powi(2) - 1.0) - end.std.ln();
    near(l_t, exact, 1e-10);
    for i in 2..=30 {
        let term = Step::of_chain(&*table, i);
        assert_eq!(term.kl(0.0, term.ln_posterior), 0.0);
        // The larger variance costs what two normals of one mean differ by.
        let ratio = (term.ln_posterior - term.ln_large).exp();
        near(term.kl(0.0, term.ln_large), 0.5 * (ratio - 1.0 - ratio.ln()), 1e-9);
    }
    let first = Step::of_chain(&*table, 1);
    assert_eq!((first.ln_posterior, first.c_0), (f64::NEG_INFINITY, 1.0));
    assert_eq!(first.ln_small, Step::of_chain(&*table, 2).ln_posterior);
    let std = (0.5 * first.ln_large).exp();
    let inside = libm::erf(1.0 / 16.0 / std / 2f64.sqrt());
    let found = Decoder::new(17).unwrap().score(m, m, first.ln_large).nats;
    assert!((found + inside.ln()).abs() < 1e-14, "{found} {}", -inside.ln());
}

#[test]
fn a_gaussian_of_unknown_mean_has_the_known_bound() {
    // Data N(0, 1) under a variance-preserving table and the exact network: L_t in
    // expectation is half the ratio of the unexplained variance, summed by hand.
    let table = table(25);
    for i in 2..=25 {
        let (pair, term) = (table.state(i), Step::of_chain(&*table, i));
        // E (x_0 - E[x_0|x_t])^2 = 1 - signal^2 = std^2.
        let found = term.kl(pair.variance(), term.ln_large);
        let ln_ratio = term.ln_posterior - term.ln_large;
        // Marginally exact: beta = beta-tilde + c_0^2 std^2, so only the log is left.
        near(found, -0.5 * ln_ratio, 1e-9);
    }
    near(normal_kl(0.5, 0.3, -0.2), 0.5 * (0.5f64.exp() - 1.5 + 0.5 * 0.2f64.exp()), 1e-13);
}

/// Both losses are E over (eps, xi) of a square that is quadratic in F; with the
/// four sign combinations of (eps, xi) as their exact quadrature, the gradients
/// by F have one mean, and the two-variable form the larger variance.
#[test]
fn two_variable_and_reparametrised_losses_have_equal_mean_gradients() {
    let table = table(40);
    for prediction in [Prediction::Epsilon, Prediction::StepNoise] {
        let two = objective(table.clone(), prediction, of_kind(LossKind::TwoVariable));
        let one = objective(table.clone(), prediction, of_kind(LossKind::StepNoise));
        for t in [1.0, 2.0, 10.0, 40.0] {
            let (two, one) = (two.at(at(t)).unwrap(), one.at(at(t)).unwrap());
            let row = |example: &langevin::diffusion::loss::Example, i: usize| -> f64 {
                example.row[i].into()
            };
            let (mut means, mut squares) = ([0.0; 2], [0.0; 2]);
            let x0 = 0.3;
            for (eps, xi) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
                // A linear network, so that F depends on the same eps.
                let f = 0.2 + 0.5 * eps;
                let x = [f64::from(two.second) * xi, x0];
                for (i, example) in [&two, &one].into_iter().enumerate() {
                    let target = row(example, coefficient::TARGET_X0) * x[i]
                        + row(example, coefficient::TARGET_NOISE) * eps;
                    let slope = 2.0 * row(example, coefficient::WEIGHT) * (f - target);
                    means[i] += 0.25 * slope;
                    squares[i] += 0.25 * slope * slope;
                }
            }
            near(means[0], means[1], 1e-5);
            let pair = table.state(t as usize);
            let ratio = step(table.state(t as usize - 1), pair).1 / pair.std;
            let extra = squares[0] - squares[1];
            // Four times the weight times what of z eps does not tell, 1 - r^2.
            let weight = row(&two, coefficient::WEIGHT);
            let exact = 4.0 * weight * (1.0 - ratio * ratio);
            assert!((extra - exact).abs() < 1e-5, "{prediction:?} {t}: {extra} {exact}");
            assert!(t == 1.0 || extra > 1e-3, "{t}: {extra}");
        }
    }
}

#[test]
fn importance_sampling_keeps_the_mean_of_every_loss() {
    let vp: SharedProcess = Arc::new(Vp::new(0.1, 20.0).unwrap());
    let ve: SharedProcess = Arc::new(Ve::new(0.01, 50.0).unwrap());
    for process in [vp, ve, table(40) as SharedProcess] {
        let make = |times| {
            let loss = LossConfig {
                lambda: Some(Lambda::G2),
                times: Some(times),
                ..of_kind(LossKind::Score)
            };
            objective(process.clone(), Prediction::Epsilon, loss)
        };
        let (uniform, weighted) = (make(TimesKind::Uniform), make(TimesKind::Importance));
        // Any function of the time: midpoints in u are its exact quadrature.
        let error = |t: f64| 1.0 + (5.0 * t / process.end()).sin();
        let count = 400_000;
        let (mut means, mut squares) = ([0.0; 2], [0.0; 2]);
        for i in 0..count {
            let u = (f64::from(i) + 0.5) / f64::from(count);
            for (k, objective) in [&uniform, &weighted].into_iter().enumerate() {
                let example = objective.example(u, 0.0).unwrap();
                let weight = f64::from(example.row[coefficient::WEIGHT]);
                means[k] += weight * error(example.draw.time) / f64::from(count);
                squares[k] += weight * weight / f64::from(count);
            }
        }
        near(means[1], means[0], 2e-3);
        // VE's g^2/std^2 is constant, so that both are the same there.
        let share = if process.name() == "ve" { 1.0 + 1e-9 } else { 0.9 };
        assert!(squares[1] <= share * squares[0], "{}: {squares:?}", process.name());
    }
}

#[test]
fn the_larger_variance_and_the_learned_range_stand_in_the_row() {
    let table = table(20);
    let denoiser = || Denoiser::plain(table.clone(), Prediction::Epsilon);
    let term = Step::of_chain(&*table, 5);
    let make = |kind, variance| Objective::new(denoiser(), of_kind(kind), variance, 17).unwrap();
    let large = make(LossKind::Vlb, VarianceType::FixedLarge).at(at(5.0)).unwrap().variational;
    assert_eq!(large[column::LN_SMALL], term.ln_large as f32);
    let hybrid = make(LossKind::Hybrid, VarianceType::LearnedRange);
    assert!(hybrid.learns_variance() && hybrid.holds_mean());
    let row = hybrid.at(at(5.0)).unwrap().variational;
    assert_eq!(row[column::LN_SMALL], term.ln_small as f32);
    assert_eq!(row[column::LN_LARGE], term.ln_large as f32);
    assert_eq!((row[column::SIMPLE_WEIGHT], row[column::WEIGHT]), (1.0, 0.02));
    near(term.ln_variance(-1.0), term.ln_small, 1e-15);
    near(term.ln_variance(1.0), term.ln_large, 1e-15);
}

#[test]
fn losses_that_do_not_fit_are_refused_with_key_and_remedy() {
    let vp: SharedProcess = Arc::new(Vp::new(0.1, 20.0).unwrap());
    let refuse = |process: SharedProcess, prediction, loss, variance, levels, words: [&str; 2]| {
        let denoiser = Denoiser::plain(process, prediction);
        let error = Objective::new(denoiser, loss, variance, levels).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    use Prediction::{Epsilon, Sample};
    use VarianceType::*;
    let small = FixedSmall;
    for kind in [LossKind::Vlb, LossKind::PosteriorMean, LossKind::TwoVariable] {
        refuse(vp.clone(), Epsilon, of_kind(kind), small, 17, ["loss.kind", "lambda = g2"]);
    }
    refuse(table(9), Epsilon, of_kind(LossKind::Vlb), small, 0, ["loss.kind", "continuous"]);
    refuse(table(9), Epsilon, of_kind(LossKind::Hybrid), small, 17, ["loss.kind", "learned_range"]);
    refuse(table(9), Epsilon, of_kind(LossKind::Simple), LearnedRange, 17, ["loss.kind", "hybrid"]);
    refuse(
        table(9),
        Epsilon,
        of_kind(LossKind::Vlb),
        Learned,
        17,
        ["variance_type", "learned_range"],
    );
    refuse(
        table(9),
        Sample,
        of_kind(LossKind::TwoVariable),
        small,
        17,
        ["loss.kind", "step_noise"],
    );
    let with = |edit: fn(&mut LossConfig)| {
        let mut loss = LossConfig::default();
        edit(&mut loss);
        loss
    };
    let v = vp.clone();
    refuse(v.clone(), Epsilon, with(|l| l.gamma = Some(5.0)), small, 17, ["loss.gamma", "min-snr"]);
    refuse(v.clone(), Epsilon, with(|l| l.t_min = Some(1.0)), small, 17, ["loss.t_min", "noise"]);
    refuse(
        v.clone(),
        Epsilon,
        with(|l| l.p_std = Some(1.0)),
        small,
        17,
        ["loss.p_std", "log_normal"],
    );
    let importance = with(|l| l.times = Some(TimesKind::Importance));
    refuse(v.clone(), Epsilon, importance, small, 17, ["loss.times", "score"]);
    let negative = with(|l| {
        l.kind = LossKind::MinSnr;
        l.gamma = Some(-1.0);
    });
    refuse(v.clone(), Epsilon, negative, small, 17, ["loss.gamma", "above 0"]);
    let unsorted = with(|l| {
        l.kind = LossKind::Score;
        l.lambda = Some(Lambda::Given);
        l.weights = Some(vec![[0.5, 1.0], [0.2, 1.0]]);
    });
    refuse(v, Epsilon, unsorted, small, 17, ["loss.weights", "rising"]);
    // g^2 is infinite where flow's signal ends.
    let flow: SharedProcess = Arc::new(Flow::new(1.0).unwrap());
    let g2 = with(|l| {
        l.kind = LossKind::Score;
        l.lambda = Some(Lambda::G2);
    });
    refuse(flow, Prediction::Flow, g2, small, 17, ["loss.kind", "t_max"]);
}
