//! The configuration sections `process` and `denoiser`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Amplitude, Cosine, Edm, Flow, Given, SharedProcess, SubVp, Ve, Vp};
use crate::diffusion::denoiser::{Denoiser, Precondition, Prediction};
use crate::diffusion::schedule::Table;
use crate::diffusion::scheduler::SchedulerConfig;
use crate::error::{Error, Result};

/// Which process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessKind {
    /// The discrete table of section `scheduler`.
    #[default]
    Table,
    /// [`Table::smld`]; reads `steps`, `sigma_min`, `sigma_max`.
    Smld,
    /// [`Vp`]; reads `beta_min`, `beta_max`.
    Vp,
    /// [`SubVp`]; reads `beta_min`, `beta_max`.
    SubVp,
    /// [`Ve`]; reads `sigma_min`, `sigma_max`.
    Ve,
    /// [`Cosine`]; reads `offset`, `t_max`.
    Cosine,
    /// [`Amplitude`]; reads `rate`.
    Amplitude,
    /// [`Edm`]; reads `sigma_min`, `sigma_max`.
    Edm,
    /// [`Flow`]; reads `t_max`.
    Flow,
    /// [`Given`]; reads `table`.
    Given,
}

/// Section `process`: the forward process. Left out, it is the scheduler's
/// discrete table. A key that the kind does not read is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessConfig {
    /// Which.
    pub kind: ProcessKind,
    /// beta(0); 0.1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_min: Option<f64>,
    /// beta(1); 20 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_max: Option<f64>,
    /// Least std; 0.01 by default, 0.002 for EDM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// Largest std; 50 by default, 80 for EDM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// States of SMLD's chain; 1000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Offset of the cosine; 0.008 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// Rate of the amplitude; 5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Last time; 0.9946 by default for the cosine (Lu et al. 2022), 1 for flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub t_max: Option<f64>,
    /// Earliest time trained at, and the last that a sampler visits; 1e-3 by
    /// default, 1e-5 for VE. EDM's is `sigma_min`, a table's its first state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub t_eps: Option<f64>,
    /// A person's own process: rows `[time, signal, std]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Vec<[f64; 3]>>,
}

impl ProcessConfig {
    /// The process. A table is that of `scheduler`.
    ///
    /// # Errors
    /// A value out of range, or a key that the kind does not read.
    pub fn build(&self, scheduler: &SchedulerConfig) -> Result<SharedProcess> {
        use ProcessKind as K;
        let kind = self.kind;
        let read = |key: &str, set: bool, kinds: &[ProcessKind]| match set && !kinds.contains(&kind)
        {
            true => Err(Error::config(
                format!("process.{key}"),
                format!(
                    "is not read by process.kind = {}, only by {}; leave it out",
                    name(kind),
                    kinds.iter().map(|&k| name(k)).collect::<Vec<_>>().join(", ")
                ),
            )),
            false => Ok(()),
        };
        read("beta_min", self.beta_min.is_some(), &[K::Vp, K::SubVp])?;
        read("beta_max", self.beta_max.is_some(), &[K::Vp, K::SubVp])?;
        read("sigma_min", self.sigma_min.is_some(), &[K::Smld, K::Ve, K::Edm])?;
        read("sigma_max", self.sigma_max.is_some(), &[K::Smld, K::Ve, K::Edm])?;
        read("steps", self.steps.is_some(), &[K::Smld])?;
        read("offset", self.offset.is_some(), &[K::Cosine])?;
        read("rate", self.rate.is_some(), &[K::Amplitude])?;
        read("t_max", self.t_max.is_some(), &[K::Cosine, K::Flow])?;
        read(
            "t_eps",
            self.t_eps.is_some(),
            &[K::Vp, K::SubVp, K::Ve, K::Cosine, K::Amplitude, K::Flow, K::Given],
        )?;
        read("table", self.table.is_some(), &[K::Given])?;
        let beta = (self.beta_min.unwrap_or(0.1), self.beta_max.unwrap_or(20.0));
        let sigma = (self.sigma_min.unwrap_or(0.01), self.sigma_max.unwrap_or(50.0));
        let process: SharedProcess = match kind {
            K::Table => Arc::new(scheduler.table()?),
            K::Smld => Arc::new(Table::smld(self.steps.unwrap_or(1000), sigma.0, sigma.1)?),
            K::Vp => {
                let vp = Vp::new(beta.0, beta.1)?;
                Arc::new(self.t_eps.map_or(vp, |t| vp.with_earliest(t)))
            }
            K::SubVp => {
                let sub_vp = SubVp::new(beta.0, beta.1)?;
                Arc::new(self.t_eps.map_or(sub_vp, |t| sub_vp.with_earliest(t)))
            }
            K::Ve => {
                let ve = Ve::new(sigma.0, sigma.1)?;
                Arc::new(self.t_eps.map_or(ve, |t| ve.with_earliest(t)))
            }
            K::Cosine => {
                let offset = self.offset.unwrap_or(0.008);
                let cosine = Cosine::new(offset, self.t_max.unwrap_or(0.9946))?;
                Arc::new(self.t_eps.map_or(cosine, |t| cosine.with_earliest(t)))
            }
            K::Amplitude => {
                let amplitude = Amplitude::new(self.rate.unwrap_or(5.0))?;
                Arc::new(self.t_eps.map_or(amplitude, |t| amplitude.with_earliest(t)))
            }
            K::Edm => {
                Arc::new(Edm::new(self.sigma_min.unwrap_or(0.002), self.sigma_max.unwrap_or(80.0))?)
            }
            K::Flow => {
                let flow = Flow::new(self.t_max.unwrap_or(1.0))?;
                Arc::new(self.t_eps.map_or(flow, |t| flow.with_earliest(t)))
            }
            K::Given => {
                let rows = self.table.as_deref().unwrap_or_default();
                let rows: Vec<_> = rows.iter().map(|&[t, signal, std]| (t, signal, std)).collect();
                let given = Given::new(&rows)?;
                Arc::new(match self.t_eps {
                    Some(t) => given.with_earliest(t),
                    None => given,
                })
            }
        };
        let earliest = process.earliest();
        let noisy = earliest >= 0.0 && process.pair(earliest).std > 0.0;
        if !(noisy && earliest < process.end()) {
            return Err(Error::config(
                "process.t_eps",
                format!(
                    "{earliest} must be a time with noise, before the end of `{}` at {}",
                    process.name(),
                    process.end()
                ),
            ));
        }
        Ok(process)
    }

