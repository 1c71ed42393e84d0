//! The linear correction: coordinates, scores and densities.

use langevin::diffusion::correction::{Correction, OneStep};
use langevin::diffusion::process::{Flow, Pair, Process, Vp};
use langevin::diffusion::scheduler::SchedulerConfig;

/// ln N(x; mean, variance) and its slope by x.
fn normal(x: f64, mean: f64, variance: f64) -> (f64, f64) {
    let z2 = (x - mean) * (x - mean) / variance;
    let log = -0.5 * (z2 + (2.0 * std::f64::consts::PI * variance).ln());
    (log, -(x - mean) / variance)
}

#[test]
fn scores_and_densities_change_with_the_coordinates() {
    let vp = Vp::new(0.1, 20.0).unwrap();
    let (m, v) = (0.4, 0.3);
    for t in [0.001, 0.2, 0.7, 1.0] {
        let pair = vp.pair(t);
        let c = Correction::at(pair).unwrap();
        assert!((c.std / (pair.std / pair.signal()) - 1.0).abs() < 1e-13);
        let x = 0.9;
        let signal = pair.signal();
        let (log, score) = normal(x, signal * m, signal * signal * v + pair.variance());
        let (log_a, score_a) = normal(c.scale() * x, m, v + c.std * c.std);
        assert!((c.score(score_a) / score - 1.0).abs() < 1e-11, "{t}");
        assert!((c.log_density(log_a, 1) - log).abs() < 1e-11, "{t}");
        // d numbers lose d ln(signal).
        let found = c.log_density(3.0 * log_a, 3);
        assert!((found - 3.0 * log).abs() < 1e-10, "{t}");
    }
}

#[test]
fn both_forms_of_one_step_lead_back_and_tell_the_same_noise() {
    let table = SchedulerConfig::default().table().unwrap();
    for i in [1, 2, 500, 1000] {
        let (before, pair) = (table.state(i - 1), table.state(i));
        let alpha = 1.0 - table.beta(i - 1);
        let (previous, z) = (0.3, -1.2);
        let x = alpha.sqrt() * previous + (1.0 - alpha).sqrt() * z;
        for corrected in [false, true] {
            let step = OneStep::between(before, pair, corrected).unwrap();
            let state = step.scale() * x;
            assert!((step.previous(state, z) - previous).abs() < 1e-12, "{i}");
            assert!((step.scaled_score(previous, state) + z).abs() < 1e-9, "{i}");
            // The score of the state given x_(t-1), as a normal has it.
            let (mean, variance) = match corrected {
                true => (previous, (1.0 - alpha) / alpha),
                false => (alpha.sqrt() * previous, 1.0 - alpha),
            };
            let exact = normal(state, mean, variance).1;
            assert!((step.score(previous, state) / exact - 1.0).abs() < 1e-9, "{i}");
        }
        let state = x / alpha.sqrt();
        let step = OneStep::between(before, pair, true).unwrap();
        let noise = ((1.0 - alpha) / alpha).sqrt();
        assert!((step.previous(state, z) - (state - noise * z)).abs() < 1e-12);
        let score = alpha / (1.0 - alpha) * (previous - state);
        assert!((step.score(previous, state) / score - 1.0).abs() < 1e-9);
    }
}

/// The documented size of what a network sees.
#[test]
fn corrected_states_of_the_linear_table_grow_to_157() {
    let table = SchedulerConfig::default().table().unwrap();
    let c = Correction::at(table.state(1000)).unwrap();
    assert_eq!(c.std.round(), 157.0);
    assert!(Correction::at(table.state(1)).unwrap().std < 0.011);
}

#[test]
fn a_signal_of_zero_is_refused() {
    let flow = Flow::new(1.0).unwrap();
    let error = Correction::at(flow.pair(1.0)).unwrap_err();
    assert!(error.to_string().contains("denoiser.correction"), "{error}");
    let none = Pair::variance_preserving(f64::NEG_INFINITY);
    assert!(OneStep::between(Pair::variance_preserving(-1.0), none, true).is_err());
}
