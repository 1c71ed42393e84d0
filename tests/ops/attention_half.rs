//! Attention in bf16 on tensor cores, against the textbook in f64 of the rounded operands.

use langevin::plan::{DType, Plan, Role};

use super::common::{
    Case, Input, Machine, Outcome, assert_close, assert_same_bits, in_half, rounded_to_half,
    rounding, upstream, values,
};

/// Errors of PyTorch's bf16 attention on the CPU, as a share of the largest value, of o,
/// d_q, d_k, d_v: the worst of [`SHAPES`], by tests/golden/half_kernels.py.
const PYTORCH: [f64; 4] = [2.77e-3, 5.69e-3, 6.54e-3, 6.55e-3];

#[derive(Clone, Copy)]
pub struct Shape {
    pub n: usize,
    pub s_q: usize,
    pub s_kv: usize,
    pub heads: usize,
    pub dim: usize,
}

/// Lengths beside tiles, one head and several, heads of every kernel's width, beside it,
/// and of no multiple of 8.
const SHAPES: [[usize; 5]; 11] = [
    [1, 1, 1, 1, 8],
    [2, 16, 16, 4, 8],
    [2, 5, 70, 2, 16],
    [1, 65, 130, 1, 32],
    [2, 67, 65, 2, 64],
    [1, 70, 33, 1, 128],
    [1, 35, 50, 1, 256],
    [2, 20, 70, 3, 40],
    [1, 17, 66, 2, 19],
    [1, 9, 35, 1, 100],
    [1, 66, 9, 1, 200],
];

pub fn shape([n, s_q, s_kv, heads, dim]: [usize; 5]) -> Shape {
    Shape { n, s_q, s_kv, heads, dim }
}

/// lse, the natural logarithm of the sum of a query's weights.
fn reference_lse(s: Shape, scale: f32, q: &[f32], k: &[f32]) -> Vec<f64> {
    let c = s.heads * s.dim;
    let row = |x: &[f32], token: usize, head: usize| -> Vec<f64> {
        x[token * c + head * s.dim..][..s.dim].iter().map(|&v| f64::from(v)).collect()
    };
    let mut lse = Vec::with_capacity(s.n * s.heads * s.s_q);
    for (image, head, i) in
        (0..s.n).flat_map(|n| (0..s.heads).flat_map(move |h| (0..s.s_q).map(move |i| (n, h, i))))
    {
        let query = row(q, image * s.s_q + i, head);
        let score = |j: usize| -> f64 {
            let key = row(k, image * s.s_kv + j, head);
            f64::from(scale) * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>()
        };
        let scores: Vec<f64> = (0..s.s_kv).map(score).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        lse.push(largest + scores.iter().map(|x| (x - largest).exp()).sum::<f64>().ln());
    }
    lse
}

/// o and, for d_o, d_q, d_k and d_v.
pub fn reference(s: Shape, scale: f32, [q, k, v, d_o]: [&[f32]; 4]) -> [Vec<f64>; 4] {
    let (c, scale) = (s.heads * s.dim, f64::from(scale));
    let mut o = vec![0.0; q.len()];
    let mut d_q = vec![0.0; q.len()];
    let (mut d_k, mut d_v) = (vec![0.0; k.len()], vec![0.0; k.len()]);
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    for (image, head, i) in
        (0..s.n).flat_map(|n| (0..s.heads).flat_map(move |h| (0..s.s_q).map(move |i| (n, h, i))))
    {
        let row = (image * s.s_q + i) * c + head * s.dim..;
        let row = row.start..row.start + s.dim;
        let other = |j: usize| {
            let at = (image * s.s_kv + j) * c + head * s.dim;
            at..at + s.dim
        };
        let scores: Vec<f64> =
            (0..s.s_kv).map(|j| scale * dot(&q[row.clone()], &k[other(j)])).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        let sum: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|x| (x - largest).exp() / sum).collect();
        let d_weights: Vec<f64> =
            (0..s.s_kv).map(|j| dot(&d_o[row.clone()], &v[other(j)])).collect();
        let delta: f64 = weights.iter().zip(&d_weights).map(|(w, d)| w * d).sum();
        for j in 0..s.s_kv {
            let d_score = weights[j] * (d_weights[j] - delta) * scale;
            for d in 0..s.dim {
                let (mine, theirs) = (row.start + d, other(j).start + d);
                o[mine] += weights[j] * f64::from(v[theirs]);
                d_q[mine] += d_score * f64::from(k[theirs]);
                d_k[theirs] += d_score * f64::from(q[mine]);
                d_v[theirs] += weights[j] * f64::from(d_o[mine]);
            }
        }
    }
    [o, d_q, d_k, d_v]
}

