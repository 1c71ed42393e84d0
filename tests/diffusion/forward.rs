//! The forward process simulated: three ways, one distribution.

use std::sync::Arc;

use langevin::diffusion::forward::Forward;
use langevin::diffusion::process::{
    Amplitude, Cosine, Edm, Flow, Posterior, Process, SharedProcess, SubVp, Ve, Vp,
};
use langevin::diffusion::schedule::{BetaSchedule, Table};
use langevin::random::image_keys;

fn continuous() -> Vec<SharedProcess> {
    vec![
        Arc::new(Vp::new(0.1, 20.0).unwrap()),
        Arc::new(SubVp::new(0.1, 20.0).unwrap()),
        Arc::new(Ve::new(0.1, 5.0).unwrap()),
        Arc::new(Cosine::new(0.008, 0.9).unwrap()),
        Arc::new(Amplitude::new(5.0).unwrap()),
        Arc::new(Edm::new(0.01, 10.0).unwrap()),
        Arc::new(Flow::new(0.9).unwrap()),
    ]
}

fn grid(process: &dyn Process, steps: usize) -> Vec<f64> {
    let (from, to) = (process.earliest(), process.end());
    (0..=steps).map(|i| from + (to - from) * i as f64 / steps as f64).collect()
}

#[track_caller]
fn near(found: f64, exact: f64, tolerance: f64, context: &str) {
    assert!((found - exact).abs() <= tolerance * (1.0 + exact.abs()), "{context}: {found} {exact}");
}

#[test]
fn the_chain_of_exact_steps_has_the_closed_forms_mean_and_covariance() {
    let ddpm = Table::new(BetaSchedule::Linear.betas(50, 1e-3, 0.2)).unwrap();
    let smld = Table::smld(50, 0.01, 10.0).unwrap();
    let tables: [SharedProcess; 2] = [Arc::new(ddpm), Arc::new(smld)];
    for process in continuous().into_iter().chain(tables) {
        let times = match process.steps() {
            Some(steps) => (1..=steps).map(|i| i as f64).collect(),
            None => grid(&*process, 50),
        };
        let chain = Forward::chain(&*process, &times).unwrap();
        let moments = chain.moments();
        for (j, &t) in times.iter().enumerate() {
            let closed = Forward::closed(&*process, t).moments()[0];
            near(moments[j].0, closed.0, 1e-12, process.name());
            near(moments[j].1, closed.1, 1e-11, process.name());
            // cov(x_s, x_t | x_0) = signal_t / signal_s std_s^2.
            for (i, &s) in times[..=j].iter().enumerate().step_by(7) {
                let pair = process.pair(s);
                let ratio = process.pair(t).signal() / pair.signal();
                near(chain.covariance(i, j), ratio * pair.variance(), 1e-11, process.name());
            }
        }
    }
}

#[test]
fn one_step_of_ddpm_takes_sqrt_one_minus_beta_and_adds_sqrt_beta() {
    let betas = BetaSchedule::Linear.betas(20, 1e-3, 0.2);
    let table = Table::new(betas.clone()).unwrap();
    let times: Vec<f64> = (1..=20).map(f64::from).collect();
    for (step, beta) in Forward::chain(&table, &times).unwrap().steps.iter().zip(betas) {
        near(step.gain, (1.0 - beta).sqrt(), 1e-14, "gain");
        near(step.std, beta.sqrt(), 1e-14, "std");
    }
}

#[test]
fn euler_maruyama_reaches_the_closed_form_with_order_one() {
    for process in continuous() {
        let end = process.pair(process.end());
        let errors = |steps: usize| {
            let found = Forward::euler_maruyama(&*process, &grid(&*process, steps)).unwrap();
            let (mean, variance) = *found.moments().last().unwrap();
            [(mean - end.signal()).abs(), (variance - end.variance()).abs()]
        };
        let (coarse, fine) = (errors(2000), errors(4000));
        for (coarse, fine) in coarse.into_iter().zip(fine) {
            if coarse < 1e-12 {
                continue; // Exact: the mean where the signal stays.
            }
            let order = (coarse / fine).log2();
            assert!((order - 1.0).abs() < 0.1, "{}: {order} {coarse} {fine}", process.name());
        }
        assert!(fine[1] < 0.02 * end.variance(), "{}: {fine:?}", process.name());
    }
}

#[test]
fn ddpms_step_and_the_reverse_equation_agree_to_first_order_in_the_step() {
    for process in continuous() {
        let t = 0.6 * process.end();
        let pair = process.pair(t);
        let (f, g2) = (process.drift(t), process.diffusion2(t));
        // Differences in the factors of x and eps, and in the noise's variance.
        let differences = |h: f64| {
            let p = Posterior::between(process.pair(t - h), pair);
            let of_x = p.c_x + p.c_0 / pair.signal();
            let of_eps = -p.c_0 * pair.std / pair.signal();
            [of_x - (1.0 - f * h), of_eps + g2 * h / pair.std, p.variance - g2 * h]
        };
        let h = 1e-3 * process.end();
        for (coarse, fine) in differences(h).into_iter().zip(differences(h / 2.0)) {
            // Second order in what is left: a fourth.
            let still = coarse.abs() < 1e-12;
            assert!(
                still || (coarse / fine - 4.0).abs() < 0.1,
                "{}: {coarse} {fine}",
                process.name()
            );
        }
    }
}

#[test]
fn drawn_states_have_the_carried_mean_and_variance() {
    let vp = Vp::new(0.1, 20.0).unwrap();
    let times = grid(&vp, 40);
    let x0 = vec![0.8f32; 20_000];
    for (k, forward) in [
        Forward::chain(&vp, &times[..20]).unwrap(),
        Forward::euler_maruyama(&vp, &times[..20]).unwrap(),
        Forward::closed(&vp, times[19]),
    ]
    .into_iter()
    .enumerate()
    {
        let states = forward.simulate(&x0, image_keys(7, k as u64));
        assert_eq!(states.len(), forward.steps.len());
        for (state, (gain, variance)) in states.iter().zip(forward.moments()).step_by(6) {
            let count = state.len() as f64;
            let mean = state.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
            let spread = state.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
            // Five standard errors.
            assert!((mean - 0.8 * gain).abs() < 5.0 * (variance / count).sqrt(), "{k}: {mean}");
            let error = 5.0 * variance * (2.0 / count).sqrt();
            assert!((spread - variance).abs() < error, "{k}: {spread} {variance}");
        }
    }
}

#[test]
fn times_that_do_not_rise_or_have_no_equation_are_refused() {
    let flow = Flow::new(1.0).unwrap();
    assert!(Forward::chain(&flow, &[]).is_err());
    assert!(Forward::chain(&flow, &[0.5, 0.2]).is_err());
    assert!(Forward::chain(&flow, &[0.5, 1.2]).is_err());
    assert!(Forward::euler_maruyama(&flow, &[0.5, 1.0]).is_ok());
    let cosine = Cosine::new(0.008, 1.0).unwrap();
    assert!(cosine.drift(1.0).is_infinite());
}
