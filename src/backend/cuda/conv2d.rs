//! Convolutions on CUDA: which kernels of `kernels/conv2d.cu` and
//! `kernels/conv2d_tensor.cu` a pass launches, and what they are told.
//!
//! The lanes in which a reduction is split depend on the sizes of one image alone, and
//! every tile shape gives the same bits, so an image's result depends neither on its
//! batch nor on the device.
//!
//! [`Convolution`] is the passes on memory of one's own; the plan's nodes use the same
//! launches.
#![allow(unsafe_code)] // Launches on addresses whose sizes were checked.

mod tiles;

use super::arguments::{Call, groups};
use super::device::Device;
use super::entries::{Entry, SUM_LANES_BF16, SUM_LANES_F32, params};
use super::memory::Memory;
use crate::error::{Error, Result};
use crate::ops::conv2d::{Conv2d, PER_IMAGE, RESIDUAL};
use crate::plan::Mode;

/// Bytes of one row of a tile along the reduction, as in `kernels/matmul.cuh`.
const ROW_BYTES: usize = 128;

/// Sides of an image that the kernels for aligned channels can count.
const MOST_POSITIONS: usize = 1 << 13;

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

/// A convolution in some arithmetic.
#[derive(Clone, Copy, Debug)]
struct Layer {
    op: Conv2d,
    arithmetic: Arithmetic,
    source: Source,
    /// Tile to use where a pass has it.
    tile: Option<[usize; 2]>,
}

/// One launch.
enum Launch {
    Gather(&'static Entry<params::ConvGather>, [usize; 3], u32, params::ConvGather),
    Outer(&'static Entry<params::ConvOuter>, [usize; 3], u32, params::ConvOuter),
    Sum(&'static Entry<params::SumLanes>, params::SumLanes),
}

impl Launch {
    /// # Safety
    /// As for [`Device::launch`].
    unsafe fn on(&self, device: &Device, op: &'static str) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Launch::Gather(entry, grid, shared, p) => {
                    device.launch(op, entry, *grid, *shared, p)
                }
                Launch::Outer(entry, grid, shared, p) => {
                    device.launch(op, entry, *grid, *shared, p)
                }
                Launch::Sum(entry, p) => {
                    let grid = groups(entry, (p.len + p.len2) as usize, 1);
                    device.launch(op, entry, grid, 0, p)
                }
            }
        }
    }

    fn by(self, call: &Call) -> Result<()> {
        match self {
            Launch::Gather(entry, grid, shared, p) => call.launch(entry, grid, shared, &p),
            Launch::Outer(entry, grid, shared, p) => call.launch(entry, grid, shared, &p),
            Launch::Sum(entry, p) => {
                call.launch(entry, groups(entry, (p.len + p.len2) as usize, 1), 0, &p)
            }
        }
    }
}

/// Where the operands of a forward or data pass lie; null where absent.
struct GatherOperands {
    y: *mut f32,
    workspace: *mut f32,
    x: *const f32,
    x2: *const f32,
    weight: *const f32,
    bias: *const f32,
    per_image: *const f32,
    residual: *const f32,
    add: bool,
}

/// Where the operands of the weight gradient lie; null where absent.
struct OuterOperands {
    d_weight: *mut f32,
    d_bias: *mut f32,
    workspace: *mut f32,
    x: *const f32,
    x2: *const f32,
    d_y: *const f32,
    add: bool,
    add_bias: bool,
}

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

/// Sizes of a gathering pass that both its launch and its workspace follow.
struct Gather {
    /// Channels of a group that are summed over, those of the second tensor among them.
    reduced: usize,
    /// Channels of a group that result.
    columns: usize,
    aligned: bool,
    lanes: usize,
}

impl Layer {
    fn plain(op: &Conv2d) -> Self {
        Layer { op: *op, arithmetic: Arithmetic::F32, source: Source::default(), tile: None }
    }

