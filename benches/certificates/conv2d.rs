//! Convolution and linear layers: those of ddpm-cifar10 and of a block of DiT-B/4 (64 tokens) in
//! bf16. Counters come from slices (one image, or the rows of two, by the tile that the layer
//! is given at a batch of 128); how the blocks of a batch of 128 fill a chip is counted
//! without running it.

use langevin::backend::cuda::conv2d::{Arithmetic, Convolution, Epilogue, Source};
use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
use langevin::plan::Mode;

use crate::counters::Gpu;
use crate::machine;
use crate::table::Table;
use crate::table::Target::{AtLeast, AtMost, Is};

const PASSES: [&str; 3] = ["forward", "backward_data", "backward_weight"];

/// Multiprocessors of an A100 and of an H100.
const CHIPS: [usize; 2] = [108, 132];

pub fn certify(table: &mut Table, gpu: &Gpu) {
    counters(table, gpu);
    machine_code(table);
}

/// Side of the image, channels in and out, kernel, stride; how many a network has.
const LAYERS: [([usize; 5], usize); 12] = [
    ([32, 3, 128, 3, 1], 1),
    ([32, 128, 128, 3, 1], 6),
    ([32, 256, 128, 3, 1], 3),
    ([32, 128, 128, 3, 2], 1),
    ([16, 128, 256, 3, 1], 1),
    ([16, 256, 256, 3, 1], 8),
    ([16, 512, 256, 3, 1], 2),
    ([8, 256, 256, 3, 1], 8),
    ([8, 512, 256, 3, 1], 3),
    ([4, 256, 256, 3, 1], 11),
    ([4, 512, 256, 3, 1], 3),
    ([32, 128, 3, 3, 1], 1),
];

/// Channels in and out of the linear layers of a block.
const LINEARS: [[usize; 2]; 4] = [[768, 2304], [768, 768], [768, 3072], [3072, 768]];

/// Tokens of an image.
const TOKENS: usize = 64;

/// A layer at any batch.
struct Subject {
    name: String,
    /// How many a step of ddpm-cifar10 has.
    count: usize,
    /// Images whose counters are taken.
    slice: usize,
    at: Box<dyn Fn(usize) -> Conv2d>,
}

fn subjects() -> Vec<Subject> {
    let convolutions = LAYERS.into_iter().map(|(sizes, count)| {
        let [side, c_in, c_out, kernel, stride] = sizes;
        let name = format!("{kernel}x{kernel}/{stride} {c_in}->{c_out} at {side}x{side}");
        Subject { name, count, slice: 1, at: Box::new(move |n| layer(n, sizes)) }
    });
    let linears = LINEARS.into_iter().map(|[c_in, c_out]| {
        let options = ConvOptions::default();
        let rows =
            move |n| Conv2d { n: n * TOKENS, h: 1, w: 1, c_in, c_out, kernel: [1, 1], options };
        let name = format!("linear {c_in}->{c_out} of {TOKENS} tokens");
        Subject { name, count: 0, slice: 2, at: Box::new(rows) }
    });
    convolutions.chain(linears).collect()
}

fn layer(n: usize, [side, c_in, c_out, kernel, stride]: [usize; 5]) -> Conv2d {
    let padding = match stride {
        1 => Padding::same(kernel / 2),
        _ => Padding { bottom: 1, right: 1, ..Padding::default() },
    };
    let options = ConvOptions { stride: [stride; 2], padding, ..ConvOptions::default() };
    Conv2d { n, h: side, w: side, c_in, c_out, kernel: [kernel; 2], options }
}

