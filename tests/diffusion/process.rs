//! Every process against closed forms and numeric derivatives.

use std::sync::Arc;

use langevin::diffusion::process::{
    Amplitude, Cosine, Edm, Flow, Given, Pair, Posterior, Process, SharedProcess, SubVp, Ve, Vp,
};
use langevin::diffusion::schedule::{BetaSchedule, Table, rows};

/// A table of a person: neither variance preserving nor exploding.
fn given() -> Given {
    let entries: Vec<(f64, f64, f64)> = (0..=12)
        .map(|i| {
            let t = i as f64 / 6.0;
            (t, (-0.3 * t * t).exp(), 0.05 + t + 0.1 * t * t)
        })
        .collect();
    Given::new(&entries).unwrap()
}

fn tables() -> Vec<SharedProcess> {
    let linear = Table::new(BetaSchedule::Linear.betas(60, 1e-3, 0.2)).unwrap();
    vec![
        Arc::new(linear.with_zero_terminal_snr().unwrap()),
        Arc::new(linear),
        Arc::new(Table::new(BetaSchedule::SquaredcosCapV2.betas(60, 0.0, 0.0)).unwrap()),
        Arc::new(Table::smld(40, 0.01, 20.0).unwrap()),
    ]
}

fn continuous() -> Vec<SharedProcess> {
    vec![
        Arc::new(Vp::new(0.1, 20.0).unwrap()),
        Arc::new(Vp::new(3.0, 3.0).unwrap()),
        Arc::new(SubVp::new(0.1, 20.0).unwrap()),
        Arc::new(Ve::new(0.01, 50.0).unwrap()),
        Arc::new(Cosine::new(0.008, 0.9946).unwrap()),
        Arc::new(Cosine::new(0.008, 1.0).unwrap()),
        Arc::new(Amplitude::new(5.0).unwrap()),
        Arc::new(Edm::new(0.002, 80.0).unwrap()),
        Arc::new(Flow::new(1.0).unwrap()),
        Arc::new(given()),
    ]
}

/// Times inside (0, end), none at an end.
fn times(process: &dyn Process) -> Vec<f64> {
    (1..200).map(|i| process.end() * (f64::from(i) - 0.37) / 200.0).collect()
}

/// Derivative by Ridders' method: central differences of shrinking width,
/// extrapolated, the entry of least estimated error.
fn derivative(f: impl Fn(f64) -> f64, t: f64, h: f64) -> f64 {
    const SHRINK: f64 = 1.4;
    let mut rows: Vec<Vec<f64>> = Vec::new();
    let (mut best, mut least) = (f64::NAN, f64::INFINITY);
    for level in 0..12 {
        let h = h / SHRINK.powi(level);
        let mut row = vec![(f(t + h) - f(t - h)) / (2.0 * h)];
        let mut factor = 1.0;
        if let Some(above) = rows.last() {
            for (j, coarse) in above.iter().enumerate() {
                factor *= SHRINK * SHRINK;
                let finer = (factor * row[j] - coarse) / (factor - 1.0);
                let error = (finer - row[j]).abs().max((finer - coarse).abs());
                if error < least {
                    (best, least) = (finer, error);
                }
                row.push(finer);
            }
        }
        rows.push(row);
    }
    best
}

#[track_caller]
fn near(found: f64, exact: f64, tolerance: f64, context: impl std::fmt::Debug) {
    let off = (found - exact).abs();
    assert!(off <= tolerance * exact.abs().max(1.0), "{context:?}: {found} is not {exact}");
}

#[test]
fn f_and_g2_are_the_derivatives_of_the_pair() {
    for process in continuous().into_iter().chain(tables()) {
        // Slopes of tables change at their entries.
        let grid = match (process.steps(), process.name()) {
            (Some(_), _) => Some(1.0),
            (None, "given") => Some(1.0 / 6.0),
            _ => None,
        };
        for t in times(&*process) {
            let room = match grid {
                Some(grid) => (t / grid).fract().min(1.0 - (t / grid).fract()) * grid,
                None => t.min(process.end() - t),
            };
            if grid.is_some_and(|grid| room < 0.05 * grid) {
                continue;
            }
            let context = (process.name(), t);
            let f = derivative(|t| process.pair(t).ln_signal, t, 0.5 * room);
            near(process.drift(t), f, 1e-10, context);
            // g^2 = d sigma^2 / dt - 2 f sigma^2, free of the signal's own size.
            let growth = derivative(|t| process.pair(t).variance(), t, 0.5 * room);
            let g2 = growth - 2.0 * process.drift(t) * process.pair(t).variance();
            let scale = growth.abs().max(1.0);
            near(process.diffusion2(t) / scale, g2 / scale, 1e-10, context);
        }
    }
}

