use langevin::backend::cpu::pool::Pool;
use langevin::diffusion::empirical::nearest_two;
use langevin::evaluate::frechet::{distance, of_gaussians};
use langevin::evaluate::kernel::{mmd2, unbiased};
use langevin::evaluate::matrix::{covariance, mean, singular_values};
use langevin::evaluate::neighbours::neighbours;
use langevin::evaluate::{Features, Options, audit, evaluate};
use langevin::random::{Purpose, fill_normal, image_keys};

fn pool() -> Pool {
    Pool::new(2)
}

/// Standard normals `[n, dim]`, of a stream of their own.
fn normals(stream: u64, n: usize, dim: usize) -> Vec<f32> {
    let mut values = vec![0f32; n * dim];
    fill_normal(image_keys(7, stream), Purpose::Probe, 0, 0, &mut values);
    values
}

fn set(values: &[f32], dim: usize) -> Features {
    Features::new("test", values, dim).expect("valid")
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    let error = (found - expected).abs();
    assert!(error <= tolerance * expected.abs().max(1.0), "{found} and not {expected}: {error:e}");
}

#[test]
fn frechet_distance_of_gaussians_equals_its_closed_forms() {
    let pool = pool();
    // Diagonal: the sum of squared differences of the standard deviations.
    let (a, b) = ([4.0, 1.0, 0.25], [1.0, 9.0, 0.0]);
    let diagonal = |d: &[f64; 3]| {
        let mut m = vec![0f64; 9];
        (0..3).for_each(|i| m[4 * i] = d[i]);
        m
    };
    let (m1, m2) = ([1.0, 0.0, 2.0], [0.0, -1.0, 0.5]);
    let found = of_gaussians(&pool, &m1, &diagonal(&a), &m2, &diagonal(&b));
    assert_near(found.means, 1.0 + 1.0 + 2.25, 1e-14);
    assert_near(found.covariances, 1.0 + 4.0 + 0.25, 1e-12);
    // Two by two: (tr (AB)^(1/2))^2 = tr AB + 2 (det A det B)^(1/2).
    let (a, b) = ([2.0, 0.6, 0.6, 1.0], [1.5, -0.9, -0.9, 3.0]);
    let product_trace: f64 = a[0] * b[0] + a[1] * b[2] + a[2] * b[1] + a[3] * b[3];
    let det = |m: [f64; 4]| m[0] * m[3] - m[1] * m[2];
    let root = (product_trace + 2.0 * (det(a) * det(b)).sqrt()).sqrt();
    let expected = a[0] + a[3] + b[0] + b[3] - 2.0 * root;
    let found = of_gaussians(&pool, &[0.0; 2], &a, &[0.0; 2], &b);
    assert_near(found.distance, expected, 1e-13);
}

#[test]
fn singular_values_of_a_matrix_with_known_ones_are_found() {
    // Householder reflections on either side of a rectangular diagonal matrix.
    let (m, n) = (37, 23);
    let expected: Vec<f64> =
        (0..n).map(|i| if i < 20 { 10.0 / (1 + i) as f64 } else { 0.0 }).collect();
    let unit = |stream, len| {
        let v: Vec<f64> = normals(stream, 1, len).iter().map(|&v| v.into()).collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.into_iter().map(|v| v / norm).collect::<Vec<f64>>()
    };
    let (u, v) = (unit(0, m), unit(1, n));
    let mut a = vec![0f64; m * n];
    for i in 0..m {
        for j in 0..n {
            for (k, s) in expected.iter().enumerate() {
                let left = f64::from(i == k) - 2.0 * u[i] * u[k];
                let right = f64::from(k == j) - 2.0 * v[k] * v[j];
                a[i * n + j] += left * s * right;
            }
        }
    }
    for (rows, columns, a) in
        [(m, n, a.clone()), (n, m, { (0..m * n).map(|k| a[k % m * n + k / m]).collect() })]
    {
        let found = singular_values(&pool(), &a, rows, columns);
        assert_eq!(found.len(), n);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-13 * 10.0, "{found} {expected}");
        }
    }
    assert_eq!(singular_values(&pool(), &[0.0; 12], 4, 3), [0.0; 3]);
}

#[test]
fn a_set_against_itself_is_perfect() {
    for (n, dim) in [(50, 6), (10, 40)] {
        let x = set(&normals(3, n, dim), dim);
        let pool = pool();
        assert_near(distance(&pool, &x, &x).expect("defined").distance, 0.0, 1e-10);
        for k in [1, 3] {
            let found = neighbours(&pool, &x, &x, k).expect("defined");
            assert_eq!((found.precision, found.recall, found.coverage), (1.0, 1.0, 1.0));
            // Each sample lies in its own ball and in those that reach it.
            assert_near(found.density, (k + 1) as f64 / k as f64, 1e-12);
        }
    }
}

#[test]
fn two_draws_of_one_gaussian_have_no_mmd_and_a_shifted_one_has() {
    let pool = pool();
    let options = Options { subset: 100, subsets: 40, ..Options::default() };
    let (x, y) = (set(&normals(4, 600, 8), 8), set(&normals(5, 600, 8), 8));
    let same = mmd2(&pool, &x, &y, &options).expect("defined");
    assert_eq!((same.subset, same.subsets), (100, 40));
    assert!(same.mmd2.abs() < 4.0 * same.standard_error, "{same:?}");
    let shifted: Vec<f32> = normals(6, 600, 8).iter().map(|v| v + 0.5).collect();
    let other = mmd2(&pool, &x, &set(&shifted, 8), &options).expect("defined");
    assert!(other.mmd2 > 8.0 * other.standard_error, "{other:?}");
}

