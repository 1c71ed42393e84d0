//! Group and layer normalisation with fused affine map, scale-shift and activation.
//!
//! Over each domain, `xhat = (x - mean) / sqrt(var + eps)` (biased variance,
//! two passes), `u = xhat * gamma[c] + beta[c]`,
//! `v = u * (1 + scale[n,c]) + shift[n,c]`, `y = activation(v)`.
//! Group norm: Wu & He 2018; layer norm: Ba et al. 2016; scale-shift: Dhariwal
//! & Nichol 2021 ("adaptive group norm"), and DiT's adaLN.

use super::Op;
use super::pointwise::Activation;
use crate::error::{Error, Result};
use crate::plan::{DType, Deriver, Node, Plan, Role, TensorId};

/// Over what mean and variance are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// One image, one group of `channels / groups` channels, all positions.
    Group(usize),
    /// One image, one position, all channels.
    Layer,
}

/// Descriptor of a normalisation of x `[n, spatial..., channels]`.
/// - `Norm`: inputs x, gamma `[c]`?, beta `[c]`?, scale_shift `[n, 2c]`?
///   (scale first); outputs y, mean, rstd (`[n, groups]` or `[n, spatial]`).
/// - `NormBackward`: inputs x, gamma?, beta?, scale_shift?, mean, rstd, d_y;
///   outputs d_x, d_gamma, d_beta, d_scale_shift.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Norm {
    pub n: usize,
    /// Positions of one image: h * w, or tokens.
    pub spatial: usize,
    pub channels: usize,
    pub domain: Domain,
    pub eps: f32,
    pub activation: Option<Activation>,
}

impl Norm {
    /// Number of domains of one image.
    pub fn domains(&self) -> usize {
        match self.domain {
            Domain::Group(groups) => groups,
            Domain::Layer => self.spatial,
        }
    }

    /// Whether kernels of bf16 take it: their sums of every channel of a group lie in
    /// shared memory, and a layer norm reads 8 channels at a time.
    pub(crate) fn has_half_form(&self) -> bool {
        let whole = self.domain != Domain::Layer || self.channels.is_multiple_of(8);
        whole && self.channels <= 2048
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let outputs =
            [d.d_input(node, 0), d.d_input(node, 1), d.d_input(node, 2), d.d_input(node, 3)];
        let inputs = [
            node.inputs[0],
            node.inputs[1],
            node.inputs[2],
            node.inputs[3],
            node.output(1),
            node.output(2),
            Some(d_y),
        ];
        d.push(Op::NormBackward(*self), &inputs, &outputs);
        Ok(())
    }
}

/// Optional operands of [`Plan::norm`].
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct NormOperands {
    pub gamma: Option<TensorId>,
    pub beta: Option<TensorId>,
    /// `[n, 2c]`, scale first.
    pub scale_shift: Option<TensorId>,
    pub activation: Option<Activation>,
}

impl Plan {
    /// Normalises x `[n, ..., c]`; see [`Norm`].
    pub fn norm(
        &mut self,
        x: TensorId,
        domain: Domain,
        eps: f32,
        operands: NormOperands,
    ) -> Result<TensorId> {
        let shape = self.shape(x).to_vec();
        let (n, c) = (shape[0], *shape.last().expect("norm's input has axes"));
        let spatial = shape[1..shape.len() - 1].iter().product();
        if let Domain::Group(groups) = domain
            && (groups == 0 || !c.is_multiple_of(groups))
        {
            return Err(Error::Shape {
                op: "norm",
                tensor: self.tensor(x).name.clone(),
                expected: format!("a number of channels divisible by {groups} groups"),
                found: shape,
            });
        }
        for vector in [operands.gamma, operands.beta].into_iter().flatten() {
            self.expect_shape("norm", vector, &[c])?;
        }
        if let Some(s) = operands.scale_shift {
            self.expect_shape("norm", s, &[n, 2 * c])?;
        }
        let op = Norm { n, spatial, channels: c, domain, eps, activation: operands.activation };
        let base = operands.gamma.unwrap_or(x);
        let y = self.transient(self.derived_name(base, "y"), &shape);
        let statistics = [n, op.domains()];
        let mean = self.activation(
            self.derived_name(base, "mean"),
            &statistics,
            DType::F32,
            Role::Transient,
        );
        let rstd = self.activation(
            self.derived_name(base, "rstd"),
            &statistics,
            DType::F32,
            Role::Transient,
        );
        self.push_forward(
            Op::Norm(op),
            &[Some(x), operands.gamma, operands.beta, operands.scale_shift],
            &[y, mean, rstd],
        );
        Ok(y)
    }
}
