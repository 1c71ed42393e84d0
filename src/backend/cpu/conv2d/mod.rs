//! Convolution on the CPU: direct, NHWC, without an im2col buffer.
//!
//! Forward and backward-to-data are one driver, [`gather`]; backward-to-weight
//! reduces over pixels, [`weight`]; [`pack`](mod@pack) brings weights into the
//! order the driver reads.
//!
//! Each result is computed by the same operations whatever the batch size, the
//! number of threads and the instruction set.

mod gather;
mod pack;
mod weight;

pub use gather::{Epilogue, backward_data, forward};
pub use pack::pack;
pub use weight::{backward_weight, backward_weight_workspace_len};

use super::isa::Isa;
use crate::ops::conv2d::Conv2d;
use crate::ops::pack::PackFor;

/// One axis of a gathering pass. Output position `first + step * i` reads, at
/// tap k, source position `scale * i + shift(k)`.
#[derive(Clone, Copy)]
struct Axis {
    pass: PackFor,
    first: usize,
    step: usize,
    /// Output positions.
    count: usize,
    scale: usize,
    /// Length of the source.
    source: usize,
    padding: usize,
    dilation: usize,
}

impl Axis {
    fn forward(conv: &Conv2d, axis: usize) -> Self {
        let o = &conv.options;
        Axis {
            pass: PackFor::Forward,
            first: 0,
            step: 1,
            count: conv.output_size()[axis],
            scale: o.stride[axis],
            source: [conv.h, conv.w][axis],
            padding: [o.padding.top, o.padding.left][axis],
            dilation: o.dilation[axis],
        }
    }

    /// The positions of d_x whose index is `first` modulo the stride.
    fn backward(conv: &Conv2d, axis: usize, first: usize) -> Self {
        let o = &conv.options;
        let (step, length) = (o.stride[axis], [conv.h, conv.w][axis]);
        Axis {
            pass: PackFor::BackwardData,
            first,
            step,
            count: (length + step - 1 - first) / step,
            scale: 1,
            source: conv.output_size()[axis],
            padding: [o.padding.top, o.padding.left][axis],
            dilation: o.dilation[axis],
        }
    }

    /// `None` when no position of this axis uses the tap.
    fn shift(&self, tap: usize) -> Option<isize> {
        let (padding, reach) = (self.padding as isize, (tap * self.dilation) as isize);
        match self.pass {
            PackFor::Forward => Some(reach - padding),
            PackFor::BackwardData => {
                let distance = self.first as isize + padding - reach;
                let step = self.step as isize;
                (distance.rem_euclid(step) == 0).then(|| distance.div_euclid(step))
            }
        }
    }

    /// Source position of output `i`, if it lies inside.
    fn source(&self, i: usize, shift: isize) -> Option<usize> {
        let at = (i * self.scale) as isize + shift;
        (at >= 0 && (at as usize) < self.source).then_some(at as usize)
    }

    /// Share of (position, tap) pairs that lie inside the source, in percent.
    fn inside_percent(&self, taps: usize) -> usize {
        let (mut inside, mut all) = (0, 0);
        for shift in (0..taps).filter_map(|tap| self.shift(tap)) {
            all += self.count;
            inside += (0..self.count).filter(|&i| self.source(i, shift).is_some()).count();
        }
        (inside * 100).checked_div(all).unwrap_or(100)
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t += f;
    }
}

/// Refuses instructions the CPU lacks: the micro-kernels rely on it.
fn supported(isa: Isa) -> Isa {
    assert!(isa <= Isa::detect(), "this CPU has no {isa:?}");
    isa
}