fn operands(s: Shape, spread: f32) -> [Input; 3] {
    let c = s.heads * s.dim;
    let input = |seed: u64, tokens: usize, spread: f32| {
        let values: Vec<f32> = values(seed, s.n * tokens * c).iter().map(|v| v * spread).collect();
        Input::image(&[s.n, tokens, c]).with(&rounded_to_half(&values))
    };
    [input(1, s.s_q, spread), input(2, s.s_kv, spread), input(3, s.s_kv, 1.0)]
}

pub fn case(s: Shape, scale: f32, inputs: &[Input]) -> Case<'static> {
    Case::new(inputs, move |p, t| p.attention(t[0], t[1], t[2], s.heads, scale).unwrap())
}

pub fn results(outcome: &Outcome) -> [&[f32]; 4] {
    let gradient = |i: usize| outcome.gradients[i].as_deref().expect("a gradient");
    [&outcome.output, gradient(0), gradient(1), gradient(2)]
}

pub const NAMES: [&str; 4] = ["o", "d_q", "d_k", "d_v"];

/// Compares a run with f64, allowing `share` times PyTorch's error.
fn check(s: Shape, scale: f32, spread: f32, share: f64) {
    let inputs = operands(s, spread);
    let [q, k, v] = [0, 1, 2].map(|i| inputs[i].values());
    let d_o = rounded_to_half(&upstream(q.len()));
    let expected = reference(s, scale, [&q, &k, &v, &d_o]);
    let found = case(s, scale, &inputs).run(1, None);
    for (i, found) in results(&found).into_iter().enumerate() {
        let what =
            format!("{} of {} heads of {}, {} x {}", NAMES[i], s.heads, s.dim, s.s_q, s.s_kv);
        // Where all weights are 1 the gradients of scores are nothing but rounding.
        let floor = if s.s_kv == 1 { 1.0 } else { 0.0 };
        assert_close(&what, found, &expected[i], share * PYTORCH[i], floor);
    }
}

pub fn scale_of(s: Shape) -> f32 {
    1.0 / (s.dim as f32).sqrt()
}

#[test]
fn attention_in_bf16_is_as_close_to_f64_as_pytorchs() {
    in_half(|| {
        for s in SHAPES.map(shape) {
            check(s, scale_of(s), 3.0, 2.0);
        }
    });
}

#[test]
fn attention_in_bf16_with_many_queries_is_as_close_to_f64_as_pytorchs() {
    in_half(|| {
        for s in [[1, 513, 70, 1, 64], [1, 512, 230, 1, 128]].map(shape) {
            check(s, scale_of(s), 3.0, 2.0);
        }
    });
}

#[test]
fn attention_in_bf16_saves_an_lse_to_the_precision_of_f32() {
    in_half(|| {
        for s in SHAPES.into_iter().chain([[1, 513, 70, 1, 64], [1, 512, 130, 1, 128]]).map(shape) {
            let inputs = operands(s, 3.0);
            let mut plan = Plan::new();
            let tokens = [s.s_q, s.s_kv, s.s_kv];
            let [q, k, v] = [0, 1, 2].map(|i| {
                let shape = [s.n, tokens[i], s.heads * s.dim];
                plan.activation(format!("x{i}"), &shape, DType::F32, Role::State)
            });
            plan.attention(q, k, v, s.heads, scale_of(s)).expect("fits");
            let lse = plan.nodes.last().and_then(|node| node.output(1)).expect("an lse");
            plan.keep(lse);
            let mut machine = Machine::new(plan, 1);
            for (id, input) in [q, k, v].into_iter().zip(&inputs) {
                machine.upload(id, &input.values());
            }
            machine.run();
            let [q, k] = [0, 1].map(|i| inputs[i].values());
            let expected = reference_lse(s, scale_of(s), &q, &k);
            let what = format!("lse of {} heads of {}, {} x {}", s.heads, s.dim, s.s_q, s.s_kv);
            let allowed = rounding(s.dim + s.s_kv);
            assert_close(&what, &machine.download(lse), &expected, allowed, 1.0);
        }
    });
}

