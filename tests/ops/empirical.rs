//! The optimal denoiser of a finite data set, against its definition in f64.

use langevin::backend::cpu::Pool;
use langevin::backend::cpu::empirical::nearest_two;
use langevin::backend::cpu::isa::Isa;

use super::common::{Case, Input, Terms, assert_close, assert_same_bits, on_every_backend, values};

/// E[x_0 | x] for every state; `std` and `signal` one a state.
fn reference(len: usize, x: &[f64], data: &[f64], std: &[f64], signal: &[f64]) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for (i, x) in x.chunks_exact(len).enumerate() {
        let logarithm = |image: &[f64]| -> f64 {
            let squares = x.iter().zip(image).map(|(x, v)| (x - signal[i] * v).powi(2));
            -squares.sum::<f64>() / (2.0 * std[i] * std[i])
        };
        let all: Vec<f64> = data.chunks_exact(len).map(logarithm).collect();
        let largest = all.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f64> = all.iter().map(|l| (l - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        y.extend((0..len).map(|e| {
            let shares = weights.iter().zip(data.chunks_exact(len)).map(|(w, image)| w * image[e]);
            shares.sum::<f64>() / total
        }));
    }
    y
}

/// Noise that leaves several images in play, different for every state.
fn stds(n: usize, len: usize) -> Vec<f32> {
    (0..n).map(|i| (0.3 + 0.2 * i as f32) * (len as f32).sqrt()).collect()
}

fn signals(n: usize) -> Vec<f32> {
    (0..n).map(|i| 1.0 - 0.6 * i as f32 / n as f32).collect()
}

fn check(n: usize, m: usize, axes: &[usize]) {
    let len: usize = axes.iter().product();
    let shape = |count: usize| [&[count], axes].concat();
    let inputs = [
        Input::image(&shape(n)),
        Input::parameter(&shape(m)).seed(5).fixed(),
        Input::image(&[n]).with(&stds(n, len)).fixed(),
        Input::image(&[n]).with(&signals(n)).fixed(),
    ];
    let terms = Terms { forward: len + m, backward: 4 * (len + m) };
    Case::new(&inputs, |p, t| p.empirical(t[0], t[1], t[2], Some(t[3])).unwrap())
        .check(terms, |x| reference(len, &x[0], &x[1], &x[2], &x[3]));
}

#[test]
fn empirical_matches_f64_and_finite_differences_at_odd_shapes() {
    check(1, 1, &[1]);
    check(3, 2, &[2]);
    check(2, 19, &[23]);
    check(5, 7, &[3, 4, 2]);
    check(6, 66, &[5, 5, 1]);
    check(2, 5, &[31, 11, 3]);
}

#[test]
fn empirical_matches_f64_and_finite_differences_over_several_chunks_of_images() {
    check(2, 1100, &[2]);
    check(3, 1031, &[33]);
}

#[test]
fn empirical_of_many_states_does_not_depend_on_how_they_are_grouped() {
    on_every_backend(|| {
        let (n, m, len) = (37, 300, 40);
        let inputs = [
            Input::image(&[n, len]),
            Input::parameter(&[m, len]).seed(5).fixed(),
            Input::image(&[n]).with(&stds(n, len)).fixed(),
        ];
        let case = Case::new(&inputs, |p, t| p.empirical(t[0], t[1], t[2], None).unwrap());
        let (one, three) = (case.run(1, None), case.run(3, None));
        let x: Vec<Vec<f64>> =
            inputs.iter().map(|i| i.values().iter().map(|&v| f64::from(v)).collect()).collect();
        let expected = reference(len, &x[0], &x[1], &x[2], &[1.0; 37]);
        assert_close("output", &one.output, &expected, 1e-5, 0.0);
        assert_same_bits("output", &one.output, &three.output);
        let gradients = (one.gradients[0].as_ref().unwrap(), three.gradients[0].as_ref().unwrap());
        assert_same_bits("gradient", gradients.0, gradients.1);
    });
}

#[test]
fn two_points_are_denoised_to_a_hyperbolic_tangent() {
    on_every_backend(|| {
        // E[x_0 | x] = m tanh(alpha m . x / sigma^2), from no signal to almost no noise.
        let len = 50;
        let m = values(3, len);
        let data: Vec<f32> = m.iter().copied().chain(m.iter().map(|v| -v)).collect();
        let pairs = [(1.0, 0.05), (0.9, 0.4), (0.5, 0.9), (0.01, 1.0), (0.0, 1.0), (1.0, 30.0)];
        let mut x = values(4, len * pairs.len());
        x.chunks_exact_mut(len).for_each(|x| x[0] += 0.5 * m[0]);
        let inputs = [
            Input::image(&[pairs.len(), len]).with(&x),
            Input::parameter(&[2, len]).with(&data).fixed(),
            Input::image(&[pairs.len()]).with(&pairs.map(|p| p.1)).fixed(),
            Input::image(&[pairs.len()]).with(&pairs.map(|p| p.0)).fixed(),
        ];
        let case = Case::new(&inputs, |p, t| p.empirical(t[0], t[1], t[2], Some(t[3])).unwrap());
        let found = case.run(2, None).output;
        for ((x, found), (alpha, sigma)) in x
            .chunks_exact(len)
            .zip(found.chunks_exact(len))
            .zip(pairs.map(|(a, s)| (f64::from(a), f64::from(s))))
        {
            let product: f64 = x.iter().zip(&m).map(|(&x, &m)| f64::from(x) * f64::from(m)).sum();
            let factor = (alpha * product / (sigma * sigma)).tanh();
            let expected: Vec<f64> = m.iter().map(|&m| f64::from(m) * factor).collect();
            assert_close("output", found, &expected, 1e-5, 0.1);
        }
    });
}

#[test]
fn neighbours_far_from_the_origin_keep_their_weights() {
    on_every_backend(|| {
        // Squared norms are near 3e5, where f32 is 0.03 apart; distances are near 1e-2.
        let len = 30;
        let far = |seed: u64| values(seed, len).into_iter().map(|v| 100.0 + v / 32.0);
        let data: Vec<f32> = (0..6).flat_map(far).collect();
        let x: Vec<f32> = far(9).collect();
        let inputs = [
            Input::image(&[1, len]).with(&x),
            Input::parameter(&[6, len]).with(&data).fixed(),
            Input::image(&[1]).with(&[0.05]).fixed(),
        ];
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let expected = reference(len, &wide(&x), &wide(&data), &[f64::from(0.05f32)], &[1.0]);
        let case = Case::new(&inputs, |p, t| p.empirical(t[0], t[1], t[2], None).unwrap());
        // The values themselves are 8e-6 apart.
        assert_close("output", &case.run(1, None).output, &expected, 2e-7, 0.0);
    });
}

#[test]
fn without_noise_the_nearest_image_remains_and_equal_ones_share() {
    on_every_backend(|| {
        let data = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 4.0, 4.0];
        let inputs = [
            Input::image(&[2, 2]).with(&[3.0, 3.5, 0.75, 0.75]),
            Input::parameter(&[4, 2]).with(&data).fixed(),
            Input::image(&[2]).with(&[0.0, 0.0]).fixed(),
        ];
        let case = Case::new(&inputs, |p, t| p.empirical(t[0], t[1], t[2], None).unwrap());
        assert_eq!(case.run(1, None).output, [4.0, 4.0, 0.5, 0.5]);
    });
}

