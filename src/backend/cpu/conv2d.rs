//! Convolution on the CPU: direct, NHWC, without an im2col buffer.
//!
//! Forward and backward-to-data are one driver: a block of up to 14 pixels x 32
//! channels is reduced over (tap, channel) by [`gather_block`], with a pointer for
//! each pixel and tap. Padding is a pointer to zeros; taps that lie in the
//! padding for a whole block are left out. A strided backward pass is split by
//! the residue of the pixel's position, so that no inserted zero is multiplied.
//!
//! Backward-to-weight reduces over pixels by [`outer_block`]; partial sums of
//! chunks of images (fixed by the shape of one image) are added in order.
//!
//! Each result is computed by the same operations whatever the batch size, the
//! number of threads and the instruction set.
#![allow(unsafe_code)] // Row pointers for the micro-kernels, disjoint parts of outputs.

use super::gemm::{COLUMNS, ROWS, Run, Runs, Segment, Tile, gather_block, outer_block};
use super::isa::{Isa, multiversion};
use super::pool::{Parts, Pool};
use crate::ops::conv2d::Conv2d;
use crate::ops::pack::{PANEL, PackFor, PackWeight};
use crate::plan::Mode;

/// What a pixel outside the image reads; longer reductions are cut to this length.
static ZEROS: [f32; 4096] = [0.0; 4096];

/// Segments given to the micro-kernel at once: all taps of a 5 x 5 kernel.
const SEGMENTS: usize = 32;

/// Reductions up to this length are copied together instead of walked tap by tap.
const SHORT: usize = 64;

/// Images in a block of one position. Images often lie a power of two apart, so
/// that their rows share a set of the first-level cache: its eight ways.
const IMAGES: usize = 8;

/// Bytes of packed weights that one task keeps in its second-level cache.
const PANEL_CACHE_BYTES: usize = 384 << 10;

/// Tasks of one pass: enough to balance a few dozen threads, and a fixed number
/// so that the work of a task is not worth less than the dispatch.
const TASKS: usize = 64;

/// What is added to a convolution's sums before they are stored, in this order.
/// `value = ((sum + bias[c]) + per_image[n, c]) + residual[n, y, x, c]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[c_out]`
    pub bias: Option<&'a [f32]>,
    /// `[n, c_out]`
    pub per_image: Option<&'a [f32]>,
    /// As the output.
    pub residual: Option<&'a [f32]>,
}

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

/// A pass that gathers: its axes, its operands and the channels of a group.
struct Gather<'a> {
    isa: Isa,
    n: usize,
    kernel: [usize; 2],
    axes: [Axis; 2],
    pack: PackWeight,
    /// `[n, source, source, groups * reduced]`
    source: &'a [f32],
    packed: &'a [f32],
    epilogue: Epilogue<'a>,
    /// `[n, height, width, groups * columns]`
    output: Parts<'a, f32>,
    output_size: [usize; 2],
    mode: Mode,
}

/// The pixels of one block.
struct Pixels {
    len: usize,
    image: [usize; ROWS],
    /// Indices along the axes of the pass.
    at: [[usize; 2]; ROWS],
}

