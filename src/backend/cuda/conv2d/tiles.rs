//! The tiles of `kernels/conv2d.cu` and `kernels/conv2d_tensor.cu`, and which one a
//! matrix of results is given. Every tile shape gives the same bits.

use super::super::entries::*;
use super::{Arithmetic, MULTIPROCESSORS, ROW_BYTES};

/// What of the operands 16 bytes may straddle, as the kernels' names say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// No pixel, no row of the weight.
    Aligned,
    /// Pixels of the few channels that are summed over; those of x, for the weight.
    FewInputs,
    /// Pixels of d_y, which has few channels, for the weight.
    FewOutputs,
    /// Rows of the weight, whose results are few: backward to the data.
    NarrowWeight,
    /// Anything.
    Scattered,
}

/// Tiles in flight, as in `kernels/tiles.cuh`.
const STAGES: usize = 2;

/// Results of the largest tiles whose lanes may be split, as in `kernels/tiles.cuh`.
const MOST_SPLIT: usize = 64 * 64;

/// A kernel, the results one of its blocks computes, and what a result costs in it
/// relative to the largest tile (loads a product, from the tile's shape).
pub(super) struct Tile<P: 'static> {
    pub(super) entry: &'static Entry<P>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    cost: f64,
}

impl<P> Tile<P> {
    const fn new(entry: &'static Entry<P>, rows: usize, columns: usize, cost: f64) -> Self {
        Tile { entry, rows, columns, cost }
    }

    fn blocks(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Time of a matrix of results in a model: the blocks that the busiest
    /// multiprocessor computes, times their size.
    fn estimate(&self, rows: usize, columns: usize, parts: usize) -> f64 {
        let blocks = self.blocks(rows, columns) * parts;
        (blocks.div_ceil(MULTIPROCESSORS) * self.rows * self.columns) as f64 * self.cost
    }

    /// Bytes of all tiles in flight, which also hold the results.
    pub(super) fn shared_bytes(&self) -> usize {
        STAGES * self.stage_bytes()
    }

    /// Bytes of the table of sources that a weight gradient's tile has beside it, for
    /// `taps` of `channels`.
    pub(super) fn table_bytes(
        &self,
        arithmetic: Arithmetic,
        taps: usize,
        channels: usize,
    ) -> usize {
        let (chunks, of_tap) = (self.columns / arithmetic.chunk(), channels / arithmetic.chunk());
        let touched = taps.min((chunks + of_tap - 2) / of_tap + 1);
        4 * (chunks + 2 * touched * arithmetic.depth())
    }

    /// Bytes of the tile's results.
    pub(super) fn result_bytes(&self) -> usize {
        self.rows * self.columns * 4
    }

    /// Bytes of a tile in flight.
    pub(super) fn stage_bytes(&self) -> usize {
        (self.rows + self.columns) * ROW_BYTES
    }

    pub(super) fn grid(&self, rows: usize, columns: usize, parts: usize) -> [usize; 3] {
        [rows.div_ceil(self.rows), columns.div_ceil(self.columns), parts]
    }
}

/// The wished tile if it is there, else that of the least estimated time for `parts`
/// matrices of results; the first of equals. Where the reduction is split, of those that
/// can be.
pub(super) fn choose<P>(
    tiles: &'static [Tile<P>],
    wished: Option<[usize; 2]>,
    split: bool,
    [rows, columns, parts]: [usize; 3],
) -> &'static Tile<P> {
    let fit = || tiles.iter().filter(|t| !split || t.rows * t.columns <= MOST_SPLIT);
    let estimate = |t: &&Tile<P>| t.estimate(rows, columns, parts);
    let best = || fit().min_by(|a, b| estimate(a).total_cmp(&estimate(b)));
    let wished = fit().find(|t| wished == Some([t.rows, t.columns]));
    wished.or_else(best).expect("there are tiles")
}

