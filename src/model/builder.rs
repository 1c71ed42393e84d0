//! What the parts of a network are built with: weights by their checkpoint
//! names, and the ops over them.

use crate::error::{Error, Result};
use crate::ops::conv2d::{ConvOptions, Padding};
use crate::ops::norm::{Domain, NormOperands};
use crate::ops::pointwise::Activation;
use crate::plan::{DiskLayout, Init, Plan, TensorId};

/// Initial values of a layer's weight and bias.
///
/// `Default` is PyTorch's for convolutions and linear layers: uniform within
/// 1 / sqrt(fan in). `Zero` is for the last layer of every residual branch and
/// of the network (Ho et al. 2020, `init_scale = 0`): at the start every block
/// is the identity and the prediction is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Default,
    Zero,
}

impl Start {
    fn init(self, fan_in: usize) -> Init {
        match self {
            Start::Default => Init::Uniform(1.0 / (fan_in as f32).sqrt()),
            Start::Zero => Init::Constant(0.0),
        }
    }
}

/// A convolution's sizes.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub c_out: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    pub stride: usize,
    pub padding: Padding,
    pub bias: bool,
    pub start: Start,
}

impl Conv {
    /// 3 x 3, stride 1, same size.
    pub fn three(c_out: usize) -> Self {
        Conv {
            c_out,
            kernel: 3,
            stride: 1,
            padding: Padding::same(1),
            bias: true,
            start: Start::Default,
        }
    }

    /// 1 x 1.
    pub fn one(c_out: usize) -> Self {
        Conv { kernel: 1, padding: Padding::default(), ..Conv::three(c_out) }
    }
}

/// Appends layers to a plan; holds what all layers of one network share.
pub struct Builder<'a> {
    pub plan: &'a mut Plan,
    /// Added to variances.
    pub eps: f32,
    pub activation: Activation,
    /// The time embedding scales and shifts instead of being added.
    pub scale_shift: bool,
    /// Probability of dropping.
    pub dropout: f32,
    /// Random keys `[n, 4]`, in training.
    pub keys: Option<TensorId>,
    /// Time (and class) embedding `[n, channels]`.
    pub embedding: TensorId,
    activated_embedding: Option<TensorId>,
    dropout_layers: u32,
}

impl<'a> Builder<'a> {
    pub fn new(plan: &'a mut Plan, eps: f32, activation: Activation, embedding: TensorId) -> Self {
        Builder {
            plan,
            eps,
            activation,
            scale_shift: false,
            dropout: 0.0,
            keys: None,
            embedding,
            activated_embedding: None,
            dropout_layers: 0,
        }
    }

    /// Channels of an activation.
    pub fn channels(&self, x: TensorId) -> usize {
        *self.plan.shape(x).last().expect("activations have axes")
    }

    /// Activation of the embedding, computed once for all layers.
    pub fn activated_embedding(&mut self) -> TensorId {
        let (embedding, activation) = (self.embedding, self.activation);
        *self.activated_embedding.get_or_insert_with(|| self.plan.activate(embedding, activation))
    }

