//! Global gradient norm and AdamW with EMA, over whole arenas in one pass each.
//! Loshchilov & Hutter 2019; EMA as in Ho et al. 2020.

use super::Op;
use crate::plan::{DType, Mode, Plan, Role, Space, TensorId, Write};

/// Columns of the optimizer's control tensor `[COLUMNS]`, uploaded each step.
pub mod control {
    /// Learning rate of this step.
    pub const LEARNING_RATE: usize = 0;
    /// `1 - beta1^step`.
    pub const BIAS_CORRECTION_1: usize = 1;
    /// `1 - beta2^step`.
    pub const BIAS_CORRECTION_2: usize = 2;
    /// `1 - decay` of this step: `ema += (1 - decay) (p - ema)`. Not the decay,
    /// of which f32 would lose the digits that matter: 1 - f32(0.999999) is 1.3 %
    /// off.
    pub const EMA_RATE: usize = 3;
    /// Columns of the tensor.
    pub const COLUMNS: usize = 4;
}

/// L2 norm of the gradients over the trainable ranges, chunks of fixed size
/// summed in order. Input gradients (whole arena); output norm `[1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GlobalNorm {
    /// (start, len) in elements.
    pub ranges: Vec<(usize, usize)>,
}

/// AdamW, EMA. With `g' = g min(1, clip / (norm + 1e-6))`:
/// `p -= lr weight_decay p`, `m += (1-b1) (g' - m)`, `v = b2 v + (1-b2) g'^2`,
/// `p -= lr / c1 m / (sqrt(v) / sqrt(c2) + eps)`, `ema += (1-d) (p - ema)`:
/// `torch.optim.AdamW` after `clip_grad_norm_`. A norm that is not finite leaves
/// everything as it was.
/// Inputs gradients, norm `[1]`, control `[COLUMNS]`; outputs (read and written
/// in place, `Mode::Add`) parameters, first moments, second moments, average. Lowering
/// may add one that is written: the parameters in bf16.
///
/// The constants are f64 because `1 - beta` is taken before it is rounded.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct AdamW {
    /// (start, len) in elements.
    pub ranges: Vec<(usize, usize)>,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest allowed global norm.
    pub clip: Option<f64>,
}

impl Plan {
    /// Appends the gradient norm; returns norm `[1]`.
    pub fn global_norm(&mut self, ranges: Vec<(usize, usize)>, arena_len: usize) -> TensorId {
        let gradients = self.whole("gradients", Space::Gradients, arena_len);
        let norm = self.activation("gradient_norm", &[1], DType::F32, Role::Output);
        self.push_forward(Op::GlobalNorm(GlobalNorm { ranges }), &[Some(gradients)], &[norm]);
        norm
    }

    /// Appends the optimizer step over arenas of `arena_len` elements; returns
    /// the control input `[control::COLUMNS]`.
    pub fn adamw(&mut self, op: AdamW, norm: TensorId, arena_len: usize) -> TensorId {
        let gradients = self.whole("gradients", Space::Gradients, arena_len);
        let control = self.input("optimizer_control", &[control::COLUMNS], DType::F32);
        let outputs = [
            ("parameters", Space::Parameters),
            ("first_moments", Space::FirstMoments),
            ("second_moments", Space::SecondMoments),
            ("average", Space::Average),
        ]
        .map(|(name, space)| {
            Some(Write { tensor: self.whole(name, space, arena_len), mode: Mode::Add })
        });
        self.push(
            Op::AdamW(op),
            vec![Some(gradients), Some(norm), Some(control)],
            outputs.to_vec(),
        );
        control
    }
}
