//! Two-dimensional convolution, NHWC.
//!
//! `y[n,oy,ox,co] = bias[co] + sum_{ky,kx,ci} w[co,ky,kx,ci] x[n, oy*sy - top + ky*dy, ox*sx - left + kx*dx, g(co)*ci_g + ci]`,
//! zero outside the image.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Zero rows and columns around an image; each side has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Padding {
    pub top: usize,
    pub left: usize,
    pub bottom: usize,
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub fn same(p: usize) -> Self {
        Padding { top: p, left: p, bottom: p, right: p }
    }
}

/// What a convolution does, apart from its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ConvOptions {
    pub stride: [usize; 2],
    pub padding: Padding,
    pub dilation: [usize; 2],
    pub groups: usize,
}

impl Default for ConvOptions {
    fn default() -> Self {
        ConvOptions { stride: [1, 1], padding: Padding::default(), dilation: [1, 1], groups: 1 }
    }
}

/// Input position of `Conv2d` and `Linear` at which lowering puts what is added to
/// each image's result, `[n, c_out]`.
pub const PER_IMAGE: usize = 4;

/// The same for a tensor with the shape of the result.
pub const RESIDUAL: usize = 5;

/// Input position of `Conv2d` and `Conv2dBackwardWeight` at which lowering puts a second
/// tensor, whose channels follow those of x.
pub const SECOND: usize = 6;

/// Descriptor of a convolution. The same value describes its three passes:
/// - `Conv2d`: inputs x `[n,h,w,c_in]`, weight `[c_out,kh,kw,c_in/groups]`,
///   bias `[c_out]` (optional); output y `[n,oh,ow,c_out]`.
/// - `Conv2dBackwardData`: inputs d_y, weight; output d_x.
/// - `Conv2dBackwardWeight`: inputs x, d_y; outputs d_weight, d_bias.
///
/// A backend's lowering may add inputs: to `Conv2d` what is added to its result, in
/// this order: [`PER_IMAGE`], [`RESIDUAL`]. For the CPU also the packed weight
/// (position 3 of `Conv2d`, 2 of `Conv2dBackwardData`). For CUDA an x of fewer pixels,
/// which is enlarged as it is read, and [`SECOND`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Conv2d {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: [usize; 2],
    pub options: ConvOptions,
}

impl Conv2d {
    /// Height and width of the output.
    pub fn output_size(&self) -> [usize; 2] {
        let o = &self.options;
        let reach =
            [o.dilation[0] * (self.kernel[0] - 1) + 1, o.dilation[1] * (self.kernel[1] - 1) + 1];
        [
            (self.h + o.padding.top + o.padding.bottom - reach[0]) / o.stride[0] + 1,
            (self.w + o.padding.left + o.padding.right - reach[1]) / o.stride[1] + 1,
        ]
    }
    /// Elements of the input.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }
    /// Elements of the output.
    pub fn y_len(&self) -> usize {
        let [oh, ow] = self.output_size();
        self.n * oh * ow * self.c_out
    }
    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.kernel[0] * self.kernel[1] * (self.c_in / self.options.groups)
    }
    /// Floating-point operations of one pass.
    pub fn flops(&self) -> u64 {
        let taps = self.kernel[0] * self.kernel[1] * (self.c_in / self.options.groups);
        2 * self.y_len() as u64 * taps as u64
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let (d_weight, d_bias) = (d.d_input(node, 1), d.d_input(node, 2));
        d.push(
            Op::Conv2dBackwardWeight(*self),
            &[Some(node.input(0)), Some(d_y)],
            &[d_weight, d_bias],
        );
        let d_x = d.d_input(node, 0);
        d.push(Op::Conv2dBackwardData(*self), &[Some(d_y), Some(node.input(1))], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Convolves x `[n,h,w,c_in]` with weight `[c_out,kh,kw,c_in/groups]`.
    pub fn conv2d(
        &mut self,
        x: TensorId,
        weight: TensorId,
        bias: Option<TensorId>,
        options: ConvOptions,
    ) -> Result<TensorId> {
        let [n, h, w, c_in] = self.image_shape("conv2d", x)?;
        let [c_out, kh, kw, c_group] = self.image_shape("conv2d", weight)?;
        let o = &options;
        if o.groups == 0 || [o.stride, o.dilation].as_flattened().contains(&0) || kh * kw == 0 {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: self.tensor(weight).name.clone(),
                expected: "at least one tap, and stride, dilation and groups of at least 1".into(),
                found: self.shape(weight).to_vec(),
            });
        }
        if c_group * options.groups != c_in || !c_out.is_multiple_of(options.groups) {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: self.tensor(weight).name.clone(),
                expected: format!("[_, _, _, {c_in}/{} groups]", options.groups),
                found: self.shape(weight).to_vec(),
            });
        }
        if let Some(b) = bias {
            self.expect_shape("conv2d", b, &[c_out])?;
        }
        let op = Conv2d { n, h, w, c_in, c_out, kernel: [kh, kw], options };
        let p = options.padding;
        let reach = [options.dilation[0] * (kh - 1) + 1, options.dilation[1] * (kw - 1) + 1];
        if h + p.top + p.bottom < reach[0] || w + p.left + p.right < reach[1] {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: self.tensor(x).name.clone(),
                expected: format!("an image of at least {reach:?} with its padding"),
                found: vec![n, h, w, c_in],
            });
        }
        let [oh, ow] = op.output_size();
        let y = self.transient(self.derived_name(weight, "y"), &[n, oh, ow, c_out]);
        self.push_forward(Op::Conv2d(op), &[Some(x), Some(weight), bias], &[y]);
        Ok(y)
    }
}
