//! The blocks of the U-Net by diffusers' type names, down, middle and up.

use super::attention_block::{AttentionBlock, self_attention};
use super::builder::{Builder, Conv, Groups, Start};
use super::config::{HeadDim, UNetConfig};
use super::resnet::{FIR_DOWN, FIR_UP, K_DOWN, K_UP, NEAREST, POOL, Resnet, conditioned};
use crate::error::{Error, Result};
use crate::ops::conv2d::Padding;
use crate::ops::pointwise::Activation;
use crate::plan::{DiskLayout, Init, TensorId};

/// Factor of every residual sum of the Skip blocks (Song et al. 2021, NCSN++).
const SKIP_SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Groups before the attention of the Skip blocks.
const SKIP_ATTENTION_GROUPS: usize = 32;

/// Channels of a group in the K blocks.
const K_GROUP: usize = 32;

/// Channels of x and of the prediction that the Skip blocks are made for.
const SKIP_CHANNELS: usize = 3;

/// What one level does, apart from the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// `DownBlock2D`, `UpBlock2D`.
    Plain,
    /// `AttnDownBlock2D`, `AttnUpBlock2D`.
    Attention,
    /// `ResnetDownsampleBlock2D`, `ResnetUpsampleBlock2D`.
    Resample,
    /// `SkipDownBlock2D`, `SkipUpBlock2D`.
    Skip,
    /// `AttnSkipDownBlock2D`, `AttnSkipUpBlock2D`.
    AttentionSkip,
    /// `KDownBlock2D`, `KUpBlock2D`.
    K,
    /// `KCrossAttnDownBlock2D`, `KCrossAttnUpBlock2D`; without text the
    /// attention is over the image itself.
    KAttention,
}

const DOWN_TYPES: [(&str, BlockKind); 7] = [
    ("DownBlock2D", BlockKind::Plain),
    ("AttnDownBlock2D", BlockKind::Attention),
    ("ResnetDownsampleBlock2D", BlockKind::Resample),
    ("SkipDownBlock2D", BlockKind::Skip),
    ("AttnSkipDownBlock2D", BlockKind::AttentionSkip),
    ("KDownBlock2D", BlockKind::K),
    ("KCrossAttnDownBlock2D", BlockKind::KAttention),
];

const UP_TYPES: [(&str, BlockKind); 7] = [
    ("UpBlock2D", BlockKind::Plain),
    ("AttnUpBlock2D", BlockKind::Attention),
    ("ResnetUpsampleBlock2D", BlockKind::Resample),
    ("SkipUpBlock2D", BlockKind::Skip),
    ("AttnSkipUpBlock2D", BlockKind::AttentionSkip),
    ("KUpBlock2D", BlockKind::K),
    ("KCrossAttnUpBlock2D", BlockKind::KAttention),
];

impl BlockKind {
    /// A down block by its type name.
    pub fn down(key: &str, name: &str) -> Result<Self> {
        find(&DOWN_TYPES, key, name)
    }

    /// An up block by its type name.
    pub fn up(key: &str, name: &str) -> Result<Self> {
        find(&UP_TYPES, key, name)
    }

    fn is_skip(self) -> bool {
        matches!(self, BlockKind::Skip | BlockKind::AttentionSkip)
    }

    fn is_k(self) -> bool {
        matches!(self, BlockKind::K | BlockKind::KAttention)
    }
}

fn find(types: &[(&str, BlockKind)], key: &str, name: &str) -> Result<BlockKind> {
    // Old checkpoints prefix the names.
    let bare = name.strip_prefix("UNetRes").unwrap_or(name);
    types.iter().find(|(n, _)| *n == bare).map(|(_, kind)| *kind).ok_or_else(|| {
        let names: Vec<&str> = types.iter().map(|(n, _)| *n).collect();
        Error::config(key, format!("unknown block `{name}`; expected one of {}", names.join(", ")))
    })
}

