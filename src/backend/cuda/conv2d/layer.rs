//! A convolution in some arithmetic: the launches of its passes, and the scratch memory
//! they need.
#![allow(unsafe_code)] // Launches on addresses whose sizes were checked.

use super::super::arguments::Call;
use super::super::device::{COUNTERS, Device};
use super::super::entries::{Entry, params};
use super::few;
use super::tiles::{self, Reading, Tile};
use super::{Arithmetic, MULTIPROCESSORS, Source};
use crate::error::Result;
use crate::ops::conv2d::Conv2d;

/// Sides of an image that the kernels for aligned channels can count.
const MOST_POSITIONS: usize = 1 << 13;

/// Pixels of an image up to which the forward and data passes are split into
/// [`GATHER_LANES`]: too few tiles of results otherwise.
const FEW_PIXELS: usize = 16;
const GATHER_LANES: usize = 4;
/// Tiles of the reduction a lane should have, at least.
const LANE_TILES: usize = 8;

/// Lanes of the weight gradient: at most this many, and one for so many pixels.
const MOST_OUTER_LANES: usize = 24;
const OUTER_LANE_PIXELS: usize = 8;
/// Lanes that add in turn: each waits for those before it.
const MOST_TURNS: usize = 6;
/// Share of a weight gradient's time that a lane more is worth, at least.
const TURN_COST: f64 = 0.02;
/// Tiles of 128x128 results from which on a weight gradient is not split: they are many,
/// and each of the up to [`SMALLEST_TILES`] that a kernel makes of one has two counters.
const MANY_TILES: usize = 1024;
const SMALLEST_TILES: usize = 32;
const _: () = assert!(2 * MANY_TILES * SMALLEST_TILES <= COUNTERS);
/// Images for which the lanes' own sums shall take no more than a tenth of the bytes that a
/// weight gradient reads and writes at least.
const MANY_IMAGES: usize = 128;

/// Positions modulo the stride that one launch computes, along an axis.
const MOST_RESIDUES: usize = params::MOST_RESIDUES as usize;

/// A convolution in some arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) op: Conv2d,
    pub(super) arithmetic: Arithmetic,
    pub(super) source: Source,
    /// Tile to use where a pass has it.
    pub(super) tile: Option<[usize; 2]>,
}

/// One launch.
pub(super) enum Launch {
    Gather(&'static Entry<params::ConvGather>, [usize; 3], u32, params::ConvGather),
    Outer(&'static Entry<params::ConvOuter>, [usize; 3], u32, params::ConvOuter),
}

impl Launch {
    /// # Safety
    /// As for [`Device::launch`].
    pub(super) unsafe fn on(&self, device: &Device, op: &'static str) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Launch::Gather(entry, grid, shared, p) => {
                    device.launch(op, entry, *grid, *shared, p)
                }
                Launch::Outer(entry, grid, shared, p) => {
                    device.launch(op, entry, *grid, *shared, p)
                }
            }
        }
    }

    pub(super) fn by(self, call: &Call) -> Result<()> {
        match self {
            Launch::Gather(entry, grid, shared, p) => call.launch(entry, grid, shared, &p),
            Launch::Outer(entry, grid, shared, p) => call.launch(entry, grid, shared, &p),
        }
    }
}

/// Where the operands of a forward or data pass lie; null where absent.
pub(super) struct GatherOperands {
    pub(super) y: *mut f32,
    pub(super) workspace: *mut f32,
    pub(super) counters: *mut u32,
    pub(super) x: *const f32,
    pub(super) x2: *const f32,
    pub(super) weight: *const f32,
    pub(super) bias: *const f32,
    pub(super) per_image: *const f32,
    pub(super) residual: *const f32,
    pub(super) add: bool,
}

