//! One vector an image, added to every position: the time embedding's way in.

use super::Op;
use crate::error::Result;
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor.
/// - `AddPerImage`: inputs x `[n, spatial, c]`, e `[n, c]`; output
///   `y[n,s,c] = x[n,s,c] + e[n,c]`.
/// - `SumPerImage`: input d_y `[n, spatial, c]`; output `d_e[n,c] = sum_s d_y[n,s,c]`.
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
}

impl Plan {
    /// Adds e `[n, c]` to every position of x `[n, ..., c]`.
    pub fn add_per_image(&mut self, x: TensorId, e: TensorId) -> Result<TensorId> {
        let shape = self.shape(x).to_vec();
        let (n, channels) = (shape[0], *shape.last().expect("input has axes"));
        self.expect_shape("add_per_image", e, &[n, channels])?;
        let spatial = shape[1..shape.len() - 1].iter().product();
        let y = self.transient(self.derived_name(x, "embedded"), &shape);
        let op = Op::AddPerImage(PerImage { n, spatial, channels });
        self.push_forward(op, &[Some(x), Some(e)], &[y]);
        Ok(y)
    }
}
