//! Group and layer normalisation with everything fused into it.

use super::common::{Case, Input, Terms, assert_close};
use super::pointwise::activation as reference_activation;
use langevin::ops::norm::{Domain, NormOperands};
use langevin::ops::pointwise::Activation;

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    spatial: usize,
    channels: usize,
    domain: Domain,
    eps: f32,
}

/// x, then gamma, beta, scale_shift as given, in f64.
fn reference(
    shape: Shape,
    x: &[f64],
    [gamma, beta, scale_shift]: [Option<&[f64]>; 3],
    activation: Option<Activation>,
) -> Vec<f64> {
    let Shape { n, spatial, channels: c, .. } = shape;
    let domain = |image: usize, s: usize, channel: usize| match shape.domain {
        Domain::Group(groups) => image * groups + channel / (c / groups),
        Domain::Layer => image * spatial + s,
    };
    let (domains, len) = match shape.domain {
        Domain::Group(groups) => (n * groups, spatial * c / groups),
        Domain::Layer => (n * spatial, c),
    };
    let at = |i: usize| (i / c / spatial, i / c % spatial, i % c);
    let of = |i: usize| domain(at(i).0, at(i).1, at(i).2);
    let (mut mean, mut variance) = (vec![0.0; domains], vec![0.0; domains]);
    x.iter().enumerate().for_each(|(i, v)| mean[of(i)] += v / len as f64);
    x.iter()
        .enumerate()
        .for_each(|(i, v)| variance[of(i)] += (v - mean[of(i)]).powi(2) / len as f64);
    let finish = |(i, v): (usize, &f64)| {
        let (image, _, channel) = at(i);
        let xhat = (v - mean[of(i)]) / (variance[of(i)] + f64::from(shape.eps)).sqrt();
        let u = xhat * gamma.map_or(1.0, |g| g[channel]) + beta.map_or(0.0, |b| b[channel]);
        let v = scale_shift
            .map_or(u, |s| u * (1.0 + s[image * 2 * c + channel]) + s[image * 2 * c + c + channel]);
        activation.map_or(v, |f| reference_activation(f, v))
    };
    x.iter().enumerate().map(finish).collect()
}

fn check(shape: Shape, affine: bool, scale_shift: bool, activation: Option<Activation>) {
    let Shape { n, spatial, channels: c, .. } = shape;
    let mut inputs = vec![Input::image(&[n, spatial, c])];
    if affine {
        inputs.extend([Input::parameter(&[c]).map(|v| 1.0 + 0.5 * v), Input::parameter(&[c])]);
    }
    if scale_shift {
        inputs.push(Input::image(&[n, 2 * c]));
    }
    let case = Case::new(&inputs, |p, t| {
        let operands = NormOperands {
            gamma: affine.then(|| t[1]),
            beta: affine.then(|| t[2]),
            scale_shift: scale_shift.then(|| t[t.len() - 1]),
            activation,
        };
        p.norm(t[0], shape.domain, shape.eps, operands).unwrap()
    });
    // Gradients of the vectors sum over images and positions; a domain's
    // gradient passes through its own two sums.
    let terms = Terms { forward: 4, backward: n * spatial + c };
    case.check(terms, |x| {
        let vector = |i: usize| Some(x[i].as_slice());
        let last = if scale_shift { vector(x.len() - 1) } else { None };
        let vectors = if affine { [vector(1), vector(2), last] } else { [None, None, last] };
        reference(shape, &x[0], vectors, activation)
    });
}

fn shape(n: usize, spatial: usize, channels: usize, domain: Domain) -> Shape {
    Shape { n, spatial, channels, domain, eps: 1e-5 }
}

#[test]
fn group_norm_matches_f64_and_finite_differences_at_odd_shapes() {
    for s in [
        shape(1, 4, 2, Domain::Group(1)),
        shape(2, 7, 6, Domain::Group(3)),
        shape(3, 33, 15, Domain::Group(5)),
        shape(2, 65, 48, Domain::Group(4)),
        shape(2, 5, 37, Domain::Group(37)),
    ] {
        check(s, true, false, Some(Activation::Silu));
        check(s, false, false, None);
    }
}

#[test]
fn group_norm_matches_f64_when_a_group_is_wider_than_a_slab() {
    check(shape(2, 3, 2 * 1031, Domain::Group(2)), true, false, Some(Activation::Silu));
    check(shape(1, 2, 2200, Domain::Group(1100)), true, false, None);
}

#[test]
fn group_norm_matches_f64_where_slices_fill_shared_memory_and_where_they_do_not_fit() {
    // Backward 32 KB are kept of the one, and nothing of the 83 KB of the other.
    check(shape(1, 256, 16, Domain::Group(1)), true, false, Some(Activation::Silu));
    check(shape(1, 1300, 8, Domain::Group(1)), true, false, None);
}

#[test]
fn group_norm_with_scale_shift_matches_f64_and_finite_differences() {
    check(shape(3, 10, 12, Domain::Group(4)), true, true, Some(Activation::Silu));
    check(shape(2, 10, 12, Domain::Group(3)), false, true, None);
}

#[test]
fn layer_norm_matches_f64_and_finite_differences_at_odd_shapes() {
    for s in [
        shape(1, 1, 5, Domain::Layer),
        shape(2, 3, 31, Domain::Layer),
        shape(2, 35, 67, Domain::Layer),
        shape(2, 2, 1100, Domain::Layer),
    ] {
        check(s, true, false, None);
        check(s, false, true, Some(Activation::GeluTanh));
    }
}

#[test]
fn norm_fuses_every_activation() {
    for f in super::pointwise::ACTIVATIONS {
        // ReLU has a corner that differences must not straddle: few elements.
        check(shape(2, 5, 6, Domain::Group(2)), true, false, Some(f));
    }
}

#[test]
fn norm_of_a_large_mean_keeps_the_precision_that_its_input_has() {
    let (n, spatial, c) = (2, 300, 8);
    let s = shape(n, spatial, c, Domain::Group(2));
    let input = Input::image(&[n, spatial, c]).map(|v| 1000.0 + v);
    let x: Vec<f64> = input.values().iter().map(|&v| f64::from(v)).collect();
    let case =
        Case::new(&[input], |p, t| p.norm(t[0], s.domain, s.eps, NormOperands::default()).unwrap());
    // The input's spacing is 6e-5; the statistics must not add to it.
    let expected = reference(s, &x, [None; 3], None);
    assert_close("output", &case.run(1, None).output, &expected, 1e-6, 0.0);
}

#[test]
fn norm_of_a_constant_image_is_its_bias() {
    let input = Input::image(&[1, 9, 4]).map(|_| 0.3);
    let case = Case::new(&[input], |p, t| {
        p.norm(t[0], Domain::Group(2), 1e-6, NormOperands::default()).unwrap()
    });
    let outcome = case.run(1, None);
    assert!(outcome.output.iter().all(|v| v.abs() < 1e-4), "{:?}", outcome.output);
}