    /// Whether 16 bytes never straddle a pixel (and positions fit the 16 bits that the
    /// kernels for this give them).
    fn is_aligned(&self, channels: &[usize]) -> bool {
        let (op, o) = (&self.op, &self.op.options);
        let [oh, ow] = op.output_size();
        let reach = |axis: usize| op.kernel[axis] * o.dilation[axis] * o.stride[axis];
        let p = &o.padding;
        let sides = [op.h + p.top, op.w + p.left, oh, ow, reach(0), reach(1)];
        channels.iter().all(|c| c.is_multiple_of(self.arithmetic.chunk()))
            && sides.iter().all(|&side| side < MOST_POSITIONS)
    }

    /// Tiles of a gathering reduction over `taps`.
    fn reduction_tiles(&self, pass: Pass, gather: &Gather, taps: usize) -> usize {
        let depth = self.arithmetic.depth();
        let second = if pass == Pass::Forward { self.source.second_channels } else { 0 };
        if gather.aligned {
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
        let second = self.source.second_channels;
        let mut gather = match pass {
            Pass::Forward => {
                let aligned = self.is_aligned(&[c_in, second]);
                Gather { reduced: c_in, columns: c_out, aligned, lanes: 1 }
            }
            Pass::BackwardData => {
                let aligned = self.is_aligned(&[c_in, c_out]);
                Gather { reduced: c_out, columns: c_in, aligned, lanes: 1 }
            }
        };
        let area = if pass == Pass::Forward { oh * ow } else { op.h * op.w };
        let strided = op.options.stride != [1, 1];
        // A single pixel is a linear layer's row, of which an image may have many.
        if area > 1 && area <= FEW_PIXELS && !(strided && pass == Pass::BackwardData) {
            let tiles = self.reduction_tiles(pass, &gather, op.kernel[0] * op.kernel[1]);
            gather.lanes = GATHER_LANES.min(tiles / LANE_TILES).max(1);
        }
        gather
    }

    fn results(&self, pass: Pass) -> usize {
        match pass {
            Pass::Forward => self.op.y_len(),
            Pass::BackwardData => self.op.x_len(),
        }
    }

    fn gather_workspace_len(&self, pass: Pass) -> usize {
        match self.gather(pass).lanes {
            1 => 0,
            lanes => lanes * self.results(pass),
        }
    }

    fn sum(&self) -> &'static Entry<params::SumLanes> {
        match self.arithmetic {
            Arithmetic::F32 | Arithmetic::Tf32 => &SUM_LANES_F32,
            Arithmetic::Bf16 => &SUM_LANES_BF16,
        }
    }

    /// The forward pass, or the backward pass to the data: one launch for each residue
    /// of a position modulo the stride.
    fn launch_gather(
        &self,
        pass: Pass,
        operands: &GatherOperands,
        launch: &mut dyn FnMut(Launch) -> Result<()>,
    ) -> Result<()> {
        let op = &self.op;
        if pass == Pass::Forward {
            let axes = [forward_axis(op, 0), forward_axis(op, 1)];
            return self.launch_residue(pass, operands, axes, launch);
        }
        for y in 0..op.options.stride[0] {
            for x in 0..op.options.stride[1] {
                let axes = [backward_axis(op, 0, y), backward_axis(op, 1, x)];
                self.launch_residue(pass, operands, axes, launch)?;
            }
        }
        Ok(())
    }

