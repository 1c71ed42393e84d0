//! Launches of `kernels/conv2d.cu`: which tile, how many lanes, what the kernels are told.
//!
//! The lanes in which a reduction is split depend on the sizes of one image alone, and
//! every tile shape gives the same bits, so an image's result does not depend on its
//! batch, nor on the device.

use super::arguments::Call;
use super::entries::*;
use crate::error::Result;
use crate::ops::conv2d::Conv2d;

/// Bytes of one row of a tile along the reduction, as in `kernels/matmul.cuh`.
const ROW_BYTES: usize = 128;
/// f32 values of such a row.
const DEPTH: usize = ROW_BYTES / 4;
/// Tiles in flight.
const STAGES: usize = 2;
/// f32 values copied at once where channels allow it.
const CHUNK: usize = 4;

/// Multiprocessors a launch is shaped for. Only speed depends on it.
const MULTIPROCESSORS: usize = 108;

/// Pixels of an image up to which the forward and data passes are split into
/// [`GATHER_LANES`]: too few tiles of results otherwise.
const FEW_PIXELS: usize = 16;
const GATHER_LANES: usize = 4;
/// Tiles of the reduction a lane should have, at least.
const LANE_TILES: usize = 8;

/// Lanes of the weight gradient: at most this many, and one for so many pixels.
const MOST_OUTER_LANES: usize = 24;
const OUTER_LANE_PIXELS: usize = 8;

/// A kernel, the results one of its blocks computes, and what a result costs in it
/// relative to the largest tile (loads a product, from the tile's shape).
struct Tile<P: 'static> {
    entry: &'static Entry<P>,
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

    fn shared_bytes(&self) -> u32 {
        (STAGES * (self.rows + self.columns) * ROW_BYTES) as u32
    }

    fn grid(&self, rows: usize, columns: usize, parts: usize) -> [usize; 3] {
        [rows.div_ceil(self.rows), columns.div_ceil(self.columns), parts]
    }
}

/// The tile of the least estimated time; the first of equals.
fn choose<P>(
    tiles: &'static [Tile<P>],
    rows: usize,
    columns: usize,
    parts: usize,
) -> &'static Tile<P> {
    let estimate = |t: &&Tile<P>| t.estimate(rows, columns, parts);
    tiles.iter().min_by(|a, b| estimate(a).total_cmp(&estimate(b))).expect("there are tiles")
}

static FORWARD: [Tile<params::ConvGather>; 4] = [
    Tile::new(&CONV2D_FORWARD_F32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_FORWARD_F32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_F32_32X32, 32, 32, 1.8),
    Tile::new(&CONV2D_FORWARD_F32_128X4, 128, 4, 4.0),
];
static FORWARD_SCATTERED: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_FORWARD_F32_SCATTERED_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_FORWARD_F32_SCATTERED_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA: [Tile<params::ConvGather>; 3] = [
    Tile::new(&CONV2D_BACKWARD_DATA_F32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_32X32, 32, 32, 1.8),
];
static BACKWARD_DATA_SCATTERED: [Tile<params::ConvGather>; 2] = [
    Tile::new(&CONV2D_BACKWARD_DATA_F32_SCATTERED_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_DATA_F32_SCATTERED_32X32, 32, 32, 1.8),
];
static BACKWARD_WEIGHT: [Tile<params::ConvOuter>; 3] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_128X128, 128, 128, 1.0),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_32X32, 32, 32, 1.8),
];
static BACKWARD_WEIGHT_SCATTERED: [Tile<params::ConvOuter>; 3] = [
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_SCATTERED_64X64, 64, 64, 1.2),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_SCATTERED_32X32, 32, 32, 1.8),
    Tile::new(&CONV2D_BACKWARD_WEIGHT_F32_SCATTERED_4X256, 4, 256, 2.5),
];

/// Which pass gathers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    BackwardData,
}

