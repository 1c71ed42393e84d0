//! Denoisers: predictions under every process, preconditioning, matching.

use std::sync::Arc;

use langevin::diffusion::denoiser::{
    Denoiser, Evaluation, Precondition, Prediction, Scalings, step,
};
use langevin::diffusion::process::{
    Amplitude, Cosine, DenoiserConfig, Edm, Flow, Pair, Process, ProcessConfig, SharedProcess,
    SubVp, Ve, Vp, of_checkpoint,
};
use langevin::diffusion::schedule::{BetaSchedule, Table};
use langevin::diffusion::scheduler::SchedulerConfig;

fn table() -> SharedProcess {
    Arc::new(Table::new(BetaSchedule::Linear.betas(100, 1e-3, 0.1)).unwrap())
}

fn processes() -> Vec<SharedProcess> {
    vec![
        table(),
        Arc::new(Table::smld(30, 0.01, 20.0).unwrap()),
        Arc::new(Vp::new(0.1, 20.0).unwrap()),
        Arc::new(SubVp::new(0.1, 20.0).unwrap()),
        Arc::new(Ve::new(0.01, 50.0).unwrap()),
        Arc::new(Cosine::new(0.008, 0.99).unwrap()),
        Arc::new(Amplitude::new(5.0).unwrap()),
        Arc::new(Edm::new(0.002, 80.0).unwrap()),
        Arc::new(Flow::new(0.999).unwrap()),
    ]
}

fn times(process: &dyn Process) -> Vec<f64> {
    let (from, to) = (process.earliest(), process.end());
    match process.steps() {
        Some(steps) => (1..=steps).map(|i| i as f64).collect(),
        None => (0..=20).map(|i| from + (to - from) * f64::from(i) / 20.0).collect(),
    }
}

/// Every denoiser that fits the process.
fn denoisers(process: &SharedProcess) -> Vec<Denoiser> {
    let mut all = Vec::new();
    for prediction in Prediction::ALL {
        for correction in [false, true] {
            for precondition in [Precondition::None, Precondition::Edm { sigma_data: 0.5 }] {
                let process = process.clone();
                let denoiser = Denoiser { process, prediction, precondition, correction };
                if denoiser.validate().is_ok() {
                    all.push(denoiser);
                }
            }
        }
    }
    all
}

/// A perfect network's raw answer at (x_0, eps).
fn answer(denoiser: &Denoiser, time: f64, x0: f64, eps: f64) -> f64 {
    let target = denoiser.target(time).unwrap();
    target.x0 * x0 + target.eps * eps
}

#[track_caller]
fn check(found: &Evaluation, x: f64, f: f64, (x0, eps): (f64, f64), context: &str) {
    for (linear, exact) in [(found.x0, x0), (found.eps, eps)] {
        let (of_x, of_f) = (linear.state * x, linear.prediction * f);
        // What rounding of x and f by one part in 2^52 may do.
        let bound = 1e-13 + 1e-13 * (of_x.abs() + of_f.abs());
        assert!((of_x + of_f - exact).abs() < bound, "{context}: {} {exact}", of_x + of_f);
    }
}

#[test]
fn every_prediction_gives_back_x0_and_eps_under_every_process() {
    let (x0, eps) = (0.37, -1.4);
    for process in processes() {
        for denoiser in denoisers(&process) {
            for t in times(&*process) {
                let pair = process.pair(t);
                let x = pair.signal() * x0 + pair.std * eps;
                let f = answer(&denoiser, t, x0, eps);
                let context = format!("{} {t} {denoiser:?}", process.name());
                check(&denoiser.at(t).unwrap(), x, f, (x0, eps), &context);
            }
        }
    }
}

#[test]
fn the_score_is_minus_eps_over_sigma_and_under_the_correction_that_of_x_a() {
    for process in processes() {
        for t in times(&*process) {
            let pair = process.pair(t);
            let mut denoiser = Denoiser::plain(process.clone(), Prediction::Score);
            let exact = -1.0 / pair.std;
            assert!((denoiser.target(t).unwrap().eps / exact - 1.0).abs() < 1e-14);
            denoiser.correction = true;
            let exact = -pair.signal() / pair.std;
            assert!((denoiser.target(t).unwrap().eps / exact - 1.0).abs() < 1e-13);
            let scale = denoiser.target(t).unwrap().input_scale;
            assert!((scale * pair.signal() - 1.0).abs() < 1e-13);
        }
    }
}

