//! The U-Net: diffusers' `UNet2DModel` as ops (Ho et al. 2020; Song et al. 2021
//! for the Skip blocks).
//!
//! ```text
//! t -> embedding -> linear, SiLU, linear (+ class) = e      read by every ResNet layer
//! x -> conv_in -> down blocks -> middle -> up blocks -> norm, SiLU -> conv_out
//!                      \____ skips, concatenated ____/
//! ```

use super::blocks::{BlockKind, Level, Skips, config_groups, middle};
use super::builder::{Builder, Conv, Start, linear};
use super::config::{Nullable, UNetConfig};
use super::{Conditioning, Network, NetworkInputs};
use crate::error::{Error, Result};
use crate::ops::pointwise::Activation;
use crate::plan::{DType, DiskLayout, Init, Parameters, Plan, TensorId};

/// Standard deviation of the Fourier frequencies.
const FOURIER_SCALE: f32 = 16.0;

/// Longest period of the sinusoidal embedding.
const MAX_PERIOD: f32 = 10_000.0;

fn unknown(key: &str, value: &str, expected: &str) -> Error {
    Error::config(format!("model.{key}"), format!("unknown value `{value}`; expected {expected}"))
}

impl UNetConfig {
    /// Refuses every choice that does not make a network, with the key to
    /// blame: blocks that do not fit each other, groups that do not divide,
    /// values out of range.
    pub fn validate(&self) -> Result<()> {
        // Beyond these a slip of the keyboard would keep the dry build busy for hours.
        let largest = self.block_out_channels.iter().copied().max().unwrap_or(0);
        for (key, value, most) in [
            ("model.layers_per_block", self.layers_per_block, 64),
            ("model.block_out_channels", largest, 1 << 16),
            ("model.block_out_channels", self.block_out_channels.len(), 16),
            ("model.in_channels", self.in_channels, 1 << 16),
            ("model.out_channels", self.out_channels, 1 << 16),
        ] {
            if value > most {
                return Err(Error::config(key, format!("{value} is more than {most}")));
            }
        }
        if let Some(size) = self.sample_size {
            let multiple = self.size_multiple();
            for side in [size.height(), size.width()] {
                if side == 0 || !side.is_multiple_of(multiple) {
                    let levels = self.block_out_channels.len();
                    let problem = format!(
                        "{side} is not a multiple of {multiple}, as {levels} levels need; \
                         change it or the number of blocks"
                    );
                    return Err(Error::config("model.sample_size", problem));
                }
            }
        }
        self.parameters().map(|_| ())
    }

    /// The weights, without a plan: names, shapes, offsets.
    pub fn parameters(&self) -> Result<Parameters> {
        let side = 2 * self.size_multiple();
        let mut plan = Plan::new();
        let inputs = Network::UNet(self.clone()).inputs(&mut plan, 1, [side, side], false);
        self.build(&mut plan, &inputs)?;
        Ok(plan.parameters)
    }

    /// Appends the network; returns the prediction `[n, h, w, out_channels]`.
    /// See [`Network::build`].
    pub fn build(&self, plan: &mut Plan, inputs: &NetworkInputs) -> Result<TensorId> {
        let (down, up) = self.check()?;
        let activation = self.activation()?;
        let [n, height, width, _] = plan.image_shape("unet", inputs.x)?;
        let multiple = self.size_multiple();
        if ![height, width].iter().all(|s| s.is_multiple_of(multiple))
            || plan.shape(inputs.x)[3] != self.in_channels
        {
            return Err(Error::Shape {
                op: "unet",
                tensor: plan.tensor(inputs.x).name.clone(),
                expected: format!(
                    "[n, h, w, {}], h and w multiples of {multiple}",
                    self.in_channels
                ),
                found: plan.shape(inputs.x).to_vec(),
            });
        }
        let embedding = self.embedding(plan, inputs, n)?;
        let x = if self.center_input_sample { plan.scale(inputs.x, 2.0, -1.0) } else { inputs.x };
        let mut builder = Builder::new(plan, self.norm_eps as f32, activation, embedding);
        builder.scale_shift = self.resnet_time_scale_shift == "scale_shift";
        builder.dropout = self.dropout as f32;
        builder.keys = inputs.keys;
        let y = self.body(&mut builder, x, &down, &up)?;
        if self.time_embedding_type == "fourier" {
            return plan.scale_rows(y, inputs.t, 0, true);
        }
        Ok(y)
    }

