//! Kernels that pass over their tensors once, in f32 at a layer of ddpm-cifar10 (one image;
//! they treat a batch as more of the same), and noising.

use langevin::kernels::DeviceTensor;
use langevin::ops::noising::coefficient;
use langevin::ops::pointwise::Activation;
use langevin::ops::resample::Method;
use langevin::plan::{Plan, TensorId};

use crate::counters::{Gpu, Launched};
use crate::table::Table;
use crate::table::Target::{AtLeast, AtMost};

/// Sides and channels of the layer.
const SIDE: usize = 32;
const CHANNELS: usize = 128;

type Build = fn(&mut Plan, &[TensorId]) -> langevin::Result<TensorId>;

/// An op over f32 tensors of these shapes (and keys last, where it takes them), and the
/// kernels that it and its gradient are.
struct Case {
    name: &'static str,
    shapes: &'static [&'static [usize]],
    keys: bool,
    build: Build,
}

const X: &[usize] = &[1, SIDE, SIDE, CHANNELS];
const HALF: &[usize] = &[1, SIDE / 2, SIDE / 2, CHANNELS];
const WIDE: &[usize] = &[1, SIDE, SIDE, 2 * CHANNELS];

const CASES: [Case; 9] = [
    Case {
        name: "SiLU",
        shapes: &[X],
        keys: false,
        build: |p, t| Ok(p.activate(t[0], Activation::Silu)),
    },
    Case { name: "(a + b) s", shapes: &[X, X], keys: false, build: |p, t| p.add(t[0], t[1], 0.5) },
    Case { name: "s x", shapes: &[X], keys: false, build: |p, t| Ok(p.scale(t[0], 0.5, 0.0)) },
    Case {
        name: "x s[n]",
        shapes: &[X, &[1, 8]],
        keys: false,
        build: |p, t| p.scale_rows(t[0], t[1], 3, false),
    },
    Case {
        name: "x + e[n]",
        shapes: &[X, &[1, CHANNELS]],
        keys: false,
        build: |p, t| p.add_per_image(t[0], t[1]),
    },
    Case {
        name: "[a, b] 256 + 128",
        shapes: &[WIDE, X],
        keys: false,
        build: |p, t| p.concat(t[0], t[1]),
    },
    Case {
        name: "nearest x2",
        shapes: &[HALF],
        keys: false,
        build: |p, t| p.resample(t[0], Method::Nearest { factor: 2 }),
    },
    Case {
        name: "average 2x2",
        shapes: &[X],
        keys: false,
        build: |p, t| p.resample(t[0], Method::AveragePool { factor: 2 }),
    },
    Case { name: "dropout", shapes: &[X], keys: true, build: |p, t| p.dropout(t[0], t[1], 0.1, 3) },
];

pub fn certify(table: &mut Table, gpu: &Gpu) {
    table.note("one image of 32x32x128, f32; forward and gradients");
    for case in &CASES {
        let k = &gpu.kernels;
        let mut inputs: Vec<DeviceTensor> =
            case.shapes.iter().map(|shape| k.zeros(shape).expect("memory")).collect();
        if case.keys {
            inputs.push(k.upload_u32(&[1, 4], &[1, 2, 3, 4]).expect("memory"));
        }
        let inputs: Vec<&DeviceTensor> = inputs.iter().collect();
        let mut y = None;
        let forward = gpu.measure(|| y = Some(k.run(&inputs, case.build).expect("runs")));
        passes(table, case.name, &forward);
        let y = y.expect("made");
        let both = gpu.measure(|| {
            k.gradients(&inputs, &y, case.build).expect("runs");
        });
        // A gradient that is the forward kernel again was looked at above.
        let mut own = both;
        own.kernels.retain(|name, _| !forward.kernels.contains_key(name));
        passes(table, &format!("d {}", case.name), &own);
    }
}

/// Items 1 and 2 of every kernel that moved more than a thousandth of what was moved. Reads
/// that are the same for a whole warp (an image's coefficients and keys) are left out
/// of item 1: they move 32 bytes a warp whatever their width.
pub fn passes(table: &mut Table, name: &str, launched: &Launched) {
    let all = launched.of("").sector_bytes();
    for (kernel, c) in &launched.kernels {
        if c.sector_bytes() < all / 1000.0 {
            continue;
        }
        let what = |text: &str| format!("{kernel}, {name}: {text}");
        let streams = &launched.streams[kernel];
        let bytes: f64 = streams.iter().map(|a| a.bytes).sum();
        let sectors: f64 = streams.iter().map(|a| a.sectors).sum();
        let wide: f64 = streams.iter().map(|a| a.bytes * a.share_128_bit).sum();
        table.line(1, &what("bytes / (32 x sectors)"), bytes / (32.0 * sectors), AtLeast(0.95));
        table.line(1, &what("share of bytes by 128 bits"), wide / bytes, AtLeast(0.95));
        let again = c.sector_bytes() / c.unique();
        table.value(1, &what("bytes of sectors asked for / bytes touched"), again);
        if c.wavefronts > 0.0 {
            table.line(2, &what("shared wavefronts / ideal"), c.shared_ratio(), AtMost(1.005));
        }
    }
}

/// Item 11.
pub fn noising(table: &mut Table, gpu: &Gpu) {
    const LEN: usize = SIDE * SIDE * 3;
    let (k, n) = (&gpu.kernels, 8);
    table.note("8 images of 32x32x3; a step of 128 is sixteen times as many blocks");
    let x0 = k.zeros(&[n, SIDE, SIDE, 3]).expect("memory");
    let rows = k.zeros(&[n, coefficient::COLUMNS]).expect("memory");
    let keys = k.upload_u32(&[n, 4], &vec![7; n * 4]).expect("memory");
    let launched = gpu.measure(|| {
        k.run(&[&x0, &rows, &keys], |p, t| p.noising(t[0], t[1], t[2])).expect("runs");
    });
    passes(table, "f32 images", &launched);
    let c = launched.of("noising");
    let elements = (n * LEN) as f64;
    let bytes = c.unique() / elements;
    table.line(11, "noising, f32 in and out: bytes an element", bytes, AtMost(6.0));
    let written = c.unique_written / elements;
    table.line(11, "noising: bytes written an element: x_t, no eps", written, AtMost(4.0));
    let asked = c.sector_bytes() / elements;
    table.value(11, "noising: bytes of sectors asked for, an element", asked);
    let slots = 32.0 * c.instructions / elements;
    table.value(11, "noising: PTX instructions an element, its normal among them", slots);
}