    fn launch_residue(
        &self,
        pass: Pass,
        operands: &GatherOperands,
        [down, along]: [params::ConvAxis; 2],
        launch: &mut dyn FnMut(Launch) -> Result<()>,
    ) -> Result<()> {
        let op = &self.op;
        let gather = self.gather(pass);
        let parts = op.options.groups;
        let taps = (down.taps * along.taps) as usize;
        let pixels = op.n * (down.count * along.count) as usize;
        if pixels == 0 {
            return Ok(());
        }
        let source = if pass == Pass::Forward { self.source } else { Source::default() };
        let split = gather.lanes > 1;
        let p = params::ConvGather {
            y: operands.y.cast(),
            partial: if split { operands.workspace } else { std::ptr::null_mut() },
            x: operands.x.cast(),
            x2: operands.x2.cast(),
            weight: operands.weight.cast(),
            bias: operands.bias,
            per_image: operands.per_image.cast(),
            residual: operands.residual.cast(),
            // Without a tap there is nothing to walk, and the results are zero.
            down,
            along: params::ConvAxis { taps: along.taps.max(1), ..along },
            images: op.n as i32,
            pixels: pixels as i32,
            x_channels: (parts * gather.reduced - source.second_channels) as i32,
            x2_channels: source.second_channels as i32,
            enlarge: source.enlarge as i32,
            kernel_width: op.kernel[1] as i32,
            kernel_taps: (op.kernel[0] * op.kernel[1]) as i32,
            groups: parts as i32,
            reduced: gather.reduced as i32,
            columns: gather.columns as i32,
            tiles: self.reduction_tiles(pass, &gather, taps) as i32,
            lanes: gather.lanes as i32,
            add: operands.add.into(),
        };
        let tiles = match pass {
            Pass::Forward => tiles::forward(self.arithmetic, gather.aligned),
            Pass::BackwardData => tiles::backward_data(self.arithmetic, gather.aligned),
        };
        let parts = parts * gather.lanes;
        let tile = tiles::choose(tiles, self.tile, pixels, gather.columns, parts);
        let grid = tile.grid(pixels, gather.columns, parts);
        launch(Launch::Gather(tile.entry, grid, tile.shared_bytes(), p))?;
        if !split {
            return Ok(());
        }
        let sum = params::SumLanes {
            y: p.y,
            y2: std::ptr::null_mut(),
            partial: p.partial,
            bias: p.bias,
            per_image: p.per_image,
            residual: p.residual,
            len: self.results(pass) as i64,
            len2: 0,
            image_len: (self.results(pass) / op.n) as i64,
            channels: p.groups * p.columns,
            lanes: p.lanes,
            add: p.add,
            add2: 0,
        };
        launch(Launch::Sum(self.sum(), sum))
    }

    fn outer_lanes(&self) -> usize {
        let op = &self.op;
        let parts = op.options.groups;
        let [oh, ow] = op.output_size();
        let columns = op.kernel[0] * op.kernel[1] * op.c_in / parts;
        let tiles = (op.c_out / parts).div_ceil(128) * columns.div_ceil(128) * parts;
        let most = (oh * ow / OUTER_LANE_PIXELS).clamp(3, MOST_OUTER_LANES);
        MULTIPROCESSORS.div_ceil(tiles).clamp(1, most)
    }

    fn outer_workspace_len(&self) -> usize {
        match self.outer_lanes() {
            1 => 0,
            lanes => lanes * (self.op.weight_len() + self.op.c_out),
        }
    }

    fn launch_outer(
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
        let lanes = self.outer_lanes();
        let second = self.source.second_channels;
        let p = params::ConvOuter {
            d_weight: operands.d_weight.cast(),
            d_bias: operands.d_bias,
            partial: if lanes > 1 { operands.workspace } else { std::ptr::null_mut() },
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
        };
        let aligned = self.is_aligned(&[c_in, c_out, second]);
        let parts = parts * lanes;
        let tiles = tiles::backward_weight(self.arithmetic, aligned);
        let tile = tiles::choose(tiles, self.tile, c_out, taps * c_in, parts);
        let grid = tile.grid(c_out, taps * c_in, parts);
        launch(Launch::Outer(tile.entry, grid, tile.shared_bytes(), p))?;
        if lanes == 1 {
            return Ok(());
        }
        let sum = params::SumLanes {
            y: p.d_weight,
            y2: p.d_bias,
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
        };
        launch(Launch::Sum(&SUM_LANES_F32, sum))
    }
}

/// Floats of scratch memory of the forward pass.
pub(super) fn forward_workspace_len(op: &Conv2d) -> usize {
    Layer::plain(op).gather_workspace_len(Pass::Forward)
}