/// Where the operands of the weight gradient lie; null where absent.
pub(super) struct OuterOperands {
    pub(super) d_weight: *mut f32,
    pub(super) d_bias: *mut f32,
    pub(super) workspace: *mut f32,
    pub(super) counters: *mut u32,
    pub(super) x: *const f32,
    pub(super) x2: *const f32,
    pub(super) d_y: *const f32,
    pub(super) add: bool,
    pub(super) add_bias: bool,
}

/// Which pass gathers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
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

/// Sizes of a gathering pass that both its launch and its workspace follow.
struct Gather {
    /// Channels of a group that are summed over, those of the second tensor among them.
    reduced: usize,
    /// Channels of a group that result.
    columns: usize,
    reading: Reading,
    /// Parts of the reduction.
    lanes: usize,
    /// Whether each has its blocks, and its sums are kept apart until the last of them
    /// adds up. In a large batch the blocks are many without that, and take all lanes.
    apart: bool,
}

/// How a weight gradient's reduction is divided.
pub(super) struct Outer {
    pub(super) lanes: usize,
    /// Whether the last lane adds up sums that are kept apart, or each adds its own in turn.
    apart: bool,
}

/// Residues of a pass along an axis, in groups of one launch; one group of one going
/// forward.
fn residues(op: &Conv2d, pass: Pass, axis: usize) -> Vec<Vec<params::ConvAxis>> {
    match pass {
        Pass::Forward => vec![vec![forward_axis(op, axis)]],
        Pass::BackwardData => {
            let all: Vec<_> =
                (0..op.options.stride[axis]).map(|r| backward_axis(op, axis, r)).collect();
            all.chunks(MOST_RESIDUES).map(<[_]>::to_vec).collect()
        }
    }
}

impl Layer {
    pub(super) fn plain(op: &Conv2d) -> Self {
        Layer { op: *op, arithmetic: Arithmetic::F32, source: Source::default(), tile: None }
    }

    /// Whether 16 bytes never straddle so many channels.
    fn fills(&self, channels: usize) -> bool {
        channels.is_multiple_of(self.arithmetic.chunk())
    }

    /// Whether positions fit the 16 bits that most kernels give them.
    fn is_countable(&self) -> bool {
        let (op, o) = (&self.op, &self.op.options);
        let [oh, ow] = op.output_size();
        let reach = |axis: usize| op.kernel[axis] * o.dilation[axis] * o.stride[axis];
        let p = &o.padding;
        let sides = [op.h + p.top, op.w + p.left, oh, ow, reach(0), reach(1)];
        sides.iter().all(|&side| side < MOST_POSITIONS)
    }

    /// What 16 bytes may straddle, of `from` channels that are summed over and `to` that
    /// result.
    fn gather_reading(&self, pass: Pass, from: usize, to: usize) -> Reading {
        let second = self.source.second_channels;
        let forward = pass == Pass::Forward;
        let alone = self.op.options.groups == 1 && (second == 0 || !forward);
        let terms = self.op.kernel[0] * self.op.kernel[1] * from;
        match (self.fills(from), self.fills(to)) {
            _ if !self.is_countable() => Reading::Scattered,
            (true, _) if forward && self.fills(second) => Reading::Aligned,
            (true, true) if !forward => Reading::Aligned,
            (true, false) if !forward => Reading::NarrowWeight,
            (false, fills) if (forward || fills) && alone && terms <= few::MOST_TERMS => {
                Reading::FewInputs
            }
            _ => Reading::Scattered,
        }
    }

    fn outer_reading(&self) -> Reading {
        let (parts, second) = (self.op.options.groups, self.source.second_channels);
        let fills = [self.op.c_in / parts, self.op.c_out / parts].map(|c| self.fills(c));
        match fills {
            _ if !self.is_countable() => Reading::Scattered,
            [true, true] if self.fills(second) => Reading::Aligned,
            [false, true] if parts == 1 && second == 0 => Reading::FewInputs,
            [true, false] if parts == 1 && self.fills(second) => Reading::FewOutputs,
            _ => Reading::Scattered,
        }
    }

