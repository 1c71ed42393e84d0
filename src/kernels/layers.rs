//! Convolutions, linear layers, norms, attention, pooling, resampling.
//!
//! Outputs stand first, then inputs, as tensors of any shape with the right number of elements.

use super::{DeviceTensor, Kernels, Output};
use crate::error::Result;
use crate::ops::{Op, attention, conv2d, linear, norm, pooling, resample};

impl Kernels {
    /// `y = conv2d(x, weight) + bias`; shapes: [`Conv2d`](conv2d::Conv2d).
    pub fn conv2d_forward(
        &self,
        op: &conv2d::Conv2d,
        y: Output,
        x: &DeviceTensor,
        weight: &DeviceTensor,
        bias: Option<&DeviceTensor>,
    ) -> Result<()> {
        self.launch(Op::Conv2d(*op), vec![Some(y)], &[Some(x), Some(weight), bias])
    }

    /// Gradient of a convolution by x; shapes: [`Conv2d`](conv2d::Conv2d).
    pub fn conv2d_backward_data(
        &self,
        op: &conv2d::Conv2d,
        d_x: Output,
        d_y: &DeviceTensor,
        weight: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Conv2dBackwardData(*op), vec![Some(d_x)], &[Some(d_y), Some(weight)])
    }

    /// Gradients of a convolution by weight and bias; shapes: [`Conv2d`](conv2d::Conv2d).
    pub fn conv2d_backward_weight(
        &self,
        op: &conv2d::Conv2d,
        d_weight: Option<Output>,
        d_bias: Option<Output>,
        x: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Conv2dBackwardWeight(*op), vec![d_weight, d_bias], &[Some(x), Some(d_y)])
    }

    /// `y = x weight^T + bias`; shapes: [`Linear`](linear::Linear).
    pub fn linear_forward(
        &self,
        op: &linear::Linear,
        y: Output,
        x: &DeviceTensor,
        weight: &DeviceTensor,
        bias: Option<&DeviceTensor>,
    ) -> Result<()> {
        self.launch(Op::Linear(*op), vec![Some(y)], &[Some(x), Some(weight), bias])
    }

    /// Gradient of a linear layer by x; shapes: [`Linear`](linear::Linear).
    pub fn linear_backward_data(
        &self,
        op: &linear::Linear,
        d_x: Output,
        d_y: &DeviceTensor,
        weight: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::LinearBackwardData(*op), vec![Some(d_x)], &[Some(d_y), Some(weight)])
    }

    /// Gradients of a linear layer by weight and bias; shapes: [`Linear`](linear::Linear).
    pub fn linear_backward_weight(
        &self,
        op: &linear::Linear,
        d_weight: Option<Output>,
        d_bias: Option<Output>,
        x: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::LinearBackwardWeight(*op), vec![d_weight, d_bias], &[Some(x), Some(d_y)])
    }

    /// Linear layers over the same rows, each with its weight and perhaps a bias; shapes: [`LinearGroup`](linear::LinearGroup).
    pub fn linear_group_forward(
        &self,
        op: &linear::LinearGroup,
        ys: &mut [DeviceTensor],
        x: &DeviceTensor,
        layers: &[(&DeviceTensor, Option<&DeviceTensor>)],
    ) -> Result<()> {
        let op = linear::LinearGroup { pass: linear::GroupPass::Forward, ..op.clone() };
        let outputs = ys.iter_mut().map(|y| Some(Output::write(y))).collect();
        let layers = layers.iter().flat_map(|&(weight, bias)| [Some(weight), bias]);
        let inputs: Vec<_> = [Some(x)].into_iter().chain(layers).collect();
        self.launch(Op::LinearGroup(op), outputs, &inputs)
    }

    /// The sum of their gradients by x, from d_y and weight of each; shapes: [`LinearGroup`](linear::LinearGroup).
    pub fn linear_group_backward_data(
        &self,
        op: &linear::LinearGroup,
        d_x: Output,
        layers: &[(&DeviceTensor, &DeviceTensor)],
    ) -> Result<()> {
        let op = linear::LinearGroup { pass: linear::GroupPass::BackwardData, ..op.clone() };
        let inputs: Vec<_> = layers.iter().flat_map(|&(d_y, w)| [Some(d_y), Some(w)]).collect();
        self.launch(Op::LinearGroup(op), vec![Some(d_x)], &inputs)
    }

    /// Their gradients by weights and biases, in pairs; shapes: [`LinearGroup`](linear::LinearGroup).
    pub fn linear_group_backward_weight(
        &self,
        op: &linear::LinearGroup,
        gradients: Vec<Option<Output>>,
        x: &DeviceTensor,
        d_ys: &[&DeviceTensor],
    ) -> Result<()> {
        let op = linear::LinearGroup { pass: linear::GroupPass::BackwardWeight, ..op.clone() };
        let d_ys = d_ys.iter().copied().map(Some);
        let inputs: Vec<_> = [Some(x)].into_iter().chain(d_ys).collect();
        self.launch(Op::LinearGroup(op), gradients, &inputs)
    }

    /// Group or layer norm with its activation; mean and rstd are what the gradient needs; shapes: [`Norm`](norm::Norm).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn norm_forward(
        &self,
        op: &norm::Norm,
        y: Output,
        mean: Output,
        rstd: Output,
        x: &DeviceTensor,
        gamma: Option<&DeviceTensor>,
        beta: Option<&DeviceTensor>,
        scale_shift: Option<&DeviceTensor>,
    ) -> Result<()> {
        self.launch(
            Op::Norm(*op),
            vec![Some(y), Some(mean), Some(rstd)],
            &[Some(x), gamma, beta, scale_shift],
        )
    }

    /// Gradients of a norm; shapes: [`Norm`](norm::Norm).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn norm_backward(
        &self,
        op: &norm::Norm,
        d_x: Option<Output>,
        d_gamma: Option<Output>,
        d_beta: Option<Output>,
        d_scale_shift: Option<Output>,
        x: &DeviceTensor,
        gamma: Option<&DeviceTensor>,
        beta: Option<&DeviceTensor>,
        scale_shift: Option<&DeviceTensor>,
        mean: &DeviceTensor,
        rstd: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::NormBackward(*op),
            vec![d_x, d_gamma, d_beta, d_scale_shift],
            &[Some(x), gamma, beta, scale_shift, Some(mean), Some(rstd), Some(d_y)],
        )
    }

    /// `o = softmax(scale q k^T) v`; lse is what the gradient needs; shapes: [`Attention`](attention::Attention).
    pub fn attention_forward(
        &self,
        op: &attention::Attention,
        o: Output,
        lse: Output,
        q: &DeviceTensor,
        k: &DeviceTensor,
        v: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Attention(*op), vec![Some(o), Some(lse)], &[Some(q), Some(k), Some(v)])
    }

    /// Gradients of attention; shapes: [`Attention`](attention::Attention).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn attention_backward(
        &self,
        op: &attention::Attention,
        d_q: Option<Output>,
        d_k: Option<Output>,
        d_v: Option<Output>,
        q: &DeviceTensor,
        k: &DeviceTensor,
        v: &DeviceTensor,
        o: &DeviceTensor,
        lse: &DeviceTensor,
        d_o: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::AttentionBackward(*op),
            vec![d_q, d_k, d_v],
            &[Some(q), Some(k), Some(v), Some(o), Some(lse), Some(d_o)],
        )
    }

    /// Largest or mean value of windows; shapes: [`Pooling`](pooling::Pooling).
    pub fn pooling_forward(
        &self,
        op: &pooling::Pooling,
        y: Output,
        x: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Pooling(*op), vec![Some(y)], &[Some(x)])
    }

    /// Gradient of pooling; shapes: [`Pooling`](pooling::Pooling).
    pub fn pooling_backward(
        &self,
        op: &pooling::Pooling,
        d_x: Output,
        x: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::PoolingBackward(*op), vec![Some(d_x)], &[Some(x), Some(d_y)])
    }

    /// Nearest-neighbour enlargement, averaging or a filter; shapes: [`Resample`](resample::Resample).
    pub fn resample_forward(
        &self,
        op: &resample::Resample,
        y: Output,
        x: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Resample(*op), vec![Some(y)], &[Some(x)])
    }

    /// Gradient of resampling; shapes: [`Resample`](resample::Resample).
    pub fn resample_backward(
        &self,
        op: &resample::Resample,
        d_x: Output,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::ResampleBackward(*op), vec![Some(d_x)], &[Some(d_y)])
    }
}
