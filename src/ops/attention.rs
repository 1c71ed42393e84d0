//! Scaled dot-product attention, multi-head, without an S x S tensor.
//!
//! `o = softmax(scale * q k^T) v` for each image and head; the log-sum-exp of
//! each row is saved so that the backward recomputes the probabilities
//! (Dao et al. 2022, FlashAttention).

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Descriptor. Head `h` of a token lies at channels `h*head_dim ..`.
/// - `Attention`: inputs q `[n, s_q, heads*head_dim]`, k and v
///   `[n, s_kv, heads*head_dim]`; outputs o (as q), lse `[n, heads, s_q]` (natural log, of scaled scores).
/// - `AttentionBackward`: inputs q, k, v, o, lse, d_o; outputs d_q, d_k, d_v.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Attention {
    pub n: usize,
    pub s_q: usize,
    pub s_kv: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl Attention {
    /// Floating-point operations of the forward pass (two GEMMs).
    pub fn flops(&self) -> u64 {
        4 * (self.n * self.heads * self.s_q) as u64 * (self.s_kv * self.head_dim) as u64
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_o) = d.d_output(node, 0) else { return Ok(()) };
        let outputs = [d.d_input(node, 0), d.d_input(node, 1), d.d_input(node, 2)];
        let inputs = [
            node.inputs[0],
            node.inputs[1],
            node.inputs[2],
            node.output(0),
            node.output(1),
            Some(d_o),
        ];
        d.push(Op::AttentionBackward(*self), &inputs, &outputs);
        Ok(())
    }
}

impl Plan {
    /// Attention over tokens. q, k, v: `[n, tokens..., heads*head_dim]`; any
    /// axes between the first and the last count as tokens.
    pub fn attention(
        &mut self,
        q: TensorId,
        k: TensorId,
        v: TensorId,
        heads: usize,
        scale: f32,
    ) -> Result<TensorId> {
        let shape = self.shape(q).to_vec();
        let (n, c) = (shape[0], *shape.last().expect("attention's input has axes"));
        let tokens = |s: &[usize]| s[1..s.len() - 1].iter().product::<usize>();
        let (s_q, s_kv) = (tokens(&shape), tokens(self.shape(k)));
        let kv = self.shape(k).to_vec();
        if heads == 0
            || !c.is_multiple_of(heads)
            || kv[0] != n
            || kv[kv.len() - 1] != c
            || self.shape(v) != kv
        {
            return Err(Error::Shape {
                op: "attention",
                tensor: self.tensor(k).name.clone(),
                expected: format!("[{n}, tokens, {c}] with channels divisible by {heads} heads"),
                found: kv,
            });
        }
        let op = Attention { n, s_q, s_kv, heads, head_dim: c / heads, scale };
        let o = self.transient(self.derived_name(q, "attention"), &shape);
        let lse = self.transient(self.derived_name(q, "lse"), &[n, heads, s_q]);
        self.push_forward(Op::Attention(op), &[Some(q), Some(k), Some(v)], &[o, lse]);
        Ok(o)
    }
}