#[test]
fn attention_in_bf16_gives_an_image_the_same_bits_in_any_batch() {
    in_half(|| {
        for s in [[3, 67, 70, 2, 64], [3, 20, 35, 1, 256], [3, 9, 70, 2, 19]].map(shape) {
            let inputs = operands(s, 3.0);
            let together = case(s, scale_of(s), &inputs).run(1, None);
            let again = case(s, scale_of(s), &inputs).run(1, None);
            for (i, (a, b)) in results(&together).into_iter().zip(results(&again)).enumerate() {
                assert_same_bits(NAMES[i], a, b);
            }
            // The upstream gradient of the first image is the same alone.
            let alone: Vec<Input> = inputs
                .iter()
                .map(|x| {
                    let values = x.values();
                    let tokens = values.len() / s.n / (s.heads * s.dim);
                    Input::image(&[1, tokens, s.heads * s.dim]).with(&values[..values.len() / s.n])
                })
                .collect();
            let one = Shape { n: 1, ..s };
            let alone = case(one, scale_of(s), &alone).run(1, None);
            for (i, (a, b)) in results(&alone).into_iter().zip(results(&together)).enumerate() {
                assert_same_bits(NAMES[i], a, &b[..a.len()]);
            }
        }
    });
}

#[test]
fn attention_in_bf16_survives_scores_far_beyond_the_range_of_exp() {
    in_half(|| {
        let s = shape([1, 6, 200, 1, 8]);
        for scale in [50.0, -50.0] {
            let inputs = operands(s, 10.0);
            let [q, k, v] = [0, 1, 2].map(|i| inputs[i].values());
            let expected = reference(s, scale, [&q, &k, &v, &vec![0.0; q.len()]]);
            let found = case(s, scale, &inputs).run(1, None);
            // A score near 20000 is known to 2e-3 in f32, and so is each weight.
            assert_close("o", &found.output, &expected[0], 2.0 * PYTORCH[0] + 2e-3, 0.0);
            assert!(results(&found).into_iter().flatten().all(|v| v.is_finite()));
        }
    });
}

#[test]
fn attention_in_bf16_adds_gradients_of_a_tensor_that_it_reads_thrice() {
    in_half(|| {
        for s in [[2, 33, 33, 2, 16], [1, 20, 20, 1, 256]].map(shape) {
            let x = operands(s, 3.0)[0].clone();
            let scale = scale_of(s);
            let found = Case::new(std::slice::from_ref(&x), |p, t| {
                // Between ops the gradient of y is bf16, and two of its parts are added to it.
                let y = p.scale(t[0], 1.0, 0.0);
                p.attention(y, y, y, s.heads, scale).unwrap()
            })
            .run(1, None);
            let x = x.values();
            let d_o = rounded_to_half(&upstream(x.len()));
            let [_, d_q, d_k, d_v] = reference(s, scale, [&x, &x, &x, &d_o]);
            let sum: Vec<f64> = (0..x.len()).map(|i| d_q[i] + d_k[i] + d_v[i]).collect();
            // Each part's error, and two sums rounded to bf16.
            let allowed = 2.0 * (PYTORCH[1] + PYTORCH[2] + PYTORCH[3]) + 2.0 * 2f64.powi(-8);
            assert_close("d_x", found.gradients[0].as_ref().unwrap(), &sum, allowed, 0.0);
        }
    });
}
