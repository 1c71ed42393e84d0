//! Convolutions on CUDA: which kernels of `kernels/conv2d.cu` and
//! `kernels/conv2d_tensor.cu` a pass launches, and what they are told.
//!
//! The lanes in which a reduction is split depend on the sizes of one image alone, and
//! every tile shape gives the same bits, and so does every way to add the lanes up, so an
//! image's result depends neither on its batch nor on the device. The ways: each lane has
//! blocks and the last one adds up what all have written; a block takes all lanes; or the
//! lanes' blocks add in turn (`kernels/last_block.cuh`).
//!
//! [`Convolution`] is the passes on memory of one's own; the plan's nodes use the same
//! launches.
//!
//! ```text
//! layer       which launches a pass makes, and their scratch memory
//! few         shared memory for tensors of few channels
//! tiles       the kernels, and which one a matrix of results is given
//! node        what the plan's nodes call
//! standalone  [`Convolution`]
//! ```

mod few;
mod layer;
mod node;
mod standalone;
mod tiles;

pub(super) use node::{
    arithmetic, backward_data, backward_data_workspace_len, backward_weight, backward_weight_lanes,
    backward_weight_workspace_len, forward, forward_workspace_len,
};
pub use standalone::{Convolution, Epilogue};

/// Bytes of one row of a tile along the reduction, as in `kernels/copies.cuh`.
const ROW_BYTES: usize = 128;

/// Multiprocessors a launch is shaped for. Only speed depends on it.
const MULTIPROCESSORS: usize = 108;

/// What the kernels read and multiply. Sums are f32 always, and so are weight
/// gradients and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 with one rounding a multiply-add: as exact as the CPU.
    F32,
    /// f32 in memory, rounded to tf32 (10 bits of fraction) for tensor cores. Layers
    /// whose channels do not fill 16 bytes are computed in f32.
    Tf32,
    /// bf16 in memory, tensor cores.
    Bf16,
}

impl Arithmetic {
    /// Bytes of an element of x, y and the weight.
    pub fn bytes(self) -> usize {
        match self {
            Arithmetic::F32 | Arithmetic::Tf32 => 4,
            Arithmetic::Bf16 => 2,
        }
    }

    /// Elements of a row of a tile.
    fn depth(self) -> usize {
        ROW_BYTES / self.bytes()
    }

    /// Elements of 16 bytes.
    fn chunk(self) -> usize {
        16 / self.bytes()
    }
}

/// Where a convolution's input comes from, besides one tensor of its own size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Channels of a second tensor that follow those of the first; 0 for none.
    pub second_channels: usize,
    /// The tensors hold `h >> enlarge` x `w >> enlarge` pixels, each of which is seen
    /// `2^enlarge` times along both axes (nearest-neighbour upsampling).
    pub enlarge: u32,
}
