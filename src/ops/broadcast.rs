//! One vector an image, added to every position or multiplied with it: the time embedding's
//! way in, and the gates of adaLN-Zero (Peebles & Xie 2023).

use super::Op;
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor.
/// - `AddPerImage`: inputs x `[n, spatial, c]`, e `[n, c]`; output
///   `y[n,s,c] = x[n,s,c] + e[n,c]`.
/// - `ScalePerImage`: the same with `y[n,s,c] = x[n,s,c] e[n,c]`.
/// - `SumPerImage`: inputs d_y `[n, spatial, c]`, x (optional, as d_y); output
///   `d_e[n,c] = sum_s d_y[n,s,c] x[n,s,c]`, without x `sum_s d_y[n,s,c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PerImage {
    pub n: usize,
    pub spatial: usize,
    pub channels: usize,
}

impl PerImage {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_e = d.d_input(node, 1);
        d.push(Op::SumPerImage(*self), &[Some(d_y)], &[d_e]);
        let d_x = d.d_input(node, 0);
        let len = self.n * self.spatial * self.channels;
        let copy = super::pointwise::Scale { len, scale: 1.0, offset: 0.0 };
        d.push(Op::Scale(copy), &[Some(d_y)], &[d_x]);
        Ok(())
    }

    pub(super) fn backward_of_scale(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_e = d.d_input(node, 1);
        d.push(Op::SumPerImage(*self), &[Some(d_y), node.inputs[0]], &[d_e]);
        let d_x = d.d_input(node, 0);
        d.push(Op::ScalePerImage(*self), &[Some(d_y), node.inputs[1]], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Adds e `[n, c]` to every position of x `[n, ..., c]`.
    pub fn add_per_image(&mut self, x: TensorId, e: TensorId) -> Result<TensorId> {
        self.per_image(Op::AddPerImage, "add_per_image", x, e)
    }

    /// Multiplies every position of x `[n, ..., c]` with e `[n, c]`.
    pub fn scale_per_image(&mut self, x: TensorId, e: TensorId) -> Result<TensorId> {
        self.per_image(Op::ScalePerImage, "scale_per_image", x, e)
    }

    fn per_image(
        &mut self,
        op: fn(PerImage) -> Op,
        name: &'static str,
        x: TensorId,
        e: TensorId,
    ) -> Result<TensorId> {
        let shape = self.shape(x).to_vec();
        let (n, channels) = (shape[0], *shape.last().expect("input has axes"));
        self.expect_shape(name, e, &[n, channels])?;
        let spatial = shape[1..shape.len() - 1].iter().product();
        let y = self.transient(self.derived_name(x, "embedded"), &shape);
        self.push_forward(op(PerImage { n, spatial, channels }), &[Some(x), Some(e)], &[y]);
        Ok(y)
    }
}