fn counters(table: &mut Table, gpu: &Gpu) {
    table.note("counters of one image (linear: two), by the tile that a batch of 128 is given");
    table.note("sums of lanes that are read back are left out of 6 and 7: for 128 images they are");
    table.note("the same bytes, and stand in 8");
    let arithmetic = Arithmetic::Bf16;
    let new = |op| Convolution::new(&gpu.device, op, arithmetic, Source::default()).expect("fits");
    let memory = |bytes: usize| gpu.memory(bytes);
    let mut useful = [[0.0; 2]; 2];
    for Subject { name, count, slice, at } in subjects() {
        let (op, whole, single) = (at(slice), at(128), at(1));
        let Conv2d { c_in, c_out, kernel: [kernel, _], .. } = op;
        let stride = op.options.stride[0];
        let tiles = new(whole).tiles();
        let (mut y, x) = (memory(op.y_len() * 2), memory(op.x_len() * 2));
        let (weight, mut d_x) = (memory(op.weight_len() * 2), memory(op.x_len() * 2));
        let (d_y, mut d_weight) = (memory(op.y_len() * 2), memory(op.weight_len() * 4));
        for (i, pass) in PASSES.into_iter().enumerate() {
            let (tile, blocks) = tiles[i];
            let convolution = new(op).with_tile(tile[0], tile[1]);
            let mut scratch = memory(convolution.workspace_bytes()[i]);
            let none = Epilogue::default();
            let launched = gpu.measure(|| {
                let (x, d_y, scratch) = (&x, &d_y, &mut scratch);
                match i {
                    0 => convolution.forward(&mut y, x, None, &weight, none, scratch, Mode::Write),
                    1 => convolution.backward_data(&mut d_x, d_y, &weight, scratch, Mode::Write),
                    _ => {
                        let d_weight = Some((&mut d_weight, Mode::Write));
                        convolution.backward_weight(d_weight, None, x, None, d_y, scratch)
                    }
                }
                .expect("launch");
            });
            let c = launched.of(&format!("conv2d_{pass}_bf16"));
            let what = |text: &str| format!("{pass} {name}: {text}");
            let efficiency = c.load.sector_efficiency();
            table.line(1, &what("bytes / (32 x sectors) of loads"), efficiency, AtLeast(0.95));
            table.line(1, &what("share of loads by 128 bits"), c.load.wide_share(), AtLeast(0.95));
            table.line(2, &what("shared wavefronts / ideal"), c.shared_ratio(), AtMost(1.005));
            let (rows, columns, depth) = match i {
                0 => (op.y_len() / c_out, c_out, kernel * kernel * c_in),
                1 => (op.x_len() / c_in, c_in, kernel * kernel * c_out / (stride * stride)),
                _ => (c_out, kernel * kernel * c_in, op.y_len() / c_out),
            };
            let model =
                2 * depth * (rows * columns.div_ceil(tile[1]) + columns * rows.div_ceil(tile[0]));
            let results_tiles = rows.div_ceil(tile[0]) * columns.div_ceil(tile[1]);
            let lanes = convolution.tiles()[i].1 / results_tiles;
            // Lanes that add in turn read the sums of those before them. A tile's counters
            // are read as well.
            let results = 4 * rows * columns.next_multiple_of(4);
            let (read, sums) = match (lanes, scratch.bytes()) {
                (1, _) => (0, 0),
                (_, 0) => ((lanes - 1) * results, results + 8 * results_tiles),
                _ => (lanes * results, lanes * results + 4 * results_tiles),
            };
            let operands = c.load.bytes - read as f64;
            let requested = operands / model as f64;
            table.line(6, &what("bytes requested / tile model"), requested, AtMost(1.05));
            let minimal = match i {
                0 => op.x_len() + op.weight_len(),
                1 => op.y_len() + op.weight_len(),
                _ => op.x_len() + op.y_len(),
            } * 2;
            let unique = (c.unique_read - sums as f64) / minimal as f64;
            table.line(6, &what("unique bytes / minimal"), unique, AtMost(1.0));
            let intensity = op.flops() as f64 / operands;
            // Large shapes: a batch of 128 fills the multiprocessors with the largest tiles.
            let large = c_in.min(c_out) >= 128 && !(2..16).contains(&op.h);
            if large {
                table.line(7, &what("FLOP a byte asked of L2"), intensity, AtLeast(60.0));
            } else {
                table.value(7, &what("FLOP a byte asked of L2"), intensity);
            }
            table.value(4, &what("mma / PTX instructions"), c.mma / c.instructions);
            let written = [whole.y_len(), whole.x_len(), 2 * whole.weight_len()][i];
            let whole_read = [whole.x_len(), whole.y_len(), whole.x_len() + whole.y_len()][i];
            let operand = if i == 2 { 0 } else { whole.weight_len() };
            let scratch = new(whole).workspace_bytes()[i] as f64;
            let share = scratch / (2 * (written + whole_read + operand)) as f64;
            table.line(8, &what("B = 128 workspace / minimal bytes"), share, AtMost(0.1));
            if i == 2 {
                let share = read as f64 / (2 * (written + whole_read)) as f64;
                table.value(8, &what("B = 128 sums read back / minimal bytes"), share);
            }
            let (alone, blocks_alone) = new(single).tiles()[i];
            let text = format!("B = 1 blocks of {}x{}", alone[0], alone[1]);
            table.value(8, &what(&text), blocks_alone as f64);
            for (s, multiprocessors) in CHIPS.into_iter().enumerate() {
                let waves = blocks.div_ceil(multiprocessors) * multiprocessors;
                let rows = if i == 2 { rows } else { whole.n * rows };
                // Each lane of a split reduction is a block.
                let lanes =
                    blocks as f64 / (rows.div_ceil(tile[0]) * columns.div_ceil(tile[1])) as f64;
                let filled = (rows * columns) as f64 * lanes / (tile[0] * tile[1] * waves) as f64;
                let flops = count as f64 * whole.flops() as f64;
                useful[s][0] += flops;
                useful[s][1] += flops / filled;
                let [rows, columns] = tile;
                let text =
                    format!("B = 128 useful share on {multiprocessors} SMs, {rows}x{columns}");
                table.value(8, &what(&text), filled);
            }
        }
    }
    for (s, multiprocessors) in CHIPS.into_iter().enumerate() {
        let share = useful[s][0] / useful[s][1];
        let text = format!("all convolutions of a step: useful share on {multiprocessors} SMs");
        table.line(8, &text, share, AtLeast(0.8));
    }
}

/// The main loops of the kernels of large bf16 tiles.
fn machine_code(table: &mut Table) {
    if let Some(why) = machine::missing() {
        table.not_measured(4, "main loops", why);
        return;
    }
    let compiled = machine::compile(machine::image("conv2d_tensor"), "80");
    for (name, body) in compiled.main_loops() {
        let [hmma, ldsm] = ["HMMA", "LDSM"].map(|word| body.count(word) as f64);
        let share = hmma / body.len() as f64;
        if name.contains("_tf32_128x128") {
            // Nothing is promised of them: a value is rounded by two instructions.
            table.value(4, &format!("{name}: HMMA / SASS of the main loop"), share);
        }
        if !name.contains("_bf16_128x128") {
            continue;
        }
        let least = if name.contains("weight") { 0.45 } else { 0.5 };
        let what = |text: &str| format!("{name}: {text}");
        table.line(4, &what("HMMA / SASS of the main loop"), share, AtLeast(least));
        table.line(4, &what("HMMA / LDSM"), hmma / ldsm, AtLeast(4.0));
        let divisions = body.count("MUFU") + body.count("I2F");
        table.line(4, &what("divisions in the main loop"), divisions as f64, Is(0.0));
        let barriers = body.count("BAR") as f64;
        table.line(5, &what("barriers a tile of the reduction"), barriers, AtMost(1.0));
    }
}