#[test]
fn scores_equal_those_of_numpy_scipy_and_scikit_learn() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/scores.json");
    let text = std::fs::read_to_string(path).expect("golden file");
    let cases: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let numbers = |v: &serde_json::Value| -> Vec<f64> {
        v.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
    };
    let pool = pool();
    for case in cases.as_array().expect("a list") {
        let dim = case["dim"].as_u64().expect("a number") as usize;
        let values =
            |key: &str| -> Vec<f32> { numbers(&case[key]).into_iter().map(|v| v as f32).collect() };
        let (samples, data) = (values("samples"), values("data"));
        let (x, y) = (set(&samples, dim), set(&data, dim));
        let expected = |key: &str| case[key].as_f64().expect("a number");
        assert_near(distance(&pool, &x, &y).expect("defined").distance, expected("frechet"), 1e-7);
        assert_near(unbiased(&pool, &x, &y).expect("defined"), expected("mmd2"), 1e-11);
        for k in [1, 3, 5] {
            let found = neighbours(&pool, &x, &y, k).expect("defined");
            let expected = &case["neighbours"][k.to_string()];
            for (name, found) in [
                ("precision", found.precision),
                ("recall", found.recall),
                ("density", found.density),
                ("coverage", found.coverage),
            ] {
                assert_near(found, expected[name].as_f64().expect("a number"), 1e-12);
            }
        }
        let nearest = nearest_two(&pool, &samples, &data, dim).expect("defined");
        for (nearest, (index, ratio)) in
            nearest.iter().zip(numbers(&case["nearest"]).iter().zip(numbers(&case["ratio"])))
        {
            assert_eq!(nearest.index, *index as usize);
            assert_near(nearest.ratio(), ratio, 1e-5);
        }
    }
}

#[test]
fn moments_are_those_of_two_passes_in_any_shape() {
    for (n, dim) in [(2, 1), (5, 3), (2100, 5), (33, 17)] {
        let values = normals(8, n, dim);
        let x = set(&values, dim);
        let m = mean(&x);
        let c = covariance(&pool(), &x, &m);
        for i in 0..dim {
            for j in 0..dim {
                let term = |r: &[f64]| (r[i] - m[i]) * (r[j] - m[j]);
                let sum: f64 = x.values().chunks_exact(dim).map(term).sum();
                assert_near(c[i * dim + j], sum / (n - 1) as f64, 1e-12);
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (x, y) = (set(&normals(9, 120, 33), 33), set(&normals(10, 101, 33), 33));
    let options = Options { subset: 30, subsets: 7, ..Options::default() };
    let scores = |threads| {
        let found = evaluate(&Pool::new(threads), &x, &y, &options).expect("defined");
        serde_json::to_string(&found).expect("JSON")
    };
    let one = scores(1);
    assert_eq!(one, scores(3));
    assert!(!one.contains("null"), "a score is not finite: {one}");
}

#[test]
fn sets_too_small_for_a_score_are_refused_with_the_reason() {
    let pool = pool();
    let of = |n| set(&normals(11, n, 3), 3);
    let options = Options::default();
    for (samples, data, reason) in [
        (1, 50, "a covariance needs at least 2"),
        (50, 1, "a covariance needs at least 2"),
        (3, 50, "MMD need at least 4"),
        (5, 50, "balls to the 5-th neighbour need at least 6"),
    ] {
        let error = evaluate(&pool, &of(samples), &of(data), &options).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
    }
    let few = evaluate(&pool, &of(6), &of(6), &options).expect("enough");
    let text = serde_json::to_string(&few).expect("JSON");
    assert!(!text.contains("null"), "{text}");
    assert!(Features::new("x", &[1.0, f32::NAN], 1).is_err());
    let other = set(&normals(12, 50, 4), 4);
    let error = evaluate(&pool, &of(50), &other, &options).expect_err("other length");
    assert!(error.to_string().contains("3 values each and the data 4"), "{error}");
    // A set without spread has a covariance of 0, and is still compared.
    let point = set(&[0.5; 30], 3);
    let found = distance(&pool, &point, &of(10)).expect("defined");
    assert!(found.distance.is_finite() && found.covariances > 0.0);
}

#[test]
fn an_audit_names_the_copies() {
    let data = normals(13, 40, 12);
    let mut samples = normals(14, 20, 12);
    // Sample 7 is training image 31, sample 3 nearly training image 5.
    samples[7 * 12..8 * 12].copy_from_slice(&data[31 * 12..32 * 12]);
    for (s, d) in samples[3 * 12..4 * 12].iter_mut().zip(&data[5 * 12..6 * 12]) {
        *s = d + 0.01;
    }
    let nearest = nearest_two(&pool(), &samples, &data, 12).expect("defined");
    let found = audit::audit(&nearest);
    assert_eq!(found.copies, 0.1);
    assert_eq!([found.closest[0].0, found.closest[0].1], [7, 31]);
    assert_eq!([found.closest[1].0, found.closest[1].1], [3, 5]);
    assert_eq!((found.ratio[0], found.distance[0]), (0.0, 0.0));
    assert!(found.ratio.windows(2).all(|w| w[0] <= w[1]));
    let png = audit::closest_png(&found, &nearest, &samples, &data, [3, 4, 1]);
    assert!(image::load_from_memory(&png).is_ok());
}
