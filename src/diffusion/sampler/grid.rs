//! Where a sampler's steps lie: spacings of times and noise levels, and those of
//! diffusers over a discrete table.
//!
//! Noise levels are sigma = std / signal throughout, that is `exp(-lambda)`.

use crate::diffusion::process::Pair;
use crate::diffusion::schedule::Table;
use crate::diffusion::scheduler::{SchedulerConfig, Spacing};
use crate::error::{Error, Result};

/// The signal that diffusers gives a last state without any: its alphas_cumprod
/// is the least half-precision number there.
const LEAST_SIGNAL2: f64 = 1.0 / (1u64 << 24) as f64;

/// Spacing of a sampler's steps, by `--set sampler.grid`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Even in time.
    Uniform,
    /// Even in the root of time (Song et al. 2021, DDIM, app. D.3).
    Quadratic,
    /// Even in sigma^(1/rho) (Karras et al. 2022, eq. 5).
    Karras,
    /// Even in ln(sigma); the same as [`Grid::LogSnr`], by k-diffusion's name.
    Exponential,
    /// Even in lambda, half the log-SNR (Lu et al. 2022).
    LogSnr,
}

impl Grid {
    /// All of them.
    pub const ALL: [Grid; 5] =
        [Grid::Uniform, Grid::Quadratic, Grid::Karras, Grid::Exponential, Grid::LogSnr];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Grid::Uniform => "uniform",
            Grid::Quadratic => "quadratic",
            Grid::Karras => "karras",
            Grid::Exponential => "exponential",
            Grid::LogSnr => "log-snr",
        }
    }

    /// Whether it spaces times and not noise levels.
    pub fn is_of_times(self) -> bool {
        matches!(self, Grid::Uniform | Grid::Quadratic)
    }

    /// `count` values from `from` down to `to`, both included: times or noise
    /// levels, as [`Grid::is_of_times`] says.
    pub fn values(self, from: f64, to: f64, count: usize, rho: f64) -> Vec<f64> {
        let bend = |forward: fn(f64, f64) -> f64, back: fn(f64, f64) -> f64, p: f64| {
            let mut values: Vec<f64> =
                line(forward(from, p), forward(to, p), count).map(|v| back(v, p)).collect();
            // The ends are what was asked for, not their roots' powers.
            if let Some(first) = values.first_mut() {
                *first = from;
            }
            if count > 1 {
                values[count - 1] = to;
            }
            values
        };
        match self {
            Grid::Uniform => line(from, to, count).collect(),
            Grid::Quadratic => bend(|v, _| v.sqrt(), |v, _| v * v, 0.0),
            Grid::Karras => bend(|v, p| v.powf(1.0 / p), f64::powf, rho),
            Grid::Exponential | Grid::LogSnr => bend(|v, _| v.ln(), |v, _| v.exp(), 0.0),
        }
    }
}

/// `count` evenly spaced values from `from` to `to`, both included.
pub fn line(from: f64, to: f64, count: usize) -> impl Iterator<Item = f64> {
    let step = if count > 1 { (to - from) / (count - 1) as f64 } else { 0.0 };
    (0..count).map(move |i| if i + 1 == count && i > 0 { to } else { from + step * i as f64 })
}

/// The variance-preserving pair of a noise level.
pub fn preserving(sigma: f64) -> Pair {
    let ln_signal = -0.5 * (sigma * sigma).ln_1p();
    Pair { ln_signal, std: sigma * ln_signal.exp() }
}

/// Noise levels of a table's labels 0..T, as diffusers has them.
#[derive(Clone, Debug)]
pub struct Levels(Vec<f64>);

impl Levels {
    /// Of a table; a last state without signal gets diffusers' least one.
    pub fn of(table: &Table) -> Levels {
        let level = |label| {
            let pair = table.labelled(label);
            match pair.ln_signal {
                f64::NEG_INFINITY => (1.0 / LEAST_SIGNAL2 - 1.0).sqrt(),
                _ => (-pair.half_log_snr()).exp(),
            }
        };
        Levels((0..table.steps()).map(level).collect())
    }

    /// T.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The least, of label 0.
    pub fn least(&self) -> f64 {
        self.0[0]
    }

    /// The largest, of label T - 1.
    pub fn largest(&self) -> f64 {
        self.0[self.len() - 1]
    }

    /// The level of a label, linear in sigma between two.
    pub fn at(&self, label: f64) -> f64 {
        let low = (label.max(0.0) as usize).min(self.len() - 1);
        let high = (low + 1).min(self.len() - 1);
        let part = (label - low as f64).clamp(0.0, 1.0);
        self.0[low] + part * (self.0[high] - self.0[low])
    }

    /// The label of a level, linear in ln(sigma) between two and held inside the
    /// table; diffusers' `_sigma_to_t`.
    pub fn label(&self, sigma: f64) -> f64 {
        let above = self.0.partition_point(|&level| level <= sigma);
        let low = above.saturating_sub(1).min(self.len().saturating_sub(2));
        let high = (low + 1).min(self.len() - 1);
        let (a, b) = (self.0[low].ln(), self.0[high].ln());
        let part = if b > a { ((sigma.ln() - a) / (b - a)).clamp(0.0, 1.0) } else { 0.0 };
        low as f64 + part
    }

    /// Labels of a lambda of at least this, counted from label 0.
    pub fn clipped(&self, least_lambda: f64) -> usize {
        self.0.partition_point(|&sigma| -sigma.ln() >= least_lambda)
    }
}

