//! Noising, losses, the exact score of a data set, the optimizer.
//!
//! Outputs stand first, then inputs, as tensors of any shape with the right number of elements.

use super::{DeviceTensor, Kernels, Output};
use crate::error::Result;
use crate::ops::{Op, empirical, loss, noising, optimizer, variational};

/// What a batch is made of: clean images, or a set that `picks` chooses them from, one row of
/// coefficients an image, and the keys of its noise. Shapes: [`Noising`](noising::Noising).
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a> {
    /// x_0 of every image, or the set.
    pub images: &'a DeviceTensor,
    /// Signal, std and weights of every image.
    pub coefficients: &'a DeviceTensor,
    /// Absent where a loss reads no noise.
    pub keys: Option<&'a DeviceTensor>,
    /// Which image of the set, mirrored or not.
    pub picks: Option<&'a DeviceTensor>,
}

impl Kernels {
    /// `x_t = signal x_0 + std eps`, eps drawn from the keys; shapes: [`Noising`](noising::Noising).
    pub fn noising(
        &self,
        op: &noising::Noising,
        x_t: Output,
        x_0: Option<Output>,
        examples: Examples,
    ) -> Result<()> {
        let Examples { images, coefficients, keys, picks } = examples;
        let inputs = [Some(images), Some(coefficients), keys, picks];
        self.launch(Op::Noising(*op), vec![Some(x_t), x_0], &inputs)
    }

    /// Weighted squared error of every image; shapes: [`Loss`](loss::Loss).
    pub fn loss_forward(
        &self,
        op: &loss::Loss,
        loss: Output,
        prediction: &DeviceTensor,
        examples: Examples,
    ) -> Result<()> {
        let Examples { images, coefficients, keys, picks } = examples;
        let inputs = [Some(prediction), Some(images), Some(coefficients), keys, picks];
        self.launch(Op::Loss(*op), vec![Some(loss)], &inputs)
    }

    /// Gradient of the loss by the prediction; shapes: [`Loss`](loss::Loss).
    pub fn loss_backward(
        &self,
        op: &loss::Loss,
        d_prediction: Output,
        prediction: &DeviceTensor,
        examples: Examples,
    ) -> Result<()> {
        let Examples { images, coefficients, keys, picks } = examples;
        let inputs = [Some(prediction), Some(images), Some(coefficients), keys, picks];
        self.launch(Op::LossBackward(*op), vec![Some(d_prediction)], &inputs)
    }

    /// A term of the variational bound of every image; shapes: [`Variational`](variational::Variational).
    pub fn variational_forward(
        &self,
        op: &variational::Variational,
        loss: Output,
        prediction: &DeviceTensor,
        x_0: &DeviceTensor,
        coefficients: &DeviceTensor,
        keys: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::Variational(*op),
            vec![Some(loss)],
            &[Some(prediction), Some(x_0), Some(coefficients), Some(keys)],
        )
    }

    /// Gradient of such a term by the prediction; shapes: [`Variational`](variational::Variational).
    pub fn variational_backward(
        &self,
        op: &variational::Variational,
        d_prediction: Output,
        prediction: &DeviceTensor,
        x_0: &DeviceTensor,
        coefficients: &DeviceTensor,
        keys: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::VariationalBackward(*op),
            vec![Some(d_prediction)],
            &[Some(prediction), Some(x_0), Some(coefficients), Some(keys)],
        )
    }

    /// The optimal denoiser of a data set; shapes: [`Empirical`](empirical::Empirical).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn empirical_forward(
        &self,
        op: &empirical::Empirical,
        y: Output,
        log_sum: Output,
        x: &DeviceTensor,
        data: &DeviceTensor,
        std: &DeviceTensor,
        signal: Option<&DeviceTensor>,
    ) -> Result<()> {
        self.launch(
            Op::Empirical(*op),
            vec![Some(y), Some(log_sum)],
            &[Some(x), Some(data), Some(std), signal],
        )
    }

    /// Its gradient by x; shapes: [`Empirical`](empirical::Empirical).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn empirical_backward(
        &self,
        op: &empirical::Empirical,
        d_x: Output,
        x: &DeviceTensor,
        data: &DeviceTensor,
        std: &DeviceTensor,
        signal: Option<&DeviceTensor>,
        y: &DeviceTensor,
        log_sum: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::EmpiricalBackward(*op),
            vec![Some(d_x)],
            &[Some(x), Some(data), Some(std), signal, Some(y), Some(log_sum), Some(d_y)],
        )
    }

    /// Norm of the gradients; shapes: [`GlobalNorm`](optimizer::GlobalNorm).
    pub fn global_norm(
        &self,
        op: &optimizer::GlobalNorm,
        norm: Output,
        gradients: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::GlobalNorm(op.clone()), vec![Some(norm)], &[Some(gradients)])
    }

    /// AdamW and the average of the weights, in place; shapes: [`AdamW`](optimizer::AdamW).
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn adamw(
        &self,
        op: &optimizer::AdamW,
        parameters: Output,
        first_moments: Output,
        second_moments: Output,
        average: Output,
        halves: Option<Output>,
        gradients: &DeviceTensor,
        norm: &DeviceTensor,
        control: &DeviceTensor,
    ) -> Result<()> {
        self.launch(
            Op::AdamW(op.clone()),
            vec![
                Some(parameters),
                Some(first_moments),
                Some(second_moments),
                Some(average),
                halves,
            ],
            &[Some(gradients), Some(norm), Some(control)],
        )
    }
}
