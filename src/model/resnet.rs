//! ResNet layers of the U-Net (diffusers' ResnetBlock2D and, for the K blocks,
//! ResnetBlockCondNorm2D).
//!
//! `y = (shortcut(x) + conv2(dropout(act(norm2(conv1(act(norm1(x))) + e))))) / scale`,
//! where e is a linear layer of the activated time embedding; with
//! scale-shift, `act(norm2(h) (1 + s) + b)` instead. Resampling comes after the
//! first activation and on the shortcut.

use super::builder::{Builder, Conv, Groups, Start};
use crate::error::Result;
use crate::ops::resample::{Edge, Method};
use crate::plan::TensorId;

/// Taps of the FIR filter (1, 3, 3, 1) with sum 1.
const FIR: [f32; 4] = [0.125, 0.375, 0.375, 0.125];

/// Half size, filtered with (1, 3, 3, 1). Zhang 2019; Karras et al. 2020.
pub const FIR_DOWN: Method = down(Edge::Zero);

/// Double size, filtered with (1, 3, 3, 1); the gain of 2 on each axis makes up
/// for the zeros put between.
pub const FIR_UP: Method = up(Edge::Zero);

/// As [`FIR_DOWN`], mirrored at the edges: the K blocks'.
pub const K_DOWN: Method = down(Edge::Reflect);

/// As [`FIR_UP`], mirrored at the edges.
pub const K_UP: Method = up(Edge::Reflect);

const fn down(edge: Edge) -> Method {
    Method::Fir { up: 1, down: 2, pad: [1, 1], edge, taps: FIR }
}

const fn up(edge: Edge) -> Method {
    let taps = [2.0 * FIR[0], 2.0 * FIR[1], 2.0 * FIR[2], 2.0 * FIR[3]];
    Method::Fir { up: 2, down: 1, pad: [2, 1], edge, taps }
}

/// Half size by averaging.
pub const POOL: Method = Method::AveragePool { factor: 2 };

/// Double size by repeating.
pub const NEAREST: Method = Method::Nearest { factor: 2 };

/// One ResNet layer.
#[derive(Clone, Copy, Debug)]
pub struct Resnet {
    pub c_out: usize,
    /// Groups of norm1 and norm2.
    pub groups: [Groups; 2],
    /// The residual sum is multiplied by it.
    pub scale: f32,
    pub resample: Option<Method>,
    /// Has a 1 x 1 convolution on the shortcut even where channels stay.
    pub always_shortcut: bool,
}

impl Resnet {
    /// Neither resampling nor scaling.
    pub fn plain(c_out: usize, groups: Groups) -> Self {
        Resnet { c_out, groups: [groups; 2], scale: 1.0, resample: None, always_shortcut: false }
    }

    /// Appends the layer.
    pub fn build(&self, b: &mut Builder, name: &str, x: TensorId) -> Result<TensorId> {
        let act = Some(b.activation);
        let mut h = b.group_norm(&format!("{name}.norm1"), x, self.groups[0], act, None)?;
        let mut shortcut = x;
        if let Some(method) = self.resample {
            h = b.plan.resample(h, method)?;
            shortcut = b.plan.resample(shortcut, method)?;
        }
        h = b.conv(&format!("{name}.conv1"), h, Conv::three(self.c_out))?;
        let embedding = b.activated_embedding();
        let columns = if b.scale_shift { 2 * self.c_out } else { self.c_out };
        let e = b.linear(&format!("{name}.time_emb_proj"), embedding, columns, Start::Default)?;
        let scale_shift = if b.scale_shift {
            Some(e)
        } else {
            h = b.plan.add_per_image(h, e)?;
            None
        };
        h = b.group_norm(&format!("{name}.norm2"), h, self.groups[1], act, scale_shift)?;
        h = b.dropout(h)?;
        let last = Conv { start: Start::Zero, ..Conv::three(self.c_out) };
        h = b.conv(&format!("{name}.conv2"), h, last)?;
        if self.always_shortcut || b.channels(x) != self.c_out {
            shortcut = b.conv(&format!("{name}.conv_shortcut"), shortcut, Conv::one(self.c_out))?;
        }
        b.plan.add(shortcut, h, self.scale)
    }
}

/// ResNet layer of the K blocks: both norms have no weights and are scaled and
/// shifted by linear layers of the embedding (not activated).
pub fn conditioned(
    b: &mut Builder,
    name: &str,
    x: TensorId,
    [c_mid, c_out]: [usize; 2],
    groups: [Groups; 2],
) -> Result<TensorId> {
    let (act, eps) = (Some(b.activation), b.eps);
    let mut h = b.adaptive_norm(&format!("{name}.norm1"), x, groups[0], eps, act)?;
    h = b.conv(&format!("{name}.conv1"), h, Conv::three(c_mid))?;
    h = b.adaptive_norm(&format!("{name}.norm2"), h, groups[1], eps, act)?;
    h = b.dropout(h)?;
    let last = Conv { start: Start::Zero, ..Conv::three(c_out) };
    h = b.conv(&format!("{name}.conv2"), h, last)?;
    let mut shortcut = x;
    if b.channels(x) != c_out {
        let conv = Conv { bias: false, ..Conv::one(c_out) };
        shortcut = b.conv(&format!("{name}.conv_shortcut"), x, conv)?;
    }
    b.plan.add(shortcut, h, 1.0)
}
