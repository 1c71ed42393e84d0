//! Norms in bf16, against f64 of the rounded operands.

use std::cell::RefCell;

use super::common::{
    Case, Input, Outcome, assert_close, assert_same_bits, in_half, rounded_to_half, upstream,
    values,
};
use super::pointwise::activation as reference_activation;
use langevin::ops::norm::{Domain, NormOperands};
use langevin::ops::pointwise::Activation;

/// Errors of PyTorch's bf16 norms on the CPU, as a share of the largest value, of y, d_x,
/// d_gamma, d_beta, d_scale_shift: the worst of [`shapes`], by tests/golden/half_kernels.py.
const PYTORCH: [f64; 5] = [1.15e-2, 8.44e-3, 1.80e-2, 1.76e-2, 4.21e-3];

const NAMES: [&str; 5] = ["y", "d_x", "d_gamma", "d_beta", "d_scale_shift"];

#[derive(Clone, Copy, Debug)]
struct Shape {
    n: usize,
    spatial: usize,
    channels: usize,
    domain: Domain,
    scale_shift: bool,
}

fn group([n, spatial, channels, groups]: [usize; 4]) -> Shape {
    Shape { n, spatial, channels, domain: Domain::Group(groups), scale_shift: true }
}

fn layer([n, spatial, channels]: [usize; 3]) -> Shape {
    Shape { n, spatial, channels, domain: Domain::Layer, scale_shift: true }
}

/// Without scale and shift, of which there are kernels for small images.
fn plain(shape: Shape) -> Shape {
    Shape { scale_shift: false, ..shape }
}

/// Groups of one column of 8 channels to 8 of them, images of a warp's rows and not, whole
/// blocks of channels and of images and not.
fn small_shapes() -> Vec<Shape> {
    let shapes = [
        [19, 16, 32, 4],
        [3, 64, 96, 6],
        [5, 25, 80, 5],
        [2, 37, 128, 4],
        [9, 8, 64, 1],
        [1, 9, 1040, 65],
    ];
    shapes.map(group).map(plain).into()
}

/// Channels of a multiple of 8 and not, groups of 4, 12 and of all channels, slices beside
/// one another, the last one narrower, positions beside a block's.
fn shapes() -> Vec<Shape> {
    let groups = [
        [1, 4, 8, 2],
        [2, 7, 6, 3],
        [3, 33, 15, 5],
        [2, 65, 48, 4],
        [2, 5, 40, 5],
        [1, 20, 96, 8],
        [1, 40, 64, 16],
        [1, 3, 520, 1],
        [1, 65, 30, 6],
    ];
    let layers = [[1, 1, 8], [2, 35, 72], [1, 3, 1152], [1, 70, 256]];
    groups.map(group).into_iter().chain(layers.map(layer)).collect()
}

/// x, gamma, beta, scale_shift (zeros where there is none), as the kernels see them.
fn operands(s: Shape) -> [Vec<f32>; 4] {
    let x: Vec<f32> =
        values(1, s.n * s.spatial * s.channels).iter().map(|v| 2.0 * v + 0.5).collect();
    let gamma = values(2, s.channels).iter().map(|v| 1.0 + 0.5 * v).collect();
    let scale_shift = match s.scale_shift {
        true => rounded_to_half(&values(4, s.n * 2 * s.channels)),
        false => vec![0.0; s.n * 2 * s.channels],
    };
    [rounded_to_half(&x), gamma, values(3, s.channels), scale_shift]
}

