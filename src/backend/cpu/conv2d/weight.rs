//! The weight gradient: a reduction over pixels by [`outer_block`]; partial sums
//! of chunks of images (fixed by the shape of one image) are added in order.
#![allow(unsafe_code)] // Row pointers for the micro-kernels, disjoint parts of outputs.

use super::{Axis, add, supported};
use crate::backend::cpu::gemm::{COLUMNS, ROWS, Run, Runs, Tile, outer_block};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::pool::{Parts, Pool};
use crate::ops::conv2d::Conv2d;
use crate::plan::Mode;

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
