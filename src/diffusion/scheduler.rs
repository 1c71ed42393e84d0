//! diffusers' scheduler configuration (`scheduler_config.json`), in and out.
//!
//! Field names, defaults and meaning are those of diffusers 0.42. A file of
//! another class is kept whole, so that writing it again loses nothing; its
//! schedule fields can still drive `ddpm` and `ddim`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::denoiser::{Limit, Prediction};
use super::schedule::{BetaSchedule, Table};
use crate::error::{Error, Result};

/// Version of diffusers whose fields are written.
const DIFFUSERS_VERSION: &str = "0.42.1";
/// More steps than this is a mistake.
const MOST_STEPS: usize = 1_000_000;

/// The other scheduler classes of diffusers. Their files are recognised.
const OTHER_CLASSES: &[&str] = &[
    "AmusedScheduler",
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DDPMWuerstchenScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "VQDiffusionScheduler",
];

/// Variance of DDPM's reverse step; diffusers' `variance_type`. The `_log`
/// forms state the same variances by their logarithm and sample the same way
/// (diffusers' own `fixed_large_log` takes the root of a negative number).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum VarianceType {
    /// The posterior's, beta-tilde.
    #[default]
    FixedSmall,
    FixedSmallLog,
    /// The forward step's, beta.
    FixedLarge,
    FixedLargeLog,
    /// Given by the network.
    Learned,
    /// Interpolated between the two fixed ones by the network.
    LearnedRange,
}

/// How the sampler's steps are spread over the labels 0..T (Lin et al. 2024,
/// table 2); diffusers' `timestep_spacing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Multiples of T / N rounded down, from 0, plus `steps_offset`.
    #[default]
    Leading,
    /// Multiples of T / N counted down from T, less one.
    Trailing,
    /// From 0 to T - 1, both included.
    Linspace,
}

/// diffusers' scheduler configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// diffusers' class: `DDPMScheduler`, `DDIMScheduler` or another.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Version of diffusers that wrote the file.
    #[serde(rename = "_diffusers_version", skip_serializing_if = "Option::is_none")]
    pub diffusers_version: Option<String>,
    /// T.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// How beta goes from the first to the last.
    pub beta_schedule: BetaSchedule,
    /// All T betas, in place of the three fields above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_betas: Option<Vec<f64>>,
    /// Variance of DDPM's reverse step; absent means `fixed_small`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variance_type: Option<VarianceType>,
    /// Clip x_0 to `clip_sample_range`.
    pub clip_sample: bool,
    /// Largest magnitude of a clipped x_0.
    pub clip_sample_range: f64,
    /// What the network predicts.
    pub prediction_type: Prediction,
    /// Dynamic thresholding of x_0, in place of clipping.
    pub thresholding: bool,
    /// Quantile of |x_0| for thresholding.
    pub dynamic_thresholding_ratio: f64,
    /// Largest threshold.
    pub sample_max_value: f64,
    /// How sampling steps are spread.
    pub timestep_spacing: Spacing,
    /// Added to the labels of leading spacing.
    pub steps_offset: usize,
    /// DDIM: whether the last step ends at the data (signal 1) or at label 0;
    /// absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// Stretch the table to end without signal.
    pub rescale_betas_zero_snr: bool,
    /// Fields of other classes, kept for writing.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for SchedulerConfig {
    /// DDPMScheduler's defaults.
    fn default() -> Self {
        SchedulerConfig {
            class_name: "DDPMScheduler".into(),
            diffusers_version: None,
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            variance_type: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: Prediction::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            timestep_spacing: Spacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: None,
            rescale_betas_zero_snr: false,
            other: Map::new(),
        }
    }
}

fn refuse<T>(key: &str, problem: impl Into<String>) -> Result<T> {
    Err(Error::config(format!("scheduler.{key}"), problem))
}

