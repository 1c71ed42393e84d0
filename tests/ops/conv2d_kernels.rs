//! Convolution kernels called alone, in every arithmetic and by every tile, against
//! direct sums in f64 of the rounded operands.
#![cfg(langevin_cuda)]

use half::bf16;
use langevin::backend::cuda::conv2d::{Arithmetic, Convolution, Epilogue, Source};
use langevin::backend::cuda::{Device, Memory};
use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
use langevin::plan::Mode;

use crate::common::{assert_close, assert_same_bits, rounding, values};
use crate::gpu;

const ALL: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];

/// Sides of the tiles that kernels have; what a pass lacks is chosen for it.
const TILES: [[usize; 2]; 3] = [[128, 128], [64, 64], [32, 32]];

fn conv(sizes: [usize; 5], kernel: [usize; 2], options: ConvOptions) -> Conv2d {
    let [n, h, w, c_in, c_out] = sizes;
    Conv2d { n, h, w, c_in, c_out, kernel, options }
}

fn same(p: usize) -> ConvOptions {
    ConvOptions { padding: Padding::same(p), ..ConvOptions::default() }
}

/// The value that the kernels multiply.
fn rounded(arithmetic: Arithmetic, v: f32) -> f32 {
    match arithmetic {
        Arithmetic::F32 => v,
        // To nearest, ties away from zero, 10 bits of fraction.
        Arithmetic::Tf32 => f32::from_bits((v.to_bits() + 0x1000) & !0x1fff),
        Arithmetic::Bf16 => bf16::from_f32(v).to_f32(),
    }
}