impl Gather<'_> {
    /// Blocks never straddle the end of a run: with `by_position` a run is one
    /// position of all images (so that the padding of small images is left out
    /// exactly), else all pixels of all images.
    fn runs(&self, by_position: bool) -> (usize, usize) {
        let positions = self.axes[0].count * self.axes[1].count;
        if by_position { (positions, self.n) } else { (1, self.n * positions) }
    }

    fn pixels(&self, by_position: bool, run: usize, from: usize, to: usize) -> Pixels {
        let width = self.axes[1].count;
        let positions = self.axes[0].count * width;
        let mut pixels = Pixels { len: to - from, image: [0; ROWS], at: [[0; 2]; ROWS] };
        if by_position {
            for p in 0..pixels.len {
                pixels.image[p] = from + p;
                pixels.at[p] = [run / width, run % width];
            }
        } else {
            let mut image = from / positions;
            let rest = from % positions;
            let (mut y, mut x) = (rest / width, rest % width);
            for p in 0..pixels.len {
                pixels.image[p] = image;
                pixels.at[p] = [y, x];
                x += 1;
                if x == width {
                    (x, y) = (0, y + 1);
                    if y == self.axes[0].count {
                        (y, image) = (0, image + 1);
                    }
                }
            }
        }
        pixels
    }

    fn execute(&self, pool: &Pool) {
        let [ay, ax] = &self.axes;
        if self.n == 0 || ay.count == 0 || ax.count == 0 {
            return;
        }
        let inside = ay.inside_percent(self.kernel[0]) * ax.inside_percent(self.kernel[1]) / 100;
        let by_position = inside < 98 && self.n / self.n.div_ceil(IMAGES) >= IMAGES - 2;
        let (runs, run_len) = self.runs(by_position);
        let blocks_per_run = run_len.div_ceil(if by_position { IMAGES } else { ROWS });
        let blocks = runs * blocks_per_run;
        let panels = self.pack.blocks();
        let panel_bytes = self.pack.panel_len() * size_of::<f32>();
        let wide = (PANEL_CACHE_BYTES / panel_bytes.max(1)).clamp(1, panels);
        // With few blocks, single panels give the threads more to share.
        let wide = if blocks < TASKS { 1 } else { wide };
        let panel_groups = panels.div_ceil(wide);
        let chunk = (blocks * panel_groups * self.pack.groups).div_ceil(TASKS).clamp(1, blocks);
        let chunks = blocks.div_ceil(chunk);
        pool.run(self.pack.groups * panel_groups * chunks, &|task| {
            let (rest, chunk_index) = (task / chunks, task % chunks);
            let (group, panel_group) = (rest / panel_groups, rest % panel_groups);
            let first_panel = panel_group * wide;
            let panel_range = first_panel..(first_panel + wide).min(panels);
            for block in chunk_index * chunk..((chunk_index + 1) * chunk).min(blocks) {
                let (run, i) = (block / blocks_per_run, block % blocks_per_run);
                let from = i * run_len / blocks_per_run;
                let to = (i + 1) * run_len / blocks_per_run;
                let pixels = self.pixels(by_position, run, from, to);
                self.block(&pixels, group, panel_range.clone());
            }
        });
    }

    /// Computes one block of pixels for some panels of a group.
    fn block(&self, pixels: &Pixels, group: usize, panels: std::ops::Range<usize>) {
        let mut segments = [Segment::EMPTY; SEGMENTS];
        let mut tile = Tile::ZERO;
        let (_, reduced) = self.pack.columns_and_reduced();
        let taps = self.kernel[0] * self.kernel[1];
        if (2..=SEGMENTS).contains(&taps) && taps * reduced <= SHORT {
            self.short_block(pixels, group, panels);
        } else if taps * reduced.div_ceil(ZEROS.len()) <= SEGMENTS {
            // The usual case: one table serves every panel.
            let len = self.table(pixels, group, &mut segments, |_| unreachable!("it fits"));
            for panel in panels {
                self.sum(&segments[..len], pixels.len, group, panel, false, &mut tile);
                self.finish(pixels, group, panel, &mut tile);
            }
        } else {
            for panel in panels {
                let mut resume = false;
                let len = self.table(pixels, group, &mut segments, |full| {
                    self.sum(full, pixels.len, group, panel, resume, &mut tile);
                    resume = true;
                });
                self.sum(&segments[..len], pixels.len, group, panel, resume, &mut tile);
                self.finish(pixels, group, panel, &mut tile);
            }
        }
    }

    /// As `block`, for few channels (the first layer): what a pixel reads is copied
    /// into one row, since a loop over three channels costs more than it computes.
    fn short_block(&self, pixels: &Pixels, group: usize, panels: std::ops::Range<usize>) {
        let (_, reduced) = self.pack.columns_and_reduced();
        let mut segments = [Segment::EMPTY; SEGMENTS];
        let mut tile = Tile::ZERO;
        let mut rows = [[0f32; SHORT]; ROWS];
        let len = self.table(pixels, group, &mut segments, |_| unreachable!("it fits"));
        for segment in &segments[..len] {
            for k in 0..segment.len {
                for (row, pointer) in rows.iter_mut().zip(&segment.rows[..pixels.len]) {
                    // SAFETY: the table's pointers cover `len` elements.
                    row[segment.panel + k] = unsafe { *pointer.add(k) };
                }
            }
        }
        let mut whole =
            Segment { len: self.kernel[0] * self.kernel[1] * reduced, ..Segment::EMPTY };
        for (pointer, row) in whole.rows.iter_mut().zip(&rows) {
            *pointer = row.as_ptr();
        }
        for panel in panels {
            self.sum(&[whole], pixels.len, group, panel, false, &mut tile);
            self.finish(pixels, group, panel, &mut tile);
        }
    }

    /// Row pointers of a block for each tap that some of its pixels use. Gives
    /// full tables to `flush` and returns the length of the last one.
    fn table(
        &self,
        pixels: &Pixels,
        group: usize,
        segments: &mut [Segment; SEGMENTS],
        mut flush: impl FnMut(&[Segment]),
    ) -> usize {
        let [ay, ax] = &self.axes;
        let (_, reduced) = self.pack.columns_and_reduced();
        let stride = self.pack.groups * reduced;
        let mut used = 0;
        for ky in 0..self.kernel[0] {
            let Some(shift_y) = ay.shift(ky) else { continue };
            let mut row = [None; ROWS];
            for (p, row) in row.iter_mut().enumerate().take(pixels.len) {
                *row = ay
                    .source(pixels.at[p][0], shift_y)
                    .map(|y| (pixels.image[p] * ay.source + y) * ax.source);
            }
            for kx in 0..self.kernel[1] {
                let Some(shift_x) = ax.shift(kx) else { continue };
                let mut start = [None; ROWS];
                for (p, start) in start.iter_mut().enumerate().take(pixels.len) {
                    *start = row[p].and_then(|row| {
                        let x = ax.source(pixels.at[p][1], shift_x)?;
                        Some((row + x) * stride + group * reduced)
                    });
                }
                if start.iter().all(Option::is_none) {
                    continue;
                }
                for channel in (0..reduced).step_by(ZEROS.len()) {
                    if used == SEGMENTS {
                        flush(segments);
                        used = 0;
                    }
                    let segment = &mut segments[used];
                    used += 1;
                    segment.panel = (ky * self.kernel[1] + kx) * reduced + channel;
                    segment.len = (reduced - channel).min(ZEROS.len());
                    for (pointer, start) in segment.rows.iter_mut().zip(&start[..pixels.len]) {
                        *pointer = match *start {
                            Some(at) => self.source[at + channel..][..segment.len].as_ptr(),
                            None => ZEROS.as_ptr(),
                        };
                    }
                }
            }
        }
        used
    }

    /// The sums of one panel over a table.
    fn sum(
        &self,
        segments: &[Segment],
        rows: usize,
        group: usize,
        panel: usize,
        resume: bool,
        tile: &mut Tile,
    ) {
        let (columns, _) = self.pack.columns_and_reduced();
        let width = (columns - panel * PANEL).min(PANEL);
        let from = (group * self.pack.blocks() + panel) * self.pack.panel_len();
        let weights = &self.packed[from..from + self.pack.panel_len()];
        // SAFETY: the CPU has the instruction set (`supported`); every pointer of the
        // table covers `len` elements of the source or of ZEROS; the table's panel rows
        // are (tap, channel) of this very packing.
        unsafe { gather_block(self.isa, segments, rows, weights.as_ptr(), width, resume, tile) }
    }

    /// Adds the epilogue and stores a block.
    fn finish(&self, pixels: &Pixels, group: usize, panel: usize, tile: &mut Tile) {
        let (columns, _) = self.pack.columns_and_reduced();
        let channels = self.pack.groups * columns;
        let width = (columns - panel * PANEL).min(PANEL);
        let channel = group * columns + panel * PANEL;
        let [ay, ax] = &self.axes;
        for p in 0..pixels.len {
            let y = ay.first + ay.step * pixels.at[p][0];
            let x = ax.first + ax.step * pixels.at[p][1];
            let pixel = (pixels.image[p] * self.output_size[0] + y) * self.output_size[1] + x;
            let at = pixel * channels + channel;
            let sums = &mut tile.0[p][..width];
            if let Some(bias) = self.epilogue.bias {
                add(sums, &bias[channel..channel + width]);
            }
            if let Some(e) = self.epilogue.per_image {
                add(sums, &e[pixels.image[p] * channels + channel..][..width]);
            }
            if let Some(residual) = self.epilogue.residual {
                add(sums, &residual[at..at + width]);
            }
            // SAFETY: each (pixel, channel) belongs to one block of one task.
            let out = unsafe { self.output.part(at, width) };
            match self.mode {
                Mode::Write => out.copy_from_slice(sums),
                Mode::Add => add(out, sums),
            }
        }
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

/// `y = conv(x, weight) + epilogue`. x `[n,h,w,c_in]`; `packed` is the weight
/// packed by [`pack`] for [`PackFor::Forward`]; y `[n,oh,ow,c_out]`.
#[allow(clippy::too_many_arguments)] // The operands of one equation.
pub fn forward(
    pool: &Pool,
    isa: Isa,
    op: &Conv2d,
    x: &[f32],
    packed: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
    mode: Mode,
) {
    let pack = PackWeight::of(op, PackFor::Forward);
    assert_eq!(x.len(), op.x_len(), "x");
    assert_eq!(y.len(), op.y_len(), "y");
    assert_eq!(packed.len(), pack.packed_len(), "packed weight");
    Gather {
        isa: supported(isa),
        n: op.n,
        kernel: op.kernel,
        axes: [Axis::forward(op, 0), Axis::forward(op, 1)],
        pack,
        source: x,
        packed,
        epilogue,
        output: Parts::new(y),
        output_size: op.output_size(),
        mode,
    }
    .execute(pool);
}

/// d_x `[n,h,w,c_in]` from d_y `[n,oh,ow,c_out]`; `packed` is the weight packed by
/// [`pack`] for [`PackFor::BackwardData`].
pub fn backward_data(
    pool: &Pool,
    isa: Isa,
    op: &Conv2d,
    d_y: &[f32],
    packed: &[f32],
    d_x: &mut [f32],
    mode: Mode,
) {
    let pack = PackWeight::of(op, PackFor::BackwardData);
    assert_eq!(d_x.len(), op.x_len(), "d_x");
    assert_eq!(d_y.len(), op.y_len(), "d_y");
    assert_eq!(packed.len(), pack.packed_len(), "packed weight");
    let output = Parts::new(d_x);
    for first_y in 0..op.options.stride[0] {
        for first_x in 0..op.options.stride[1] {
            Gather {
                isa: supported(isa),
                n: op.n,
                kernel: op.kernel,
                axes: [Axis::backward(op, 0, first_y), Axis::backward(op, 1, first_x)],
                pack,
                source: d_y,
                packed,
                epilogue: Epilogue::default(),
                output,
                output_size: [op.h, op.w],
                mode,
            }
            .execute(pool);
        }
    }
}

/// Packs weight `[groups * out, taps, in]`; see [`PackWeight`].
pub fn pack(pool: &Pool, op: &PackWeight, weight: &[f32], packed: &mut [f32]) {
    assert_eq!(weight.len(), op.weight_len(), "weight");
    assert_eq!(packed.len(), op.packed_len(), "packed weight");
    let packed = Parts::new(packed);
    match op.pass {
        PackFor::Forward => pool.run(op.groups * op.blocks() * op.taps, &|task| {
            // SAFETY: one task for each (panel, tap).
            let to = unsafe { packed.part(task * op.c_in * PANEL, op.c_in * PANEL) };
            let (panel, tap) = (task / op.taps, task % op.taps);
            pack_forward(Isa::detect(), op, weight, panel, tap, to);
        }),
        PackFor::BackwardData => {
            let chunks = op.c_out.div_ceil(PANEL);
            pool.run(op.groups * chunks, &|task| {
                let (group, first) = (task / chunks, task % chunks * PANEL);
                for out in first..(first + PANEL).min(op.c_out) {
                    pack_backward_data(op, weight, group, out, packed);
                }
            });
        }
    }
}

multiversion! {
    /// One tap of a panel: 32 rows of the weight, transposed.
    fn pack_forward(
        isa: Isa,
        op: &PackWeight,
        weight: &[f32],
        panel: usize,
        tap: usize,
        to: &mut [f32],
    ) {
        const LINE: usize = 16;
        let (group, first) = (panel / op.blocks(), panel % op.blocks() * PANEL);
        for half in [0, LINE] {
            let width = op.c_out.saturating_sub(first + half).min(LINE);
            for channel in (0..op.c_in).step_by(LINE) {
                let len = (op.c_in - channel).min(LINE);
                let mut square = [[0f32; LINE]; LINE];
                for (j, line) in square.iter_mut().enumerate().take(width) {
                    let out = group * op.c_out + first + half + j;
                    let from = &weight[(out * op.taps + tap) * op.c_in + channel..][..len];
                    match <&[f32; LINE]>::try_from(from) {
                        Ok(whole) => *line = *whole,
                        Err(_) => line[..len].copy_from_slice(from),
                    }
                }
                for (i, row) in
                    to[channel * PANEL..].chunks_exact_mut(PANEL).enumerate().take(len)
                {
                    for (to, line) in row[half..half + LINE].iter_mut().zip(&square) {
                        *to = line[i];
                    }
                }
            }
        }
    }
}

/// One output channel, spread over the panels of its group: the weight is read
/// in order, since its rows lie pages apart.
fn pack_backward_data(
    op: &PackWeight,
    weight: &[f32],
    group: usize,
    out: usize,
    packed: Parts<f32>,
) {
    let from = &weight[(group * op.c_out + out) * op.taps * op.c_in..][..op.taps * op.c_in];
    for (tap, from) in from.chunks_exact(op.c_in).enumerate() {
        for (block, from) in from.chunks(PANEL).enumerate() {
            let panel = group * op.blocks() + block;
            let at = panel * op.panel_len() + (tap * op.c_out + out) * PANEL;
            // SAFETY: one task for each output channel.
            let to = unsafe { packed.part(at, PANEL) };
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0.0);
        }
    }
}