/// Height or width of a forward pass: result i reads source position
/// `stride i - padding + tap dilation`.
fn forward_axis(op: &Conv2d, axis: usize) -> params::ConvAxis {
    let o = &op.options;
    let count = op.output_size()[axis] as i32;
    params::ConvAxis {
        count,
        first: 0,
        step: 1,
        length: count,
        scale: o.stride[axis] as i32,
        shift: -([o.padding.top, o.padding.left][axis] as i32),
        shift_step: o.dilation[axis] as i32,
        taps: op.kernel[axis] as i32,
        tap: 0,
        tap_step: 1,
        source: [op.h, op.w][axis] as i32,
    }
}

/// Height or width of a backward pass to the positions that are `first` modulo the
/// stride; those with `(first + padding - tap dilation)` a multiple of it use a tap.
fn backward_axis(op: &Conv2d, axis: usize, first: usize) -> params::ConvAxis {
    let o = &op.options;
    let (stride, dilation) = (o.stride[axis] as i32, o.dilation[axis] as i32);
    let length = [op.h, op.w][axis] as i32;
    let distance =
        |tap: i32| first as i32 + [o.padding.top, o.padding.left][axis] as i32 - tap * dilation;
    let used: Vec<i32> =
        (0..op.kernel[axis] as i32).filter(|&t| distance(t).rem_euclid(stride) == 0).collect();
    let tap = used.first().copied().unwrap_or(0);
    let tap_step = used.get(1).map_or(1, |next| next - tap);
    params::ConvAxis {
        count: (length - first as i32 + stride - 1).div_euclid(stride).max(0),
        first: first as i32,
        step: stride,
        length,
        scale: 1,
        shift: distance(tap).div_euclid(stride),
        shift_step: -(tap_step * dilation) / stride,
        taps: used.len() as i32,
        tap,
        tap_step,
        source: op.output_size()[axis] as i32,
    }
}

/// Lanes of a gathering pass whose results have `area` pixels an image.
fn gather_lanes(area: usize, tiles: usize) -> usize {
    if area > FEW_PIXELS { 1 } else { GATHER_LANES.min(tiles / LANE_TILES).max(1) }
}

/// The tiles of a gathering reduction over `reduced` channels and `taps`.
fn reduction_tiles(reduced: usize, taps: usize, aligned: bool) -> usize {
    if aligned { taps * reduced.div_ceil(DEPTH) } else { (taps * reduced).div_ceil(DEPTH) }
}

/// Sizes of a gathering pass that both its launch and its workspace follow.
struct Gather {
    pass: Pass,
    reduced: usize,
    columns: usize,
    aligned: bool,
    lanes: usize,
}

impl Gather {
    fn new(op: &Conv2d, pass: Pass) -> Self {
        let groups = op.options.groups;
        let (c_in, c_out) = (op.c_in / groups, op.c_out / groups);
        let taps = op.kernel[0] * op.kernel[1];
        let [oh, ow] = op.output_size();
        let strided = op.options.stride != [1, 1];
        let (reduced, columns, area) = match pass {
            Pass::Forward => (c_in, c_out, oh * ow),
            Pass::BackwardData => (c_out, c_in, op.h * op.w),
        };
        let aligned = reduced.is_multiple_of(CHUNK)
            && (pass == Pass::Forward || columns.is_multiple_of(CHUNK));
        // A single pixel is a linear layer's row, of which an image may have many.
        let lanes = if area == 1 || (strided && pass == Pass::BackwardData) {
            1
        } else {
            gather_lanes(area, reduction_tiles(reduced, taps, aligned))
        };
        Gather { pass, reduced, columns, aligned, lanes }
    }

    fn results(&self, op: &Conv2d) -> usize {
        match self.pass {
            Pass::Forward => op.y_len(),
            Pass::BackwardData => op.x_len(),
        }
    }

    fn workspace_len(&self, op: &Conv2d) -> usize {
        if self.lanes == 1 { 0 } else { self.lanes * self.results(op) }
    }

