//! A block of up to 14 pixels x 32 channels is reduced over (tap, channel) by
//! [`gather_block`], with a pointer for each pixel and tap. Padding is a pointer
//! to zeros; taps that lie in the padding for a whole block are left out. A
//! strided backward pass is split by the residue of the pixel's position, so
//! that no inserted zero is multiplied.
#![allow(unsafe_code)] // Row pointers for the micro-kernels, disjoint parts of outputs.

use super::{Axis, add, supported};
use crate::backend::cpu::gemm::{ROWS, Segment, Tile, gather_block};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::pool::{Parts, Pool};
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