fn bytes(arithmetic: Arithmetic, values: &[f32]) -> Vec<u8> {
    match arithmetic {
        Arithmetic::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Device memory with these values.
fn upload(device: &Device, arithmetic: Arithmetic, values: &[f32]) -> Memory {
    let bytes = bytes(arithmetic, values);
    let memory = device.allocate(bytes.len(), "a test").expect("memory");
    device.upload(&memory, 0, &bytes).expect("upload");
    memory
}

fn download(device: &Device, arithmetic: Arithmetic, memory: &Memory) -> Vec<f32> {
    let mut bytes = vec![0; memory.bytes()];
    device.download(memory, 0, &mut bytes).expect("download");
    match arithmetic {
        Arithmetic::Bf16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Operands in f32, x as the convolution sees it.
struct Case {
    op: Conv2d,
    source: Source,
    arithmetic: Arithmetic,
    /// As stored: of the first and of the second tensor.
    stored: [Vec<f32>; 2],
    weight: Vec<f32>,
    d_y: Vec<f32>,
    bias: Vec<f32>,
    per_image: Vec<f32>,
    residual: Vec<f32>,
}

/// What the passes give: y, d_x, d_weight, d_bias.
type Results = [Vec<f32>; 4];

impl Case {
    fn new(op: Conv2d, source: Source, arithmetic: Arithmetic) -> Self {
        let pixels = op.n * (op.h >> source.enlarge) * (op.w >> source.enlarge);
        let second = source.second_channels;
        Case {
            op,
            source,
            arithmetic,
            stored: [values(1, pixels * (op.c_in - second)), values(2, pixels * second)],
            weight: values(3, op.weight_len()),
            d_y: values(4, op.y_len()),
            bias: values(5, op.c_out),
            per_image: values(6, op.n * op.c_out),
            residual: values(7, op.y_len()),
        }
    }

    /// x at a pixel and channel of the convolution's input.
    fn x(&self, n: usize, y: usize, x: usize, c: usize) -> f32 {
        let (op, s) = (&self.op, &self.source);
        let pixel =
            (n * (op.h >> s.enlarge) + (y >> s.enlarge)) * (op.w >> s.enlarge) + (x >> s.enlarge);
        let first = op.c_in - s.second_channels;
        let v = if c < first {
            self.stored[0][pixel * first + c]
        } else {
            self.stored[1][pixel * s.second_channels + c - first]
        };
        rounded(self.arithmetic, v)
    }

    fn expected(&self) -> [Vec<f64>; 4] {
        let (op, o) = (&self.op, &self.op.options);
        let [oh, ow] = op.output_size();
        let (c_in, c_out) = (op.c_in / o.groups, op.c_out / o.groups);
        let product = |v: f32| f64::from(rounded(self.arithmetic, v));
        // What is only added is stored, but not rounded to tf32.
        let stored = |v: f32| match self.arithmetic {
            Arithmetic::Bf16 => f64::from(bf16::from_f32(v).to_f32()),
            _ => f64::from(v),
        };
        let mut y = vec![0.0; op.y_len()];
        let mut d_x = vec![0.0; op.x_len()];
        let mut d_weight = vec![0.0; op.weight_len()];
        let mut d_bias = vec![0.0; op.c_out];
        for (at, y) in y.iter_mut().enumerate() {
            let (pixel, co) = (at / op.c_out, at % op.c_out);
            let (n, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let d = product(self.d_y[at]);
            d_bias[co] += d;
            let mut sum = 0.0;
            for (ky, kx) in (0..op.kernel[0]).flat_map(|a| (0..op.kernel[1]).map(move |b| (a, b))) {
                let inside =
                    |i: usize, stride: usize, k: usize, dilation: usize, pad: usize, len: usize| {
                        (i * stride + k * dilation).checked_sub(pad).filter(|&i| i < len)
                    };
                let p = &o.padding;
                let Some(iy) = inside(oy, o.stride[0], ky, o.dilation[0], p.top, op.h) else {
                    continue;
                };
                let Some(ix) = inside(ox, o.stride[1], kx, o.dilation[1], p.left, op.w) else {
                    continue;
                };
                for ci in 0..c_in {
                    let channel = co / c_out * c_in + ci;
                    let w = ((co * op.kernel[0] + ky) * op.kernel[1] + kx) * c_in + ci;
                    let x = f64::from(self.x(n, iy, ix, channel));
                    sum += x * product(self.weight[w]);
                    d_weight[w] += x * d;
                    d_x[((n * op.h + iy) * op.w + ix) * op.c_in + channel] +=
                        d * product(self.weight[w]);
                }
            }
            let added = stored(self.per_image[n * op.c_out + co]) + stored(self.residual[at]);
            *y = sum + f64::from(self.bias[co]) + added;
        }
        [y, d_x, d_weight, d_bias]
    }

    /// Runs the passes over NaN, or over `before` in add mode.
    fn run(&self, tile: Option<[usize; 2]>, before: Option<&Results>) -> Results {
        let device = gpu::device().expect("the software GPU");
        let (op, a) = (&self.op, self.arithmetic);
        let convolution = Convolution::new(&device, *op, a, self.source).expect("fits");
        let convolution = tile.map_or(convolution, |[r, c]| convolution.with_tile(r, c));
        let scratch = |bytes: usize| device.allocate(bytes, "a test").expect("memory");
        let [mut forward, mut data, mut weights] = convolution.workspace_bytes().map(scratch);
        let f32 = Arithmetic::F32;
        let [x, x2] = [0, 1].map(|i| upload(&device, a, &self.stored[i]));
        let x2 = Some(&x2).filter(|_| self.source.second_channels > 0);
        let (weight, d_y) = (upload(&device, a, &self.weight), upload(&device, a, &self.d_y));
        let (bias, per_image) =
            (upload(&device, f32, &self.bias), upload(&device, a, &self.per_image));
        let residual = upload(&device, a, &self.residual);
        let nan = |len: usize| vec![f32::NAN; len];
        let start: Results = before.cloned().unwrap_or_else(|| {
            [nan(op.y_len()), nan(op.x_len()), nan(op.weight_len()), nan(op.c_out)]
        });
        let kinds = [a, a, f32, f32];
        let [mut y, mut d_x, mut d_weight, mut d_bias] =
            [0, 1, 2, 3].map(|i| upload(&device, kinds[i], &start[i]));
        let mode = if before.is_some() { Mode::Add } else { Mode::Write };
        let epilogue =
            Epilogue { bias: Some(&bias), per_image: Some(&per_image), residual: Some(&residual) };
        convolution.forward(&mut y, &x, x2, &weight, epilogue, &mut forward, mode).expect("launch");
        convolution.backward_data(&mut d_x, &d_y, &weight, &mut data, mode).expect("launch");
        let (w, b) = (Some((&mut d_weight, mode)), Some((&mut d_bias, mode)));
        convolution.backward_weight(w, b, &x, x2, &d_y, &mut weights).expect("launch");
        let all = [&y, &d_x, &d_weight, &d_bias];
        [0, 1, 2, 3].map(|i| download(&device, kinds[i], all[i]))
    }

    #[track_caller]
    fn check(&self) {
        let (op, a) = (&self.op, self.arithmetic);
        let [oh, ow] = op.output_size();
        let taps = op.kernel[0] * op.kernel[1];
        // Half a unit in the last of bf16's 8 bits.
        let stored = if a == Arithmetic::Bf16 { 2f64.powi(-8) } else { 0.0 };
        let allowed = [
            rounding(taps * op.c_in / op.options.groups + 3) + stored,
            rounding(taps * op.c_out / op.options.groups) + stored,
            rounding(op.n * oh * ow),
            rounding(op.n * oh * ow),
        ];
        gpu::set_seed(0);
        let expected = self.expected();
        let first = self.run(Some(TILES[0]), None);
        let names = ["y", "d_x", "d_weight", "d_bias"];
        for i in 0..4 {
            let what = format!("{} of {op:?} in {a:?}", names[i]);
            assert_close(&what, &first[i], &expected[i], allowed[i], 0.0);
        }
        for (seed, tile) in (1..).zip([Some(TILES[1]), Some(TILES[2]), None, None]) {
            gpu::set_seed(seed);
            let again = self.run(tile, None);
            for i in 0..4 {
                let what = format!("{} of {op:?} in {a:?} by {tile:?}", names[i]);
                assert_same_bits(&what, &again[i], &first[i]);
            }
        }
        let twice = self.run(None, Some(&first));
        for i in 0..4 {
            let doubled: Vec<f64> = first[i].iter().map(|&v| 2.0 * f64::from(v)).collect();
            let what = format!("{} of {op:?} in {a:?}, added to itself,", names[i]);
            assert_close(&what, &twice[i], &doubled, rounding(4) + stored, 0.0);
        }
    }
}

fn check(op: Conv2d, source: Source) {
    for arithmetic in ALL {
        Case::new(op, source, arithmetic).check();
    }
}

#[test]
fn conv2d_kernels_are_right_beside_the_tiles() {
    let none = Source::default();
    check(conv([1, 4, 8, 32, 32], [3, 3], same(1)), none);
    check(conv([3, 5, 9, 72, 136], [1, 1], same(0)), none);
    check(conv([2, 8, 8, 64, 64], [3, 3], same(1)), none);
    check(conv([1, 11, 12, 40, 24], [3, 3], same(1)), none);
    // A tile of pixels of several images, lanes, and one pixel past a tile.
    check(conv([17, 2, 2, 136, 40], [3, 3], same(1)), none);
    check(conv([129, 1, 1, 48, 16], [1, 1], same(0)), none);
}

#[test]
fn conv2d_kernels_take_channels_that_fill_no_16_bytes() {
    let none = Source::default();
    let joined = Source { second_channels: 3, enlarge: 1 };
    let enlarged = Source { second_channels: 0, enlarge: 1 };
    let right = Padding { bottom: 1, right: 1, ..Padding::default() };
    let strided = ConvOptions { stride: [2, 2], padding: right, ..ConvOptions::default() };
    let cases = [
        (conv([2, 5, 7, 3, 16], [3, 3], same(1)), none),
        (conv([2, 7, 5, 16, 3], [3, 3], same(1)), none),
        (conv([1, 1, 1, 1, 1], [1, 1], same(0)), none),
        (conv([2, 3, 3, 7, 5], [3, 2], same(1)), none),
        (conv([1, 4, 4, 7, 5], [3, 3], same(1)), joined),
        // Several tiles of terms and of pixels, images smaller than a tile, steps.
        (conv([1, 9, 16, 11, 40], [3, 3], same(1)), none),
        (conv([1, 16, 10, 40, 2], [3, 3], same(1)), none),
        (conv([20, 3, 2, 3, 8], [3, 3], same(1)), none),
        (conv([2, 6, 8, 3, 16], [3, 3], strided), none),
        (conv([2, 6, 8, 16, 3], [3, 3], strided), none),
        (conv([1, 8, 6, 3, 16], [3, 3], same(1)), enlarged),
    ];
    for (op, source) in cases {
        Case::new(op, source, Arithmetic::F32).check();
        Case::new(op, source, Arithmetic::Bf16).check();
    }
    // No tensor cores for f32 there.
    let op = conv([2, 5, 7, 3, 16], [3, 3], same(1));
    let [exact, rounded] = [Arithmetic::F32, Arithmetic::Tf32]
        .map(|arithmetic| Case::new(op, none, arithmetic).run(None, None));
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert_same_bits("a result in tf32", rounded, exact);
    }
}

#[test]
fn conv2d_kernels_stride_dilate_and_group() {
    let none = Source::default();
    let right = Padding { bottom: 1, right: 1, ..Padding::default() };
    let options = |stride, padding| ConvOptions { stride, padding, ..ConvOptions::default() };
    check(conv([2, 6, 8, 16, 24], [3, 3], options([2, 2], right)), none);
    check(conv([1, 5, 5, 8, 8], [1, 1], options([2, 3], Padding::default())), none);
    let dilated = ConvOptions { dilation: [2, 3], padding: Padding::same(2), ..same(0) };
    check(conv([1, 7, 8, 8, 16], [3, 2], dilated), none);
    let grouped = ConvOptions { groups: 2, padding: Padding::same(1), ..same(0) };
    check(conv([2, 4, 3, 32, 16], [3, 3], grouped), none);
}

#[test]
fn conv2d_kernels_read_enlarged_and_joined_images_in_place() {
    let source = |second_channels, enlarge| Source { second_channels, enlarge };
    check(conv([2, 4, 6, 32, 16], [3, 3], same(1)), source(0, 1));
    check(conv([2, 4, 4, 48, 16], [3, 3], same(1)), source(16, 0));
    check(conv([1, 8, 4, 80, 32], [1, 1], same(0)), source(72, 2));
}

#[test]
fn conv2d_kernels_give_an_image_the_same_bits_in_any_batch() {
    // Lanes whose blocks are few, in both batches; few and many; many beside a narrow weight.
    let cases = [[9, 4, 4, 64, 32], [14, 4, 4, 256, 256], [1728, 2, 2, 3, 128]];
    for (sizes, arithmetic) in cases.into_iter().flat_map(|s| ALL.map(|a| (s, a))) {
        let op = conv(sizes, [3, 3], same(1));
        let whole = Case::new(op, Source::default(), arithmetic);
        let results = whole.run(None, None);
        for image in [0, 8] {
            let part = |all: &[f32]| {
                let len = all.len() / op.n;
                all[image * len..(image + 1) * len].to_vec()
            };
            let alone = Case {
                op: Conv2d { n: 1, ..op },
                stored: [part(&whole.stored[0]), Vec::new()],
                weight: whole.weight.clone(),
                d_y: part(&whole.d_y),
                bias: whole.bias.clone(),
                per_image: part(&whole.per_image),
                residual: part(&whole.residual),
                ..whole
            };
            let alone = alone.run(None, None);
            assert_same_bits("y", &alone[0], &part(&results[0]));
            assert_same_bits("d_x", &alone[1], &part(&results[1]));
        }
    }
}

#[test]
fn conv2d_kernels_refuse_memory_that_is_too_small() {
    let device = gpu::device().expect("the software GPU");
    let op = conv([1, 4, 4, 8, 8], [3, 3], same(1));
    let new = |op, source| Convolution::new(&device, op, Arithmetic::F32, source);
    let convolution = new(op, Source::default()).expect("fits");
    let memory = |bytes| device.allocate(bytes, "a test").expect("memory");
    let (x, weight, mut small) = (memory(op.x_len() * 4), memory(op.weight_len() * 4), memory(16));
    let mut workspace = memory(convolution.workspace_bytes()[0]);
    let none = Epilogue::default();
    let refused =
        convolution.forward(&mut small, &x, None, &weight, none, &mut workspace, Mode::Write);
    assert!(refused.expect_err("too small").to_string().contains("`y`"));
    let odd = Source { enlarge: 1, ..Source::default() };
    assert!(new(conv([1, 5, 4, 8, 8], [3, 3], same(1)), odd).is_err());
    let joined = new(op, Source { second_channels: 4, enlarge: 0 }).expect("fits");
    let mut y = memory(op.y_len() * 4);
    let refused = joined.forward(&mut y, &x, None, &weight, none, &mut workspace, Mode::Write);
    assert!(refused.expect_err("no second tensor").to_string().contains("x2"));
}
