//! Shared memory of the kernels for tensors of few channels, as `kernels/few.cuh` lays it
//! out.

use super::super::entries::params::{ConvAxis, ConvGather, ConvOuter};
use super::Arithmetic;
use super::tiles::Tile;

/// Terms of a reduction that are worth a table.
pub(super) const MOST_TERMS: usize = 128;

/// Shared memory that a block may have on every card from sm_80 on, less what the kernels
/// have of fixed size.
pub(super) const MOST_BYTES: usize = (99 << 10) - 256;

/// Bytes of a table of terms.
pub(super) fn terms_bytes(terms: usize) -> usize {
    16 * terms
}

/// Elements of room for a range of `len` elements that begins anywhere.
fn room(arithmetic: Arithmetic, len: usize) -> usize {
    len.next_multiple_of(arithmetic.chunk()) + arithmetic.chunk()
}

/// Rows of pixels of x, all images' below each other, that `count` results from `first`
/// on read.
fn rows_of(down: &ConvAxis, along: &ConvAxis, enlarge: i32, first: i32, last: i32) -> i32 {
    let area = down.count * along.count;
    let reach = (down.taps - 1) * down.shift_step;
    let row = |pixel: i32, shift: i32| {
        let y = down.scale * (pixel % area / along.count) + down.shift + shift;
        pixel / area * (down.source >> enlarge) + (y.clamp(0, down.source - 1) >> enlarge)
    };
    row(last, reach.max(0)) + 1 - row(first, reach.min(0))
}

/// Rows of x that `count` neighbouring results read at most.
fn most_rows(down: &ConvAxis, along: &ConvAxis, enlarge: i32, pixels: i32, count: i32) -> i32 {
    let firsts = (0..pixels).step_by(count as usize);
    let rows = |first: i32| {
        rows_of(down, along, enlarge, first, pixels.min(first.saturating_add(count)) - 1)
    };
    firsts.map(rows).max().unwrap_or(0)
}

/// Bytes beside the first tile in flight: terms, rows of the weight, pixels of x.
pub(super) fn gather_bytes(
    arithmetic: Arithmetic,
    p: &ConvGather,
    tile: &Tile<ConvGather>,
    forward: bool,
) -> usize {
    let bytes = |(down, along): (&ConvAxis, &ConvAxis)| {
        let terms = (down.taps * along.taps * p.reduced) as usize;
        let pixels = p.images * down.count * along.count;
        let rows = most_rows(down, along, p.enlarge, pixels, tile.rows as i32);
        let pitch = (along.source >> p.enlarge) * p.x_channels;
        let weight = if forward { tile.columns * terms } else { 0 };
        let elements = room(arithmetic, weight) + room(arithmetic, (rows * pitch) as usize);
        terms_bytes(terms) + elements * arithmetic.bytes()
    };
    let pairs = p.down.iter().flat_map(|down| p.along.iter().map(move |along| (down, along)));
    pairs.map(bytes).max().unwrap_or(0)
}

/// Bytes of the rows of a group's weight, as they are.
pub(super) fn weight_bytes(arithmetic: Arithmetic, p: &ConvGather) -> usize {
    let len = p.reduced as usize * (p.kernel_taps * p.columns) as usize;
    room(arithmetic, len) * arithmetic.bytes()
}

/// Elements of x that a tile of the weight gradient's reduction reads at most.
pub(super) fn sources_len(arithmetic: Arithmetic, p: &ConvOuter) -> usize {
    let count = arithmetic.depth() as i32;
    let rows = most_rows(&p.down, &p.along, p.enlarge, p.pixels, count);
    room(arithmetic, (rows * (p.along.source >> p.enlarge) * p.x_channels) as usize)
}

/// Elements of d_y of a tile of the weight gradient's reduction.
pub(super) fn gradients_len(arithmetic: Arithmetic, channels: usize) -> usize {
    room(arithmetic, arithmetic.depth() * channels)
}