/// One level of the U-Net: its place in the configuration, and what all levels
/// read from it.
pub struct Level<'a> {
    pub config: &'a UNetConfig,
    /// `down_blocks.2`
    pub name: String,
    pub kind: BlockKind,
    /// Channels the block is declared with: of its input (of the next finer
    /// level, in an up block) and of its output.
    pub channels: [usize; 2],
    /// The last block of its direction does not resample.
    pub is_last: bool,
}

/// Outputs of the way down, popped on the way up; `None` where a block hands
/// nothing over.
pub type Skips = Vec<Option<TensorId>>;

/// Groups of the configuration's `norm_num_groups`; null is allowed where
/// `fallback` is given.
pub fn config_groups(config: &UNetConfig, fallback: Option<usize>) -> Result<Groups> {
    let key = "norm_num_groups";
    match (config.norm_num_groups.value(), fallback) {
        (Some(&groups), _) => Ok(Groups::key(key, groups)),
        (None, Some(groups)) => Ok(Groups::block("a quarter of the channels, at most 32", groups)),
        (None, None) => Err(Error::config(
            format!("model.{key}"),
            "null is possible only where all blocks are Skip or K blocks; give a number",
        )),
    }
}

/// A quarter of the channels, at most 32: the Skip blocks' groups.
fn quarter(channels: usize) -> usize {
    (channels / 4).min(32)
}

fn skip_groups(channels: usize) -> Groups {
    Groups::block("a quarter of the channels, at most 32", quarter(channels))
}

fn k_groups(channels: usize) -> Groups {
    Groups::block("one for each 32 channels", channels / K_GROUP)
}

/// Refuses blocks that hand each other the wrong number of channels.
fn expect_channels(b: &Builder, key: &str, name: &str, x: TensorId, expected: usize) -> Result<()> {
    let found = b.channels(x);
    if found == expected {
        return Ok(());
    }
    let problem = format!(
        "`{name}` is made for {expected} channels and gets {found}: these block types do not fit each other"
    );
    Err(Error::config(key, problem))
}

/// Refuses blocks that hand each other different image sizes.
fn expect_size(b: &Builder, key: &str, name: &str, x: TensorId, other: TensorId) -> Result<()> {
    let (a, c) = (b.plan.shape(x), b.plan.shape(other));
    if a[..3] == c[..3] {
        return Ok(());
    }
    let problem = format!(
        "`{name}` gets images of {}x{} and {}x{}: these block types do not fit each other",
        a[1], a[2], c[1], c[2]
    );
    Err(Error::config(key, problem))
}

