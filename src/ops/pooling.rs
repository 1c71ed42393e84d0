//! Pooling over windows that may overlap and reach past the image: the largest or
//! the mean value of the window's pixels inside the image.
//!
//! `y[n,oy,ox,c] = max | mean of x[n, oy s - p + ky, ox s - p + kx, c]`, ky and kx
//! in 0..kernel, inside alone (PyTorch's `count_include_pad=False`). The gradient
//! of a maximum goes to its first pixel, row by row.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// What a window becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reduction {
    Max,
    Mean,
}

/// Descriptor. `Pooling`: input x `[n,h,w,c]`; output y `[n,oh,ow,c]`.
/// `PoolingBackward`: inputs x, d_y; output d_x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pooling {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub kernel: [usize; 2],
    pub stride: usize,
    /// Positions outside on every side, fewer than the kernel has.
    pub padding: usize,
    pub reduction: Reduction,
}

impl Pooling {
    /// Whether every window has a pixel inside the image: it is larger than the padding.
    pub fn fits(&self) -> bool {
        let axis = |len: usize, k: usize| self.padding < k && k <= len + 2 * self.padding;
        self.stride > 0 && axis(self.h, self.kernel[0]) && axis(self.w, self.kernel[1])
    }

    /// Height and width of the output.
    pub fn output_size(&self) -> [usize; 2] {
        let axis = |len: usize, kernel: usize| (len + 2 * self.padding - kernel) / self.stride + 1;
        [axis(self.h, self.kernel[0]), axis(self.w, self.kernel[1])]
    }

    /// Positions inside the image of the window of output `o` along an axis.
    pub fn window(&self, axis: usize, o: usize) -> std::ops::Range<usize> {
        let (len, from) = ([self.h, self.w][axis], o * self.stride);
        from.saturating_sub(self.padding)..(from + self.kernel[axis] - self.padding).min(len)
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        d.push(Op::PoolingBackward(*self), &[node.inputs[0], Some(d_y)], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Pools windows of `kernel` of an image tensor `[n,h,w,c]`; see [`Pooling`].
    pub fn pooling(
        &mut self,
        x: TensorId,
        kernel: [usize; 2],
        stride: usize,
        padding: usize,
        reduction: Reduction,
    ) -> Result<TensorId> {
        let [n, h, w, c] = self.image_shape("pooling", x)?;
        let op = Pooling { n, h, w, c, kernel, stride, padding, reduction };
        if !op.fits() {
            return Err(Error::Shape {
                op: "pooling",
                tensor: self.tensor(x).name.clone(),
                expected: format!(
                    "an image of at least {kernel:?} with {padding} around it, padding narrower \
                     than the kernel and a stride"
                ),
                found: vec![n, h, w, c],
            });
        }
        let [oh, ow] = op.output_size();
        let y = self.transient(self.derived_name(x, "pooled"), &[n, oh, ow, c]);
        self.push_forward(Op::Pooling(op), &[Some(x)], &[y]);
        Ok(y)
    }
}