impl SchedulerConfig {
    /// Reads the content of a `scheduler_config.json` and validates it. Keys in
    /// errors are given as `scheduler.KEY`.
    pub fn from_json(text: &str) -> Result<SchedulerConfig> {
        let mut json = serde_json::Deserializer::from_str(text);
        let config: SchedulerConfig = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let key = match e.path().to_string().as_str() {
                "." => "scheduler".to_string(),
                path => format!("scheduler.{path}"),
            };
            Error::config(key, e.inner().to_string())
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The content of a `scheduler_config.json` that diffusers loads. Of the
    /// fields not given by the class, those at their default are left out.
    pub fn to_json(&self) -> String {
        let written = |config: &SchedulerConfig| match serde_json::to_value(config) {
            Ok(Value::Object(map)) => map,
            _ => unreachable!("a struct of plain fields is a JSON object"),
        };
        let known_class = matches!(self.class_name.as_str(), "DDPMScheduler" | "DDIMScheduler");
        let mut map = written(self);
        if !known_class {
            let defaults = written(&SchedulerConfig::default());
            map.retain(|key, value| key == "_class_name" || defaults.get(key) != Some(value));
        }
        let version = self.diffusers_version.as_deref().unwrap_or(DIFFUSERS_VERSION);
        map.insert("_diffusers_version".into(), version.into());
        match self.class_name.as_str() {
            "DDPMScheduler" => {
                let variance = serde_json::to_value(self.variance_type.unwrap_or_default());
                map.insert("variance_type".into(), variance.expect("a name"));
            }
            "DDIMScheduler" => {
                map.insert("set_alpha_to_one".into(), self.set_alpha_to_one.unwrap_or(true).into());
            }
            _ => {}
        }
        let mut text = serde_json::to_string_pretty(&map).expect("plain values");
        text.push('\n');
        text
    }

    /// Checks every value.
    pub fn validate(&self) -> Result<()> {
        let class = self.class_name.as_str();
        if !matches!(class, "DDPMScheduler" | "DDIMScheduler") && !OTHER_CLASSES.contains(&class) {
            return refuse(
                "_class_name",
                format!(
                    "`{class}` is not a scheduler of diffusers; use DDPMScheduler or DDIMScheduler"
                ),
            );
        }
        if class.starts_with("FlowMatch") || class.starts_with("LTXEuler") {
            return refuse(
                "_class_name",
                format!(
                    "`{class}` is for flow matching, which is not supported; use DDPMScheduler or DDIMScheduler"
                ),
            );
        }
        if !self.prediction_type.in_diffusers() {
            return refuse(
                "prediction_type",
                format!(
                    "`{0}` is not one of diffusers' epsilon, sample and v_prediction; set \
                     denoiser.prediction = {0} instead",
                    self.prediction_type.name()
                ),
            );
        }
        let steps = self.num_train_timesteps;
        if steps == 0 || steps > MOST_STEPS {
            return refuse("num_train_timesteps", format!("{steps} is not in 1..={MOST_STEPS}"));
        }
        if let Some(betas) = &self.trained_betas {
            if betas.len() != steps {
                return refuse(
                    "trained_betas",
                    format!("has {} values for num_train_timesteps = {steps}", betas.len()),
                );
            }
            for (t, &beta) in betas.iter().enumerate() {
                if !(beta > 0.0 && (beta < 1.0 || beta == 1.0 && t + 1 == steps)) {
                    return refuse(
                        "trained_betas",
                        format!("value {t} is {beta}, it must lie between 0 and 1"),
                    );
                }
            }
        } else if self.beta_schedule != BetaSchedule::SquaredcosCapV2 {
            for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
                if !(beta > 0.0 && beta < 1.0) {
                    return refuse(key, format!("{beta} must lie between 0 and 1"));
                }
            }
        }
        if self.rescale_betas_zero_snr && steps < 2 {
            return refuse("rescale_betas_zero_snr", "needs num_train_timesteps of at least 2");
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            return refuse(
                "clip_sample_range",
                format!("{} must be positive", self.clip_sample_range),
            );
        }
        if !(0.0..=1.0).contains(&self.dynamic_thresholding_ratio) {
            return refuse(
                "dynamic_thresholding_ratio",
                format!("{} must lie between 0 and 1", self.dynamic_thresholding_ratio),
            );
        }
        if !(self.sample_max_value > 0.0 && self.sample_max_value.is_finite()) {
            return refuse(
                "sample_max_value",
                format!("{} must be positive", self.sample_max_value),
            );
        }
        if self.steps_offset >= steps {
            return refuse(
                "steps_offset",
                format!("{} must be below num_train_timesteps = {steps}", self.steps_offset),
            );
        }
        Ok(())
    }

    /// Refuses fields that no supported class has: for a configuration written
    /// by a person, where such a field is a slip.
    pub fn refuse_unknown(&self) -> Result<()> {
        match self.other.keys().next() {
            None => Ok(()),
            Some(key) => refuse(
                key,
                "unknown key; known are the fields of diffusers' DDPMScheduler and DDIMScheduler",
            ),
        }
    }

    /// The discrete table of a valid configuration.
    pub fn table(&self) -> Result<Table> {
        self.validate()?;
        let betas = match &self.trained_betas {
            Some(betas) => betas.clone(),
            None => {
                self.beta_schedule.betas(self.num_train_timesteps, self.beta_start, self.beta_end)
            }
        };
        let table = Table::new(betas)?;
        if self.rescale_betas_zero_snr { table.with_zero_terminal_snr() } else { Ok(table) }
    }

    /// What is done to x_0. Thresholding goes before clipping.
    pub fn limit(&self) -> Limit {
        if self.thresholding {
            Limit::Threshold { ratio: self.dynamic_thresholding_ratio, max: self.sample_max_value }
        } else if self.clip_sample {
            Limit::Clip { range: self.clip_sample_range }
        } else {
            Limit::None
        }
    }