/// y and the gradients in the order of [`NAMES`].
fn reference(
    s: Shape,
    [x, gamma, beta, scale_shift]: [&[f32]; 4],
    d_y: &[f32],
    activation: Option<Activation>,
) -> [Vec<f64>; 5] {
    let Shape { n, spatial, channels: c, .. } = s;
    let eps = f64::from(1e-5f32);
    let domains = match s.domain {
        Domain::Group(groups) => n * groups,
        Domain::Layer => n * spatial,
    };
    let of = |i: usize| match s.domain {
        Domain::Group(groups) => i / c / spatial * groups + i % c / (c / groups),
        Domain::Layer => i / c,
    };
    let len = (x.len() / domains) as f64;
    let [mut mean, mut variance, mut m1, mut m2] = [(); 4].map(|()| vec![0.0; domains]);
    x.iter().enumerate().for_each(|(i, &v)| mean[of(i)] += f64::from(v) / len);
    x.iter()
        .enumerate()
        .for_each(|(i, &v)| variance[of(i)] += (f64::from(v) - mean[of(i)]).powi(2) / len);
    let rstd: Vec<f64> = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let f = |v: f64| activation.map_or(v, |f| reference_activation(f, v));
    let mut results = [x.len(), x.len(), c, c, scale_shift.len()].map(|len| vec![0.0; len]);
    let mut terms = Vec::with_capacity(x.len());
    for (i, &v) in x.iter().enumerate() {
        let (channel, row) = (i % c, i / c / spatial * 2 * c + i % c);
        let (gamma, beta) = (f64::from(gamma[channel]), f64::from(beta[channel]));
        let scale = 1.0 + f64::from(scale_shift[row]);
        let xhat = (f64::from(v) - mean[of(i)]) * rstd[of(i)];
        let u = xhat * gamma + beta;
        let v = u * scale + f64::from(scale_shift[row + c]);
        let step = 1e-5;
        let dv = f64::from(d_y[i]) * (f(v + step) - f(v - step)) / (2.0 * step);
        let d_xhat = dv * scale * gamma;
        results[0][i] = f(v);
        results[2][channel] += dv * scale * xhat;
        results[3][channel] += dv * scale;
        results[4][row] += dv * u;
        results[4][row + c] += dv;
        m1[of(i)] += d_xhat / len;
        m2[of(i)] += d_xhat * xhat / len;
        terms.push((xhat, d_xhat));
    }
    for (i, (xhat, d_xhat)) in terms.into_iter().enumerate() {
        results[1][i] = rstd[of(i)] * (d_xhat - m1[of(i)] - xhat * m2[of(i)]);
    }
    results
}

fn run(
    s: Shape,
    [x, gamma, beta, scale_shift]: [&[f32]; 4],
    activation: Option<Activation>,
    before: Option<&Outcome>,
) -> Outcome {
    let mut inputs = vec![
        Input::image(&[s.n, s.spatial, s.channels]).with(x),
        Input::parameter(&[s.channels]).with(gamma),
        Input::parameter(&[s.channels]).with(beta),
    ];
    if s.scale_shift {
        inputs.push(Input::image(&[s.n, 2 * s.channels]).with(scale_shift));
    }
    let case = Case::new(&inputs, |p, t| {
        let (gamma, beta, scale_shift) = (Some(t[1]), Some(t[2]), t.get(3).copied());
        let operands = NormOperands { gamma, beta, scale_shift, activation };
        p.norm(t[0], s.domain, 1e-5, operands).unwrap()
    });
    case.run(1, before)
}

/// What there is of [`NAMES`].
fn results(outcome: &Outcome) -> Vec<&[f32]> {
    let gradients = outcome.gradients.iter().map(|g| g.as_deref().expect("a gradient"));
    std::iter::once(outcome.output.as_slice()).chain(gradients).collect()
}

fn check(s: Shape, activation: Option<Activation>) {
    let all = operands(s);
    let all = [0, 1, 2, 3].map(|i| all[i].as_slice());
    let d_y = rounded_to_half(&upstream(all[0].len()));
    let expected = reference(s, all, &d_y, activation);
    let found = run(s, all, activation, None);
    for (i, found) in results(&found).into_iter().enumerate() {
        let what = format!("{} of {s:?}, {activation:?}", NAMES[i]);
        // One position of a group has nothing but rounding for a gradient.
        assert_close(&what, found, &expected[i], 2.0 * PYTORCH[i], 1e-3);
    }
}

#[test]
fn norms_in_bf16_are_as_close_to_f64_as_pytorchs() {
    in_half(|| {
        for s in shapes() {
            check(s, None);
            check(s, Some(Activation::Silu));
        }
    });
}

#[test]
fn norms_in_bf16_of_small_images_are_as_close_to_f64_as_pytorchs() {
    in_half(|| {
        for s in small_shapes() {
            check(s, None);
            check(s, Some(Activation::Silu));
        }
    });
}