/// The literature's formulas, in their own words.
#[test]
fn f_and_g2_are_the_closed_forms() {
    let pi = std::f64::consts::PI;
    let (vp, sub) = (Vp::new(0.1, 20.0).unwrap(), SubVp::new(0.1, 20.0).unwrap());
    let (ve, flow) = (Ve::new(0.01, 50.0).unwrap(), Flow::new(1.0).unwrap());
    let (cosine, edm) = (Cosine::new(0.008, 1.0).unwrap(), Edm::new(0.002, 80.0).unwrap());
    let amplitude = Amplitude::new(5.0).unwrap();
    for i in 1..100 {
        let t = f64::from(i) / 100.0;
        let beta = 0.1 + t * 19.9;
        let integral = 0.1 * t + 9.95 * t * t;
        let ratio = 5000f64;
        let std = 0.01 * ratio.powf(t);
        let angle = pi / 2.0 * (t + 0.008) / 1.008;
        let turn = pi / 2.0 / 1.008 * angle.tan();
        for (process, f, g2) in [
            (&vp as &dyn Process, -0.5 * beta, beta),
            (&sub, -0.5 * beta, beta * (1.0 - (-2.0 * integral).exp())),
            (&ve, 0.0, std * std * 2.0 * ratio.ln()),
            (&cosine, -turn, 2.0 * turn),
            (&flow, -1.0 / (1.0 - t), 2.0 * t / (1.0 - t)),
            (&edm, 0.0, 2.0 * t),
            (&amplitude, -10.0 * t, 20.0 * t),
        ] {
            near(process.drift(t), f, 1e-10, (process.name(), t));
            near(process.diffusion2(t), g2, 1e-10, (process.name(), t));
        }
        near(sub.pair(t).std, 1.0 - sub.pair(t).signal().powi(2), 1e-14, t);
        near(vp.pair(t).signal(), (-0.5 * integral).exp(), 1e-14, t);
        near(cosine.pair(t).signal(), angle.cos() / (pi / 2.0 * 0.008 / 1.008).cos(), 1e-13, t);
        near(amplitude.pair(t).variance(), 1.0 - (-10.0 * t * t).exp(), 1e-14, t);
    }
}

#[test]
fn time_of_inverts_lambda_and_returns_whole_numbers_at_the_entries_of_a_table() {
    for process in continuous() {
        for t in times(&*process) {
            near(process.time_of(process.pair(t).half_log_snr()), t, 1e-12, (process.name(), t));
        }
        assert_eq!(process.time_of(f64::NEG_INFINITY), process.end(), "{process:?}");
    }
    for table in tables() {
        for t in times(&*table) {
            near(table.time_of(table.pair(t).half_log_snr()), t, 1e-9, (table.name(), t));
        }
        for i in 0..=table.steps().unwrap() {
            let lambda = table.pair(i as f64).half_log_snr();
            assert_eq!(table.time_of(lambda), i as f64, "{}", table.name());
            if lambda.is_finite() && i > 0 {
                assert_eq!(table.time_of(lambda * (1.0 + 1e-15)), i as f64, "{}", table.name());
            }
        }
    }
}

#[test]
fn snr_falls_everywhere() {
    for process in continuous().into_iter().chain(tables()) {
        let snr: Vec<f64> =
            times(&*process).iter().map(|&t| process.pair(t).half_log_snr()).collect();
        assert!(snr.windows(2).all(|w| w[0] > w[1]), "{}", process.name());
    }
}

#[test]
fn posteriors_carry_mean_and_variance_for_every_pair_of_times_and_spacing() {
    for process in continuous().into_iter().chain(tables()) {
        for count in [1usize, 2, 3, 7, 20] {
            let at = |i: usize| process.pair(process.end() * i as f64 / count as f64);
            for j in 1..=count {
                for i in 0..j {
                    let (s, t): (Pair, Pair) = (at(i), at(j));
                    let p = Posterior::between(s, t);
                    let context = (process.name(), count, i, j);
                    near(p.c_x * t.signal() + p.c_0, s.signal(), 1e-12, context);
                    let variance = p.c_x * p.c_x * t.variance() + p.variance;
                    near(
                        variance / s.variance().max(1e-300),
                        if s.std > 0.0 { 1.0 } else { 0.0 },
                        1e-11,
                        context,
                    );
                }
            }
        }
    }
}