    /// The labels of N sampling steps, noisiest first, as diffusers'
    /// `set_timesteps` of both classes.
    pub fn labels(&self, steps: usize) -> Result<Vec<usize>> {
        let total = self.num_train_timesteps;
        if steps == 0 || steps > total {
            return Err(Error::Usage(format!(
                "--steps {steps}: sampling takes 1 to {total} steps, the number of training steps"
            )));
        }
        let labels: Vec<usize> = match self.timestep_spacing {
            Spacing::Leading => {
                let ratio = total / steps;
                (0..steps).rev().map(|i| i * ratio + self.steps_offset).collect()
            }
            Spacing::Trailing => {
                let ratio = total as f64 / steps as f64;
                (0..steps)
                    .map(|i| (total as f64 - i as f64 * ratio).round_ties_even() as usize - 1)
                    .collect()
            }
            Spacing::Linspace if steps == 1 => {
                return refuse(
                    "timestep_spacing",
                    "linspace with 1 step would start at label 0, where no noise is expected; use trailing",
                );
            }
            Spacing::Linspace => {
                let step = (total - 1) as f64 / (steps - 1) as f64;
                (0..steps).rev().map(|i| (i as f64 * step).round_ties_even() as usize).collect()
            }
        };
        if labels[0] >= total {
            return refuse(
                "steps_offset",
                format!("{} leads past the last label {}", self.steps_offset, total - 1),
            );
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_class_keeps_its_fields() {
        let text = r#"{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.30.0",
            "beta_end": 0.012, "interpolation_type": "linear", "use_karras_sigmas": false,
            "skip_prk_steps": true, "trained_betas": null}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        let written: Map<String, Value> = serde_json::from_str(&config.to_json()).unwrap();
        let mut expected: Map<String, Value> = serde_json::from_str(text).unwrap();
        expected.remove("trained_betas"); // null: the same as absent
        assert_eq!(written, expected);
    }

    #[test]
    fn written_and_read_again_is_the_same() {
        let mut config = SchedulerConfig {
            variance_type: Some(VarianceType::FixedLarge),
            prediction_type: Prediction::VPrediction,
            beta_schedule: BetaSchedule::SquaredcosCapV2,
            timestep_spacing: Spacing::Trailing,
            ..SchedulerConfig::default()
        };
        let text = config.to_json();
        config.diffusers_version = Some(DIFFUSERS_VERSION.into());
        assert_eq!(SchedulerConfig::from_json(&text).unwrap(), config);
        for name in ["\"fixed_large\"", "\"v_prediction\"", "\"squaredcos_cap_v2\"", "\"trailing\""]
        {
            assert!(text.contains(name), "{name} in {text}");
        }
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        let key = |change: &str| {
            let text = format!("{{{change}}}");
            match SchedulerConfig::from_json(&text) {
                Err(Error::Config { key, .. }) => key,
                other => panic!("{text}: {other:?}"),
            }
        };
        for (change, expected) in [
            (r#""beta_end": 1.5"#, "scheduler.beta_end"),
            (r#""beta_start": 0"#, "scheduler.beta_start"),
            (r#""beta_schedule": "cubic""#, "scheduler.beta_schedule"),
            (r#""num_train_timesteps": 0"#, "scheduler.num_train_timesteps"),
            (r#""num_train_timesteps": "many""#, "scheduler.num_train_timesteps"),
            (r#""num_train_timesteps": 2, "trained_betas": [0.1]"#, "scheduler.trained_betas"),
            (r#""num_train_timesteps": 2, "trained_betas": [1.0, 0.1]"#, "scheduler.trained_betas"),
            (r#""clip_sample_range": -1"#, "scheduler.clip_sample_range"),
            (r#""dynamic_thresholding_ratio": 1.1"#, "scheduler.dynamic_thresholding_ratio"),
            (r#""sample_max_value": 0"#, "scheduler.sample_max_value"),
            (r#""steps_offset": 1000"#, "scheduler.steps_offset"),
            (r#""prediction_type": "score""#, "scheduler.prediction_type"),
            (r#""_class_name": "Scheduler""#, "scheduler._class_name"),
            (r#""_class_name": "FlowMatchEulerDiscreteScheduler""#, "scheduler._class_name"),
            (
                r#""num_train_timesteps": 1, "rescale_betas_zero_snr": true"#,
                "scheduler.rescale_betas_zero_snr",
            ),
        ] {
            assert_eq!(key(change), expected, "{change}");
        }
    }

    #[test]
    fn a_slip_in_a_key_is_refused_where_a_person_wrote_it() {
        let config = SchedulerConfig::from_json(r#"{"beta_ende": 0.02}"#).unwrap();
        let error = config.refuse_unknown().unwrap_err();
        assert!(error.to_string().contains("scheduler.beta_ende"), "{error}");
    }

    #[test]
    fn labels_stay_inside_the_table() {
        let config = SchedulerConfig { steps_offset: 1, ..SchedulerConfig::default() };
        assert!(config.labels(1000).is_err());
        assert_eq!(config.labels(2).unwrap(), [501, 1]);
        assert!(config.labels(0).is_err() && config.labels(1001).is_err());
    }
}
