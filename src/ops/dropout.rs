//! Dropout with counter-based randomness: the mask is regenerated in the
//! backward pass from the keys, never stored (Srivastava et al. 2014).

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// `y = x (1 / (1 - p))` where the element is kept, else 0. The element is kept when
/// its Philox word of purpose [`Purpose::Dropout`](crate::random::Purpose) and
/// draw `layer` is at least `p * 2^32`.
/// - `Dropout`: inputs x `[n, ...]`, keys `[n, 4]` (u32); output y.
/// - `DropoutBackward`: inputs d_y, keys; output d_x.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Dropout {
    pub n: usize,
    /// Elements of one image.
    pub len: usize,
    pub p: f32,
    /// Which dropout layer of the network: the draw of the counter.
    pub layer: u32,
}

impl Dropout {
    /// Smallest word that keeps its element: `p 2^32`.
    pub fn threshold(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0) as u32
    }

    /// Factor of kept elements.
    pub fn scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        d.push(Op::DropoutBackward(*self), &[Some(d_y), node.inputs[1]], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Dropout with probability `p` in [0, 1); see [`Dropout`].
    pub fn dropout(&mut self, x: TensorId, keys: TensorId, p: f32, layer: u32) -> Result<TensorId> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::config("dropout", format!("{p} is not a probability below 1")));
        }
        let shape = self.shape(x).to_vec();
        let n = shape[0];
        self.expect_shape("dropout", keys, &[n, 4])?;
        let op = Dropout { n, len: shape[1..].iter().product(), p, layer };
        let y = self.transient(self.derived_name(x, "dropout"), &shape);
        self.push_forward(Op::Dropout(op), &[Some(x), Some(keys)], &[y]);
        Ok(y)
    }
}
