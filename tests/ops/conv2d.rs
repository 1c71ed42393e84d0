//! Convolution: every pass against a direct sum in f64, over the shapes at
//! which the blocks (14 pixels, 32 and 16 channels) and the chunks of images end.

use langevin::backend::cpu::isa::Isa;
use langevin::backend::cpu::{Pool, conv2d};
use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
use langevin::ops::pack::{PackFor, PackWeight};
use langevin::plan::Mode;

use crate::common::{Case, Input, Terms, assert_close, assert_same_bits, rounding, values};

/// Output positions that read input position `i` through a tap, or the other way.
fn source(i: usize, tap: usize, stride: usize, pad: usize, dilation: usize) -> Option<usize> {
    (i * stride + tap * dilation).checked_sub(pad)
}

fn reference(op: &Conv2d, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let o = &op.options;
    let ([oh, ow], [kh, kw]) = (op.output_size(), op.kernel);
    let (c_in, c_out) = (op.c_in / o.groups, op.c_out / o.groups);
    let mut y = Vec::with_capacity(op.y_len());
    for n in 0..op.n {
        for oy in 0..oh {
            for ox in 0..ow {
                for co in 0..op.c_out {
                    let mut sum = bias.map_or(0.0, |b| b[co]);
                    for ky in 0..kh {
                        let iy = source(oy, ky, o.stride[0], o.padding.top, o.dilation[0]);
                        let Some(iy) = iy.filter(|&i| i < op.h) else { continue };
                        for kx in 0..kw {
                            let ix = source(ox, kx, o.stride[1], o.padding.left, o.dilation[1]);
                            let Some(ix) = ix.filter(|&i| i < op.w) else { continue };
                            let at = ((n * op.h + iy) * op.w + ix) * op.c_in + co / c_out * c_in;
                            let w = ((co * kh + ky) * kw + kx) * c_in;
                            for ci in 0..c_in {
                                sum += x[at + ci] * weight[w + ci];
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}

/// n, h, w, c_in, c_out, kernel.
fn conv(sizes: [usize; 5], kernel: [usize; 2], options: ConvOptions) -> Conv2d {
    let [n, h, w, c_in, c_out] = sizes;
    Conv2d { n, h, w, c_in, c_out, kernel, options }
}

fn terms(op: &Conv2d) -> Terms {
    let taps = op.kernel[0] * op.kernel[1];
    let [oh, ow] = op.output_size();
    let reduced = op.c_in.max(op.c_out) / op.options.groups;
    Terms { forward: taps * reduced + 1, backward: (taps * reduced).max(op.n * oh * ow) }
}

#[track_caller]
fn check(op: Conv2d) {
    let c_group = op.c_in / op.options.groups;
    let inputs = [
        Input::image(&[op.n, op.h, op.w, op.c_in]),
        Input::parameter(&[op.c_out, op.kernel[0], op.kernel[1], c_group]),
        Input::parameter(&[op.c_out]),
    ];
    let build = move |plan: &mut langevin::plan::Plan, t: &[langevin::plan::TensorId]| {
        plan.conv2d(t[0], t[1], Some(t[2]), op.options).expect("the shapes fit")
    };
    Case::new(&inputs, build).check(terms(&op), |x| {
        // Single images of a batch come with a smaller n.
        let op = Conv2d { n: x[0].len() / (op.h * op.w * op.c_in), ..op };
        reference(&op, &x[0], &x[1], Some(&x[2]))
    });
}

fn same(p: usize) -> ConvOptions {
    ConvOptions { padding: Padding::same(p), ..ConvOptions::default() }
}

#[test]
fn conv2d_is_right_at_sizes_of_one_and_primes() {
    check(conv([1, 1, 1, 1, 1], [1, 1], same(0)));
    check(conv([1, 1, 1, 1, 1], [3, 3], same(1)));
    check(conv([2, 5, 7, 3, 5], [3, 3], same(1)));
    check(conv([3, 3, 2, 7, 11], [1, 1], same(0)));
    check(conv([2, 7, 5, 2, 3], [5, 2], same(2)));
}

#[test]
fn conv2d_is_right_beside_the_block_sizes() {
    // 13, 14, 15 pixels; 15, 16, 17, 31, 32, 33 channels.
    for (width, channels) in [(13, 15), (14, 16), (15, 17), (7, 31), (5, 32), (3, 33)] {
        check(conv([1, 1, width, channels, 4], [1, 3], same(1)));
        check(conv([2, 3, width, 3, channels], [3, 3], same(1)));
    }
}

#[test]
fn conv2d_strided_with_uneven_padding_is_right() {
    let options = |stride, padding| ConvOptions { stride, padding, ..ConvOptions::default() };
    // DDPM's downsampling: one row and column at the right and bottom.
    let right = Padding { bottom: 1, right: 1, ..Padding::default() };
    check(conv([2, 6, 8, 3, 5], [3, 3], options([2, 2], right)));
    check(conv([1, 7, 5, 2, 3], [3, 3], options([2, 2], Padding::same(1))));
    let uneven = Padding { top: 2, left: 0, bottom: 1, right: 3 };
    check(conv([2, 5, 6, 3, 2], [3, 2], options([2, 3], uneven)));
    // A stride beyond the kernel: some inputs reach no output.
    check(conv([1, 5, 5, 2, 3], [1, 1], options([2, 2], Padding::default())));
    check(conv([1, 8, 7, 2, 2], [2, 1], options([3, 4], Padding::default())));
}

#[test]
fn conv2d_dilated_and_grouped_is_right() {
    let options = ConvOptions { dilation: [2, 3], padding: Padding::same(2), ..Default::default() };
    check(conv([2, 7, 8, 3, 4], [3, 2], options));
    let options = ConvOptions { groups: 3, padding: Padding::same(1), ..Default::default() };
    check(conv([2, 4, 3, 6, 9], [3, 3], options));
    let options = ConvOptions { groups: 5, stride: [2, 1], dilation: [1, 2], ..Default::default() };
    check(conv([1, 6, 5, 5, 5], [2, 2], options));
}

#[test]
fn conv2d_of_small_images_in_a_large_batch_is_right() {
    // Blocks of one position of many images, and partial sums over several images.
    for n in [6, 7, 8, 9, 16, 17] {
        check(conv([n, 2, 2, 3, 5], [3, 3], same(1)));
    }
    check(conv([7, 4, 4, 17, 3], [3, 3], same(1)));
}

#[test]
fn conv2d_with_more_taps_than_a_table_holds_is_right() {
    check(conv([1, 6, 6, 2, 3], [7, 5], same(3)));
    // Rows of an image past the runs of one call: 65 rows that are not contiguous.
    check(conv([1, 66, 2, 1, 2], [2, 2], same(1)));
}

#[test]
fn conv2d_without_bias_is_right() {
    let op = conv([2, 4, 3, 3, 4], [3, 3], same(1));
    let inputs = [Input::image(&[2, 4, 3, 3]), Input::parameter(&[4, 3, 3, 3])];
    Case::new(&inputs, |plan, t| plan.conv2d(t[0], t[1], None, op.options).expect("fits")).check(
        terms(&op),
        |x| {
            let op = Conv2d { n: x[0].len() / 36, ..op };
            reference(&op, &x[0], &x[1], None)
        },
    );
}

#[test]
fn conv2d_by_a_weight_computed_in_the_plan_is_right() {
    let op = conv([2, 4, 3, 3, 4], [3, 3], same(1));
    let inputs = [Input::image(&[2, 4, 3, 3]), Input::parameter(&[4, 3, 3, 3])];
    let build = |plan: &mut langevin::plan::Plan, t: &[langevin::plan::TensorId]| {
        let doubled = plan.scale(t[1], 2.0, 0.0);
        plan.conv2d(t[0], doubled, None, op.options).expect("fits")
    };
    Case::new(&inputs, build).check(terms(&op), |x| {
        let op = Conv2d { n: x[0].len() / 36, ..op };
        let doubled: Vec<f64> = x[1].iter().map(|w| 2.0 * w).collect();
        reference(&op, &x[0], &doubled, None)
    });
}

/// What the three passes give with one instruction set.
fn all_passes(pool: &Pool, isa: Isa, op: &Conv2d) -> [Vec<f32>; 4] {
    let (x, d_y) = (values(1, op.x_len()), values(2, op.y_len()));
    let weight = values(3, op.weight_len());
    let packed = |pass| {
        let pack = PackWeight::of(op, pass);
        let mut packed = vec![f32::NAN; pack.packed_len()];
        conv2d::pack(pool, &pack, &weight, &mut packed);
        packed
    };
    let mut y = vec![f32::NAN; op.y_len()];
    let epilogue = conv2d::Epilogue::default();
    let forward = packed(PackFor::Forward);
    conv2d::forward(pool, isa, op, &x, &forward, epilogue, &mut y, Mode::Write);
    let mut d_x = vec![f32::NAN; op.x_len()];
    let backward = packed(PackFor::BackwardData);
    conv2d::backward_data(pool, isa, op, &d_y, &backward, &mut d_x, Mode::Write);
    let mut d_weight = vec![f32::NAN; op.weight_len()];
    let mut d_bias = vec![f32::NAN; op.c_out];
    conv2d::backward_weight(
        pool,
        isa,
        op,
        &x,
        &d_y,
        Some((&mut d_weight, Mode::Write)),
        Some((&mut d_bias, Mode::Write)),
        &mut [],
    );
    [y, d_x, d_weight, d_bias]
}

#[test]
fn conv2d_has_the_same_bits_on_every_instruction_set() {
    let right = Padding { bottom: 1, right: 1, ..Padding::default() };
    let cases = [
        conv([2, 5, 5, 19, 37], [3, 3], same(1)),
        conv([8, 3, 3, 33, 16], [3, 3], same(1)),
        conv([1, 8, 8, 3, 20], [3, 3], same(1)),
        conv([1, 8, 8, 20, 3], [3, 3], same(1)),
        conv([2, 6, 6, 8, 9], [3, 3], ConvOptions { stride: [2, 2], padding: right, ..same(0) }),
        conv([3, 4, 4, 40, 24], [1, 1], same(0)),
    ];
    let pool = Pool::new(2);
    let sets: Vec<Isa> = Isa::available().collect();
    for op in cases {
        let expected = all_passes(&pool, sets[0], &op);
        for &isa in &sets[1..] {
            let found = all_passes(&pool, isa, &op);
            for (what, (f, e)) in
                ["y", "d_x", "d_weight", "d_bias"].iter().zip(found.iter().zip(&expected))
            {
                assert_same_bits(&format!("{what} of {op:?} on {isa:?}"), f, e);
            }
        }
    }
}

#[test]
fn conv2d_adds_the_epilogue_in_its_order() {
    let op = conv([2, 3, 5, 4, 35], [3, 3], same(1));
    let pool = Pool::new(2);
    let (x, weight) = (values(1, op.x_len()), values(2, op.weight_len()));
    let (bias, per_image) = (values(3, op.c_out), values(4, op.n * op.c_out));
    let residual = values(5, op.y_len());
    let pack = PackWeight::of(&op, PackFor::Forward);
    let mut packed = vec![0.0; pack.packed_len()];
    conv2d::pack(&pool, &pack, &weight, &mut packed);
    let run = |epilogue, y: &mut [f32], mode| {
        conv2d::forward(&pool, Isa::detect(), &op, &x, &packed, epilogue, y, mode);
    };
    let mut sums = vec![f32::NAN; op.y_len()];
    run(conv2d::Epilogue::default(), &mut sums, Mode::Write);
    let expected: Vec<f32> = (0..op.y_len())
        .map(|i| {
            let (image, channel) = (i / (op.y_len() / op.n), i % op.c_out);
            ((sums[i] + bias[channel]) + per_image[image * op.c_out + channel]) + residual[i]
        })
        .collect();
    let epilogue = conv2d::Epilogue {
        bias: Some(&bias),
        per_image: Some(&per_image),
        residual: Some(&residual),
    };
    let mut y = vec![f32::NAN; op.y_len()];
    run(epilogue, &mut y, Mode::Write);
    assert_same_bits("y", &y, &expected);
    run(epilogue, &mut y, Mode::Add);
    let doubled: Vec<f32> = expected.iter().map(|v| 2.0 * v).collect();
    assert_same_bits("y, added to itself,", &y, &doubled);
}

#[test]
fn conv2d_weight_gradient_stays_accurate_over_a_large_batch() {
    // 4,608 terms of one sign: a single chain of roundings would lose digits.
    let op = conv([18, 16, 16, 2, 3], [1, 1], same(0));
    let pool = Pool::new(2);
    let x: Vec<f32> = values(1, op.x_len()).iter().map(|v| v + 1.0).collect();
    let d_y: Vec<f32> = values(2, op.y_len()).iter().map(|v| v + 1.0).collect();
    let mut d_weight = vec![f32::NAN; op.weight_len()];
    let write = Some((&mut d_weight[..], Mode::Write));
    conv2d::backward_weight(&pool, Isa::detect(), &op, &x, &d_y, write, None, &mut []);
    let mut expected = vec![0.0; op.weight_len()];
    for (x, d_y) in x.chunks(2).zip(d_y.chunks(3)) {
        for (i, e) in expected.iter_mut().enumerate() {
            *e += f64::from(x[i % 2]) * f64::from(d_y[i / 2]);
        }
    }
    assert_close("d_weight", &d_weight, &expected, rounding(256), 0.0);
}

#[test]
fn conv2d_refuses_what_does_not_fit() {
    use langevin::plan::{DType, Plan, Role};
    let mut plan = Plan::new();
    let mut tensor =
        |shape: &[usize]| plan.activation("operand", shape, DType::F32, Role::Transient);
    let (x, weight) = (tensor(&[1, 4, 4, 3]), tensor(&[8, 3, 3, 3]));
    let (narrow, large) = (tensor(&[8, 3, 3, 2]), tensor(&[8, 9, 9, 3]));
    let bias = tensor(&[7]);
    let refused = |e: langevin::Result<_>| e.map(|_: langevin::plan::TensorId| ()).expect_err("");
    let none = ConvOptions::default();
    assert!(refused(plan.conv2d(x, narrow, None, none)).to_string().contains("operand"));
    assert!(refused(plan.conv2d(x, weight, Some(bias), none)).to_string().contains("[8]"));
    assert!(refused(plan.conv2d(x, large, None, none)).to_string().contains("image of at least"));
    let zero = ConvOptions { stride: [0, 1], ..none };
    assert!(refused(plan.conv2d(x, weight, None, zero)).to_string().contains("stride"));
    let zero = ConvOptions { groups: 0, ..none };
    assert!(refused(plan.conv2d(x, weight, None, zero)).to_string().contains("groups"));
}