#[test]
fn gradients_in_bf16_have_the_same_bits_whichever_block_is_last_and_add_to_what_was_there() {
    let first: RefCell<Vec<Vec<Vec<f32>>>> = RefCell::default();
    in_half(|| {
        let shapes = [group([5, 70, 24, 2]), layer([19, 70, 40]), plain(group([19, 16, 32, 4]))];
        for (i, s) in shapes.into_iter().enumerate() {
            let all = operands(s);
            let all = [0, 1, 2, 3].map(|i| all[i].as_slice());
            let once = run(s, all, Some(Activation::Silu), None);
            let twice = run(s, all, Some(Activation::Silu), Some(&once));
            let mut first = first.borrow_mut();
            if first.len() == i {
                first.push(results(&once).into_iter().map(<[f32]>::to_vec).collect());
            }
            let (expected, once) = (&first[i], results(&once));
            for (k, twice) in results(&twice).into_iter().enumerate() {
                assert_same_bits(NAMES[k], once[k], &expected[k]);
                let doubled: Vec<f32> = once[k].iter().map(|v| 2.0 * v).collect();
                if k > 0 {
                    assert_same_bits(NAMES[k], twice, &doubled);
                }
            }
        }
    });
}

#[test]
fn norms_in_bf16_take_every_activation() {
    in_half(|| {
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Mish] {
            check(group([1, 9, 32, 4]), Some(activation));
            check(group([1, 9, 6, 2]), Some(activation));
            check(layer([1, 9, 32]), Some(activation));
            check(plain(group([3, 16, 32, 4])), Some(activation));
        }
    });
}

#[test]
fn norms_in_bf16_of_images_beyond_shared_memory_read_the_rest_again() {
    in_half(|| check(group([1, 3000, 16, 4]), Some(Activation::Silu)));
}

#[test]
fn norms_in_bf16_give_an_image_the_same_bits_in_any_batch() {
    in_half(|| {
        for s in [group([3, 70, 24, 2]), layer([3, 70, 40]), plain(group([3, 64, 32, 4]))] {
            let all = operands(s);
            let together = run(s, [0, 1, 2, 3].map(|i| all[i].as_slice()), None, None);
            let one = Shape { n: 1, ..s };
            let x = &all[0][..all[0].len() / 3];
            let scale_shift = &all[3][..all[3].len() / 3];
            let alone = run(one, [x, &all[1], &all[2], scale_shift], None, None);
            for i in [0, 1, 4].into_iter().filter(|&i| i < results(&alone).len()) {
                let (a, b) = (results(&alone)[i], results(&together)[i]);
                assert_same_bits(NAMES[i], a, &b[..a.len()]);
            }
        }
    });
}

/// Of a concatenation, which is not made: `lowering` tests that. Without scale and shift by the
/// kernels for small images.
#[test]
fn group_norm_in_bf16_reads_two_tensors_side_by_side_in_place() {
    in_half(|| {
        for s in [group([2, 33, 80, 5]), plain(group([3, 33, 80, 5]))] {
            let (n, spatial, c, side) = (s.n, s.spatial, s.channels, [64, 16]);
            let [x, gamma, beta, scale_shift] = operands(s);
            let d_y = rounded_to_half(&upstream(x.len()));
            let activation = Some(Activation::Silu);
            let expected = reference(s, [&x, &gamma, &beta, &scale_shift], &d_y, activation);
            let part = |all: &[f32], from: usize, len: usize| -> Vec<f32> {
                all.chunks_exact(c).flat_map(|row| row[from..from + len].to_vec()).collect()
            };
            let mut inputs = vec![
                Input::image(&[n, spatial, side[0]]).with(&part(&x, 0, side[0])),
                Input::image(&[n, spatial, side[1]]).with(&part(&x, side[0], side[1])),
                Input::parameter(&[c]).with(&gamma),
                Input::parameter(&[c]).with(&beta),
            ];
            if s.scale_shift {
                inputs.push(Input::image(&[n, 2 * c]).with(&scale_shift));
            }
            let case = Case::new(&inputs, |p, t| {
                let both = p.concat(t[0], t[1]).unwrap();
                let (gamma, beta, scale_shift) = (Some(t[2]), Some(t[3]), t.get(4).copied());
                let operands = NormOperands { gamma, beta, scale_shift, activation };
                p.norm(both, s.domain, 1e-5, operands).unwrap()
            });
            let found = case.run(1, None);
            let found = results(&found);
            let rows = found[1].chunks_exact(side[0]).zip(found[2].chunks_exact(side[1]));
            let d_x: Vec<f32> = rows.flat_map(|(a, b)| [a, b].concat()).collect();
            let all = [&[found[0], &d_x], &found[3..]].concat();
            for (i, found) in all.into_iter().enumerate() {
                let what = format!("{} of {s:?}", NAMES[i]);
                assert_close(&what, found, &expected[i], 2.0 * PYTORCH[i], 1e-3);
            }
        }
    });
}