/// Pixels of one partial sum of the weight gradient, at least; whole images.
const CHUNK_PIXELS: usize = 256;

/// Runs given to the micro-kernel at once.
const RUNS: usize = 64;

/// Tasks of the weight gradient for each thread, about: measured best among 4,
/// 8, 16 and one for each block (90, 87, 85 and 78 GFLOP/s a core for 3x3 128 ->
/// 128 at 32x32, batch 16, Zen 4), with some left for balance.
const TASKS_OF_A_THREAD: usize = 8;

/// Multiplications one task of the weight gradient should have, at least.
const TASK_PRODUCTS: usize = 1 << 24;

/// Elements of scratch memory [`backward_weight`] needs: a place for the sum
/// when it is added to what is there, so that adding is one rounding.
pub fn backward_weight_workspace_len(op: &Conv2d, mode: Mode) -> usize {
    match mode {
        Mode::Write => 0,
        Mode::Add => op.weight_len(),
    }
}

/// The product of two image tensors over pixels, for one weight.
struct Outer<'a> {
    isa: Isa,
    op: Conv2d,
    x: &'a [f32],
    d_y: &'a [f32],
    /// The vector of a block runs over output channels (when there are few input
    /// channels) and not over input channels.
    columns_are_outputs: bool,
}

impl Outer<'_> {
    /// Row and column channels of a group.
    fn rows_and_columns(&self) -> (usize, usize) {
        let groups = self.op.options.groups;
        let (c_in, c_out) = (self.op.c_in / groups, self.op.c_out / groups);
        if self.columns_are_outputs { (c_in, c_out) } else { (c_out, c_in) }
    }

    /// Calls `flush` with the runs of images `from .. to` at one tap, in pieces of
    /// at most [`RUNS`]; once with none where the tap sees only padding.
    fn runs(&self, tap: [usize; 2], from: usize, to: usize, mut flush: impl FnMut(&[Run])) {
        let op = &self.op;
        let [oh, ow] = op.output_size();
        let [ay, ax] = [Axis::forward(op, 0), Axis::forward(op, 1)];
        let shift = |axis: &Axis, tap| axis.shift(tap).expect("forward axes use every tap");
        let (shift_y, shift_x) = (shift(&ay, tap[0]), shift(&ax, tap[1]));
        let inside = |x: &usize| ax.source(*x, shift_x).is_some();
        let mut runs = [Run::EMPTY; RUNS];
        let mut used = 0;
        let mut pieces = 0;
        let (x_step, y_step) = (ax.scale * op.c_in, op.c_out);
        if let Some(first) = (0..ow).find(inside) {
            let last = (0..ow).rfind(inside).expect("one is inside");
            let len = last - first + 1;
            let source_x = ax.source(first, shift_x).expect("first is inside");
            for image in from..to {
                for y in 0..oh {
                    let Some(source_y) = ay.source(y, shift_y) else { continue };
                    let x = &self.x[((image * op.h + source_y) * op.w + source_x) * op.c_in..];
                    let d_y = &self.d_y[((image * oh + y) * ow + first) * op.c_out..];
                    // Every step of the run is inside both tensors.
                    assert!(x.len() >= (len - 1) * x_step + op.c_in);
                    assert!(d_y.len() >= len * y_step);
                    let (rows, columns, row_step, column_step) = if self.columns_are_outputs {
                        (x.as_ptr(), d_y.as_ptr(), x_step, y_step)
                    } else {
                        (d_y.as_ptr(), x.as_ptr(), y_step, x_step)
                    };
                    if used > 0 {
                        let run = &mut runs[used - 1];
                        if run.rows.wrapping_add(run.len * row_step) == rows
                            && run.columns.wrapping_add(run.len * column_step) == columns
                        {
                            run.len += len;
                            continue;
                        }
                    }
                    if used == RUNS {
                        flush(&runs);
                        pieces += 1;
                        used = 0;
                    }
                    runs[used] = Run { rows, columns, len };
                    used += 1;
                }
            }
        }
        if used > 0 || pieces == 0 {
            flush(&runs[..used]);
        }
    }

    /// Sums for `row_blocks` x one block of columns, all taps, into `to` (a whole
    /// weight `[c_out, kh, kw, c_in / groups]`, of which this writes its part).
    fn task(
        &self,
        group: usize,
        first_column: usize,
        row_blocks: std::ops::Range<usize>,
        to: Parts<f32>,
    ) {
        let op = &self.op;
        let groups = op.options.groups;
        let [oh, ow] = op.output_size();
        let taps = op.kernel[0] * op.kernel[1];
        let (c_in, c_out) = (op.c_in / groups, op.c_out / groups);
        let (rows, columns) = self.rows_and_columns();
        let width = (columns - first_column).min(COLUMNS);
        let all_blocks = rows.div_ceil(ROWS);
        let images = CHUNK_PIXELS.div_ceil(oh * ow).max(1);
        let x_step = op.options.stride[1] * op.c_in;
        let (row_stride, column_stride) =
            if self.columns_are_outputs { (x_step, op.c_out) } else { (op.c_out, x_step) };
        let mut tile = Tile::ZERO;
        for from in (0..op.n.max(1)).step_by(images) {
            for tap in 0..taps {
                let mut first_piece = from == 0;
                let tap_at = [tap / op.kernel[1], tap % op.kernel[1]];
                self.runs(tap_at, from, (from + images).min(op.n), |runs| {
                    for block in row_blocks.clone() {
                        let first_row = block * rows / all_blocks;
                        let count = (block + 1) * rows / all_blocks - first_row;
                        let runs = Runs {
                            runs,
                            row_stride,
                            column_stride,
                            row_offset: group * rows + first_row,
                            column_offset: group * columns + first_column,
                        };
                        // SAFETY: the CPU has the instruction set (`supported`); runs
                        // stay inside their tensors (asserted there), and the offsets with
                        // `count` and `width` inside one pixel's channels.
                        unsafe { outer_block(self.isa, runs, count, width, &mut tile) };
                        for (p, sums) in tile.0[..count].iter().enumerate() {
                            if self.columns_are_outputs {
                                let input = first_row + p;
                                for (j, &sum) in sums[..width].iter().enumerate() {
                                    let out = group * c_out + first_column + j;
                                    // SAFETY: this task alone has these rows and columns.
                                    let to =
                                        unsafe { to.part((out * taps + tap) * c_in + input, 1) };
                                    to[0] = if first_piece { sum } else { to[0] + sum };
                                }
                            } else {
                                let out = group * c_out + first_row + p;
                                let at = (out * taps + tap) * c_in + first_column;
                                // SAFETY: this task alone has these rows and columns.
                                let to = unsafe { to.part(at, width) };
                                if first_piece {
                                    to.copy_from_slice(&sums[..width]);
                                } else {
                                    add(to, &sums[..width]);
                                }
                            }
                        }
                    }
                    first_piece = false;
                });
            }
        }
    }
}

