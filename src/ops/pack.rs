//! Weights in the order in which a backend's kernels read them. Added by
//! [`Backend::lower`](crate::backend::Backend::lower), never by a model.
//!
//! `panel[g][b][t][r][j] = w[out][t][in]` over groups g, blocks b of
//! [`PANEL`] columns, taps t and the reduced channel r. Forward, columns are
//! output channels and r runs over input channels; for the backward pass to the
//! data it is the other way round. Columns past the last channel are zero.

use super::conv2d::Conv2d;
use crate::plan::{Plan, TensorId};

/// Columns of a panel.
pub const PANEL: usize = 32;

/// Which pass reads the packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackFor {
    /// `Conv2d`, `Linear`.
    Forward,
    /// `Conv2dBackwardData`, `LinearBackwardData`.
    BackwardData,
}

/// Descriptor. Input weight `[groups * out, taps, in]`; output packed
/// `[groups, blocks, taps, reduced, PANEL]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PackWeight {
    pub groups: usize,
    /// Output channels of one group.
    pub c_out: usize,
    pub taps: usize,
    /// Input channels of one group.
    pub c_in: usize,
    pub pass: PackFor,
}

impl PackWeight {
    /// The packing one pass of a convolution needs.
    pub fn of(conv: &Conv2d, pass: PackFor) -> Self {
        let groups = conv.options.groups;
        PackWeight {
            groups,
            c_out: conv.c_out / groups,
            taps: conv.kernel[0] * conv.kernel[1],
            c_in: conv.c_in / groups,
            pass,
        }
    }

    /// Channels that become columns, and channels that are reduced, in a group.
    pub fn columns_and_reduced(&self) -> (usize, usize) {
        match self.pass {
            PackFor::Forward => (self.c_out, self.c_in),
            PackFor::BackwardData => (self.c_in, self.c_out),
        }
    }

    /// Panels of one group.
    pub fn blocks(&self) -> usize {
        self.columns_and_reduced().0.div_ceil(PANEL)
    }

    /// Elements of one panel.
    pub fn panel_len(&self) -> usize {
        self.taps * self.columns_and_reduced().1 * PANEL
    }

    /// Elements of the packed weight.
    pub fn packed_len(&self) -> usize {
        self.groups * self.blocks() * self.panel_len()
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.groups * self.c_out * self.taps * self.c_in
    }

    /// A tensor for the result, in the arena of packed weights or, for a weight
    /// that is computed during the run, among the activations.
    pub fn tensor(&self, plan: &mut Plan, weight: TensorId, prologue: bool) -> TensorId {
        let suffix = match self.pass {
            PackFor::Forward => "packed_forward",
            PackFor::BackwardData => "packed_backward_data",
        };
        let name = plan.derived_name(weight, suffix);
        if prologue {
            plan.packed(name, self.packed_len())
        } else {
            plan.transient(name, &[self.packed_len()])
        }
    }
}