/// Floats of scratch memory of the backward pass to the data.
pub(super) fn backward_data_workspace_len(op: &Conv2d) -> usize {
    Layer::plain(op).gather_workspace_len(Pass::BackwardData)
}

/// Floats of scratch memory of the weight gradient.
pub(super) fn backward_weight_workspace_len(op: &Conv2d) -> usize {
    Layer::plain(op).outer_workspace_len()
}

fn gather_node(op: &Conv2d, call: &Call, pass: Pass) -> Result<()> {
    let forward = pass == Pass::Forward;
    let optional = |i| if forward { call.optional(i) } else { std::ptr::null() };
    let (y, add) = call.required(0);
    let operands = GatherOperands {
        y,
        workspace: call.workspace(),
        x: call.input(0),
        x2: std::ptr::null(),
        weight: call.input(1),
        bias: optional(2),
        per_image: optional(PER_IMAGE),
        residual: optional(RESIDUAL),
        add: add == 1,
    };
    Layer::plain(op).launch_gather(pass, &operands, &mut |launch| launch.by(call))
}

/// y from x, the weight, and optionally bias, per-image and residual terms.
pub(super) fn forward(op: &Conv2d, call: &Call) -> Result<()> {
    gather_node(op, call, Pass::Forward)
}

/// d_x from d_y and the weight.
pub(super) fn backward_data(op: &Conv2d, call: &Call) -> Result<()> {
    gather_node(op, call, Pass::BackwardData)
}

/// d_weight and d_bias from x and d_y.
pub(super) fn backward_weight(op: &Conv2d, call: &Call) -> Result<()> {
    let (d_weight, add) = call.output(0).unwrap_or((std::ptr::null_mut(), 0));
    let (d_bias, add_bias) = call.output(1).unwrap_or((std::ptr::null_mut(), 0));
    let operands = OuterOperands {
        d_weight,
        d_bias,
        workspace: call.workspace(),
        x: call.input(0),
        x2: std::ptr::null(),
        d_y: call.input(1),
        add: add == 1,
        add_bias: add_bias == 1,
    };
    Layer::plain(op).launch_outer(&operands, &mut |launch| launch.by(call))
}

/// A convolution (or, with images of one pixel and one tap, a linear layer) on memory
/// of one's own. Elements of x, y, the weight and what is added per image or as a
/// residual have [`Arithmetic::bytes`]; biases, gradients by the weight and the
/// workspace are f32. Layouts are those of [`Conv2d`].
///
/// Passes are launched on the device's stream and return at once.
#[derive(Clone, Copy, Debug)]
pub struct Convolution<'a> {
    device: &'a Device,
    layer: Layer,
}

/// What is added to a convolution's sums before they are stored, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[c_out]`, f32.
    pub bias: Option<&'a Memory>,
    /// `[n, c_out]`
    pub per_image: Option<&'a Memory>,
    /// As the output.
    pub residual: Option<&'a Memory>,
}

fn address(memory: Option<&Memory>) -> *const f32 {
    memory.map_or(std::ptr::null(), |m| m.address() as *const f32)
}

fn address_mut(memory: Option<&mut Memory>) -> *mut f32 {
    memory.map_or(std::ptr::null_mut(), |m| m.address() as *mut f32)
}

