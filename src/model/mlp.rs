//! A multilayer perceptron for points: `x [n, 1, 1, c]` and a time to a
//! prediction of x's shape.
//!
//! ```text
//! e   = linear_2(silu(linear_1(embedding(t))))                       [n, hidden]
//! h   = input(x)                                                     [n, 1, 1, hidden]
//! h  += second(silu(first(silu(h)) + time(silu(e))))                 for each layer
//! y   = output(silu(h))                                              [n, 1, 1, c]
//! ```
//! diffusers has no such class: a checkpoint with it opens in langevin only.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::builder::{Start, linear};
use super::{Conditioning, Network, NetworkInputs};
use crate::error::{Error, Result};
use crate::ops::pointwise::Activation;
use crate::plan::{DiskLayout, Init, Parameters, Plan, TensorId};

/// The class named in `config.json`; not one of diffusers'.
pub const CLASS_NAME: &str = "LangevinMlp";

/// Longest period of the sinusoidal embedding.
const MAX_PERIOD: f32 = 10_000.0;

/// Configuration of the perceptron.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Coordinates of a point: channels of x and of the prediction.
    pub channels: usize,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Residual layers.
    pub layers: usize,
    /// `positional` (sinusoidal) or `fourier` (random frequencies).
    pub time_embedding_type: String,
    /// Features of the time embedding, an even number.
    pub time_embedding_dim: usize,
    /// The time is multiplied by it first: 1 for labels that count steps, 1000
    /// (positional) for times in \[0, 1\].
    pub time_scale: f64,
    /// Standard deviation of the Fourier frequencies.
    pub fourier_scale: f64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        MlpConfig {
            channels: 2,
            hidden: 128,
            layers: 3,
            time_embedding_type: "positional".into(),
            time_embedding_dim: 64,
            time_scale: 1.0,
            fourier_scale: 1.0,
        }
    }
}

impl MlpConfig {
    /// Reads the content of a `config.json`; keys that start with `_` are not
    /// the network's own.
    pub fn from_json(json: &Value) -> Result<Self> {
        let Value::Object(map) = json else {
            return Err(Error::config("model", "expected an object of keys and values"));
        };
        let own: Map<String, Value> =
            map.clone().into_iter().filter(|(key, _)| !key.starts_with('_')).collect();
        serde_path_to_error::deserialize(Value::Object(own)).map_err(|e| {
            let key = match e.path().to_string() {
                path if path == "." => "model".to_string(),
                path => format!("model.{path}"),
            };
            Error::config(key, e.inner().to_string())
        })
    }

    /// The content of a `config.json`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::from_iter([("_class_name".to_string(), CLASS_NAME.into())]);
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else {
            unreachable!("a struct of plain values")
        };
        map.extend(fields);
        Value::Object(map)
    }

    /// Refuses sizes and words that make no network, with the key to blame.
    pub fn validate(&self) -> Result<()> {
        for (key, value, least, most) in [
            ("channels", self.channels, 1, 1 << 10),
            ("hidden", self.hidden, 1, 1 << 14),
            ("layers", self.layers, 0, 1 << 10),
            ("time_embedding_dim", self.time_embedding_dim, 4, 1 << 14),
        ] {
            if !(least..=most).contains(&value) {
                let problem = format!("{value} lies outside {least} to {most}");
                return Err(Error::config(format!("model.{key}"), problem));
            }
        }
        if !self.time_embedding_dim.is_multiple_of(2) {
            let problem = format!("{} is odd: half are sines", self.time_embedding_dim);
            return Err(Error::config("model.time_embedding_dim", problem));
        }
        if !["positional", "fourier"].contains(&self.time_embedding_type.as_str()) {
            let problem =
                format!("`{}` is neither positional nor fourier", self.time_embedding_type);
            return Err(Error::config("model.time_embedding_type", problem));
        }
        for (key, value) in [("time_scale", self.time_scale), ("fourier_scale", self.fourier_scale)]
        {
            if !(value > 0.0 && value.is_finite()) {
                let problem = format!("{value} is not positive");
                return Err(Error::config(format!("model.{key}"), problem));
            }
        }
        Ok(())
    }

    /// The weights, without a plan: names, shapes, offsets.
    pub fn parameters(&self) -> Result<Parameters> {
        let mut plan = Plan::new();
        let inputs = Network::Mlp(self.clone()).inputs(&mut plan, 1, [1, 1], false);
        self.build(&mut plan, &inputs)?;
        Ok(plan.parameters)
    }

    /// Form of the time input.
    pub fn time_input(&self) -> Conditioning {
        Conditioning::Value
    }

    /// Appends the network; see [`Network::build`].
    pub fn build(&self, plan: &mut Plan, inputs: &NetworkInputs) -> Result<TensorId> {
        self.validate()?;
        let [n, ..] = plan.image_shape("mlp", inputs.x)?;
        plan.expect_shape("mlp", inputs.x, &[n, 1, 1, self.channels])?;
        let silu = Activation::Silu;
        let t = match self.time_scale == 1.0 {
            true => inputs.t,
            false => plan.scale(inputs.t, self.time_scale as f32, 0.0),
        };
        let features = match self.time_embedding_type.as_str() {
            "fourier" => {
                let shape = [self.time_embedding_dim / 2];
                let init = Init::Normal(self.fourier_scale as f32);
                let w = plan.parameter("time_proj.weight", &shape, DiskLayout::Same, init, false);
                plan.fourier_embedding(t, w, false, false)
            }
            _ => plan.sinusoidal_embedding(t, self.time_embedding_dim, false, 0.0, MAX_PERIOD),
        };
        let hidden = self.hidden;
        let e = linear(plan, "time_embedding.linear_1", features, hidden, Start::Default)?;
        let e = plan.activate(e, silu);
        let e = linear(plan, "time_embedding.linear_2", e, hidden, Start::Default)?;
        let e = plan.activate(e, silu);
        let mut h = linear(plan, "input", inputs.x, hidden, Start::Default)?;
        for i in 0..self.layers {
            let inner = plan.activate(h, silu);
            let first = format!("layers.{i}.first");
            let inner = linear(plan, &first, inner, hidden, Start::Default)?;
            let time = linear(plan, &format!("layers.{i}.time"), e, hidden, Start::Default)?;
            let inner = plan.add_per_image(inner, time)?;
            let inner = plan.activate(inner, silu);
            let inner = linear(plan, &format!("layers.{i}.second"), inner, hidden, Start::Zero)?;
            h = plan.add(h, inner, 1.0)?;
        }
        let h = plan.activate(h, silu);
        linear(plan, "output", h, self.channels, Start::Zero)
    }
}
