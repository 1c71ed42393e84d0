//! Ops on elements, rows and embeddings.
//!
//! Outputs stand first, then inputs, as tensors of any shape with the right number of elements.

use super::{DeviceTensor, Kernels, Output};
use crate::error::Result;
use crate::ops::{Op, axis_map, broadcast, cast, concat, dropout, embedding, pack, pointwise};

impl Kernels {
    /// `y = f(x)`; shapes: [`Activate`](pointwise::Activate).
    pub fn activate_forward(
        &self,
        op: &pointwise::Activate,
        y: Output,
        x: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Activate(*op), vec![Some(y)], &[Some(x)])
    }

    /// `d_x = f'(x) d_y`; shapes: [`Activate`](pointwise::Activate).
    pub fn activate_backward(
        &self,
        op: &pointwise::Activate,
        d_x: Output,
        x: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::ActivateBackward(*op), vec![Some(d_x)], &[Some(x), Some(d_y)])
    }

    /// `y = (a + b) scale`; shapes: [`Add`](pointwise::Add).
    pub fn add(
        &self,
        op: &pointwise::Add,
        y: Output,
        a: &DeviceTensor,
        b: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Add(*op), vec![Some(y)], &[Some(a), Some(b)])
    }

    /// `y = x scale + offset`; shapes: [`Scale`](pointwise::Scale).
    pub fn scale(&self, op: &pointwise::Scale, y: Output, x: &DeviceTensor) -> Result<()> {
        self.launch(Op::Scale(*op), vec![Some(y)], &[Some(x)])
    }

    /// One factor an image; shapes: [`ScaleRows`](pointwise::ScaleRows).
    pub fn scale_rows(
        &self,
        op: &pointwise::ScaleRows,
        y: Output,
        x: &DeviceTensor,
        s: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::ScaleRows(*op), vec![Some(y)], &[Some(x), Some(s)])
    }

    /// One vector an image, added to every position; shapes: [`PerImage`](broadcast::PerImage).
    pub fn add_per_image(
        &self,
        op: &broadcast::PerImage,
        y: Output,
        x: &DeviceTensor,
        e: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::AddPerImage(*op), vec![Some(y)], &[Some(x), Some(e)])
    }

    /// One vector an image, times every position; shapes: [`PerImage`](broadcast::PerImage).
    pub fn scale_per_image(
        &self,
        op: &broadcast::PerImage,
        y: Output,
        x: &DeviceTensor,
        e: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::ScalePerImage(*op), vec![Some(y)], &[Some(x), Some(e)])
    }

    /// Sum over an image's positions, of products with x where it is given; shapes: [`PerImage`](broadcast::PerImage).
    pub fn sum_per_image(
        &self,
        op: &broadcast::PerImage,
        d_e: Output,
        d_y: &DeviceTensor,
        x: Option<&DeviceTensor>,
    ) -> Result<()> {
        self.launch(Op::SumPerImage(*op), vec![Some(d_e)], &[Some(d_y), x])
    }

    /// a and b side by side along channels; shapes: [`Concat`](concat::Concat).
    pub fn concat_forward(
        &self,
        op: &concat::Concat,
        y: Output,
        a: &DeviceTensor,
        b: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Concat(*op), vec![Some(y)], &[Some(a), Some(b)])
    }

    /// The two parts of a concatenation's gradient; shapes: [`Concat`](concat::Concat).
    pub fn concat_backward(
        &self,
        op: &concat::Concat,
        d_a: Option<Output>,
        d_b: Option<Output>,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::ConcatBackward(*op), vec![d_a, d_b], &[Some(d_y)])
    }

    /// Dropout by the keys' mask; shapes: [`Dropout`](dropout::Dropout).
    pub fn dropout_forward(
        &self,
        op: &dropout::Dropout,
        y: Output,
        x: &DeviceTensor,
        keys: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Dropout(*op), vec![Some(y)], &[Some(x), Some(keys)])
    }

    /// Gradient of dropout, by the same mask; shapes: [`Dropout`](dropout::Dropout).
    pub fn dropout_backward(
        &self,
        op: &dropout::Dropout,
        d_x: Output,
        d_y: &DeviceTensor,
        keys: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::DropoutBackward(*op), vec![Some(d_x)], &[Some(d_y), Some(keys)])
    }

    /// Between f32 and bf16; shapes: [`Cast`](cast::Cast).
    pub fn cast(&self, op: &cast::Cast, y: Output, x: &DeviceTensor) -> Result<()> {
        self.launch(Op::Cast(*op), vec![Some(y)], &[Some(x)])
    }

    /// A matrix along one axis; shapes: [`AxisMap`](axis_map::AxisMap).
    pub fn axis_map(
        &self,
        op: &axis_map::AxisMap,
        y: Output,
        x: &DeviceTensor,
        matrix: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::AxisMap(*op), vec![Some(y)], &[Some(x), Some(matrix)])
    }

    /// Sines and cosines of a time; shapes: [`Sinusoidal`](embedding::Sinusoidal).
    pub fn sinusoidal_embedding(
        &self,
        op: &embedding::Sinusoidal,
        y: Output,
        t: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::SinusoidalEmbedding(*op), vec![Some(y)], &[Some(t)])
    }

    /// Random Fourier features of a time; shapes: [`Fourier`](embedding::Fourier).
    pub fn fourier_embedding(
        &self,
        op: &embedding::Fourier,
        y: Output,
        t: &DeviceTensor,
        w: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::FourierEmbedding(*op), vec![Some(y)], &[Some(t), Some(w)])
    }

    /// Rows of a table; shapes: [`Lookup`](embedding::Lookup).
    pub fn lookup_forward(
        &self,
        op: &embedding::Lookup,
        y: Output,
        table: &DeviceTensor,
        index: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::Lookup(*op), vec![Some(y)], &[Some(table), Some(index)])
    }

    /// Gradient of a lookup by its table; shapes: [`Lookup`](embedding::Lookup).
    pub fn lookup_backward(
        &self,
        op: &embedding::Lookup,
        d_table: Output,
        index: &DeviceTensor,
        d_y: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::LookupBackward(*op), vec![Some(d_table)], &[Some(index), Some(d_y)])
    }

    /// A weight in the order of the CPU's panels, which CUDA has no use and no kernel for: an error here; shapes: [`PackWeight`](pack::PackWeight).
    pub fn pack_weight(
        &self,
        op: &pack::PackWeight,
        packed: Output,
        weight: &DeviceTensor,
    ) -> Result<()> {
        self.launch(Op::PackWeight(*op), vec![Some(packed)], &[Some(weight)])
    }
}
