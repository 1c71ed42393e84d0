//! Self-attention over the positions of an image (diffusers' Attention with a
//! residual connection).
//!
//! `y = (x + to_out(attention(to_q(u), to_k(u), to_v(u)))) * scale`, u the
//! group norm of x; the residual is x itself.

use super::builder::{Builder, Groups, Start};
use crate::error::{Error, Result};
use crate::plan::TensorId;

/// One attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBlock {
    /// Channels of a head; there are `channels / head_dim` heads, rounded down.
    pub head_dim: usize,
    /// Groups of the normalisation before it, if there is one.
    pub groups: Option<Groups>,
    /// The residual sum is multiplied by it.
    pub scale: f32,
}

impl AttentionBlock {
    /// Appends the layer.
    pub fn build(&self, b: &mut Builder, name: &str, x: TensorId) -> Result<TensorId> {
        let u = match self.groups {
            Some(groups) => b.group_norm(&format!("{name}.group_norm"), x, groups, None, None)?,
            None => x,
        };
        let h = self_attention(b, name, u, self.head_dim)?;
        b.plan.add(x, h, self.scale)
    }
}

/// Projections, attention and output projection of u `[n, h, w, c]`.
pub fn self_attention(
    b: &mut Builder,
    name: &str,
    u: TensorId,
    head_dim: usize,
) -> Result<TensorId> {
    let channels = b.channels(u);
    let heads = channels.checked_div(head_dim).unwrap_or(0);
    if heads == 0 {
        return Err(Error::config(
            "model.attention_head_dim",
            format!("`{name}` has {channels} channels, not enough for a head of {head_dim}"),
        ));
    }
    let inner = heads * head_dim;
    let mut project = |part: &str| b.linear(&format!("{name}.{part}"), u, inner, Start::Default);
    let (q, k, v) = (project("to_q")?, project("to_k")?, project("to_v")?);
    let o = b.plan.attention(q, k, v, heads, 1.0 / (head_dim as f32).sqrt())?;
    b.linear(&format!("{name}.to_out.0"), o, channels, Start::Zero)
}