#[test]
fn what_is_not_finite_stays_visible() {
    on_every_backend(|| {
        for (at, name) in [(0, "state"), (1, "image")] {
            let mut inputs = [
                Input::image(&[1, 40]),
                Input::parameter(&[70, 40]).fixed(),
                Input::image(&[1]).with(&[2.0]).fixed(),
            ];
            let mut values = inputs[at].values();
            values[23] = f32::NAN;
            inputs[at] = inputs[at].clone().with(&values);
            let case = Case::new(&inputs, |p, t| p.empirical(t[0], t[1], t[2], None).unwrap());
            assert!(case.run(1, None).output.iter().any(|v| v.is_nan()), "{name}");
        }
    });
}

#[test]
fn the_two_nearest_images_are_found_on_every_path() {
    for (n, m, len) in [(1, 1, 3), (7, 50, 2), (18, 1100, 9), (5, 70, 64), (3, 1030, 1030)] {
        let (x, data) = (values(1, n * len), values(2, m * len));
        let exact: Vec<Vec<f64>> = x
            .chunks_exact(len)
            .map(|x| {
                let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
                data.chunks_exact(len).map(|v| x.iter().zip(v).map(square).sum()).collect()
            })
            .collect();
        for isa in Isa::available() {
            let found = nearest_two(&Pool::new(2).limited_to(isa), &x, &data, len);
            assert_eq!(found, nearest_two(&Pool::new(1).limited_to(isa), &x, &data, len));
            for (two, exact) in found.iter().zip(&exact) {
                let mut order: Vec<usize> = (0..m).collect();
                order.sort_by(|&a, &b| exact[a].total_cmp(&exact[b]));
                for ((distance, index), &expected) in two.iter().zip(&order) {
                    assert_eq!(*index, expected, "{n} {m} {len} {isa:?}");
                    assert!((distance - exact[*index]).abs() < 1e-6 * exact[*index]);
                }
            }
            if m == 1 {
                assert_eq!(found[0][1].0, f64::INFINITY);
            }
        }
    }
}

#[test]
fn of_equally_near_images_the_first_two_are_named() {
    let data = [5.0, 1.0, 1.0, 1.0, -1.0];
    assert_eq!(
        nearest_two(&Pool::new(1), &[1.0, 0.0], &data, 1),
        [[(0.0, 1), (0.0, 2)], [(1.0, 1), (1.0, 2)]]
    );
}