impl<'a> Convolution<'a> {
    /// A convolution whose x comes from `source`. Refuses what the kernels cannot
    /// address: a second tensor with groups, an enlarged image of odd size.
    pub fn new(
        device: &'a Device,
        op: Conv2d,
        arithmetic: Arithmetic,
        source: Source,
    ) -> Result<Self> {
        let enlarged = 1usize << source.enlarge;
        let fits = source.second_channels < op.c_in
            && (source.second_channels == 0 || op.options.groups == 1)
            && op.h.is_multiple_of(enlarged)
            && op.w.is_multiple_of(enlarged)
            && i32::try_from(op.x_len().max(op.y_len()).max(op.weight_len())).is_ok();
        if !fits {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: "x".into(),
                expected: format!("what {source:?} can make of fewer than 2^31 elements"),
                found: vec![op.n, op.h, op.w, op.c_in],
            });
        }
        Ok(Convolution { device, layer: Layer { op, arithmetic, source, tile: None } })
    }

    /// The same by blocks of that many rows and columns of results, in the passes
    /// that have such a kernel: for measurements. Results keep their bits.
    pub fn with_tile(mut self, rows: usize, columns: usize) -> Self {
        self.layer.tile = Some([rows, columns]);
        self
    }

    /// Bytes of scratch memory that the passes need: forward, to the data, to the weight.
    pub fn workspace_bytes(&self) -> [usize; 3] {
        let l = &self.layer;
        [
            l.gather_workspace_len(Pass::Forward),
            l.gather_workspace_len(Pass::BackwardData),
            l.outer_workspace_len(),
        ]
        .map(|len| len * 4)
    }

    /// Rows and columns of a tile and the number of blocks that the passes launch:
    /// forward, to the data (all residues), to the weight.
    pub fn tiles(&self) -> [([usize; 2], usize); 3] {
        let mut found = [([0; 2], 0); 3];
        let mut note = |i: usize, rows: usize, columns: usize, grid: &[usize; 3]| {
            found[i] = ([rows, columns], found[i].1 + grid.iter().product::<usize>());
        };
        let null = std::ptr::null();
        let operands = GatherOperands {
            y: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            x: null,
            x2: null,
            weight: null,
            bias: null,
            per_image: null,
            residual: null,
            add: false,
        };
        let (forward, data) = (Pass::Forward, Pass::BackwardData);
        for (i, pass) in [forward, data].into_iter().enumerate() {
            let noted = self.layer.launch_gather(pass, &operands, &mut |launch| {
                if let Launch::Gather(entry, grid, ..) = launch {
                    let [rows, columns] = tiles::sides(entry);
                    note(i, rows, columns, &grid);
                }
                Ok(())
            });
            noted.expect("nothing is launched");
        }
        let operands = OuterOperands {
            d_weight: std::ptr::null_mut(),
            d_bias: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            x: null,
            x2: null,
            d_y: null,
            add: false,
            add_bias: false,
        };
        let noted = self.layer.launch_outer(&operands, &mut |launch| {
            if let Launch::Outer(entry, grid, ..) = launch {
                let [rows, columns] = tiles::sides(entry);
                note(2, rows, columns, &grid);
            }
            Ok(())
        });
        noted.expect("nothing is launched");
        found
    }

    fn check(&self, tensor: &str, memory: Option<&Memory>, bytes: usize) -> Result<()> {
        match memory {
            Some(memory) if memory.bytes() < bytes => Err(Error::Shape {
                op: "conv2d",
                tensor: tensor.into(),
                expected: format!("{bytes} bytes"),
                found: vec![memory.bytes()],
            }),
            _ => Ok(()),
        }
    }

    fn check_source(&self, x: &Memory, x2: Option<&Memory>) -> Result<()> {
        let Layer { op, arithmetic, source, .. } = &self.layer;
        let second = source.second_channels;
        let pixels = op.n * (op.h >> source.enlarge) * (op.w >> source.enlarge);
        self.check("x", Some(x), pixels * (op.c_in - second) * arithmetic.bytes())?;
        self.check("x2", x2, pixels * second * arithmetic.bytes())?;
        if x2.is_none() && second > 0 {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: "x2".into(),
                expected: format!("a tensor of {second} channels"),
                found: vec![],
            });
        }
        Ok(())
    }

    /// `y = conv(x, weight) + epilogue`, or added to y.
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn forward(
        &self,
        y: &mut Memory,
        x: &Memory,
        x2: Option<&Memory>,
        weight: &Memory,
        epilogue: Epilogue,
        workspace: &mut Memory,
        mode: Mode,
    ) -> Result<()> {
        let (op, bytes) = (&self.layer.op, self.layer.arithmetic.bytes());
        self.check("y", Some(y), op.y_len() * bytes)?;
        self.check_source(x, x2)?;
        self.check("weight", Some(weight), op.weight_len() * bytes)?;
        self.check("bias", epilogue.bias, op.c_out * 4)?;
        self.check("per_image", epilogue.per_image, op.n * op.c_out * bytes)?;
        self.check("residual", epilogue.residual, op.y_len() * bytes)?;
        self.check("workspace", Some(workspace), self.workspace_bytes()[0])?;
        let operands = GatherOperands {
            y: address_mut(Some(y)),
            workspace: address_mut(Some(workspace)),
            x: address(Some(x)),
            x2: address(x2),
            weight: address(Some(weight)),
            bias: address(epilogue.bias),
            per_image: address(epilogue.per_image),
            residual: address(epilogue.residual),
            add: mode == Mode::Add,
        };
        // SAFETY: the sizes were checked; memory outlives the stream's work, which its
        // release waits for.
        self.layer.launch_gather(Pass::Forward, &operands, &mut |launch| unsafe {
            launch.on(self.device, "conv2d_forward")
        })
    }

    /// d_x `[n,h,w,c_in]` (as the convolution sees x: enlarged, both tensors side by
    /// side) from d_y and the weight, written or added.
    pub fn backward_data(
        &self,
        d_x: &mut Memory,
        d_y: &Memory,
        weight: &Memory,
        workspace: &mut Memory,
        mode: Mode,
    ) -> Result<()> {
        let (op, bytes) = (&self.layer.op, self.layer.arithmetic.bytes());
        self.check("d_x", Some(d_x), op.x_len() * bytes)?;
        self.check("d_y", Some(d_y), op.y_len() * bytes)?;
        self.check("weight", Some(weight), op.weight_len() * bytes)?;
        self.check("workspace", Some(workspace), self.workspace_bytes()[1])?;
        let operands = GatherOperands {
            y: address_mut(Some(d_x)),
            workspace: address_mut(Some(workspace)),
            x: address(Some(d_y)),
            x2: std::ptr::null(),
            weight: address(Some(weight)),
            bias: std::ptr::null(),
            per_image: std::ptr::null(),
            residual: std::ptr::null(),
            add: mode == Mode::Add,
        };
        // SAFETY: as in `forward`.
        self.layer.launch_gather(Pass::BackwardData, &operands, &mut |launch| unsafe {
            launch.on(self.device, "conv2d_backward_data")
        })
    }

    /// f32 d_weight and d_bias from x and d_y, each written, added or skipped.
    pub fn backward_weight(
        &self,
        d_weight: Option<(&mut Memory, Mode)>,
        d_bias: Option<(&mut Memory, Mode)>,
        x: &Memory,
        x2: Option<&Memory>,
        d_y: &Memory,
        workspace: &mut Memory,
    ) -> Result<()> {
        let (op, bytes) = (&self.layer.op, self.layer.arithmetic.bytes());
        let mode = |o: &Option<(&mut Memory, Mode)>| o.as_ref().is_some_and(|o| o.1 == Mode::Add);
        let (add, add_bias) = (mode(&d_weight), mode(&d_bias));
        self.check("d_weight", d_weight.as_ref().map(|o| &*o.0), op.weight_len() * 4)?;
        self.check("d_bias", d_bias.as_ref().map(|o| &*o.0), op.c_out * 4)?;
        self.check_source(x, x2)?;
        self.check("d_y", Some(d_y), op.y_len() * bytes)?;
        self.check("workspace", Some(workspace), self.workspace_bytes()[2])?;
        let operands = OuterOperands {
            d_weight: address_mut(d_weight.map(|o| o.0)),
            d_bias: address_mut(d_bias.map(|o| o.0)),
            workspace: address_mut(Some(workspace)),
            x: address(Some(x)),
            x2: address(x2),
            d_y: address(Some(d_y)),
            add,
            add_bias,
        };
        // SAFETY: as in `forward`.
        self.layer.launch_outer(&operands, &mut |launch| unsafe {
            launch.on(self.device, "conv2d_backward_weight")
        })
    }
}
