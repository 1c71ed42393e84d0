//! Attention in tf32 on tensor cores, against the textbook in f64 of the rounded operands.

use super::attention_half::{NAMES, Shape, case, reference, results, scale_of, shape};
use super::common::{
    Case, Input, assert_close, assert_same_bits, in_tf32, rounding, upstream, values,
};

/// Half a unit in the last of tf32's 10 bits of fraction.
const ROUNDING: f64 = 1.0 / 2048.0;

/// Lengths beside tiles, one head and several, heads of every kernel's width and beside it.
const SHAPES: [[usize; 5]; 9] = [
    [1, 1, 1, 1, 4],
    [2, 16, 16, 4, 16],
    [2, 5, 70, 2, 32],
    [1, 65, 130, 1, 20],
    [2, 67, 65, 2, 64],
    [1, 70, 33, 1, 128],
    [2, 20, 70, 3, 40],
    [1, 9, 35, 1, 100],
    [1, 66, 9, 2, 124],
];

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| f32::from_bits((v.to_bits() + 0x1000) & !0x1fff)).collect()
}

fn operands(s: Shape, spread: f32) -> [Input; 3] {
    let c = s.heads * s.dim;
    let input = |seed: u64, tokens: usize, spread: f32| {
        let values: Vec<f32> = values(seed, s.n * tokens * c).iter().map(|v| v * spread).collect();
        Input::image(&[s.n, tokens, c]).with(&rounded(&values))
    };
    [input(1, s.s_q, spread), input(2, s.s_kv, spread), input(3, s.s_kv, 1.0)]
}

#[test]
fn attention_in_tf32_differs_from_f64_by_the_rounding_of_tf32() {
    in_tf32(|| {
        for s in SHAPES.map(shape) {
            let inputs = operands(s, 3.0);
            let [q, k, v] = [0, 1, 2].map(|i| inputs[i].values());
            let d_o = rounded(&upstream(q.len()));
            let expected = reference(s, scale_of(s), [&q, &k, &v, &d_o]);
            let found = case(s, scale_of(s), &inputs).run(1, None);
            for (i, found) in results(&found).into_iter().enumerate() {
                let what = format!(
                    "{} of {} heads of {}, {} x {}",
                    NAMES[i], s.heads, s.dim, s.s_q, s.s_kv
                );
                // Weights, their gradients and d_o are rounded, and sums of them cancel. Where
                // all weights are 1 the gradients of scores are nothing but rounding.
                let floor = if s.s_kv == 1 { 1.0 } else { 0.0 };
                assert_close(&what, found, &expected[i], 4.0 * ROUNDING, floor);
            }
        }
    });
}

#[test]
fn attention_in_tf32_is_that_of_rounded_operands() {
    in_tf32(|| {
        for s in [[1, 65, 40, 2, 32], [1, 33, 70, 1, 64], [1, 20, 35, 1, 128]].map(shape) {
            let rounded = operands(s, 3.0);
            // An eighth of a unit of tf32 more, which rounding takes away again.
            let longer = rounded.clone().map(|x| x.map(|v| v * (1.0 + ROUNDING / 8.0) as f32));
            let [a, b] = [rounded, longer].map(|x| case(s, scale_of(s), &x).run(1, None));
            for (i, (a, b)) in results(&a).into_iter().zip(results(&b)).enumerate() {
                assert_same_bits(NAMES[i], a, b);
            }
        }
    });
}

#[test]
fn attention_in_tf32_gives_an_image_the_same_bits_in_any_batch() {
    in_tf32(|| {
        for s in [[3, 67, 70, 2, 64], [3, 20, 35, 1, 128]].map(shape) {
            let inputs = operands(s, 3.0);
            let together = case(s, scale_of(s), &inputs).run(1, None);
            // The upstream gradient of the first image is the same alone.
            let alone: Vec<Input> = inputs
                .iter()
                .map(|x| {
                    let values = x.values();
                    let tokens = values.len() / s.n / (s.heads * s.dim);
                    Input::image(&[1, tokens, s.heads * s.dim]).with(&values[..values.len() / s.n])
                })
                .collect();
            let alone = case(Shape { n: 1, ..s }, scale_of(s), &alone).run(1, None);
            for (i, (a, b)) in results(&alone).into_iter().zip(results(&together)).enumerate() {
                assert_same_bits(NAMES[i], a, &b[..a.len()]);
            }
        }
    });
}

#[test]
fn attention_in_tf32_survives_scores_far_beyond_the_range_of_exp() {
    in_tf32(|| {
        let s = shape([1, 6, 200, 1, 8]);
        for scale in [50.0, -50.0] {
            let inputs = operands(s, 10.0);
            let [q, k, v] = [0, 1, 2].map(|i| inputs[i].values());
            let expected = reference(s, scale, [&q, &k, &v, &vec![0.0; q.len()]]);
            let found = case(s, scale, &inputs).run(1, None);
            // A score near 20000 is known to 2e-3 in f32, and so is each weight.
            assert_close("o", &found.output, &expected[0], 4.0 * ROUNDING + 2e-3, 0.0);
            assert!(results(&found).into_iter().flatten().all(|v| v.is_finite()));
        }
    });
}

#[test]
fn attention_in_tf32_adds_gradients_of_a_tensor_that_it_reads_thrice() {
    in_tf32(|| {
        let s = shape([2, 33, 33, 2, 32]);
        let x = operands(s, 3.0)[0].clone();
        let found = Case::new(std::slice::from_ref(&x), |p, t| {
            p.attention(t[0], t[0], t[0], s.heads, scale_of(s)).unwrap()
        })
        .run(1, None);
        let x = x.values();
        let d_o = rounded(&upstream(x.len()));
        let [_, d_q, d_k, d_v] = reference(s, scale_of(s), [&x, &x, &x, &d_o]);
        let sum: Vec<f64> = (0..x.len()).map(|i| d_q[i] + d_k[i] + d_v[i]).collect();
        assert_close("d_x", found.gradients[0].as_ref().unwrap(), &sum, 12.0 * ROUNDING, 0.0);
    });
}

#[test]
fn attention_in_tf32_goes_on_in_f32_where_it_has_no_kernel() {
    in_tf32(|| {
        for s in [[1, 7, 9, 2, 19], [1, 5, 6, 1, 256]].map(shape) {
            let inputs = operands(s, 1.0);
            let [q, k, v] = [0, 1, 2].map(|i| inputs[i].values());
            let d_o = upstream(q.len());
            let expected = reference(s, scale_of(s), [&q, &k, &v, &d_o]);
            let found = case(s, scale_of(s), &inputs).run(1, None);
            for (i, found) in results(&found).into_iter().enumerate() {
                assert_close(NAMES[i], found, &expected[i], rounding(4 * (s.dim + s.s_kv)), 0.0);
            }
        }
    });
}
