//! diffusers' scheduler configuration (`scheduler_config.json`), in and out.
//!
//! Field names, defaults and meaning are those of diffusers 0.42. Seven classes
//! are followed field by field ([`FOLLOWED`]); a file of another class is kept
//! whole, so that writing it again loses nothing, and its schedule can still
//! drive every sampler.
//!
//! A field that is absent has its class's default where it says what the table
//! is, and the default of the class that samples where it says how to sample:
//! so does diffusers' `Scheduler.from_config`.

mod choices;
mod classes;

pub use choices::{
    Algorithm, FinalSigmas, Interpolation, SolverType, Spacing, TimestepType, VarianceType,
};
use classes::OTHER_CLASSES;
pub use classes::{Class, FOLLOWED};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::denoiser::{Limit, Prediction};
use super::schedule::{BetaSchedule, Table};
use crate::error::{Error, Result};

/// Version of diffusers whose fields are written.
const DIFFUSERS_VERSION: &str = "0.42.1";
/// More steps than this is a mistake.
const MOST_STEPS: usize = 1_000_000;

/// diffusers' scheduler configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// diffusers' class: one of [`FOLLOWED`] or another.
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
    /// Clip x_0 to `clip_sample_range`; absent means what the sampler's class does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_sample: Option<bool>,
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
    /// How sampling steps are spread; absent means as the sampler's class does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<Spacing>,
    /// Added to the labels of leading spacing.
    pub steps_offset: usize,
    /// DDIM: whether the last step ends at the data (signal 1) or at label 0;
    /// absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// Stretch the table to end without signal.
    pub rescale_betas_zero_snr: bool,
    /// Noise levels as Karras et al. 2022, eq. 5, with rho = 7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_karras_sigmas: Option<bool>,
    /// Noise levels evenly spaced in ln sigma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_exponential_sigmas: Option<bool>,
    /// Noise levels by a beta distribution's quantiles: not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_beta_sigmas: Option<bool>,
    /// DPMSolverMultistep: noise levels evenly spaced in lambda.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_lu_lambdas: Option<bool>,
    /// Noise levels of flow matching: not supported here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_flow_sigmas: Option<bool>,
    /// Shifting of flow matching's noise levels: not supported here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_dynamic_shifting: Option<bool>,
    /// Least sigma / signal of spaced noise levels; absent means the table's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// Largest sigma / signal of spaced noise levels; absent means the table's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// Euler: levels between two entries of the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation_type: Option<Interpolation>,
    /// Euler: what a v-prediction network is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_type: Option<TimestepType>,
    /// Where sampling ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_sigmas_type: Option<FinalSigmas>,
    /// DPMSolverMultistep and UniPC: order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_order: Option<usize>,
    /// DPMSolverMultistep: what is integrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm_type: Option<Algorithm>,
    /// DPMSolverMultistep and UniPC: form of the second-order term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_type: Option<SolverType>,
    /// Lower order in the last steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower_order_final: Option<bool>,
    /// DPMSolverMultistep: first order in the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub euler_at_final: Option<bool>,
    /// DPMSolverMultistep: labels of a lambda below this are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min_clipped: Option<f64>,
    /// UniPC: integrate x_0 and not eps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predict_x0: Option<bool>,
    /// UniPC: steps after which the corrector is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_corrector: Option<Vec<usize>>,
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
            clip_sample: None,
            clip_sample_range: 1.0,
            prediction_type: Prediction::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            rescale_betas_zero_snr: false,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            use_lu_lambdas: None,
            use_flow_sigmas: None,
            use_dynamic_shifting: None,
            sigma_min: None,
            sigma_max: None,
            interpolation_type: None,
            timestep_type: None,
            final_sigmas_type: None,
            solver_order: None,
            algorithm_type: None,
            solver_type: None,
            lower_order_final: None,
            euler_at_final: None,
            lambda_min_clipped: None,
            predict_x0: None,
            disable_corrector: None,
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
        let config = config.with_own_betas(text);
        config.validate()?;
        Ok(config)
    }

    /// HeunDiscreteScheduler's own default betas where its file names none.
    fn with_own_betas(mut self, text: &str) -> SchedulerConfig {
        if self.class_name == "HeunDiscreteScheduler" {
            let given: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
            for (key, beta, own) in [
                ("beta_start", &mut self.beta_start, 0.00085),
                ("beta_end", &mut self.beta_end, 0.012),
            ] {
                if !given.contains_key(key) {
                    *beta = own;
                }
            }
        }
        self
    }

    /// The content of a `scheduler_config.json` that diffusers loads: every field
    /// of a followed class, and of another class the fields not at their default.
    pub fn to_json(&self) -> String {
        let written = |config: &SchedulerConfig| match serde_json::to_value(config) {
            Ok(Value::Object(map)) => map,
            _ => unreachable!("a struct of plain fields is a JSON object"),
        };
        let mut map = written(self);
        let defaults = written(&SchedulerConfig::default());
        let class = Class::named(&self.class_name);
        map.retain(|key, value| {
            key == "_class_name"
                || class.is_some_and(|class| class.has(key))
                || defaults.get(key) != Some(value)
        });
        if let Some(class) = class {
            let spacing = serde_json::to_value(class.spacing).expect("a name");
            map.entry("timestep_spacing").or_insert(spacing);
            for (field, default) in class.fields() {
                map.entry(field)
                    .or_insert_with(|| serde_json::from_str(default).expect("plain JSON"));
            }
        }
        let version = self.diffusers_version.as_deref().unwrap_or(DIFFUSERS_VERSION);
        map.insert("_diffusers_version".into(), version.into());
        let mut text = serde_json::to_string_pretty(&map).expect("plain values");
        text.push('\n');
        text
    }

    /// Checks every value.
    pub fn validate(&self) -> Result<()> {
        let class = self.class_name.as_str();
        if Class::named(class).is_none() && !OTHER_CLASSES.contains(&class) {
            let followed: Vec<_> = FOLLOWED.iter().map(|class| class.name).collect();
            return refuse(
                "_class_name",
                format!("`{class}` is not a scheduler of diffusers; use {}", followed.join(", ")),
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
                "unknown key; known are the fields of diffusers' scheduler classes that sampling follows",
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

    /// What DDPM and DDIM do to x_0. Thresholding goes before clipping.
    pub fn limit(&self) -> Limit {
        self.threshold().or(self.clip(true)).unwrap_or(Limit::None)
    }

    /// Dynamic thresholding, where it is on.
    pub fn threshold(&self) -> Option<Limit> {
        self.thresholding.then_some(Limit::Threshold {
            ratio: self.dynamic_thresholding_ratio,
            max: self.sample_max_value,
        })
    }

    /// Clipping, where it is on; `default` says whether it is when nothing is said.
    pub fn clip(&self, default: bool) -> Option<Limit> {
        let on = self.clip_sample.unwrap_or(default);
        on.then_some(Limit::Clip { range: self.clip_sample_range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_class_keeps_its_fields() {
        let text = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.30.0",
            "beta_end": 0.012, "set_alpha_to_one": false, "skip_prk_steps": true,
            "timestep_spacing": "leading", "trained_betas": null}"#;
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
            timestep_spacing: Some(Spacing::Trailing),
            clip_sample: Some(true),
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
}