static FORWARD_F32: [Tile<params::ConvGather>; 4] = [
    Tile::new(&CONV2D_FORWARD_F32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_F32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_F32_32X32, 32, 32, 1.8),
    Tile::new(&CONV2D_FORWARD_F32_128X4, 128, 4, 4.0),
];
static FORWARD_F32_SCATTERED: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_FORWARD_F32_SCATTERED_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_F32_SCATTERED_32X32, 32, 32, 1.8),
];
static FORWARD_F32_FEW: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_FORWARD_F32_FEW_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_F32_FEW_32X32, 32, 32, 1.8),
];
static FORWARD_TF32: [Tile<params::ConvGather>; 4] = [
    Tile::new(&CONV2D_FORWARD_TF32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_TF32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_TF32_32X32, 32, 32, 1.8),
    Tile::new(&CONV2D_FORWARD_TF32_128X16, 128, 16, 2.5),
];
static FORWARD_BF16: [Tile<params::ConvGather>; 4] = [
    Tile::new(&CONV2D_FORWARD_BF16_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_BF16_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_BF16_32X32, 32, 32, 1.8),
    Tile::new(&CONV2D_FORWARD_BF16_128X16, 128, 16, 2.5),
];
static FORWARD_BF16_FEW: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_FORWARD_BF16_FEW_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_BF16_FEW_32X32, 32, 32, 1.8),
];
static FORWARD_BF16_SCATTERED: [Tile<params::ConvGather>; 1] =
    [Tile::new(&CONV2D_FORWARD_BF16_SCATTERED_32X32, 32, 32, 1.0)];
static BACKWARD_DATA_F32: [Tile<params::ConvGather>; 3] = [
    Tile::new(&CONV2D_BACKWARD_DATA_F32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_F32_SCATTERED: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_BACKWARD_DATA_F32_SCATTERED_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_SCATTERED_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_F32_FEW: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_BACKWARD_DATA_F32_FEW_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_FEW_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_F32_NARROW: [Tile<params::ConvGather>; 1] =
    [Tile::new(&CONV2D_BACKWARD_DATA_F32_NARROW_128X4, 128, 4, 1.0)];
static BACKWARD_DATA_TF32: [Tile<params::ConvGather>; 3] = [
    Tile::new(&CONV2D_BACKWARD_DATA_TF32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_DATA_TF32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_TF32_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_BF16: [Tile<params::ConvGather>; 3] = [
    Tile::new(&CONV2D_BACKWARD_DATA_BF16_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_DATA_BF16_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_BF16_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_BF16_FEW: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_BACKWARD_DATA_BF16_FEW_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_DATA_BF16_FEW_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_BF16_NARROW: [Tile<params::ConvGather>; 1] =
    [Tile::new(&CONV2D_BACKWARD_DATA_BF16_NARROW_128X16, 128, 16, 1.0)];
static BACKWARD_DATA_BF16_SCATTERED: [Tile<params::ConvGather>; 1] =
    [Tile::new(&CONV2D_BACKWARD_DATA_BF16_SCATTERED_32X32, 32, 32, 1.0)];
static BACKWARD_WEIGHT_F32: [Tile<params::ConvOuter>; 3] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_32X32, 32, 32, 1.8),
];
static BACKWARD_WEIGHT_F32_SCATTERED: [Tile<params::ConvOuter>; 3] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_SCATTERED_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_SCATTERED_32X32, 32, 32, 1.8),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_SCATTERED_4X256, 4, 256, 2.5),
];
static BACKWARD_WEIGHT_F32_INPUTS: [Tile<params::ConvOuter>; 2] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_INPUTS_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_INPUTS_32X32, 32, 32, 1.8),
];
static BACKWARD_WEIGHT_F32_OUTPUTS: [Tile<params::ConvOuter>; 1] =
    [Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_OUTPUTS_4X256, 4, 256, 1.0)];
static BACKWARD_WEIGHT_TF32: [Tile<params::ConvOuter>; 3] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_TF32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_TF32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_TF32_32X32, 32, 32, 1.8),
];
static BACKWARD_WEIGHT_BF16: [Tile<params::ConvOuter>; 3] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_32X32, 32, 32, 1.8),
];
static BACKWARD_WEIGHT_BF16_INPUTS: [Tile<params::ConvOuter>; 1] =
    [Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_INPUTS_128X32, 128, 32, 1.0)];
