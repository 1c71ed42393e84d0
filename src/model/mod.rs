//! Networks: a configuration and a batch size become ops and weights of a
//! [`Plan`].
//!
//! A network knows nothing of diffusion: it maps `x [n, h, w, c]` and `t [n]`
//! to a prediction of x's size. [`Network`] is what the rest of the library
//! holds.

mod attention_block;
mod blocks;
mod builder;
mod config;
mod empirical;
pub mod inception;
mod mlp;
mod resnet;
mod unet;

pub use config::{HeadDim, Nullable, SampleSize, UNetConfig};
pub use empirical::EmpiricalConfig;
pub use mlp::MlpConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::plan::{DType, Parameters, Plan, TensorId};

/// What a network reads. The caller makes the tensors, so that x may be an
/// upload or the output of an op; [`Network::inputs`] makes them as uploads.
#[derive(Clone, Copy, Debug)]
pub struct NetworkInputs {
    /// Images `[n, h, w, in_channels]`.
    pub x: TensorId,
    /// Time `[n]`, handed to the time embedding as it is: f32, or u32 where
    /// [`Network::time_input`] is a table.
    pub t: TensorId,
    /// Class, shaped as [`Network::class_input`] says; required by networks that have one.
    pub class: Option<TensorId>,
    /// Random keys `[n, 4]` (u32, [`image_keys`](crate::random::image_keys)):
    /// present in training, where they turn dropout on.
    pub keys: Option<TensorId>,
}

/// The form of one conditioning input of a batch of n images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditioning {
    /// The network does not read it.
    Absent,
    /// f32 `[n]`: any value.
    Value,
    /// u32 `[n]`: a row of a table of that many rows. Whoever uploads it checks the range.
    Row(usize),
    /// f32 `[n, dim]`: added to the time embedding as it is.
    Vector(usize),
}

impl Conditioning {
    /// Declares the input; `None` if the network does not read it.
    pub fn declare(self, plan: &mut Plan, name: &str, n: usize) -> Option<TensorId> {
        match self {
            Conditioning::Absent => None,
            Conditioning::Value => Some(plan.input(name, &[n], DType::F32)),
            Conditioning::Row(_) => Some(plan.input(name, &[n], DType::U32)),
            Conditioning::Vector(dim) => Some(plan.input(name, &[n, dim], DType::F32)),
        }
    }
}

/// A network by its configuration.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // A program holds one or two networks.
pub enum Network {
    /// diffusers' `UNet2DModel`.
    UNet(UNetConfig),
    /// A perceptron for points, which diffusers does not have.
    Mlp(MlpConfig),
    /// A data set in the place of a network.
    Empirical(EmpiricalConfig),
}

impl Default for Network {
    fn default() -> Self {
        Network::UNet(UNetConfig::default())
    }
}

/// The key that names the kind of a network; absent means `UNet2DModel`.
const CLASS_KEY: &str = "_class_name";

impl Network {
    /// Reads the content of a `config.json`, of the class it names.
    pub fn from_json(json: &Value) -> Result<Network> {
        match json.get(CLASS_KEY).and_then(Value::as_str) {
            Some(mlp::CLASS_NAME) => MlpConfig::from_json(json).map(Network::Mlp),
            Some(empirical::CLASS_NAME) => EmpiricalConfig::from_json(json).map(Network::Empirical),
            _ => UNetConfig::from_json(json).map(Network::UNet),
        }
    }

    /// The content of a `config.json`.
    pub fn to_json(&self) -> Value {
        match self {
            Network::UNet(config) => config.to_json(),
            Network::Mlp(config) => config.to_json(),
            Network::Empirical(config) => config.to_json(),
        }
    }

    /// Reads the section `model` of a run's configuration: as
    /// [`Network::from_json`], but of keys that start with `_` it knows the
    /// class alone.
    pub fn from_section(section: &Value) -> Result<Network> {
        let unknown = |(key, _): &(&String, &Value)| key.starts_with('_') && *key != CLASS_KEY;
        if let Some((key, _)) = section.as_object().and_then(|map| map.iter().find(unknown)) {
            return Err(Error::config(format!("model.{key}"), "unknown field"));
        }
        let mut network = Network::from_json(section)?;
        match &mut network {
            Network::UNet(config) => config.extra = Map::new(),
            Network::Mlp(_) => {}
            Network::Empirical(_) => {
                return Err(Error::config(
                    "model._class_name",
                    "a data set has nothing to train: use it with `sample --model-free`",
                ));
            }
        }
        Ok(network)
    }

