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
mod resnet;
mod unet;

pub use config::{HeadDim, Nullable, SampleSize, UNetConfig};

use crate::error::Result;
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
pub enum Network {
    /// diffusers' `UNet2DModel`.
    UNet(UNetConfig),
}

impl Network {
    /// The diffusers class.
    pub fn class_name(&self) -> &'static str {
        match self {
            Network::UNet(_) => config::CLASS_NAME,
        }
    }

    /// Refuses inconsistent choices; see [`UNetConfig::validate`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Network::UNet(config) => config.validate(),
        }
    }

    /// Appends the network to the plan and declares its weights; returns the
    /// prediction `[n, h, w, out_channels]`. The weights and their order do not
    /// depend on n or on the image's size.
    pub fn build(&self, plan: &mut Plan, inputs: &NetworkInputs) -> Result<TensorId> {
        match self {
            Network::UNet(config) => config.build(plan, inputs),
        }
    }

    /// The weights, without a plan.
    pub fn parameters(&self) -> Result<Parameters> {
        match self {
            Network::UNet(config) => config.parameters(),
        }
    }

    /// `[h, w, c]` of the images the configuration names, if it names a size.
    pub fn sample_shape(&self) -> Option<[usize; 3]> {
        match self {
            Network::UNet(config) => {
                config.sample_size.map(|s| [s.height(), s.width(), config.in_channels])
            }
        }
    }

    /// Channels of x.
    pub fn in_channels(&self) -> usize {
        match self {
            Network::UNet(config) => config.in_channels,
        }
    }

    /// Channels of the prediction.
    pub fn out_channels(&self) -> usize {
        match self {
            Network::UNet(config) => config.out_channels,
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
        }
    }

    /// Form of the class input.
    pub fn class_input(&self) -> Conditioning {
        match self {
            Network::UNet(config) => config.class_input(),
        }
    }

    /// Whether keys change the result: dropout is configured.
    pub fn has_dropout(&self) -> bool {
        match self {
            Network::UNet(config) => config.dropout > 0.0,
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