fn check_steps(steps: usize, most: usize) -> Result<()> {
    if steps == 0 || steps > most {
        return Err(Error::Usage(format!(
            "--steps {steps}: on this model's table of {most} labels sampling takes 1 to {most} steps"
        )));
    }
    Ok(())
}

fn refuse<T>(key: &str, problem: String) -> Result<T> {
    Err(Error::config(format!("scheduler.{key}"), problem))
}

fn check_first(labels: &[f64], config: &SchedulerConfig) -> Result<()> {
    let total = config.num_train_timesteps;
    if labels[0] >= total as f64 {
        return refuse(
            "steps_offset",
            format!("{} leads past the last label {}", config.steps_offset, total - 1),
        );
    }
    Ok(())
}

/// T / N counted down from `from`, less one.
fn trailing(from: usize, total: usize, steps: usize) -> Vec<f64> {
    let ratio = total as f64 / steps as f64;
    (0..steps)
        .map(|i| (from as f64 - i as f64 * ratio).round_ties_even() - 1.0)
        .filter(|&label| label >= 0.0)
        .collect()
}

fn leading(ratio: usize, from: usize, steps: usize, offset: usize) -> Vec<f64> {
    (from..from + steps).rev().map(|i| (i * ratio + offset) as f64).collect()
}

/// The labels of N sampling steps, noisiest first, as `set_timesteps` of
/// diffusers' DDPM and DDIM (`whole`), Euler, Heun and EulerAncestral (not).
pub fn labels(
    config: &SchedulerConfig,
    spacing: Spacing,
    steps: usize,
    whole: bool,
) -> Result<Vec<f64>> {
    let total = config.num_train_timesteps;
    check_steps(steps, total)?;
    let labels = match spacing {
        Spacing::Leading => leading(total / steps, 0, steps, config.steps_offset),
        Spacing::Trailing => trailing(total, total, steps),
        Spacing::Linspace if steps == 1 => {
            return refuse(
                "timestep_spacing",
                "linspace with 1 step would start at label 0, where no noise is expected; use trailing"
                    .into(),
            );
        }
        Spacing::Linspace => {
            let line = line((total - 1) as f64, 0.0, steps);
            if whole { line.map(f64::round_ties_even).collect() } else { line.collect() }
        }
    };
    check_first(&labels, config)?;
    Ok(labels)
}

/// The labels of N sampling steps, noisiest first, as `set_timesteps` of
/// diffusers' DPMSolverMultistep and UniPC: of N + 1 without the last. `most` is
/// the number of labels not clipped.
pub fn multistep_labels(
    config: &SchedulerConfig,
    spacing: Spacing,
    steps: usize,
    most: usize,
) -> Result<Vec<f64>> {
    let total = config.num_train_timesteps;
    check_steps(steps, total)?;
    let labels: Vec<f64> = match spacing {
        Spacing::Linspace => {
            let line = line((most - 1) as f64, 0.0, steps + 1);
            line.take(steps).map(f64::round_ties_even).collect()
        }
        Spacing::Leading => leading(most / (steps + 1), 1, steps, config.steps_offset),
        Spacing::Trailing => trailing(most, total, steps),
    };
    check_first(&labels, config)?;
    if labels.windows(2).any(|w| w[1] >= w[0]) {
        return Err(Error::Usage(format!(
            "--steps {steps}: {spacing:?} spacing has no {steps} different labels of {most}; take fewer"
        )));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings_start_and_end_where_they_are_told_and_fall() {
        for grid in Grid::ALL {
            for count in [2, 3, 17] {
                let values = grid.values(80.0, 0.002, count, 7.0);
                assert_eq!((values.len(), values[0], values[count - 1]), (count, 80.0, 0.002));
                assert!(values.windows(2).all(|w| w[1] < w[0]), "{grid:?} {values:?}");
            }
            assert_eq!(grid.values(80.0, 0.002, 1, 7.0), [80.0]);
        }
    }

    #[test]
    fn karras_levels_are_those_of_the_papers_equation() {
        let values = Grid::Karras.values(80.0, 0.002, 5, 7.0);
        let (a, b) = (80f64.powf(1.0 / 7.0), 0.002f64.powf(1.0 / 7.0));
        for (i, v) in values.iter().enumerate() {
            let exact = (a + i as f64 / 4.0 * (b - a)).powi(7);
            assert!((v / exact - 1.0).abs() < 1e-12, "{i} {v} {exact}");
        }
    }

    #[test]
    fn a_level_of_the_table_finds_its_own_label() {
        let table = SchedulerConfig::default().table().unwrap();
        let levels = Levels::of(&table);
        for label in [0, 1, 500, 998, 999] {
            let sigma = levels.at(label as f64);
            assert!((levels.label(sigma) - label as f64).abs() < 1e-9);
        }
        assert_eq!((levels.label(1e9), levels.label(1e-9)), (999.0, 0.0));
    }

    #[test]
    fn labels_stay_inside_the_table() {
        let config = SchedulerConfig { steps_offset: 1, ..SchedulerConfig::default() };
        let leading = |steps| labels(&config, Spacing::Leading, steps, true);
        assert!(leading(1000).is_err());
        assert_eq!(leading(2).unwrap(), [501.0, 1.0]);
        assert!(leading(0).is_err() && leading(1001).is_err());
        assert!(multistep_labels(&config, Spacing::Leading, 1000, 1000).is_err());
    }
}
