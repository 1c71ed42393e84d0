//! A data set in the place of a network: its weights are the images, and its
//! prediction is their mean given the input
//! ([`ops::empirical`](crate::ops::empirical)). What it is told is the noise's
//! standard deviation; the signal is 1.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Conditioning, Network, NetworkInputs};
use crate::error::{Error, Result};
use crate::plan::{DiskLayout, Init, Parameters, Plan, TensorId};

/// The class named in `config.json`; not one of diffusers'.
pub const CLASS_NAME: &str = "LangevinEmpirical";

/// Name of the weight that holds the images, `[images, h, w, c]`.
const IMAGES: &str = "images";

/// Number and shape of the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EmpiricalConfig {
    pub images: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

impl EmpiricalConfig {
    /// Reads the content of a `config.json`; keys that start with `_` are not
    /// its own.
    pub fn from_json(json: &Value) -> Result<Self> {
        let own = json.as_object().cloned().unwrap_or_default();
        let own: Map<_, _> = own.into_iter().filter(|(key, _)| !key.starts_with('_')).collect();
        serde_json::from_value(Value::Object(own))
            .map_err(|e| Error::config("model", e.to_string()))
    }

    /// The content of a `config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": CLASS_NAME,
            "images": self.images,
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
        })
    }

    /// Refuses an empty set.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("images", self.images),
            ("height", self.height),
            ("width", self.width),
            ("channels", self.channels),
        ] {
            if value == 0 {
                return Err(Error::config(format!("model.{key}"), "must be at least 1"));
            }
        }
        Ok(())
    }

    /// The images as the one weight there is, not trainable.
    pub fn parameters(&self) -> Result<Parameters> {
        let mut plan = Plan::new();
        let size = [self.height, self.width];
        let inputs = Network::Empirical(self.clone()).inputs(&mut plan, 1, size, false);
        self.build(&mut plan, &inputs)?;
        Ok(plan.parameters)
    }

    /// Form of the time input.
    pub fn time_input(&self) -> Conditioning {
        Conditioning::Value
    }

    /// Appends the denoiser; see [`Network::build`].
    pub fn build(&self, plan: &mut Plan, inputs: &NetworkInputs) -> Result<TensorId> {
        self.validate()?;
        let shape = [self.images, self.height, self.width, self.channels];
        let images = plan.parameter(IMAGES, &shape, DiskLayout::Same, Init::Constant(0.0), false);
        plan.empirical(inputs.x, images, inputs.t, None)
    }
}
