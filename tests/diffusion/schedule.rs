//! Tables, posteriors, label grids.

use langevin::diffusion::process::{Pair, Posterior, Process};
use langevin::diffusion::schedule::{BetaSchedule, Table};
use langevin::diffusion::scheduler::SchedulerConfig;
use safetensors::SafeTensors;

use crate::golden;

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * b.abs().max(1e-30)
}

fn table(config: SchedulerConfig) -> Table {
    config.table().unwrap()
}

/// Configurations whose shapes differ: the linear one, the cosine with its cap,
/// one without signal at its end.
fn tables() -> Vec<Table> {
    let base = SchedulerConfig { num_train_timesteps: 60, ..SchedulerConfig::default() };
    vec![
        table(base.clone()),
        table(SchedulerConfig { beta_schedule: BetaSchedule::SquaredcosCapV2, ..base.clone() }),
        table(SchedulerConfig { rescale_betas_zero_snr: true, ..base }),
    ]
}

#[test]
fn linear_of_500_steps_ends_at_its_known_signal_and_variance() {
    let rows = table(SchedulerConfig { num_train_timesteps: 500, ..Default::default() }).rows();
    let last = rows.last().unwrap();
    assert_eq!((rows.len(), last.t), (500, 499));
    assert_eq!(format!("{:.6} {:.6}", last.signal, last.variance), "0.079704 0.993647");
    assert_eq!((rows[0].mean_x0, rows[0].mean_xt, rows[0].variance_small), (1.0, 0.0, 0.0));
    assert!(close(rows[0].variance_large, 1e-4, 1e-12) && close(last.beta, 0.02, 1e-12));
}

#[test]
fn rows_serialise_under_the_documented_keys() {
    let row = serde_json::to_value(tables()[0].rows()[3]).unwrap();
    let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "t signal std variance beta snr mean_x0 mean_xt variance_small variance_large \
                    time f g2";
    assert_eq!(keys.join(" "), expected);
}

#[test]
fn tables_equal_diffusers() {
    let json: serde_json::Value = serde_json::from_slice(&golden::read("schedulers.json")).unwrap();
    let bytes = golden::read("schedulers.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (i, config) in json["tables"].as_array().unwrap().iter().enumerate() {
        let table = table(SchedulerConfig::from_json(&config.to_string()).unwrap());
        let betas = golden::values(&tensors, &format!("table.{i}.betas"));
        let cumprod = golden::values(&tensors, &format!("table.{i}.alphas_cumprod"));
        assert_eq!(table.steps(), betas.len(), "{config}");
        for (t, row) in table.rows().iter().enumerate() {
            let context = format!("{config} at {t}");
            assert!((row.beta - betas[t]).abs() < 1e-12, "{context}");
            assert!((row.signal.powi(2) - cumprod[t]).abs() < 1e-12, "{context}");
            assert!((row.variance - (1.0 - cumprod[t])).abs() < 1e-12, "{context}");
        }
    }
}

/// candle and diffusers-rs divide integers in the cosine's time, which makes 999
/// of 1000 betas 0.
#[test]
fn cosine_betas_grow_at_every_step() {
    let betas = BetaSchedule::SquaredcosCapV2.betas(1000, 1e-4, 0.02);
    assert!(betas.iter().all(|&b| b > 0.0));
    assert!(betas.windows(2).all(|w| w[0] < w[1] || w[1] == 0.999), "{betas:?}");
    let cos2 = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let half = Table::new(betas).unwrap().state(500);
    assert!(close(half.signal().powi(2), cos2(0.5) / cos2(0.0), 1e-12));
}