#[test]
fn step_noise_and_mu_tilde_are_what_one_step_of_the_chain_says() {
    let process = table();
    for i in 1..=100 {
        let (before, pair) = (process.pair(f64::from(i - 1)), process.pair(f64::from(i)));
        let (a, b) = step(before, pair);
        // x_t = a (signal_s x_0) + b z where x_(t-1) is its own mean: z = (b/std) eps on average.
        let (_, of_eps) = Prediction::StepNoise.target_from(Some(before), pair).unwrap();
        assert!((of_eps - b / pair.std).abs() < 1e-13);
        // mu-tilde = (x_t - b E[z | x_0, x_t]) / a.
        let (x0, eps) = (0.4, 0.9);
        let x = pair.signal() * x0 + pair.std * eps;
        let (m_x0, m_eps) = Prediction::PosteriorMean.target_from(Some(before), pair).unwrap();
        let exact = (x - b * b / pair.std * eps) / a;
        assert!((m_x0 * x0 + m_eps * eps - exact).abs() < 1e-12, "{i}");
    }
}

#[test]
fn matching_uses_a_network_under_any_other_process() {
    let (x0, eps) = (0.37, -1.4);
    for trained in processes() {
        for denoiser in denoisers(&trained) {
            for sampled in processes() {
                for t in times(&*sampled) {
                    let pair = sampled.pair(t);
                    let lambda = pair.half_log_snr();
                    let first = trained.pair(trained.earliest()).half_log_snr();
                    let last = trained.pair(trained.end()).half_log_snr();
                    if lambda < last - 1e-6 {
                        let said = denoiser.matched(pair).unwrap_err().to_string();
                        assert!(said.contains("noisier"), "{said}");
                        continue;
                    }
                    if lambda > first {
                        continue;
                    }
                    let found = denoiser.matched(pair).unwrap();
                    let time = trained.time_of(lambda);
                    let own = trained.pair(time);
                    let x = pair.signal() * x0 + pair.std * eps;
                    let f = answer(&denoiser, time, x0, eps);
                    let context =
                        format!("{} as {} {t} {denoiser:?}", trained.name(), sampled.name());
                    // The inverse of lambda is good to 1e-12, and errs by as much here.
                    for (linear, exact) in [(found.x0, x0), (found.eps, eps)] {
                        let (of_x, of_f) = (linear.state * x, linear.prediction * f);
                        let bound = 1e-9 * (1.0 + of_x.abs() + of_f.abs());
                        assert!((of_x + of_f - exact).abs() < bound, "{context}");
                    }
                    // The input is the trained process's state, at its scale.
                    let seen = denoiser.at(time).unwrap();
                    let scale = seen.input_scale * own.signal() / pair.signal();
                    assert!((found.input_scale / scale - 1.0).abs() < 1e-9, "{context}");
                    assert!((found.label - seen.label).abs() < 1e-9, "{context}");
                }
            }
        }
    }
}

#[test]
fn matching_at_a_tables_own_pairs_asks_whole_labels() {
    let process = table();
    let ve = Ve::new(0.01, 50.0).unwrap();
    let denoiser = Denoiser::plain(process.clone(), Prediction::Epsilon);
    for i in 1..=100 {
        let lambda = process.pair(f64::from(i)).half_log_snr();
        let pair = ve.pair(ve.time_of(lambda));
        let found = denoiser.matched(Pair { ..pair }).unwrap();
        assert_eq!(found.label, f64::from(i - 1));
    }
    // Less noise than training had: the first label, with the state's own pair.
    let clean = Pair { ln_signal: 0.0, std: 1e-4 };
    let found = denoiser.matched(clean).unwrap();
    assert_eq!(found.label, 0.0);
    assert!((found.x0.prediction + 1e-4).abs() < 1e-18 && (found.x0.state - 1.0).abs() < 1e-15);
}

#[test]
fn edms_scalings_are_the_papers_and_cancel_the_correction() {
    let s = Scalings::edm(0.7, 0.5);
    let total = 0.7f64.powi(2) + 0.25;
    assert!((s.c_skip - 0.25 / total).abs() < 1e-15);
    assert!((s.c_out - 0.7 * 0.5 / total.sqrt()).abs() < 1e-15);
    assert!((s.c_in - 1.0 / total.sqrt()).abs() < 1e-15);
    assert!((s.c_noise - 0.7f64.ln() / 4.0).abs() < 1e-15);
    let process = table();
    let edm = |correction| Denoiser {
        process: process.clone(),
        prediction: Prediction::Sample,
        precondition: Precondition::Edm { sigma_data: 0.5 },
        correction,
    };
    for t in times(&*process) {
        assert_eq!(edm(true).at(t).unwrap(), edm(false).at(t).unwrap());
        let pair = process.pair(t);
        let scale = 1.0 / (pair.variance() + 0.25 * pair.signal().powi(2)).sqrt();
        assert!((edm(true).at(t).unwrap().input_scale / scale - 1.0).abs() < 1e-13);
    }
}