    /// One launch over the results at `first` modulo `step` (of the axes), and the
    /// sum of the lanes.
    fn launch(&self, op: &Conv2d, call: &Call, axes: [params::ConvAxis; 2]) -> Result<()> {
        let [down, along] = axes;
        let groups = op.options.groups;
        let (y, add) = call.required(0);
        let forward = self.pass == Pass::Forward;
        let optional = |i| if forward { call.optional(i) } else { std::ptr::null() };
        let (bias, per_image, residual) = (optional(2), optional(PER_IMAGE), optional(RESIDUAL));
        let taps = (down.taps * along.taps) as usize;
        let pixels = op.n * (down.count * along.count) as usize;
        let split = self.lanes > 1;
        let none = std::ptr::null();
        let p = params::ConvGather {
            y: y.cast(),
            partial: if split { call.workspace() } else { std::ptr::null_mut() },
            x: call.input(0).cast(),
            x2: none,
            weight: call.input(1).cast(),
            bias,
            per_image: per_image.cast(),
            residual: residual.cast(),
            // Without a tap there is nothing to walk, and the results are zero.
            down,
            along: params::ConvAxis { taps: along.taps.max(1), ..along },
            images: op.n as i32,
            pixels: pixels as i32,
            x_channels: (groups * self.reduced) as i32,
            x2_channels: 0,
            enlarge: 0,
            kernel_width: op.kernel[1] as i32,
            kernel_taps: (op.kernel[0] * op.kernel[1]) as i32,
            groups: groups as i32,
            reduced: self.reduced as i32,
            columns: self.columns as i32,
            tiles: reduction_tiles(self.reduced, taps, self.aligned) as i32,
            lanes: self.lanes as i32,
            add: add as i32,
        };
        let tiles: &'static [Tile<params::ConvGather>] = match (self.pass, self.aligned) {
            (Pass::Forward, true) => &FORWARD,
            (Pass::Forward, false) => &FORWARD_SCATTERED,
            (Pass::BackwardData, true) => &BACKWARD_DATA,
            (Pass::BackwardData, false) => &BACKWARD_DATA_SCATTERED,
        };
        let parts = groups * self.lanes;
        let tile = choose(tiles, pixels, self.columns, parts);
        let grid = if pixels == 0 { [0; 3] } else { tile.grid(pixels, self.columns, parts) };
        call.launch(tile.entry, grid, tile.shared_bytes(), &p)?;
        if !split {
            return Ok(());
        }
        let channels = groups * self.columns;
        sum_lanes(
            call,
            params::SumLanes {
                y: p.y,
                y2: std::ptr::null_mut(),
                partial: p.partial,
                bias,
                per_image: p.per_image,
                residual: p.residual,
                len: self.results(op) as i64,
                len2: 0,
                image_len: (self.results(op) / op.n.max(1)) as i64,
                channels: channels as i32,
                lanes: p.lanes,
                add: p.add,
                add2: 0,
            },
        )
    }
}

fn sum_lanes(call: &Call, p: params::SumLanes) -> Result<()> {
    let len = (p.len + p.len2) as usize;
    call.launch(&SUM_LANES_F32, super::arguments::groups(&SUM_LANES_F32, len, 1), 0, &p)
}

/// Input positions of what lowering adds to a forward layer.
const PER_IMAGE: usize = 4;
const RESIDUAL: usize = 5;

/// Floats of scratch memory of the forward pass.
pub(super) fn forward_workspace_len(op: &Conv2d) -> usize {
    Gather::new(op, Pass::Forward).workspace_len(op)
}

/// Floats of scratch memory of the backward pass to the data.
pub(super) fn backward_data_workspace_len(op: &Conv2d) -> usize {
    Gather::new(op, Pass::BackwardData).workspace_len(op)
}

/// y from x, the weight, and optionally bias, per-image and residual terms.
pub(super) fn forward(op: &Conv2d, call: &Call) -> Result<()> {
    let axes = [forward_axis(op, 0), forward_axis(op, 1)];
    Gather::new(op, Pass::Forward).launch(op, call, axes)
}

