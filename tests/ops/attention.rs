//! Attention, against the textbook in f64.

use super::common::{Case, Input, Terms, assert_close};

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    s_q: usize,
    s_kv: usize,
    heads: usize,
    dim: usize,
}

fn reference(shape: Shape, scale: f32, [q, k, v]: [&[f64]; 3]) -> Vec<f64> {
    let Shape { n, s_q, s_kv, heads, dim } = shape;
    let c = heads * dim;
    let mut o = vec![0.0; n * s_q * c];
    for (image, head, i) in
        (0..n).flat_map(|n| (0..heads).flat_map(move |h| (0..s_q).map(move |i| (n, h, i))))
    {
        let row_q = (image * s_q + i) * c + head * dim;
        let row_kv = |j: usize| (image * s_kv + j) * c + head * dim;
        let score = |j: usize| -> f64 {
            let products = (0..dim).map(|d| q[row_q + d] * k[row_kv(j) + d]);
            f64::from(scale) * products.sum::<f64>()
        };
        let scores: Vec<f64> = (0..s_kv).map(score).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..dim {
            let weighted = weights.iter().enumerate().map(|(j, w)| w * v[row_kv(j) + d]);
            o[row_q + d] = weighted.sum::<f64>() / sum;
        }
    }
    o
}

fn operands(shape: Shape, spread: f32) -> [Input; 3] {
    let Shape { n, s_q, s_kv, heads, dim } = shape;
    [
        Input::image(&[n, s_q, heads * dim]).map(|v| spread * v),
        // A seed of its own for each: the same shape would give the same values.
        Input::image(&[n, s_kv, heads * dim]).seed(7).map(|v| spread * v),
        Input::image(&[n, s_kv, heads * dim]).seed(8),
    ]
}

fn check(shape: Shape, scale: f32) {
    let terms = Terms { forward: shape.dim + shape.s_kv, backward: 4 * (shape.dim + shape.s_kv) };
    Case::new(&operands(shape, 1.0), |p, t| {
        p.attention(t[0], t[1], t[2], shape.heads, scale).unwrap()
    })
    .check(terms, |x| reference(shape, scale, [&x[0], &x[1], &x[2]]));
}

fn shape(n: usize, s_q: usize, s_kv: usize, heads: usize, dim: usize) -> Shape {
    Shape { n, s_q, s_kv, heads, dim }
}

#[test]
fn attention_matches_f64_and_finite_differences_at_odd_shapes() {
    for s in [
        shape(1, 1, 1, 1, 1),
        shape(2, 1, 7, 3, 5),
        shape(2, 5, 1, 2, 3),
        shape(2, 16, 16, 4, 8),
        shape(1, 33, 31, 1, 19),
        shape(2, 67, 65, 1, 4),
        shape(1, 20, 130, 2, 40),
    ] {
        check(s, 1.0 / (s.dim as f32).sqrt());
    }
}

#[test]
fn attention_matches_f64_with_wide_heads() {
    check(shape(1, 9, 12, 1, 256), 1.0 / 16.0);
    check(shape(1, 3, 5, 1, 300), 0.05);
}

#[test]
fn attention_matches_f64_over_several_blocks_of_queries_and_keys() {
    let s = shape(2, 200, 150, 2, 16);
    let inputs = operands(s, 3.0);
    let x: Vec<Vec<f64>> =
        inputs.iter().map(|i| i.values().iter().map(|&v| f64::from(v)).collect()).collect();
    let expected = reference(s, 0.5, [&x[0], &x[1], &x[2]]);
    let case = Case::new(&inputs, |p, t| p.attention(t[0], t[1], t[2], s.heads, 0.5).unwrap());
    let (one, three) = (case.run(1, None), case.run(3, None));
    assert_close("output", &one.output, &expected, 2e-6, 0.0);
    assert_eq!(one.output, three.output);
    assert_eq!(one.gradients, three.gradients);
}

#[test]
fn attention_survives_scores_far_beyond_the_range_of_exp() {
    let s = shape(1, 6, 70, 1, 4);
    for scale in [50.0, -50.0] {
        let inputs = operands(s, 10.0);
        let x: Vec<Vec<f64>> =
            inputs.iter().map(|i| i.values().iter().map(|&v| f64::from(v)).collect()).collect();
        let expected = reference(s, scale, [&x[0], &x[1], &x[2]]);
        let case = Case::new(&inputs, |p, t| p.attention(t[0], t[1], t[2], 1, scale).unwrap());
        // A score near 5000 is known to 2.4e-4, and so is each weight.
        assert_close("output", &case.run(2, None).output, &expected, 1e-3, 0.0);
    }
}
