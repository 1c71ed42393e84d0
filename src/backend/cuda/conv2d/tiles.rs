//! The tiles of `kernels/conv2d.cu` and `kernels/conv2d_tensor.cu`, and which one a
//! matrix of results is given. Every tile shape gives the same bits.

use super::super::entries::*;
use super::{Arithmetic, MULTIPROCESSORS, ROW_BYTES};

/// Tiles in flight, as in `kernels/matmul.cuh`.
const STAGES: usize = 2;

/// A kernel, the results one of its blocks computes, and what a result costs in it
/// relative to the largest tile (loads a product, from the tile's shape).
pub(super) struct Tile<P: 'static> {
    pub(super) entry: &'static Entry<P>,
    rows: usize,
    columns: usize,
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

    pub(super) fn shared_bytes(&self) -> u32 {
        (STAGES * (self.rows + self.columns) * ROW_BYTES) as u32
    }

    /// Bytes of the table of sources that a weight gradient's tile has beside it, for
    /// `taps` of `channels`.
    pub(super) fn table_bytes(&self, arithmetic: Arithmetic, taps: usize, channels: usize) -> u32 {
        let (chunks, of_tap) = (self.columns / arithmetic.chunk(), channels / arithmetic.chunk());
        let touched = taps.min((chunks + of_tap - 2) / of_tap + 1);
        (4 * (chunks + 2 * touched * arithmetic.depth())) as u32
    }

    pub(super) fn grid(&self, rows: usize, columns: usize, parts: usize) -> [usize; 3] {
        [rows.div_ceil(self.rows), columns.div_ceil(self.columns), parts]
    }
}

/// The wished tile if it is there, else that of the least estimated time; the first of
/// equals.
pub(super) fn choose<P>(
    tiles: &'static [Tile<P>],
    wished: Option<[usize; 2]>,
    rows: usize,
    columns: usize,
    parts: usize,
) -> &'static Tile<P> {
    let estimate = |t: &&Tile<P>| t.estimate(rows, columns, parts);
    let best = || tiles.iter().min_by(|a, b| estimate(a).total_cmp(&estimate(b)));
    let wished = tiles.iter().find(|t| wished == Some([t.rows, t.columns]));
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
static FORWARD_TF32: [Tile<params::ConvGather>; 3] = [
    Tile::new(&CONV2D_FORWARD_TF32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_TF32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_TF32_32X32, 32, 32, 1.8),
];
static FORWARD_BF16: [Tile<params::ConvGather>; 3] = [
    Tile::new(&CONV2D_FORWARD_BF16_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_BF16_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_BF16_32X32, 32, 32, 1.8),
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
static BACKWARD_WEIGHT_BF16_SCATTERED: [Tile<params::ConvOuter>; 1] =
    [Tile::new(&CONV2D_BACKWARD_WEIGHT_BF16_SCATTERED_32X32, 32, 32, 1.0)];

/// Tiles of the forward pass; `aligned` where 16 bytes never straddle pixels.
pub(super) fn forward(
    arithmetic: Arithmetic,
    aligned: bool,
) -> &'static [Tile<params::ConvGather>] {
    match (arithmetic, aligned) {
        (Arithmetic::F32, true) => &FORWARD_F32,
        (Arithmetic::F32 | Arithmetic::Tf32, false) => &FORWARD_F32_SCATTERED,
        (Arithmetic::Tf32, true) => &FORWARD_TF32,
        (Arithmetic::Bf16, true) => &FORWARD_BF16,
        (Arithmetic::Bf16, false) => &FORWARD_BF16_SCATTERED,
    }
}

/// Tiles of the backward pass to the data.
pub(super) fn backward_data(
    arithmetic: Arithmetic,
    aligned: bool,
) -> &'static [Tile<params::ConvGather>] {
    match (arithmetic, aligned) {
        (Arithmetic::F32, true) => &BACKWARD_DATA_F32,
        (Arithmetic::F32 | Arithmetic::Tf32, false) => &BACKWARD_DATA_F32_SCATTERED,
        (Arithmetic::Tf32, true) => &BACKWARD_DATA_TF32,
        (Arithmetic::Bf16, true) => &BACKWARD_DATA_BF16,
        (Arithmetic::Bf16, false) => &BACKWARD_DATA_BF16_SCATTERED,
    }
}

/// Tiles of the weight gradient.
pub(super) fn backward_weight(
    arithmetic: Arithmetic,
    aligned: bool,
) -> &'static [Tile<params::ConvOuter>] {
    match (arithmetic, aligned) {
        (Arithmetic::F32, true) => &BACKWARD_WEIGHT_F32,
        (Arithmetic::F32 | Arithmetic::Tf32, false) => &BACKWARD_WEIGHT_F32_SCATTERED,
        (Arithmetic::Tf32, true) => &BACKWARD_WEIGHT_TF32,
        (Arithmetic::Bf16, true) => &BACKWARD_WEIGHT_BF16,
        (Arithmetic::Bf16, false) => &BACKWARD_WEIGHT_BF16_SCATTERED,
    }
}

/// Rows and columns of the results of a kernel's block: the end of its name.
pub(super) fn sides<P>(entry: &Entry<P>) -> [usize; 2] {
    let tile = entry.name.rsplit('_').next().and_then(|end| end.split_once('x'));
    let (rows, columns) = tile.expect("names end in the tile");
    [rows, columns].map(|side| side.parse().expect("a number"))
}