    /// Whether diffusers has the network's class.
    pub fn is_in_diffusers(&self) -> bool {
        matches!(self, Network::UNet(_))
    }

    /// The class named in `config.json`: diffusers', or langevin's own.
    pub fn class_name(&self) -> &'static str {
        match self {
            Network::UNet(_) => config::CLASS_NAME,
            Network::Mlp(_) => mlp::CLASS_NAME,
            Network::Empirical(_) => empirical::CLASS_NAME,
        }
    }

    /// Refuses inconsistent choices; see [`UNetConfig::validate`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Network::UNet(config) => config.validate(),
            Network::Mlp(config) => config.validate(),
            Network::Empirical(config) => config.validate(),
        }
    }

    /// Appends the network to the plan and declares its weights; returns the
    /// prediction `[n, h, w, out_channels]`. The weights and their order do not
    /// depend on n or on the image's size.
    pub fn build(&self, plan: &mut Plan, inputs: &NetworkInputs) -> Result<TensorId> {
        match self {
            Network::UNet(config) => config.build(plan, inputs),
            Network::Mlp(config) => config.build(plan, inputs),
            Network::Empirical(config) => config.build(plan, inputs),
        }
    }

    /// The weights, without a plan.
    pub fn parameters(&self) -> Result<Parameters> {
        match self {
            Network::UNet(config) => config.parameters(),
            Network::Mlp(config) => config.parameters(),
            Network::Empirical(config) => config.parameters(),
        }
    }

    /// `[h, w, c]` of the images the configuration names, if it names a size.
    pub fn sample_shape(&self) -> Option<[usize; 3]> {
        match self {
            Network::UNet(config) => {
                config.sample_size.map(|s| [s.height(), s.width(), config.in_channels])
            }
            Network::Mlp(config) => Some([1, 1, config.channels]),
            Network::Empirical(config) => Some([config.height, config.width, config.channels]),
        }
    }

    /// Channels of x.
    pub fn in_channels(&self) -> usize {
        match self {
            Network::UNet(config) => config.in_channels,
            Network::Mlp(config) => config.channels,
            Network::Empirical(config) => config.channels,
        }
    }

    /// Channels of the prediction.
    pub fn out_channels(&self) -> usize {
        match self {
            Network::UNet(config) => config.out_channels,
            Network::Mlp(config) => config.channels,
            Network::Empirical(config) => config.channels,
        }
    }

    /// Rows of the class table, the null class of guidance included; `None`
    /// for networks without a table.
    pub fn classes(&self) -> Option<usize> {
        match self.class_input() {
            Conditioning::Row(rows) => Some(rows),
            _ => None,
        }
    }

    /// Form of the time input.
    pub fn time_input(&self) -> Conditioning {
        match self {
            Network::UNet(config) => config.time_input(),
            Network::Mlp(config) => config.time_input(),
            Network::Empirical(config) => config.time_input(),
        }
    }

    /// Form of the class input.
    pub fn class_input(&self) -> Conditioning {
        match self {
            Network::UNet(config) => config.class_input(),
            Network::Mlp(_) | Network::Empirical(_) => Conditioning::Absent,
        }
    }

    /// Whether keys change the result: dropout is configured.
    pub fn has_dropout(&self) -> bool {
        match self {
            Network::UNet(config) => config.dropout > 0.0,
            Network::Mlp(_) | Network::Empirical(_) => false,
        }
    }

    /// Declares uploads `x [n, h, w, c]`, `t`, `class` and, in training, `keys`.
    pub fn inputs(
        &self,
        plan: &mut Plan,
        n: usize,
        [h, w]: [usize; 2],
        training: bool,
    ) -> NetworkInputs {
        NetworkInputs {
            x: plan.input("x", &[n, h, w, self.in_channels()], DType::F32),
            t: self.time_input().declare(plan, "t", n).expect("every network reads the time"),
            class: self.class_input().declare(plan, "class", n),
            keys: training.then(|| plan.input("keys", &[n, 4], DType::U32)),
        }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Network::UNet(config) => config.serialize(serializer),
            Network::Mlp(config) => config.to_json().serialize(serializer),
            Network::Empirical(config) => config.to_json().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let section = Value::deserialize(deserializer)?;
        Network::from_section(&section).map_err(de::Error::custom)
    }
}