impl Level<'_> {
    fn head_dim(&self) -> usize {
        head_dim(&self.config.attention_head_dim, self.channels[1])
    }

    /// The attention after a ResNet layer of the Attention and AttentionSkip kinds.
    fn attention(&self) -> Result<Option<AttentionBlock>> {
        let head_dim = self.head_dim();
        Ok(match self.kind {
            BlockKind::Attention => Some(AttentionBlock {
                head_dim,
                groups: Some(config_groups(self.config, None)?),
                scale: 1.0,
            }),
            BlockKind::AttentionSkip => Some(AttentionBlock {
                head_dim,
                groups: Some(Groups::block(
                    "before the attention of a Skip block",
                    SKIP_ATTENTION_GROUPS,
                )),
                scale: SKIP_SCALE,
            }),
            _ => None,
        })
    }

    /// The ResNet layer that changes the size.
    fn resampling_resnet(&self, down: bool) -> Result<Resnet> {
        let c = self.channels[1];
        Ok(if self.kind.is_skip() {
            Resnet {
                scale: SKIP_SCALE,
                resample: Some(if down { FIR_DOWN } else { FIR_UP }),
                always_shortcut: true,
                ..Resnet::plain(c, skip_groups(c))
            }
        } else {
            Resnet {
                resample: Some(if down { POOL } else { NEAREST }),
                ..Resnet::plain(c, config_groups(self.config, None)?)
            }
        })
    }

    /// Whether the size changes by a ResNet layer instead of a convolution.
    fn resamples_by_resnet(&self, key: &str, kind: &str) -> Result<bool> {
        match (self.kind, kind) {
            (BlockKind::Resample, _) => Ok(true),
            (BlockKind::Attention, "resnet") => Ok(true),
            (BlockKind::Attention, "conv") | (BlockKind::Plain, _) => Ok(false),
            _ => Err(Error::config(
                format!("model.{key}"),
                format!("unknown value `{kind}`; expected conv or resnet"),
            )),
        }
    }

    /// Appends the block on the way down and pushes what the way up will read.
    /// `image` is the resampled input that the Skip blocks carry along.
    pub fn down(
        &self,
        b: &mut Builder,
        mut h: TensorId,
        image: &mut TensorId,
        skips: &mut Skips,
    ) -> Result<TensorId> {
        let key = "model.down_block_types";
        let [_, c_out] = self.channels;
        for j in 0..self.config.layers_per_block {
            let name = format!("{}.resnets.{j}", self.name);
            h = match self.kind {
                BlockKind::K | BlockKind::KAttention => {
                    let groups = [k_groups(b.channels(h)), k_groups(c_out)];
                    conditioned(b, &name, h, [c_out, c_out], groups)?
                }
                BlockKind::Skip | BlockKind::AttentionSkip => Resnet {
                    groups: [skip_groups(b.channels(h)), skip_groups(c_out)],
                    scale: SKIP_SCALE,
                    ..Resnet::plain(c_out, skip_groups(c_out))
                }
                .build(b, &name, h)?,
                _ => Resnet::plain(c_out, config_groups(self.config, None)?).build(b, &name, h)?,
            };
            let name = format!("{}.attentions.{j}", self.name);
            if self.kind == BlockKind::KAttention {
                h = k_attention(b, &name, h, self.head_dim(), self.is_last)?;
            } else if let Some(attention) = self.attention()? {
                h = attention.build(b, &name, h)?;
            }
            // Without a downsampler the cross-attention block hands over nothing.
            skips.push((self.kind != BlockKind::KAttention || !self.is_last).then_some(h));
        }
        if self.is_last {
            return Ok(h);
        }
        expect_channels(b, key, &format!("{}.downsamplers.0", self.name), h, c_out)?;
        if self.kind.is_k() {
            // Not handed over: the K blocks have one skip less a level.
            return b.plan.resample(h, K_DOWN);
        }
        h = if self.kind.is_skip() {
            let (down, conv) =
                (format!("{}.resnet_down", self.name), format!("{}.skip_conv", self.name));
            h = self.resampling_resnet(true)?.build(b, &down, h)?;
            if b.channels(*image) != SKIP_CHANNELS {
                let problem = format!("`{conv}` is made for {SKIP_CHANNELS} channels of x");
                return Err(Error::config("model.in_channels", problem));
            }
            *image = b.plan.resample(*image, FIR_DOWN)?;
            expect_size(b, key, &conv, h, *image)?;
            let skip = b.conv(&conv, *image, Conv::one(c_out))?;
            b.plan.add(skip, h, 1.0)?
        } else if self.resamples_by_resnet("downsample_type", &self.config.downsample_type)? {
            let name = format!("{}.downsamplers.0", self.name);
            self.resampling_resnet(true)?.build(b, &name, h)?
        } else {
            let padding = match self.config.downsample_padding {
                0 => Padding { bottom: 1, right: 1, ..Padding::default() },
                1 => Padding::same(1),
                p => {
                    let problem = format!("{p} does not halve the image; expected 0 or 1");
                    return Err(Error::config("model.downsample_padding", problem));
                }
            };
            let conv = Conv { stride: 2, padding, ..Conv::three(c_out) };
            b.conv(&format!("{}.downsamplers.0.conv", self.name), h, conv)?
        };
        skips.push(Some(h));
        Ok(h)
    }

    /// Appends the block on the way up. `previous` is the number of channels
    /// the block before it is declared with; `image` the prediction that the
    /// Skip blocks build up from coarse to fine.
    pub fn up(
        &self,
        b: &mut Builder,
        h: TensorId,
        previous: usize,
        image: &mut Option<TensorId>,
        skips: &mut Skips,
    ) -> Result<TensorId> {
        if self.kind.is_k() {
            return self.up_k(b, h, skips);
        }
        let mut h = self.up_layers(b, h, previous, skips)?;
        if self.kind == BlockKind::AttentionSkip
            && let Some(attention) = self.attention()?
        {
            h = attention.build(b, &format!("{}.attentions.0", self.name), h)?;
        }
        if self.kind.is_skip() {
            self.up_image(b, h, image)?;
        }
        if self.is_last {
            return Ok(h);
        }
        if self.kind.is_skip() {
            let name = format!("{}.resnet_up", self.name);
            return self.resampling_resnet(false)?.build(b, &name, h);
        }
        if self.resamples_by_resnet("upsample_type", &self.config.upsample_type)? {
            let name = format!("{}.upsamplers.0", self.name);
            return self.resampling_resnet(false)?.build(b, &name, h);
        }
        let up = b.plan.resample(h, NEAREST)?;
        b.conv(&format!("{}.upsamplers.0.conv", self.name), up, Conv::three(self.channels[1]))
    }

    /// ResNet layers over h and the skips, each with attention in that kind.
    fn up_layers(
        &self,
        b: &mut Builder,
        mut h: TensorId,
        previous: usize,
        skips: &mut Skips,
    ) -> Result<TensorId> {
        let key = "model.up_block_types";
        let [c_finer, c_out] = self.channels;
        let layers = self.config.layers_per_block + 1;
        for j in 0..layers {
            let name = format!("{}.resnets.{j}", self.name);
            let c_skip = if j == layers - 1 { c_finer } else { c_out };
            let c_h = if j == 0 { previous } else { c_out };
            let Some(skip) = skips.pop().flatten() else {
                let problem = format!("`{name}` finds no output of the down blocks left");
                return Err(Error::config(key, problem));
            };
            expect_size(b, key, &name, h, skip)?;
            h = b.plan.concat(h, skip)?;
            expect_channels(b, key, &name, h, c_h + c_skip)?;
            let resnet = match self.kind {
                BlockKind::Skip | BlockKind::AttentionSkip => {
                    let groups = if self.kind == BlockKind::Skip {
                        skip_groups(c_h + c_skip)
                    } else {
                        // diffusers divides the skip's channels only.
                        let rule = "channels plus a quarter of the skip's, at most 32";
                        Groups::block(rule, (c_h + c_skip / 4).min(32))
                    };
                    Resnet {
                        groups: [groups, skip_groups(c_out)],
                        scale: SKIP_SCALE,
                        ..Resnet::plain(c_out, groups)
                    }
                }
                _ => Resnet::plain(c_out, config_groups(self.config, None)?),
            };
            h = resnet.build(b, &name, h)?;
            if self.kind == BlockKind::Attention
                && let Some(attention) = self.attention()?
            {
                h = attention.build(b, &format!("{}.attentions.{j}", self.name), h)?;
            }
        }
        Ok(h)
    }

    /// The Skip blocks' image: the coarser one enlarged, plus this level's.
    fn up_image(&self, b: &mut Builder, h: TensorId, image: &mut Option<TensorId>) -> Result<()> {
        if let Some(coarser) = *image {
            *image = Some(b.plan.resample(coarser, FIR_UP)?);
        }
        if self.is_last {
            return Ok(());
        }
        let c = self.channels[1];
        let name = format!("{}.skip_conv", self.name);
        // This normalisation's activation is SiLU whatever the configuration says.
        let norm = format!("{}.skip_norm", self.name);
        let u = b.group_norm(&norm, h, skip_groups(c), Some(Activation::Silu), None)?;
        let conv = Conv { start: Start::Zero, ..Conv::three(SKIP_CHANNELS) };
        let states = b.conv(&name, u, conv)?;
        *image = Some(match *image {
            Some(image) => {
                expect_size(b, "model.up_block_types", &name, image, states)?;
                b.plan.add(image, states, 1.0)?
            }
            None => states,
        });
        Ok(())
    }

    /// K blocks read the last of `layers` skips, and change to the channels of
    /// the next finer level in their last layer.
    fn up_k(&self, b: &mut Builder, mut h: TensorId, skips: &mut Skips) -> Result<TensorId> {
        let key = "model.up_block_types";
        let [c_finer, c_out] = self.channels;
        let layers = self.config.layers_per_block;
        if layers == 0 {
            let problem = "0 is not possible with K blocks; expected at least 1";
            return Err(Error::config("model.layers_per_block", problem));
        }
        let skip = skips.last().copied().flatten();
        skips.truncate(skips.len().saturating_sub(layers));
        let name = format!("{}.resnets.0", self.name);
        if let Some(skip) = skip {
            expect_size(b, key, &name, h, skip)?;
            h = b.plan.concat(h, skip)?;
        }
        let is_first = self.kind == BlockKind::KAttention
            && c_finer == c_out
            && c_out == self.config.time_embedding_channels();
        expect_channels(b, key, &name, h, if is_first { c_out } else { 2 * c_out })?;
        for j in 0..layers {
            let name = format!("{}.resnets.{j}", self.name);
            let last = j == layers - 1;
            // The plain block narrows in conv1, the other in conv2.
            let c = match (self.kind, last) {
                (BlockKind::K, true) => [c_finer, c_finer],
                (_, true) => [c_out, c_finer],
                _ => [c_out, c_out],
            };
            let groups = [k_groups(b.channels(h)), k_groups(c_out)];
            h = conditioned(b, &name, h, c, groups)?;
            if self.kind == BlockKind::KAttention {
                let name = format!("{}.attentions.{j}", self.name);
                h = k_attention(b, &name, h, self.head_dim(), is_first)?;
            }
        }
        if self.is_last { Ok(h) } else { b.plan.resample(h, K_UP) }
    }
}