    /// Tiles of a gathering reduction over `taps`.
    fn reduction_tiles(&self, pass: Pass, gather: &Gather, taps: usize) -> usize {
        let depth = self.arithmetic.depth();
        let second = if pass == Pass::Forward { self.source.second_channels } else { 0 };
        if matches!(gather.reading, Reading::Aligned | Reading::NarrowWeight) {
            taps * ((gather.reduced - second).div_ceil(depth) + second.div_ceil(depth))
        } else {
            (taps * gather.reduced).div_ceil(depth)
        }
    }

    fn gather(&self, pass: Pass) -> Gather {
        let op = &self.op;
        let parts = op.options.groups;
        let (c_in, c_out) = (op.c_in / parts, op.c_out / parts);
        let [oh, ow] = op.output_size();
        let (reduced, columns) = match pass {
            Pass::Forward => (c_in, c_out),
            Pass::BackwardData => (c_out, c_in),
        };
        let reading = self.gather_reading(pass, reduced, columns);
        let mut gather = Gather { reduced, columns, reading, lanes: 1, apart: false };
        let area = if pass == Pass::Forward { oh * ow } else { op.h * op.w };
        let strided = op.options.stride != [1, 1];
        // A single pixel is a linear layer's row, of which an image may have many.
        if area > 1 && area <= FEW_PIXELS && !(strided && pass == Pass::BackwardData) {
            let tiles = self.reduction_tiles(pass, &gather, op.kernel[0] * op.kernel[1]);
            gather.lanes = GATHER_LANES.min(tiles / LANE_TILES).max(1);
        }
        if gather.lanes > 1 {
            let pixels = op.n * area;
            let tile = self.gather_tile(pass, &gather, reading, pixels, parts);
            let blocks: usize = tile.grid(pixels, columns, parts).iter().product();
            gather.apart = 2 * blocks < MULTIPROCESSORS;
        }
        gather
    }

