//! Activations, sums and scalings, elementwise.

use super::common::{Case, Input, Terms, assert_close, values};
use langevin::ops::pointwise::Activation;

const TERMS: Terms = Terms { forward: 1, backward: 2 };

/// Phi(x) by integrating the normal density with Simpson's rule.
fn normal_cdf(x: f64) -> f64 {
    let density = |u: f64| (-0.5 * u * u).exp() / std::f64::consts::TAU.sqrt();
    let steps = 400;
    let h = x / f64::from(steps);
    let inner: f64 =
        (1..steps).map(|i| if i % 2 == 1 { 4.0 } else { 2.0 } * density(f64::from(i) * h)).sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(x))
}

pub fn activation(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_cdf(x),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Mish => x * x.exp().ln_1p().tanh(),
    }
}

pub const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Mish];

#[test]
fn activations_match_f64_in_both_passes() {
    for f in ACTIVATIONS {
        for len in [1, 16, 37] {
            let input = Input::image(&[3, len]).map(|v| 6.0 * v);
            Case::new(&[input], |p, t| p.activate(t[0], f))
                .check(TERMS, |x| x[0].iter().map(|&x| activation(f, x)).collect());
        }
    }
}

#[test]
fn activations_match_f64_when_the_work_is_split_into_chunks() {
    let len = 3 * 8192 + 5;
    let input = Input::image(&[1, len]).map(|v| 20.0 * v);
    for f in ACTIVATIONS {
        let outcome =
            Case::new(std::slice::from_ref(&input), |p, t| p.activate(t[0], f)).run(3, None);
        let x = Input::image(&[1, len]).map(|v| 20.0 * v).values();
        let expected: Vec<f64> = x.iter().map(|&x| activation(f, f64::from(x))).collect();
        assert_close("output", &outcome.output, &expected, 5e-7, 0.0);
    }
}

#[test]
fn activations_keep_their_limits_far_from_zero_and_let_nan_through() {
    let x = [-1e30, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 1e30, f32::NAN];
    for f in ACTIVATIONS {
        let case = Case::new(&[Input::image(&[1, 9]).with(&x)], |p, t| p.activate(t[0], f));
        let outcome = case.run(1, None);
        let (y, d_x) = (outcome.output, outcome.gradients[0].clone().unwrap());
        let upstream = values(99, 9);
        for i in 0..8 {
            assert!((f64::from(y[i]) - f64::from(x[i].max(0.0))).abs() < 1e-30, "{f:?}({})", x[i]);
            let slope = if x[i] < 0.0 { 0.0 } else { upstream[i] };
            assert!(x[i] == 0.0 || (d_x[i] - slope).abs() < 1e-30, "{f:?}'({})", x[i]);
        }
        assert!(y[8].is_nan(), "{f:?}(NaN) is {}", y[8]);
    }
}

#[test]
fn add_matches_f64_in_both_passes() {
    for len in [1, 7, 64, 129] {
        let inputs = [Input::image(&[2, len]), Input::image(&[2, len]).map(|v| 1.0 - v)];
        Case::new(&inputs, |p, t| p.add(t[0], t[1], 0.75).unwrap())
            .check(TERMS, |x| x[0].iter().zip(&x[1]).map(|(a, b)| (a + b) * 0.75).collect());
    }
}

#[test]
fn scale_matches_f64_in_both_passes() {
    for (scale, offset) in [(1.0, 0.0), (2.0, -1.0), (-0.3, 0.7)] {
        Case::new(&[Input::image(&[2, 13])], |p, t| p.scale(t[0], scale, offset))
            .check(TERMS, |x| {
                x[0].iter().map(|x| x * f64::from(scale) + f64::from(offset)).collect()
            });
    }
}

#[test]
fn scale_rows_matches_f64_in_both_passes() {
    for divide in [false, true] {
        let inputs = [Input::image(&[3, 5, 7]), Input::image(&[3, 4]).map(|v| 2.0 + v).fixed()];
        Case::new(&inputs, |p, t| p.scale_rows(t[0], t[1], 2, divide).unwrap()).check(TERMS, |x| {
            let factor = |i: usize| if divide { 1.0 / x[1][i] } else { x[1][i] };
            x[0].iter().enumerate().map(|(e, v)| v * factor(e / 35 * 4 + 2)).collect()
        });
    }
}