    fn body(
        &self,
        b: &mut Builder,
        x: TensorId,
        down: &[BlockKind],
        up: &[BlockKind],
    ) -> Result<TensorId> {
        let channels = &self.block_out_channels;
        let levels = channels.len();
        let mut h = b.conv("conv_in", x, Conv::three(channels[0]))?;
        let mut skips: Skips = vec![Some(h)];
        let mut image = x;
        for (i, &kind) in down.iter().enumerate() {
            let level = Level {
                config: self,
                name: format!("down_blocks.{i}"),
                kind,
                channels: [channels[i.saturating_sub(1)], channels[i]],
                is_last: i == levels - 1,
            };
            h = level.down(b, h, &mut image, &mut skips)?;
        }
        if self.mid_block_type != Nullable::Null {
            let found = b.channels(h);
            if found != channels[levels - 1] {
                return Err(Error::config(
                    "model.layers_per_block",
                    format!("0 cannot change {found} channels to {}", channels[levels - 1]),
                ));
            }
            h = middle(b, self, h)?;
        }
        let mut image = None;
        let mut previous = channels[levels - 1];
        for (i, &kind) in up.iter().enumerate() {
            let own = levels - 1 - i;
            let level = Level {
                config: self,
                name: format!("up_blocks.{i}"),
                kind,
                channels: [channels[own.saturating_sub(1)], channels[own]],
                is_last: own == 0,
            };
            h = level.up(b, h, previous, &mut image, &mut skips)?;
            previous = channels[own];
        }
        let groups = config_groups(self, Some((channels[0] / 4).min(32)))?;
        // The last activation is SiLU whatever the configuration says.
        let h = b.group_norm("conv_norm_out", h, groups, Some(Activation::Silu), None)?;
        let last = Conv { start: Start::Zero, ..Conv::three(self.out_channels) };
        let y = b.conv("conv_out", h, last)?;
        let Some(image) = image else { return Ok(y) };
        let (found, expected) = (b.plan.shape(image).to_vec(), b.plan.shape(y).to_vec());
        if found[3] != expected[3] {
            let problem = format!("the Skip blocks predict {} channels", found[3]);
            return Err(Error::config("model.out_channels", problem));
        }
        if found != expected {
            let problem = "a Skip block must be followed by Skip blocks to the end";
            return Err(Error::config("model.up_block_types", problem));
        }
        b.plan.add(y, image, 1.0)
    }

    /// Time embedding, plus that of the class: `[n, time_embedding_channels]`.
    fn embedding(&self, plan: &mut Plan, inputs: &NetworkInputs, n: usize) -> Result<TensorId> {
        let dim = self.time_embedding_channels();
        let projection = self.time_projection(plan)?;
        let time = projection.apply(self, plan, inputs.t)?;
        let mut e = mlp(plan, "time_embedding", time, dim)?;
        let class = match (self.class_input(), inputs.class) {
            (Conditioning::Absent, _) => return Ok(e),
            (_, Some(class)) => class,
            (_, None) => {
                let problem = "this network needs a class for each image and none was given";
                return Err(Error::Usage(problem.into()));
            }
        };
        let class = match self.class_embed_type.as_deref() {
            None => {
                let rows = self.num_class_embeds.expect("class_input says it has a table");
                let table = plan.parameter(
                    "class_embedding.weight",
                    &[rows, dim],
                    DiskLayout::Same,
                    Init::Normal(1.0),
                    true,
                );
                plan.lookup(table, class)?
            }
            Some("timestep") => {
                let projected = projection.apply(self, plan, class)?;
                mlp(plan, "class_embedding", projected, dim)?
            }
            Some(_) => {
                plan.expect_shape("class_embedding", class, &[n, dim])?;
                class
            }
        };
        e = plan.add(e, class, 1.0)?;
        Ok(e)
    }

    fn time_projection(&self, plan: &mut Plan) -> Result<Projection> {
        let c = self.block_out_channels[0];
        let name = "time_proj.weight";
        match self.time_embedding_type.as_str() {
            "positional" => {
                if (c / 2) as f64 == self.freq_shift {
                    let problem = format!(
                        "{} equals half of block_out_channels[0] = {c}, which divides by zero; \
                         usual values are 0 and 1",
                        self.freq_shift
                    );
                    return Err(Error::config("model.freq_shift", problem));
                }
                Ok(Projection::Sinusoidal)
            }
            "fourier" => {
                // Frozen in diffusers too.
                let init = Init::Normal(FOURIER_SCALE);
                Ok(Projection::Fourier(plan.parameter(name, &[c], DiskLayout::Same, init, false)))
            }
            "learned" => {
                let rows = match self.num_train_timesteps {
                    Some(rows) if rows > 0 => rows,
                    _ => {
                        let problem = "a learned time embedding needs the number of its rows";
                        return Err(Error::config("model.num_train_timesteps", problem));
                    }
                };
                let init = Init::Normal(1.0);
                let table = plan.parameter(name, &[rows, c], DiskLayout::Same, init, true);
                Ok(Projection::Table(table))
            }
            other => Err(unknown("time_embedding_type", other, "positional, fourier or learned")),
        }
    }