    /// Convolution `name` of x `[n, h, w, c]`.
    pub fn conv(&mut self, name: &str, x: TensorId, conv: Conv) -> Result<TensorId> {
        let c_in = self.channels(x);
        let Conv { c_out, kernel, stride, padding, bias, start } = conv;
        let init = start.init(c_in * kernel * kernel);
        let shape = [c_out, c_in, kernel, kernel];
        let layout = DiskLayout::Convolution;
        let weight = self.plan.parameter(&format!("{name}.weight"), &shape, layout, init, true);
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), c_out, init));
        let options = ConvOptions { stride: [stride; 2], padding, ..ConvOptions::default() };
        self.plan.conv2d(x, weight, bias, options)
    }

    /// Linear layer `name` over the last axis of x.
    pub fn linear(
        &mut self,
        name: &str,
        x: TensorId,
        c_out: usize,
        start: Start,
    ) -> Result<TensorId> {
        linear(self.plan, name, x, c_out, start)
    }

    /// Group norm `name`, followed by the activation if there is one; with
    /// scale_shift `[n, 2c]`, that comes before the activation.
    ///
    /// `key` is the configuration key to blame when the groups do not divide.
    pub fn group_norm(
        &mut self,
        name: &str,
        x: TensorId,
        groups: Groups,
        activation: Option<Activation>,
        scale_shift: Option<TensorId>,
    ) -> Result<TensorId> {
        let c = self.channels(x);
        let domain = groups.domain(name, c)?;
        let gamma = self.vector(&format!("{name}.weight"), c, Init::Constant(1.0));
        let beta = self.vector(&format!("{name}.bias"), c, Init::Constant(0.0));
        let operands =
            NormOperands { gamma: Some(gamma), beta: Some(beta), scale_shift, activation };
        self.plan.norm(x, domain, self.eps, operands)
    }

    /// Group norm without weights, scaled and shifted by linear layer
    /// `name.linear` of the embedding (diffusers' AdaGroupNorm).
    pub fn adaptive_norm(
        &mut self,
        name: &str,
        x: TensorId,
        groups: Groups,
        eps: f32,
        activation: Option<Activation>,
    ) -> Result<TensorId> {
        let c = self.channels(x);
        let domain = groups.domain(name, c)?;
        let embedding = self.embedding;
        let scale_shift =
            self.linear(&format!("{name}.linear"), embedding, 2 * c, Start::Default)?;
        let operands =
            NormOperands { scale_shift: Some(scale_shift), activation, ..Default::default() };
        self.plan.norm(x, domain, eps, operands)
    }

    /// Dropout in training, nothing otherwise.
    pub fn dropout(&mut self, x: TensorId) -> Result<TensorId> {
        let layer = self.dropout_layers;
        self.dropout_layers += 1;
        match self.keys {
            Some(keys) if self.dropout > 0.0 => self.plan.dropout(x, keys, self.dropout, layer),
            _ => Ok(x),
        }
    }

    fn vector(&mut self, name: &str, len: usize, init: Init) -> TensorId {
        self.plan.parameter(name, &[len], DiskLayout::Same, init, true)
    }
}

/// Linear layer `name` over the last axis of x.
pub fn linear(
    plan: &mut Plan,
    name: &str,
    x: TensorId,
    c_out: usize,
    start: Start,
) -> Result<TensorId> {
    let c_in = *plan.shape(x).last().expect("activations have axes");
    let (init, layout) = (start.init(c_in), DiskLayout::Same);
    let weight = plan.parameter(&format!("{name}.weight"), &[c_out, c_in], layout, init, true);
    let bias = plan.parameter(&format!("{name}.bias"), &[c_out], layout, init, true);
    plan.linear(x, weight, Some(bias))
}

/// A number of groups and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub groups: usize,
    /// What to say when they do not divide the channels.
    pub source: Source,
}

/// Why a normalisation has its number of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A configuration key below `model.`.
    Key(&'static str),
    /// A block type's own rule.
    Block(&'static str),
}

impl Groups {
    /// Groups from a configuration key.
    pub fn key(key: &'static str, groups: usize) -> Self {
        Groups { groups, source: Source::Key(key) }
    }

    /// Groups by a block's own rule; `rule` says it.
    pub fn block(rule: &'static str, groups: usize) -> Self {
        Groups { groups, source: Source::Block(rule) }
    }

    fn domain(self, layer: &str, channels: usize) -> Result<Domain> {
        let Groups { groups, source } = self;
        if groups > 0 && channels.is_multiple_of(groups) {
            return Ok(Domain::Group(groups));
        }
        Err(match source {
            Source::Key(key) => {
                let divisors: Vec<String> = (1..=channels.min(64))
                    .filter(|&g| channels.is_multiple_of(g))
                    .map(|g| g.to_string())
                    .collect();
                Error::config(
                    format!("model.{key}"),
                    format!(
                        "{groups} groups do not divide the {channels} channels of `{layer}`; \
                         take one of {}, or other block_out_channels",
                        divisors.join(", ")
                    ),
                )
            }
            Source::Block(rule) => Error::config(
                "model.block_out_channels",
                format!(
                    "`{layer}` has {channels} channels, which its {groups} groups ({rule}) do not divide"
                ),
            ),
        })
    }
}
