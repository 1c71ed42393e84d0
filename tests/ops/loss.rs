//! The weighted squared error and its gradient.

use langevin::ops::noising::coefficient::{COLUMNS, TARGET_NOISE, TARGET_X0, WEIGHT};
use langevin::plan::{DType, Mode, Plan, Role, TensorId, Wrt};

use super::common::{Machine, assert_close, assert_same_bits, on_every_backend, rounding, values};
use super::noising::{keys, noise};

struct Problem {
    n: usize,
    len: usize,
    scale: f32,
    with_noise: bool,
    prediction: Vec<f32>,
    x0: Vec<f32>,
    coefficients: Vec<f32>,
}

impl Problem {
    fn new(n: usize, len: usize, with_noise: bool) -> Self {
        Problem {
            n,
            len,
            scale: 0.25,
            with_noise,
            prediction: values(1, n * len),
            x0: values(2, n * len),
            coefficients: values(3, n * COLUMNS).iter().map(|v| v + 1.5).collect(),
        }
    }

    /// The images `range` of the problem.
    fn run(&self, images: std::ops::Range<usize>, threads: usize, add: bool) -> [Vec<f32>; 2] {
        let n = images.len();
        let mut plan = Plan::new();
        let shape = [n, self.len];
        let prediction = plan.activation("prediction", &shape, DType::F32, Role::State);
        let x0 = plan.input("x0", &shape, DType::F32);
        let coefficients = plan.input("coefficients", &[n, COLUMNS], DType::F32);
        let key_words = self.with_noise.then(|| plan.input("keys", &[n, 4], DType::U32));
        let loss = plan.loss(prediction, x0, coefficients, key_words, self.scale).unwrap();
        plan.keep(loss);
        plan.derive(&[(loss, None)], Wrt::Tensors(vec![prediction])).unwrap();
        let gradient = plan.gradient(prediction).unwrap();
        if add {
            let write = plan.nodes[1].outputs[0].as_mut().unwrap();
            assert_eq!(write.tensor, gradient);
            write.mode = Mode::Add;
            plan.tensors[gradient.index()].role = Role::State;
        }
        let mut machine = Machine::new(plan, threads);
        let mut put = |id: TensorId, all: &[f32], len: usize| {
            machine.upload(id, &all[images.start * len..images.end * len]);
        };
        put(prediction, &self.prediction, self.len);
        put(x0, &self.x0, self.len);
        put(coefficients, &self.coefficients, COLUMNS);
        if let Some(id) = key_words {
            machine.upload_u32(id, &keys(self.n)[4 * images.start..4 * images.end]);
        }
        if add {
            machine.upload(gradient, &vec![1.0; n * self.len]);
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        [machine.download(loss), machine.download(gradient)]
    }

    /// Per-image losses in f64.
    fn reference(&self, prediction: &[f64]) -> Vec<f64> {
        let eps = noise(self.n, self.len);
        (0..self.n)
            .map(|image| {
                let c = |column: usize| f64::from(self.coefficients[image * COLUMNS + column]);
                let sum: f64 = (image * self.len..(image + 1) * self.len)
                    .map(|e| {
                        let b = if self.with_noise { c(TARGET_NOISE) } else { 0.0 };
                        let target = c(TARGET_X0) * f64::from(self.x0[e]) + b * f64::from(eps[e]);
                        (prediction[e] - target).powi(2)
                    })
                    .sum();
                c(WEIGHT) / self.len as f64 * sum
            })
            .collect()
    }
}

/// (images, elements): one, odd, one chunk of normals more or less, two tasks.
const SIZES: [(usize, usize); 6] = [(1, 1), (3, 35), (2, 1023), (2, 1024), (2, 1025), (2, 8200)];

#[test]
fn loss_matches_f64_with_and_without_noise() {
    on_every_backend(|| {
        for (n, len) in SIZES {
            for with_noise in [true, false] {
                let problem = Problem::new(n, len, with_noise);
                let prediction: Vec<f64> = problem.prediction.iter().map(|&v| v.into()).collect();
                let [loss, _] = problem.run(0..n, 1, false);
                assert_close("loss", &loss, &problem.reference(&prediction), rounding(2), 0.0);
            }
        }
    });
}

#[test]
fn loss_backward_matches_finite_differences_of_the_scaled_sum() {
    on_every_backend(|| {
        for (n, len) in SIZES {
            for with_noise in [true, false] {
                let problem = Problem::new(n, len, with_noise);
                let [_, gradient] = problem.run(0..n, 1, false);
                let mut x: Vec<f64> = problem.prediction.iter().map(|&v| v.into()).collect();
                let h = 1e-4;
                let (mut found, mut expected) = (Vec::new(), Vec::new());
                for e in (0..n * len).step_by((n * len / 40).max(1)) {
                    let middle = x[e];
                    let mut objective = |v: f64| -> f64 {
                        x[e] = v;
                        f64::from(problem.scale) * problem.reference(&x).iter().sum::<f64>()
                    };
                    expected.push((objective(middle + h) - objective(middle - h)) / (2.0 * h));
                    x[e] = middle;
                    found.push(gradient[e]);
                }
                assert_close("d_prediction", &found, &expected, rounding(3), 0.0);
            }
        }
    });
}

#[test]
fn loss_backward_adds_to_what_is_there() {
    on_every_backend(|| {
        let problem = Problem::new(2, 600, true);
        let [_, once] = problem.run(0..2, 1, false);
        let [_, added] = problem.run(0..2, 1, true);
        let expected: Vec<f64> = once.iter().map(|&v| f64::from(v) + 1.0).collect();
        assert_close("d_prediction", &added, &expected, rounding(1), 0.0);
    });
}

#[test]
fn an_image_of_weight_zero_has_no_loss_and_no_gradient() {
    on_every_backend(|| {
        let mut problem = Problem::new(2, 100, true);
        problem.coefficients[COLUMNS + WEIGHT] = 0.0;
        let [loss, gradient] = problem.run(0..2, 1, false);
        assert!(loss[0] > 0.0 && loss[1] == 0.0);
        assert!(gradient[100..].iter().all(|&g| g == 0.0));
    });
}

#[test]
fn threads_and_batches_change_no_bits_of_loss_and_gradient() {
    on_every_backend(|| {
        let problem = Problem::new(3, 8195, true);
        let [loss, gradient] = problem.run(0..3, 1, false);
        for threads in [2, 3] {
            let [again, gradient_again] = problem.run(0..3, threads, false);
            assert_same_bits("loss", &again, &loss);
            assert_same_bits("gradient", &gradient_again, &gradient);
        }
        for i in 0..3 {
            let [alone, gradient_alone] = problem.run(i..i + 1, 2, false);
            assert_same_bits("loss of one image", &alone, &loss[i..=i]);
            assert_same_bits(
                "gradient of one image",
                &gradient_alone,
                &gradient[i * 8195..][..8195],
            );
        }
    });
}