    /// The tile of a gathering pass with `parts` such matrices of results.
    fn gather_tile(
        &self,
        pass: Pass,
        gather: &Gather,
        reading: Reading,
        pixels: usize,
        parts: usize,
    ) -> &'static Tile<params::ConvGather> {
        let tiles = match pass {
            Pass::Forward => tiles::forward(self.arithmetic, reading),
            Pass::BackwardData => tiles::backward_data(self.arithmetic, reading),
        };
        tiles::choose(tiles, self.tile, gather.lanes > 1, [pixels, gather.columns, parts])
    }

    fn results(&self, pass: Pass) -> usize {
        match pass {
            Pass::Forward => self.op.y_len(),
            Pass::BackwardData => self.op.x_len(),
        }
    }

    pub(super) fn gather_workspace_len(&self, pass: Pass) -> usize {
        let gather = self.gather(pass);
        if gather.apart { gather.lanes * self.results(pass) } else { 0 }
    }

    /// The forward pass, or the backward pass to the data: one launch for all residues
    /// of a position modulo the stride, of strides up to [`MOST_RESIDUES`].
    pub(super) fn launch_gather(
        &self,
        pass: Pass,
        operands: &GatherOperands,
        launch: &mut dyn FnMut(Launch) -> Result<()>,
    ) -> Result<()> {
        for down in residues(&self.op, pass, 0) {
            for along in residues(&self.op, pass, 1) {
                self.launch_residues(pass, operands, [&down, &along], launch)?;
            }
        }
        Ok(())
    }

    fn launch_residues(
        &self,
        pass: Pass,
        operands: &GatherOperands,
        [down, along]: [&[params::ConvAxis]; 2],
        launch: &mut dyn FnMut(Launch) -> Result<()>,
    ) -> Result<()> {
        let op = &self.op;
        let gather = self.gather(pass);
        let most = |axes: &[params::ConvAxis]| axes.iter().map(|a| a.count as usize).max();
        let pixels = op.n * most(down).unwrap_or(0) * most(along).unwrap_or(0);
        if pixels == 0 {
            return Ok(());
        }
        let source = if pass == Pass::Forward { self.source } else { Source::default() };
        let all = |axes: &[params::ConvAxis]| std::array::from_fn(|i| axes[i % axes.len()]);
        let p = params::ConvGather {
            y: operands.y.cast(),
            partial: if gather.apart { operands.workspace } else { std::ptr::null_mut() },
            counters: operands.counters,
            x: operands.x.cast(),
            x2: operands.x2.cast(),
            weight: operands.weight.cast(),
            bias: operands.bias,
            per_image: operands.per_image.cast(),
            residual: operands.residual.cast(),
            down: all(down),
            along: all(along),
            residues_down: down.len() as i32,
            residues_along: along.len() as i32,
            images: op.n as i32,
            x_channels: (op.options.groups * gather.reduced - source.second_channels) as i32,
            x2_channels: source.second_channels as i32,
            enlarge: source.enlarge as i32,
            kernel_width: op.kernel[1] as i32,
            kernel_taps: (op.kernel[0] * op.kernel[1]) as i32,
            groups: op.options.groups as i32,
            reduced: gather.reduced as i32,
            columns: gather.columns as i32,
            lanes: gather.lanes as i32,
            add: operands.add.into(),
        };
        let parts = op.options.groups
            * down.len()
            * along.len()
            * if gather.apart { gather.lanes } else { 1 };
        let choose = |reading: Reading| self.gather_tile(pass, &gather, reading, pixels, parts);
        let mut tile = choose(gather.reading);
        let bytes = |tile: &Tile<params::ConvGather>, keeps: bool| {
            tile.shared_bytes() + if keeps { tile.result_bytes() } else { 0 }
        };
        let needed = |keeps: bool| match gather.reading {
            Reading::FewInputs => {
                let few = few::gather_bytes(self.arithmetic, &p, tile, pass == Pass::Forward);
                bytes(tile, keeps).max(tile.stage_bytes() + few)
            }
            Reading::NarrowWeight => bytes(tile, keeps) + few::weight_bytes(self.arithmetic, &p),
            _ => bytes(tile, keeps),
        };
        // The batch decides whether lanes are apart, and must not decide which kernel has
        // them: kernels cut them differently.
        let is_split = gather.lanes > 1;
        let keeps = is_split && !gather.apart;
        let mut shared = needed(keeps);
        if needed(is_split) > few::MOST_BYTES {
            tile = choose(Reading::Scattered);
            shared = bytes(tile, keeps);
        }
        let grid = tile.grid(pixels, gather.columns, parts);
        launch(Launch::Gather(tile.entry, grid, shared as u32, p))
    }

    pub(super) fn outer(&self) -> Outer {
        let op = &self.op;
        let parts = op.options.groups;
        let [oh, ow] = op.output_size();
        let columns = op.kernel[0] * op.kernel[1] * op.c_in / parts;
        let tiles = (op.c_out / parts).div_ceil(128) * columns.div_ceil(128) * parts;
        let most = (oh * ow / OUTER_LANE_PIXELS).clamp(3, MOST_OUTER_LANES);
        let lanes = MULTIPROCESSORS.div_ceil(tiles).clamp(1, most);
        let elements = MANY_IMAGES * (oh * ow * op.c_out + op.h * op.w * op.c_in);
        let bytes = elements * self.arithmetic.bytes() + op.weight_len() * 4;
        let apart = bytes / 10 / (4 * self.outer_lane_len());
        if lanes > 1 && apart >= lanes.min(MOST_TURNS + 2) {
            return Outer { lanes: lanes.min(apart), apart: true };
        }
        // What leaves few multiprocessors idle, and makes few blocks wait.
        let cost = |lanes: usize| {
            let blocks = lanes * tiles;
            let rounds = blocks.div_ceil(MULTIPROCESSORS) * MULTIPROCESSORS;
            rounds as f64 / blocks as f64 + TURN_COST * lanes as f64
        };
        let most = if tiles < MANY_TILES { most.min(MOST_TURNS) } else { 1 };
        let best = (1..=most).min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        Outer { lanes: best.unwrap_or(1), apart: false }
    }

    /// Floats of a lane's sums, rows filled up to whole 16 bytes.
    fn outer_lane_len(&self) -> usize {
        let op = &self.op;
        let columns = op.kernel[0] * op.kernel[1] * op.c_in / op.options.groups;
        op.c_out * columns.next_multiple_of(4) + op.c_out.next_multiple_of(4)
    }

    pub(super) fn outer_workspace_len(&self) -> usize {
        let outer = self.outer();
        if outer.apart { outer.lanes * self.outer_lane_len() } else { 0 }
    }

    pub(super) fn launch_outer(
        &self,
        operands: &OuterOperands,
        launch: &mut dyn FnMut(Launch) -> Result<()>,
    ) -> Result<()> {
        let op = &self.op;
        let parts = op.options.groups;
        let (c_in, c_out) = (op.c_in / parts, op.c_out / parts);
        let taps = op.kernel[0] * op.kernel[1];
        let [oh, ow] = op.output_size();
        let pixels = op.n * oh * ow;
        let Outer { lanes, apart } = self.outer();
        let second = self.source.second_channels;
        let mut p = params::ConvOuter {
            d_weight: operands.d_weight.cast(),
            d_bias: operands.d_bias,
            partial: if apart { operands.workspace } else { std::ptr::null_mut() },
            counters: operands.counters,
            x: operands.x.cast(),
            x2: operands.x2.cast(),
            d_y: operands.d_y.cast(),
            down: forward_axis(op, 0),
            along: forward_axis(op, 1),
            images: op.n as i32,
            pixels: pixels as i32,
            x_channels: (op.c_in - second) as i32,
            x2_channels: second as i32,
            enlarge: self.source.enlarge as i32,
            kernel_width: op.kernel[1] as i32,
            kernel_taps: taps as i32,
            groups: parts as i32,
            c_in: c_in as i32,
            c_out: c_out as i32,
            tiles: pixels.div_ceil(self.arithmetic.depth()) as i32,
            lanes: lanes as i32,
            add: operands.add.into(),
            add_bias: operands.add_bias.into(),
            few_offset: 0,
            few_len: 0,
        };
        let parts = parts * lanes;
        let choose = |reading: Reading| {
            let tiles = tiles::backward_weight(self.arithmetic, reading);
            tiles::choose(tiles, self.tile, false, [c_out, taps * c_in, parts])
        };
        let reading = self.outer_reading();
        let mut tile = choose(reading);
        let beside = match reading {
            Reading::Aligned => tile.table_bytes(self.arithmetic, taps, c_in),
            Reading::FewInputs => {
                p.few_len = few::sources_len(self.arithmetic, &p) as i32;
                few::terms_bytes(tile.columns) + 2 * p.few_len as usize * self.arithmetic.bytes()
            }
            Reading::FewOutputs => {
                let table = tile.table_bytes(self.arithmetic, taps, c_in).next_multiple_of(16);
                p.few_offset = table as i32;
                p.few_len = few::gradients_len(self.arithmetic, c_out) as i32;
                table + 2 * p.few_len as usize * self.arithmetic.bytes()
            }
            _ => 0,
        };
        let mut shared = tile.shared_bytes() + beside;
        if shared > few::MOST_BYTES {
            tile = choose(Reading::Scattered);
            shared = tile.shared_bytes();
        }
        let grid = tile.grid(c_out, taps * c_in, parts);
        launch(Launch::Outer(tile.entry, grid, shared as u32, p))
    }
}