/// d_weight `[c_out,kh,kw,c_in/groups]` and d_bias `[c_out]` from x and d_y.
/// `workspace` holds [`backward_weight_workspace_len`] elements.
#[allow(clippy::too_many_arguments)] // The operands of one equation.
pub fn backward_weight(
    pool: &Pool,
    isa: Isa,
    op: &Conv2d,
    x: &[f32],
    d_y: &[f32],
    d_weight: Option<(&mut [f32], Mode)>,
    d_bias: Option<(&mut [f32], Mode)>,
    workspace: &mut [f32],
) {
    assert_eq!(x.len(), op.x_len(), "x");
    assert_eq!(d_y.len(), op.y_len(), "d_y");
    if let Some((d_bias, mode)) = d_bias {
        assert_eq!(d_bias.len(), op.c_out, "d_bias");
        bias_gradient(pool, op, d_y, d_bias, mode);
    }
    let Some((d_weight, mode)) = d_weight else { return };
    assert_eq!(d_weight.len(), op.weight_len(), "d_weight");
    let groups = op.options.groups;
    let (c_in, c_out) = (op.c_in / groups, op.c_out / groups);
    // Vectors are 16 wide: take for columns the channels that fill them better.
    let fill = |c: usize| c as f64 / c.next_multiple_of(16) as f64;
    let outer = Outer {
        isa: supported(isa),
        op: *op,
        x,
        d_y,
        columns_are_outputs: fill(c_out) > fill(c_in),
    };
    let (rows, columns) = outer.rows_and_columns();
    let row_blocks = rows.div_ceil(ROWS);
    let column_blocks = columns.div_ceil(COLUMNS);
    let [oh, ow] = op.output_size();
    let products = op.n * oh * ow * op.kernel[0] * op.kernel[1] * ROWS * COLUMNS;
    // Few tasks, since each reads its channels of all images from far memory. Which
    // task computes a block does not change it.
    let blocks = groups * column_blocks * row_blocks;
    let together = (TASK_PRODUCTS / products.max(1))
        .max(blocks.div_ceil(TASKS_OF_A_THREAD * pool.threads()))
        .clamp(1, row_blocks);
    let row_tasks = row_blocks.div_ceil(together);
    let tasks = groups * column_blocks * row_tasks;
    let split = |task: usize| {
        let (rest, row_task) = (task / row_tasks, task % row_tasks);
        let blocks = row_task * together..((row_task + 1) * together).min(row_blocks);
        (rest / column_blocks, rest % column_blocks * COLUMNS, blocks)
    };
    match mode {
        Mode::Write => {
            let to = Parts::new(d_weight);
            pool.run(tasks, &|task| {
                let (group, column, blocks) = split(task);
                outer.task(group, column, blocks, to);
            });
        }
        Mode::Add => {
            let sums = &mut workspace[..op.weight_len()];
            let to = Parts::new(sums);
            pool.run(tasks, &|task| {
                let (group, column, blocks) = split(task);
                outer.task(group, column, blocks, to);
            });
            let (d_weight, sums) = (Parts::new(d_weight), &workspace[..op.weight_len()]);
            let chunk = 1 << 14;
            pool.run(sums.len().div_ceil(chunk), &|task| {
                let from = task * chunk;
                let len = (sums.len() - from).min(chunk);
                // SAFETY: disjoint chunks.
                add(unsafe { d_weight.part(from, len) }, &sums[from..from + len]);
            });
        }
    }
}

/// `d_bias[c] = sum d_y[.., c]`, in chunks of whole images.
fn bias_gradient(pool: &Pool, op: &Conv2d, d_y: &[f32], d_bias: &mut [f32], mode: Mode) {
    const WIDTH: usize = 32;
    let [oh, ow] = op.output_size();
    let chunk = CHUNK_PIXELS.div_ceil(oh * ow).max(1) * oh * ow * op.c_out;
    let to = Parts::new(d_bias);
    pool.run(op.c_out.div_ceil(WIDTH), &|task| {
        let first = task * WIDTH;
        let width = (op.c_out - first).min(WIDTH);
        let mut total = [0f32; WIDTH];
        for pixels in d_y.chunks(chunk) {
            let mut sums = [0f32; WIDTH];
            for pixel in pixels.chunks_exact(op.c_out) {
                add(&mut sums, &pixel[first..first + width]);
            }
            add(&mut total, &sums);
        }
        // SAFETY: one task for each range of channels.
        let to = unsafe { to.part(first, width) };
        match mode {
            Mode::Write => to.copy_from_slice(&total[..width]),
            Mode::Add => add(to, &total[..width]),
        }
    });
}