fn head_dim(head_dim: &HeadDim, channels: usize) -> usize {
    head_dim.resolve(channels)
}

/// Attention of the K blocks: one or two residual self-attentions, each after
/// an adaptive norm.
fn k_attention(
    b: &mut Builder,
    name: &str,
    mut x: TensorId,
    head_dim: usize,
    twice: bool,
) -> Result<TensorId> {
    // diffusers leaves this normalisation at its own default.
    const EPS: f32 = 1e-5;
    let c = b.channels(x);
    let groups = Groups::block("one for each 32 channels", (c / K_GROUP).max(1));
    if twice {
        let u = b.adaptive_norm(&format!("{name}.norm1"), x, groups, EPS, None)?;
        let h = self_attention(b, &format!("{name}.attn1"), u, head_dim)?;
        x = b.plan.add(x, h, 1.0)?;
    }
    let u = b.adaptive_norm(&format!("{name}.norm2"), x, groups, EPS, None)?;
    let h = self_attention(b, &format!("{name}.attn2"), u, head_dim)?;
    // Normalises text, of which there is none: stored in checkpoints, never read.
    for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
        let name = format!("{name}.attn2.norm_cross.{part}");
        b.plan.parameter(&name, &[c], DiskLayout::Same, Init::Constant(value), true);
    }
    b.plan.add(x, h, 1.0)
}

/// Appends the middle block: ResNet, attention, ResNet.
pub fn middle(b: &mut Builder, config: &UNetConfig, mut h: TensorId) -> Result<TensorId> {
    let c = b.channels(h);
    let groups = config_groups(config, Some(quarter(c)))?;
    let scale = (1.0 / config.mid_block_scale_factor) as f32;
    let resnet = Resnet { scale, ..Resnet::plain(c, groups) };
    h = resnet.build(b, "mid_block.resnets.0", h)?;
    if config.add_attention {
        let attention_groups = match config.attn_norm_num_groups {
            Some(g) => Some(Groups::key("attn_norm_num_groups", g)),
            None => (!b.scale_shift).then_some(groups),
        };
        let head_dim = head_dim(&config.attention_head_dim, c);
        let attention = AttentionBlock { head_dim, groups: attention_groups, scale };
        h = attention.build(b, "mid_block.attentions.0", h)?;
    }
    resnet.build(b, "mid_block.resnets.1", h)
}