    fn activation(&self) -> Result<Activation> {
        match self.act_fn.to_lowercase().as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "relu" => Ok(Activation::Relu),
            "mish" => Ok(Activation::Mish),
            other => Err(unknown("act_fn", other, "silu, swish, gelu, relu or mish")),
        }
    }

    /// What can be said without the network: ranges, names, numbers of blocks.
    fn check(&self) -> Result<(Vec<BlockKind>, Vec<BlockKind>)> {
        let levels = self.block_out_channels.len();
        for (key, value) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)]
        {
            if value == 0 {
                let problem = "expected at least 1";
                return Err(Error::config(format!("model.{key}"), problem));
            }
        }
        if levels == 0 || levels > 16 || self.block_out_channels.contains(&0) {
            let problem = "expected the channels of 1 to 16 levels, each at least 1";
            return Err(Error::config("model.block_out_channels", problem));
        }
        for (key, len) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ] {
            if len != levels {
                let problem =
                    format!("has {len} blocks, block_out_channels has {levels}: they must agree");
                return Err(Error::config(format!("model.{key}"), problem));
            }
        }
        if let Nullable::Value(kind) = &self.mid_block_type
            && kind != "UNetMidBlock2D"
        {
            return Err(unknown("mid_block_type", kind, "UNetMidBlock2D or null"));
        }
        if !(self.dropout >= 0.0 && self.dropout < 1.0) {
            let problem = format!("{} is no probability below 1", self.dropout);
            return Err(Error::config("model.dropout", problem));
        }
        for (key, value) in
            [("norm_eps", self.norm_eps), ("mid_block_scale_factor", self.mid_block_scale_factor)]
        {
            if !(value > 0.0 && value.is_finite()) {
                let problem = format!("{value} is not positive");
                return Err(Error::config(format!("model.{key}"), problem));
            }
        }
        if !["default", "scale_shift"].contains(&self.resnet_time_scale_shift.as_str()) {
            let value = &self.resnet_time_scale_shift;
            return Err(unknown("resnet_time_scale_shift", value, "default or scale_shift"));
        }
        if let Some(kind) = &self.class_embed_type
            && !["timestep", "identity"].contains(&kind.as_str())
        {
            return Err(unknown("class_embed_type", kind, "timestep, identity or none at all"));
        }
        if self.class_embed_type.is_none() && self.num_class_embeds == Some(0) {
            let problem = "a table needs at least one row";
            return Err(Error::config("model.num_class_embeds", problem));
        }
        let kinds = |key: &str, names: &[String], find: fn(&str, &str) -> Result<BlockKind>| {
            let path = |i: usize| format!("model.{key}[{i}]");
            names.iter().enumerate().map(|(i, n)| find(&path(i), n)).collect::<Result<Vec<_>>>()
        };
        Ok((
            kinds("down_block_types", &self.down_block_types, BlockKind::down)?,
            kinds("up_block_types", &self.up_block_types, BlockKind::up)?,
        ))
    }
}

/// How a time (or a class given as one) becomes a vector.
enum Projection {
    Sinusoidal,
    Fourier(TensorId),
    Table(TensorId),
}

impl Projection {
    fn apply(&self, config: &UNetConfig, plan: &mut Plan, t: TensorId) -> Result<TensorId> {
        let expected = if matches!(self, Projection::Table(_)) { DType::U32 } else { DType::F32 };
        let tensor = plan.tensor(t);
        if tensor.dtype != expected || tensor.shape.len() != 1 {
            return Err(Error::Shape {
                op: "time_embedding",
                tensor: tensor.name.clone(),
                expected: format!("[n] of {expected:?}"),
                found: tensor.shape.clone(),
            });
        }
        Ok(match *self {
            Projection::Sinusoidal => plan.sinusoidal_embedding(
                t,
                config.block_out_channels[0],
                config.flip_sin_to_cos,
                config.freq_shift as f32,
                MAX_PERIOD,
            ),
            Projection::Fourier(w) => plan.fourier_embedding(t, w, false, true),
            Projection::Table(table) => plan.lookup(table, t)?,
        })
    }
}

/// Linear, SiLU, linear.
fn mlp(plan: &mut Plan, name: &str, x: TensorId, dim: usize) -> Result<TensorId> {
    let h = linear(plan, &format!("{name}.linear_1"), x, dim, Start::Default)?;
    let h = plan.activate(h, Activation::Silu);
    linear(plan, &format!("{name}.linear_2"), h, dim, Start::Default)
}