    /// The process that a model is sampled under: `set` are the assignments
    /// `process.KEY=VALUE` of the command line, over what it was trained under
    /// unless they name another kind. `None` where nothing is set.
    pub fn overridden(&self, set: &[String]) -> Result<Option<ProcessConfig>> {
        let own: Vec<&String> =
            set.iter().filter(|a| a.trim_start().starts_with("process.")).collect();
        if own.is_empty() {
            return Ok(None);
        }
        let renamed =
            own.iter().any(|a| a.split('=').next().is_some_and(|k| k.trim() == "process.kind"));
        let plain = |e: serde_json::Error| Error::Usage(format!("configuration: {e}"));
        let base = if renamed {
            Value::Object(Default::default())
        } else {
            serde_json::to_value(self).map_err(plain)?
        };
        let mut value = serde_json::json!({ "process": base });
        for assignment in own {
            crate::config::set(&mut value, assignment)?;
        }
        Ok(Some(section(value["process"].take(), "process")?))
    }
}

fn name(kind: ProcessKind) -> String {
    match serde_json::to_value(kind) {
        Ok(Value::String(name)) => name,
        _ => unreachable!("a kind is written as its name"),
    }
}

/// Reads a section that stands alone.
fn section<T: serde::de::DeserializeOwned>(value: Value, key: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = match e.path().to_string().as_str() {
            "." => key.to_string(),
            path => format!("{key}.{path}"),
        };
        Error::config(path, e.into_inner().to_string())
    })
}

/// Preconditioning by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreconditionKind {
    /// None.
    #[default]
    None,
    /// [`Precondition::Edm`].
    Edm,
}

/// Section `denoiser`: what the network predicts and how it is scaled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DenoiserConfig {
    /// What it predicts, where diffusers' `scheduler.prediction_type` has no name
    /// for it: `score`, `flow`, `posterior_mean`, `step_noise`, or one of
    /// diffusers'. By default the scheduler's; x_0 under EDM's preconditioning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// `none` or `edm`.
    pub precondition: PreconditionKind,
    /// Standard deviation of the data for EDM's scalings; 0.5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_data: Option<f64>,
    /// The linear correction; see [`denoiser`](crate::diffusion::denoiser).
    pub correction: bool,
}

impl DenoiserConfig {
    /// The denoiser of a network trained under `process`.
    ///
    /// # Errors
    /// Choices that do not fit each other.
    pub fn build(&self, process: SharedProcess, scheduler: &SchedulerConfig) -> Result<Denoiser> {
        let precondition = match self.precondition {
            PreconditionKind::Edm => {
                Precondition::Edm { sigma_data: self.sigma_data.unwrap_or(0.5) }
            }
            PreconditionKind::None => Precondition::None,
        };
        if precondition == Precondition::None && self.sigma_data.is_some() {
            return Err(Error::config(
                "denoiser.sigma_data",
                "is read by denoiser.precondition = edm only; leave it out",
            ));
        }
        let prediction = match (self.prediction, precondition) {
            (Some(prediction), _) => prediction,
            (None, Precondition::Edm { .. }) => Prediction::Sample,
            (None, Precondition::None) => scheduler.prediction_type,
        };
        let denoiser = Denoiser { process, prediction, precondition, correction: self.correction };
        denoiser.validate()?;
        Ok(denoiser)
    }
}

/// The process and the denoiser that a checkpoint's `langevin.json` (its
/// `extras`) tells, over the scheduler's; `set` are assignments `denoiser.KEY=VALUE`
/// for networks that tell it wrongly or not at all. Others in `set` are passed over.
///
/// # Errors
/// A section that cannot be read, or choices that do not fit.
pub fn of_checkpoint(
    extras: Option<&Value>,
    scheduler: &SchedulerConfig,
    set: &[String],
) -> Result<(ProcessConfig, Denoiser)> {
    let stored = |key: &str| extras.and_then(|e| e.get(key)).cloned();
    let empty = || Value::Object(Default::default());
    let process: ProcessConfig = section(stored("process").unwrap_or_else(empty), "process")?;
    let mut value = serde_json::json!({ "denoiser": stored("denoiser").unwrap_or_else(empty) });
    for assignment in set.iter().filter(|a| a.trim_start().starts_with("denoiser.")) {
        crate::config::set(&mut value, assignment)?;
    }
    let config: DenoiserConfig = section(value["denoiser"].take(), "denoiser")?;
    let denoiser = config.build(process.build(scheduler)?, scheduler)?;
    Ok((process, denoiser))
}