#[test]
fn edms_conversions_keep_x0_and_eps_where_almost_no_noise_is_left() {
    let process: SharedProcess = Arc::new(Edm::new(1e-6, 80.0).unwrap());
    let denoiser = Denoiser {
        process,
        prediction: Prediction::Sample,
        precondition: Precondition::Edm { sigma_data: 0.5 },
        correction: false,
    };
    let (x0, eps, sigma) = (0.37, -1.4, 1e-6);
    let found = denoiser.at(sigma).unwrap();
    let f = answer(&denoiser, sigma, x0, eps);
    let x = x0 + sigma * eps;
    assert!((found.x0.state * x + found.x0.prediction * f - x0).abs() < 1e-15);
    assert!((found.eps.state * x + found.eps.prediction * f - eps).abs() < 1e-13);
}

#[test]
fn combinations_that_cannot_work_are_refused_with_key_and_remedy() {
    let scheduler = SchedulerConfig::default();
    let make = |process: &str, denoiser: &str| {
        let process: ProcessConfig = serde_json::from_str(process).unwrap();
        let denoiser: DenoiserConfig = serde_json::from_str(denoiser).unwrap();
        denoiser.build(process.build(&scheduler)?, &scheduler)
    };
    let refuse = |process: &str, denoiser: &str, words: [&str; 2]| {
        let error = make(process, denoiser).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    let correction = r#"{"correction": true}"#;
    refuse(r#"{"kind": "flow"}"#, correction, ["denoiser.correction", "t_max"]);
    refuse(r#"{"kind": "vp"}"#, r#"{"prediction": "step_noise"}"#, ["denoiser.prediction", "smld"]);
    let both = r#"{"prediction": "epsilon", "precondition": "edm"}"#;
    refuse("{}", both, ["denoiser.prediction", "sample"]);
    refuse("{}", r#"{"sigma_data": 0.5}"#, ["denoiser.sigma_data", "edm"]);
    let negative = r#"{"precondition": "edm", "sigma_data": -1}"#;
    refuse("{}", negative, ["denoiser.sigma_data", "above 0"]);
    assert!(make(r#"{"kind": "flow", "t_max": 0.99}"#, correction).is_ok());
    let edm = make(r#"{"kind": "edm"}"#, r#"{"precondition": "edm"}"#).unwrap();
    assert_eq!(edm.prediction, Prediction::Sample);
}

#[test]
fn zero_terminal_snr_refuses_eps_at_its_end_and_takes_v() {
    let linear = Table::new(BetaSchedule::Linear.betas(10, 1e-3, 0.1)).unwrap();
    let process: SharedProcess = Arc::new(linear.with_zero_terminal_snr().unwrap());
    let eps = Denoiser::plain(process.clone(), Prediction::Epsilon);
    assert!(eps.at(10.0).unwrap_err().to_string().contains("v_prediction"));
    assert!(eps.at(9.0).is_ok());
    let v = Denoiser::plain(process, Prediction::VPrediction);
    assert_eq!(v.at(10.0).unwrap().x0.prediction, -1.0);
}

#[test]
fn a_checkpoints_extras_give_the_denoiser_back() {
    let scheduler = SchedulerConfig::default();
    let extras = serde_json::json!({
        "process": {"kind": "ve", "sigma_max": 20.0},
        "denoiser": {"prediction": "score", "correction": true},
    });
    let (process, denoiser) = of_checkpoint(Some(&extras), &scheduler, &[]).unwrap();
    assert_eq!((denoiser.process.name(), denoiser.process.end()), ("ve", 1.0));
    assert_eq!((denoiser.prediction, denoiser.correction), (Prediction::Score, true));
    let set = ["denoiser.prediction=flow".to_string(), "process.sigma_min=0.1".to_string()];
    let (_, other) = of_checkpoint(Some(&extras), &scheduler, &set).unwrap();
    assert_eq!(other.prediction, Prediction::Flow);
    // A sampled process goes over the trained one, unless it is of another kind.
    let sampled = process.overridden(&set).unwrap().unwrap();
    assert_eq!((sampled.sigma_min, sampled.sigma_max), (Some(0.1), Some(20.0)));
    let named = process.overridden(&["process.kind=vp".into()]).unwrap().unwrap();
    assert!(named.sigma_max.is_none());
    assert!(process.overridden(&[]).unwrap().is_none());
    // Nothing told: the scheduler's.
    let (_, plain) = of_checkpoint(None, &scheduler, &[]).unwrap();
    assert_eq!((plain.process.name(), plain.prediction), ("ddpm", Prediction::Epsilon));
    let broken = serde_json::json!({"process": {"kind": "vee"}});
    assert!(of_checkpoint(Some(&broken), &scheduler, &[]).is_err());
}