static BACKWARD_WEIGHT_BF16_OUTPUTS: [Tile<params::ConvOuter>; 1] =
    [Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_OUTPUTS_16X128, 16, 128, 1.0)];
static BACKWARD_WEIGHT_BF16_SCATTERED: [Tile<params::ConvOuter>; 1] =
    [Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_SCATTERED_32X32, 32, 32, 1.0)];

/// Tiles of the forward pass.
pub(super) fn forward(
    arithmetic: Arithmetic,
    reading: Reading,
) -> &'static [Tile<params::ConvGather>] {
    match (arithmetic, reading) {
        (Arithmetic::F32, Reading::Aligned) => &FORWARD_F32,
        (Arithmetic::Tf32, Reading::Aligned) => &FORWARD_TF32,
        (Arithmetic::Bf16, Reading::Aligned) => &FORWARD_BF16,
        (Arithmetic::Bf16, Reading::FewInputs) => &FORWARD_BF16_FEW,
        (Arithmetic::Bf16, _) => &FORWARD_BF16_SCATTERED,
        (_, Reading::FewInputs) => &FORWARD_F32_FEW,
        _ => &FORWARD_F32_SCATTERED,
    }
}

/// Tiles of the backward pass to the data.
pub(super) fn backward_data(
    arithmetic: Arithmetic,
    reading: Reading,
) -> &'static [Tile<params::ConvGather>] {
    match (arithmetic, reading) {
        (Arithmetic::F32, Reading::Aligned) => &BACKWARD_DATA_F32,
        (Arithmetic::Tf32, Reading::Aligned) => &BACKWARD_DATA_TF32,
        (Arithmetic::Bf16, Reading::Aligned) => &BACKWARD_DATA_BF16,
        (Arithmetic::Bf16, Reading::FewInputs) => &BACKWARD_DATA_BF16_FEW,
        (Arithmetic::Bf16, Reading::NarrowWeight) => &BACKWARD_DATA_BF16_NARROW,
        (Arithmetic::Bf16, _) => &BACKWARD_DATA_BF16_SCATTERED,
        (_, Reading::FewInputs) => &BACKWARD_DATA_F32_FEW,
        (_, Reading::NarrowWeight) => &BACKWARD_DATA_F32_NARROW,
        _ => &BACKWARD_DATA_F32_SCATTERED,
    }
}

/// Tiles of the weight gradient.
pub(super) fn backward_weight(
    arithmetic: Arithmetic,
    reading: Reading,
) -> &'static [Tile<params::ConvOuter>] {
    match (arithmetic, reading) {
        (Arithmetic::F32, Reading::Aligned) => &BACKWARD_WEIGHT_F32,
        (Arithmetic::Tf32, Reading::Aligned) => &BACKWARD_WEIGHT_TF32,
        (Arithmetic::Bf16, Reading::Aligned) => &BACKWARD_WEIGHT_BF16,
        (Arithmetic::Bf16, Reading::FewInputs) => &BACKWARD_WEIGHT_BF16_INPUTS,
        (Arithmetic::Bf16, Reading::FewOutputs) => &BACKWARD_WEIGHT_BF16_OUTPUTS,
        (Arithmetic::Bf16, _) => &BACKWARD_WEIGHT_BF16_SCATTERED,
        (_, Reading::FewInputs) => &BACKWARD_WEIGHT_F32_INPUTS,
        (_, Reading::FewOutputs) => &BACKWARD_WEIGHT_F32_OUTPUTS,
        _ => &BACKWARD_WEIGHT_F32_SCATTERED,
    }
}

/// Rows and columns of the results of a kernel's block: the end of its name.
pub(super) fn sides<P>(entry: &Entry<P>) -> [usize; 2] {
    let tile = entry.name.rsplit('_').next().and_then(|end| end.split_once('x'));
    let (rows, columns) = tile.expect("names end in the tile");
    [rows, columns].map(|side| side.parse().expect("a number"))
}
