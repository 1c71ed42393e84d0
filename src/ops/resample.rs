//! Parameter-free up- and downsampling: nearest neighbour, average pooling, and
//! the FIR filters of StyleGAN2 / NCSN++ (up-sample, filter, down-sample).

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// How an image changes size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Every pixel repeated `factor` times in both directions.
    Nearest {
        /// Enlargement.
        factor: usize,
    },
    /// Mean over disjoint `factor` x `factor` squares; a remainder at the right
    /// and bottom is dropped.
    AveragePool {
        /// Reduction.
        factor: usize,
    },
    /// Zeros inserted between pixels (`up`), padding `pad[0]` before and
    /// `pad[1]` after on both axes, correlation with the flipped separable
    /// kernel `taps x taps`, every `down`-th pixel kept. `taps` includes gain.
    Fir {
        /// Enlargement before the filter.
        up: usize,
        /// Reduction after it.
        down: usize,
        /// Positions before and after each axis, counted after `up`.
        pad: [usize; 2],
        /// What lies there.
        edge: Edge,
        /// The filter along one axis.
        taps: [f32; 4],
    },
}

/// What a filter sees outside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Zeros.
    Zero,
    /// The image mirrored at its outermost pixels: pixel -1 is pixel 1, pixel h
    /// is pixel h - 2. Mirrored before zeros are inserted, so that position
    /// `p` outside is pixel `p / up` where `up` divides p and zero elsewhere.
    Reflect,
}

/// Descriptor. `Resample`: input x `[n,h,w,c]`; output y.
/// `ResampleBackward`: input d_y; output d_x.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Resample {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub method: Method,
}

impl Resample {
    /// Whether the image is large enough for the method, and the method has a meaning.
    pub fn fits(&self) -> bool {
        let side = self.h.min(self.w);
        match self.method {
            Method::Nearest { factor } => factor > 0,
            Method::AveragePool { factor } => factor > 0 && side >= factor,
            Method::Fir { up, down, pad, edge, taps } => {
                up > 0
                    && down > 0
                    && side * up + pad[0] + pad[1] >= taps.len()
                    && (edge == Edge::Zero || side > (pad[0] / up).max(pad[1].div_ceil(up)))
            }
        }
    }

    /// Height and width of the output.
    pub fn output_size(&self) -> [usize; 2] {
        [self.h, self.w].map(|s| match self.method {
            Method::Nearest { factor } => s * factor,
            Method::AveragePool { factor } => s / factor,
            Method::Fir { up, down, pad, taps, .. } => {
                (s * up + pad[0] + pad[1] - taps.len()) / down + 1
            }
        })
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        d.push(Op::ResampleBackward(*self), &[Some(d_y)], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Resamples an image tensor `[n,h,w,c]`.
    pub fn resample(&mut self, x: TensorId, method: Method) -> Result<TensorId> {
        let [n, h, w, c] = self.image_shape("resample", x)?;
        let op = Resample { n, h, w, c, method };
        if !op.fits() {
            return Err(Error::Shape {
                op: "resample",
                tensor: self.tensor(x).name.clone(),
                expected: format!("an image large enough for {method:?}"),
                found: vec![n, h, w, c],
            });
        }
        let [oh, ow] = op.output_size();
        let y = self.transient(self.derived_name(x, "resampled"), &[n, oh, ow, c]);
        self.push_forward(Op::Resample(op), &[Some(x)], &[y]);
        Ok(y)
    }
}