#[test]
fn posterior_carries_mean_and_variance_between_every_pair_of_times() {
    let off_table = |t: f64| Pair { ln_signal: -0.3 * t, std: 0.01 + t };
    let mut chains: Vec<Vec<Pair>> = tables()
        .iter()
        .map(|table| (0..=table.steps()).map(|i| table.state(i)).collect())
        .collect();
    chains.push((0..40).map(|i| off_table(i as f64 / 13.0)).collect());
    for chain in &chains {
        for j in 1..chain.len() {
            for i in 0..j {
                let (s, t) = (chain[i], chain[j]);
                let p = Posterior::between(s, t);
                let mean = p.c_x * t.signal() + p.c_0;
                assert!((mean - s.signal()).abs() < 1e-13, "{i} {j}: {mean} {}", s.signal());
                let variance = p.c_x * p.c_x * t.variance() + p.variance;
                assert!(close(variance, s.variance(), 1e-12), "{i} {j}: {variance}");
                // fixed_large is off by beta minus beta-tilde.
                let gap = p.step_variance - p.variance;
                let known = p.step_variance * (1.0 - s.variance() / t.variance());
                assert!((gap - known).abs() < 1e-13, "{i} {j}");
            }
        }
    }
}

#[test]
fn posterior_of_two_steps_is_the_composition_of_two_posteriors() {
    let table = &tables()[0];
    let (s, m, t) = (table.state(7), table.state(20), table.state(41));
    let direct = Posterior::between(s, t);
    let (first, second) = (Posterior::between(m, t), Posterior::between(s, m));
    assert!(close(second.c_x * first.c_x, direct.c_x, 1e-12));
    assert!(close(second.c_0 + second.c_x * first.c_0, direct.c_0, 1e-12));
    let variance = second.variance + second.c_x * second.c_x * first.variance;
    assert!(close(variance, direct.variance, 1e-12));
}

#[test]
fn posterior_mean_matches_ddpms_equation_7() {
    let table = &tables()[0];
    let mut cumulative = 1.0;
    for t in 0..table.steps() {
        let (beta, before) = (table.beta(t), cumulative);
        cumulative *= 1.0 - beta;
        let p = Posterior::between(table.state(t), table.labelled(t));
        assert!(close(p.c_0, before.sqrt() * beta / (1.0 - cumulative), 1e-9), "{t}");
        let c_x = (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - cumulative);
        assert!((p.c_x - c_x).abs() < 1e-9, "{t}");
        assert!((p.variance - (1.0 - before) / (1.0 - cumulative) * beta).abs() < 1e-12, "{t}");
        assert!(close(p.step_variance, beta, 1e-9), "{t}");
    }
}

#[test]
fn zero_terminal_snr_keeps_the_first_signal_and_loses_the_last() {
    let table = table(SchedulerConfig::default());
    let stretched = table.with_zero_terminal_snr().unwrap();
    assert!(close(stretched.state(1).signal(), table.state(1).signal(), 1e-14));
    let last = stretched.state(1000);
    assert_eq!((last.signal(), last.std, last.snr()), (0.0, 1.0, 0.0));
    let row = stretched.rows()[999];
    assert!(row.mean_xt == 0.0 && row.variance_large == 1.0 && row.mean_x0.is_finite());
}

#[test]
fn snr_falls_at_every_state_and_between_states() {
    for table in tables() {
        let times: Vec<f64> = (1..=4 * table.steps()).map(|i| i as f64 / 4.0).collect();
        let snr: Vec<f64> = times.iter().map(|&t| table.pair(t).half_log_snr()).collect();
        let still = |w: &[f64]| w[0] > w[1] || w[1] == f64::NEG_INFINITY;
        assert!(snr.windows(2).all(still));
        assert_eq!(table.pair(table.end()), table.state(table.steps()));
        assert_eq!(table.label(1.0), 0.0);
    }
}

#[test]
fn tables_refuse_betas_that_end_the_signal_early() {
    for betas in [vec![], vec![0.1, 0.0], vec![1.0, 0.5], vec![-0.1], vec![f64::NAN]] {
        assert!(Table::new(betas).is_err());
    }
    assert!(Table::new(vec![0.1, 1.0]).is_ok());
}