#[test]
fn tables_are_refused_where_the_snr_rises() {
    let refuse = |entries: &[(f64, f64, f64)], words: &str| {
        let error = Given::new(entries).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("process.table"), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refuse(&[(0.0, 1.0, 0.1), (0.5, 0.9, 0.5), (1.0, 0.9, 0.4)], "SNR must fall");
    refuse(&[(0.0, 1.0, 0.1), (0.5, 1.0, 0.1)], "SNR must fall");
    refuse(&[(0.0, 1.0, 0.1), (0.0, 0.9, 0.5)], "does not come after");
    refuse(&[(0.0, 1.0, 0.1)], "at least two");
    refuse(&[(0.0, 1.0, 0.1), (0.5, 0.0, 1.0), (1.0, 0.0, 2.0)], "signal may be 0 only");
    refuse(&[(0.0, 1.0, -0.1), (0.5, 0.5, 1.0)], "0 or more");
    refuse(&[(0.0, f64::NAN, 0.1), (0.5, 0.5, 1.0)], "0 or more");
}

#[test]
fn parameters_out_of_range_are_refused_with_their_key() {
    let key = |error: langevin::Error| error.to_string();
    assert!(key(Ve::new(50.0, 0.01).unwrap_err()).contains("process.sigma_min"));
    assert!(key(Ve::new(0.0, 1.0).unwrap_err()).contains("process.sigma_min"));
    assert!(key(Edm::new(0.1, f64::NAN).unwrap_err()).contains("process.sigma_max"));
    assert!(key(Vp::new(20.0, 0.1).unwrap_err()).contains("process.beta_min"));
    assert!(key(SubVp::new(-1.0, 0.1).unwrap_err()).contains("process.beta_min"));
    assert!(key(Amplitude::new(0.0).unwrap_err()).contains("process.rate"));
    assert!(key(Cosine::new(1.0, 1.0).unwrap_err()).contains("process.offset"));
    assert!(key(Flow::new(1.5).unwrap_err()).contains("process.t_max"));
    assert!(key(Table::smld(1, 0.1, 1.0).unwrap_err()).contains("process.steps"));
}

#[test]
fn ends_are_where_the_definitions_put_them() {
    let ve = Ve::new(0.01, 50.0).unwrap();
    near(ve.pair(0.0).std, 0.01, 1e-15, "std(0)");
    near(ve.pair(1.0).std / 50.0, 1.0, 1e-14, "std(1)");
    assert_eq!(ve.prior_std(), 50.0);
    let flow = Flow::new(1.0).unwrap();
    assert_eq!((flow.pair(1.0).signal(), flow.pair(1.0).std), (0.0, 1.0));
    assert_eq!((flow.drift(1.0), flow.diffusion2(1.0)), (f64::NEG_INFINITY, f64::INFINITY));
    let cosine = Cosine::new(0.008, 1.0).unwrap();
    assert_eq!((cosine.pair(1.0).signal(), cosine.pair(1.0).std), (0.0, 1.0));
    assert_eq!(cosine.drift(1.0), f64::NEG_INFINITY);
    let smld = Table::smld(10, 0.01, 20.0).unwrap();
    assert_eq!((smld.state(0), smld.state(1).std), (Pair::DATA, 0.01));
    assert_eq!((smld.state(10).std, smld.prior_std()), (20.0, 20.0));
}

/// beta_i = beta(i/T)/T at any T, while a table stays what it is.
#[test]
fn continuous_processes_take_any_number_of_steps() {
    let vp = Vp::new(0.1, 20.0).unwrap();
    for steps in [1, 10, 1000] {
        let rows = rows(&vp, steps);
        assert_eq!(rows.len(), steps);
        for (i, row) in rows.iter().enumerate() {
            let t = (i + 1) as f64 / steps as f64;
            near(row.beta, (0.1 + 19.9 * t) / steps as f64, 1e-13, (steps, i));
            near(row.time, t, 1e-13, i);
        }
        near(rows[steps - 1].signal, (-0.25f64 * 20.1).exp(), 1e-13, steps);
    }
    let table = Table::new(vec![0.1, 0.2]).unwrap();
    assert_eq!(rows(&table, 1000).len(), 2);
}
