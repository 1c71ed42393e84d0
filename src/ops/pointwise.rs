//! Elementwise ops: activations, scaled sums, scaling.

use super::Op;
use crate::error::Result;
use crate::plan::{Deriver, Mode, Node, Plan, TensorId, Write};

/// A nonlinearity; the names diffusers accepts as `act_fn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x * sigmoid(x); `silu` and `swish`.
    Silu,
    /// x * Phi(x), exact (erf); `gelu`.
    Gelu,
    /// The tanh approximation of GELU; `gelu-approximate`.
    GeluTanh,
    /// max(x, 0); `relu`.
    Relu,
    /// x * tanh(softplus(x)); `mish`.
    Mish,
}

/// `y = f(x)`. `Activate`: input x; output y. `ActivateBackward`: inputs x,
/// d_y; output d_x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Activate {
    pub len: usize,
    pub activation: Activation,
}

/// `y = (a + b) * scale`. Inputs a, b; output y.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Add {
    pub len: usize,
    pub scale: f32,
}

/// `y = x * scale + offset`. Input x; output y.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Scale {
    pub len: usize,
    pub scale: f32,
    pub offset: f32,
}

/// `y[n, e] = x[n, e] * s[n, column]`: one factor an image. Inputs x, s
/// `[n, columns]`; output y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ScaleRows {
    pub n: usize,
    /// Elements of one image.
    pub len: usize,
    pub columns: usize,
    pub column: usize,
    /// Divide instead of multiply.
    pub divide: bool,
}

impl Activate {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        d.push(Op::ActivateBackward(*self), &[node.inputs[0], Some(d_y)], &[d_x]);
        Ok(())
    }
}

impl Add {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        for i in 0..2 {
            let d_x = d.d_input(node, i);
            let op = Scale { len: self.len, scale: self.scale, offset: 0.0 };
            d.push(Op::Scale(op), &[Some(d_y)], &[d_x]);
        }
        Ok(())
    }
}

impl Scale {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        let op = Scale { len: self.len, scale: self.scale, offset: 0.0 };
        d.push(Op::Scale(op), &[Some(d_y)], &[d_x]);
        Ok(())
    }
}

impl ScaleRows {
    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_x = d.d_input(node, 0);
        d.push(Op::ScaleRows(*self), &[Some(d_y), node.inputs[1]], &[d_x]);
        Ok(())
    }
}

impl Plan {
    /// Applies a nonlinearity elementwise.
    pub fn activate(&mut self, x: TensorId, activation: Activation) -> TensorId {
        let shape = self.shape(x).to_vec();
        let op = Activate { len: self.tensor(x).len(), activation };
        let y = self.transient(self.derived_name(x, "activated"), &shape);
        self.push_forward(Op::Activate(op), &[Some(x)], &[y]);
        y
    }

    /// `(a + b) * scale`, same shapes.
    pub fn add(&mut self, a: TensorId, b: TensorId, scale: f32) -> Result<TensorId> {
        let shape = self.shape(a).to_vec();
        self.expect_shape("add", b, &shape)?;
        let op = Add { len: self.tensor(a).len(), scale };
        let y = self.transient(self.derived_name(a, "sum"), &shape);
        self.push_forward(Op::Add(op), &[Some(a), Some(b)], &[y]);
        Ok(y)
    }

    /// `x * scale + offset`.
    pub fn scale(&mut self, x: TensorId, scale: f32, offset: f32) -> TensorId {
        let shape = self.shape(x).to_vec();
        let op = Scale { len: self.tensor(x).len(), scale, offset };
        let y = self.transient(self.derived_name(x, "scaled"), &shape);
        self.push_forward(Op::Scale(op), &[Some(x)], &[y]);
        y
    }

    /// Multiplies (or divides) image i of x `[n, ...]` by column `column` of s
    /// `[n, columns]`, or by element i of s `[n]`.
    pub fn scale_rows(
        &mut self,
        x: TensorId,
        s: TensorId,
        column: usize,
        divide: bool,
    ) -> Result<TensorId> {
        let shape = self.shape(x).to_vec();
        let n = shape[0];
        let columns = self.tensor(s).len() / n.max(1);
        if self.shape(s) != [n] {
            self.expect_shape("scale_rows", s, &[n, columns])?;
        }
        let op = ScaleRows { n, len: shape[1..].iter().product(), columns, column, divide };
        let y = self.transient(self.derived_name(x, "scaled"), &shape);
        self.push_forward(Op::ScaleRows(op), &[Some(x), Some(s)], &[y]);
        Ok(y)
    }

    /// Copies (or adds) `scale * from` into an existing tensor.
    pub fn scale_into(&mut self, from: TensorId, scale: f32, into: TensorId, mode: Mode) {
        let op = Scale { len: self.tensor(from).len(), scale, offset: 0.0 };
        let outputs = vec![Some(Write { tensor: into, mode })];
        self.push(Op::Scale(op), vec![Some(from)], outputs);
    }
}