/// d_x from d_y and the weight: one launch for each residue modulo the stride.
pub(super) fn backward_data(op: &Conv2d, call: &Call) -> Result<()> {
    let gather = Gather::new(op, Pass::BackwardData);
    for y in 0..op.options.stride[0] {
        for x in 0..op.options.stride[1] {
            gather.launch(op, call, [backward_axis(op, 0, y), backward_axis(op, 1, x)])?;
        }
    }
    Ok(())
}

/// Lanes of the weight gradient.
fn outer_lanes(op: &Conv2d) -> usize {
    let groups = op.options.groups;
    let [oh, ow] = op.output_size();
    let columns = op.kernel[0] * op.kernel[1] * op.c_in / groups;
    let tiles = (op.c_out / groups).div_ceil(128) * columns.div_ceil(128) * groups;
    let most = (oh * ow / OUTER_LANE_PIXELS).clamp(3, MOST_OUTER_LANES);
    MULTIPROCESSORS.div_ceil(tiles).clamp(1, most)
}

/// Floats of scratch memory of the weight gradient.
pub(super) fn backward_weight_workspace_len(op: &Conv2d) -> usize {
    match outer_lanes(op) {
        1 => 0,
        lanes => lanes * (op.weight_len() + op.c_out),
    }
}

/// d_weight and d_bias from x and d_y.
pub(super) fn backward_weight(op: &Conv2d, call: &Call) -> Result<()> {
    let groups = op.options.groups;
    let (c_in, c_out) = (op.c_in / groups, op.c_out / groups);
    let taps = op.kernel[0] * op.kernel[1];
    let [oh, ow] = op.output_size();
    let pixels = op.n * oh * ow;
    let lanes = outer_lanes(op);
    let (d_weight, add) = call.output(0).unwrap_or((std::ptr::null_mut(), 0));
    let (d_bias, add_bias) = call.output(1).unwrap_or((std::ptr::null_mut(), 0));
    let p = params::ConvOuter {
        d_weight: d_weight.cast(),
        d_bias,
        partial: if lanes > 1 { call.workspace() } else { std::ptr::null_mut() },
        x: call.input(0).cast(),
        x2: std::ptr::null(),
        d_y: call.input(1).cast(),
        down: forward_axis(op, 0),
        along: forward_axis(op, 1),
        images: op.n as i32,
        pixels: pixels as i32,
        x_channels: op.c_in as i32,
        x2_channels: 0,
        enlarge: 0,
        kernel_width: op.kernel[1] as i32,
        kernel_taps: taps as i32,
        groups: groups as i32,
        c_in: c_in as i32,
        c_out: c_out as i32,
        tiles: pixels.div_ceil(DEPTH) as i32,
        lanes: lanes as i32,
        add: add as i32,
        add_bias: add_bias as i32,
    };
    let aligned = c_in.is_multiple_of(CHUNK) && c_out.is_multiple_of(CHUNK);
    let tiles: &'static [_] = if aligned { &BACKWARD_WEIGHT } else { &BACKWARD_WEIGHT_SCATTERED };
    let parts = groups * lanes;
    let tile = choose(tiles, c_out, taps * c_in, parts);
    call.launch(tile.entry, tile.grid(c_out, taps * c_in, parts), tile.shared_bytes(), &p)?;
    if lanes == 1 {
        return Ok(());
    }
    sum_lanes(
        call,
        params::SumLanes {
            y: p.d_weight,
            y2: d_bias,
            partial: p.partial,
            bias: std::ptr::null(),
            per_image: std::ptr::null(),
            residual: std::ptr::null(),
            len: op.weight_len() as i64,
            len2: op.c_out as i64,
            image_len: 1,
            channels: 1,
            lanes: p.lanes,
            add: p.add,
            add2: p.add_bias,
        },
    )
}
