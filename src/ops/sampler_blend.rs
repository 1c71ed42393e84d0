//! Known pixels put into a sampler's state: with mask m in [0, 1],
//! ```text
//! x = m (signal known + std z) + (1 - m) x
//! ```
//! at the stages that say so (RePaint, Lugmayr et al. 2022, eq. 8). Where m = 1 and
//! std = 0 the known value is kept exactly. z is purpose
//! [`Purpose::Known`](crate::random::Purpose), f32 multiply and add in the order
//! above.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{Plan, TensorId};

/// Columns of a stage's row.
pub mod column {
    /// 1: blend before this stage; 0: leave the state.
    pub const ACTIVE: usize = 0;
    /// Factor of the known image.
    pub const SIGNAL: usize = 1;
    /// Factor of the noise.
    pub const STD: usize = 2;
    /// Draw of the noise.
    pub const DRAW: usize = 3;
    /// Columns of the row.
    pub const COLUMNS: usize = 4;
}

/// Descriptor. Inputs: 0 table `[stages, COLUMNS]`, 1 stage `[1]` u32, 2 keys `[n,
/// 4]` u32, 3 known `[n, ...]`, 4 mask, as known. Output: the slot, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SamplerBlend {
    pub n: usize,
    /// Elements of an image.
    pub len: usize,
    pub stages: usize,
}

/// Operands of a blend, by name.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct BlendOperands {
    pub table: TensorId,
    pub stage: TensorId,
    pub keys: TensorId,
    pub known: TensorId,
    pub mask: TensorId,
    pub slot: TensorId,
}

impl Plan {
    /// Appends a blend; see [`SamplerBlend`].
    pub fn sampler_blend(&mut self, operands: BlendOperands) -> Result<()> {
        const NAME: &str = "sampler_blend";
        let BlendOperands { table, stage, keys, known, mask, slot } = operands;
        let shape = self.shape(slot).to_vec();
        let &[stages, column::COLUMNS] = self.shape(table) else {
            let t = self.tensor(table);
            let expected = format!("[stages, {}]", column::COLUMNS);
            let (tensor, found) = (t.name.clone(), t.shape.clone());
            return Err(Error::Shape { op: NAME, tensor, expected, found });
        };
        let (n, len) = (shape[0], shape[1..].iter().product());
        self.expect_shape(NAME, stage, &[1])?;
        self.expect_shape(NAME, keys, &[n, 4])?;
        self.expect_shape(NAME, known, &shape)?;
        self.expect_shape(NAME, mask, &shape)?;
        let op = SamplerBlend { n, len, stages };
        let inputs = [table, stage, keys, known, mask].map(Some);
        self.push_forward(Op::SamplerBlend(op), &inputs, &[slot]);
        Ok(())
    }
}
