//! Annealed Langevin dynamics (Song & Ermon 2019, Alg. 1; 2020): at every noise
//! level, from the largest down, a number of steps
//! ```text
//! x = x - r/2 sigma eps + sqrt(r) sigma z
//! ```
//! Their step size e sigma_i^2 / sigma_L^2 makes r = e / sigma_L^2 the same at all
//! levels; a process with a signal is followed in x / signal, where r stays what it
//! is and the state is scaled from level to level. At last one evaluation replaces
//! the state by x_0 (Song & Ermon 2020, after Jolicoeur-Martineau et al.).
//!
//! With exact scores of N(0, sigma^2) the stationary variance is sigma^2 / (1 -
//! r/4): the known bias. Without `sampler.step`, r is the one that technique 4 of
//! Song & Ermon 2020 finds for the levels and the steps at each.

use super::{Control, Coordinates, Kind, Output, Program, Setup, Stage};
use crate::diffusion::process::Pair;
use crate::error::{Error, Result};

/// Steps at a level, as Song & Ermon 2020.
const STEPS: usize = 5;

/// The program of annealed Langevin dynamics.
pub fn program(setup: &Setup) -> Result<Program> {
    let path = setup.path(Kind::Ald, Coordinates::Process)?;
    let options = &setup.options;
    let inner = options.n_steps.unwrap_or(STEPS).max(1);
    let (first, last) = (path.points[0].pair, path.points[path.points.len() - 1].pair);
    if first.ln_signal == f64::NEG_INFINITY {
        return Err(Error::Usage(format!(
            "ald follows std / signal, and the process `{}` has no signal where it starts: start \
             from less noise with --set sampler.sigma_max=80",
            setup.process.name()
        )));
    }
    let steps_down = path.points.len().saturating_sub(1).max(1) as f64;
    let ratio = ((last.half_log_snr() - first.half_log_snr()) / steps_down).exp();
    let r = options.step.unwrap_or_else(|| technique_4(ratio, inner));
    let mut stages = Vec::new();
    let mut draw = 0;
    for (update, point, next) in path.steps() {
        for i in 0..inner {
            let to_data = next.pair == Pair::DATA;
            // The last step of a level leads to the next level's signal.
            let scale = match i + 1 == inner && !to_data {
                true => (next.pair.ln_signal - point.pair.ln_signal).exp(),
                false => 1.0,
            };
            let sigma = point.pair.std * scale;
            let mut output =
                Output { eps: -0.5 * r * sigma, noise: r.sqrt() * sigma, ..Output::default() };
            output.slots[0] = scale;
            stages.push(Stage { draw, outputs: [Some(output), None], ..Stage::at(point, update) });
            draw += 1;
        }
        if next.pair == Pair::DATA {
            let output = Output { x0: 1.0, ..Output::default() };
            stages.push(Stage { outputs: [Some(output), None], ..Stage::at(point, update) });
        }
    }
    Ok(Program {
        name: Kind::Ald.name(),
        slots: 1,
        limit: setup.limit(Kind::Ald),
        start_std: path.start_std,
        stages,
        control: Control::None,
        notes: path.notes,
    })
}

/// r for levels that differ by `ratio` and so many steps at each: the one that
/// brings the variance of N(0, sigma_(i-1)^2) nearest to sigma_i^2.
fn technique_4(ratio: f64, steps: usize) -> f64 {
    let variance = |r: f64| {
        let kept = (1.0 - 0.5 * r).powi(2);
        let stationary = r / (1.0 - kept);
        kept.powi(steps as i32) * (ratio * ratio - stationary) + stationary
    };
    let tried = (0..=400).map(|i| 1e-4 * 1e4f64.powf(f64::from(i) / 400.0));
    tried.min_by(|a, b| variance(*a).total_cmp(&variance(*b))).expect("some are tried")
}

#[cfg(test)]
mod tests {
    use super::technique_4;

    #[test]
    fn step_of_ncsnv2_is_near_the_papers() {
        // CIFAR-10: 232 levels from 50 to 0.01, 5 steps each; e / sigma_L^2 = 0.062
        // of the convention without the half, so r = 0.124.
        let r = technique_4((5000f64).powf(1.0 / 231.0), 5);
        assert!((0.08..0.2).contains(&r), "{r}");
    }
}
