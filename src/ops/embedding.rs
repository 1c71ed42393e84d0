//! Embeddings of time and class: sinusoidal, Fourier, learned tables.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Deriver, Node, Plan, TensorId};

/// Sinusoidal embedding of t `[n]` into `[n, dim]`: with `half = dim / 2` and
/// `w_i = exp(-ln(max_period) i / (half - freq_shift))`, first `sin(t w_i)`,
/// then `cos(t w_i)`; swapped when `flip`; a zero column at the end when `dim` is odd.
/// Vaswani et al. 2017, as in DDPM. Input t; output embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Sinusoidal {
    pub n: usize,
    pub dim: usize,
    pub flip: bool,
    pub freq_shift: f32,
    pub max_period: f32,
}

/// Fourier embedding: `p = 2 pi ln(t) w` (or `2 pi t w`), then `[sin p, cos p]`,
/// swapped when `flip`. Song et al. 2021, app. H. Inputs t `[n]`, w `[dim / 2]`;
/// output `[n, dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Fourier {
    pub n: usize,
    pub half: usize,
    pub flip: bool,
    /// Take the logarithm of t first.
    pub log: bool,
}

/// Rows of a table. `Lookup`: inputs table `[rows, dim]`, index `[n]` (u32);
/// output `[n, dim]`. `LookupBackward`: inputs index, d_y; output d_table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Lookup {
    pub n: usize,
    pub rows: usize,
    pub dim: usize,
}

impl Lookup {
    /// Refuses an index outside the table. Whoever takes indices from a user
    /// calls it before the run; backends call it again before they read a row.
    pub fn check(&self, index: &[u32]) -> Result<()> {
        match index.iter().position(|&i| i as usize >= self.rows) {
            None => Ok(()),
            Some(image) => Err(Error::Usage(format!(
                "class {} of image {image} is out of range: the table has rows 0..{}",
                index[image], self.rows
            ))),
        }
    }

    pub(super) fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        let Some(d_y) = d.d_output(node, 0) else { return Ok(()) };
        let d_table = d.d_input(node, 0);
        d.push(Op::LookupBackward(*self), &[node.inputs[1], Some(d_y)], &[d_table]);
        Ok(())
    }
}

impl Plan {
    /// Sinusoidal embedding of t `[n]`; see [`Sinusoidal`].
    pub fn sinusoidal_embedding(
        &mut self,
        t: TensorId,
        dim: usize,
        flip: bool,
        freq_shift: f32,
        max_period: f32,
    ) -> TensorId {
        let n = self.tensor(t).len();
        let y = self.transient("time_embedding.sinusoidal", &[n, dim]);
        let op = Sinusoidal { n, dim, flip, freq_shift, max_period };
        self.push_forward(Op::SinusoidalEmbedding(op), &[Some(t)], &[y]);
        y
    }

    /// Fourier embedding of t `[n]` with frequencies w `[dim / 2]`; see [`Fourier`].
    pub fn fourier_embedding(
        &mut self,
        t: TensorId,
        w: TensorId,
        flip: bool,
        log: bool,
    ) -> TensorId {
        let (n, half) = (self.tensor(t).len(), self.tensor(w).len());
        let y = self.transient("time_embedding.fourier", &[n, 2 * half]);
        let op = Fourier { n, half, flip, log };
        self.push_forward(Op::FourierEmbedding(op), &[Some(t), Some(w)], &[y]);
        y
    }

    /// Rows `index [n]` (u32) of table `[rows, dim]`.
    pub fn lookup(&mut self, table: TensorId, index: TensorId) -> Result<TensorId> {
        let &[rows, dim] = self.shape(table) else {
            return Err(Error::Shape {
                op: "lookup",
                tensor: self.tensor(table).name.clone(),
                expected: "[rows, dim]".into(),
                found: self.shape(table).to_vec(),
            });
        };
        let n = self.tensor(index).len();
        let y = self.transient(self.derived_name(table, "rows"), &[n, dim]);
        let op = Lookup { n, rows, dim };
        self.push_forward(Op::Lookup(op), &[Some(table), Some(index)], &[y]);
        Ok(y)
    }
}
