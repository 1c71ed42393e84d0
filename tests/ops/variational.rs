//! A term of the variational bound and its gradient.

use langevin::ops::variational::Options;
use langevin::ops::variational::column::{self, COLUMNS};
use langevin::plan::{DType, Mode, Plan, Role, TensorId, Wrt};

use super::common::{Machine, assert_close, assert_same_bits, on_every_backend, rounding, values};
use super::noising::{keys, noise};

struct Problem {
    n: usize,
    pixels: usize,
    channels: usize,
    learned: bool,
    options: Options,
    prediction: Vec<f32>,
    x0: Vec<f32>,
    rows: Vec<f32>,
}

/// Every second image is scored by the decoder.
fn row(image: usize) -> [f32; COLUMNS] {
    let mut row = [0.0; COLUMNS];
    for (i, value) in [
        (column::GAP_X0, 0.1),
        (column::GAP_NOISE, -0.3),
        (column::GAP_PREDICTION, 0.35),
        (column::C_0, 0.6),
        (column::LN_POSTERIOR, -2.2),
        (column::LN_SMALL, -2.2),
        (column::LN_LARGE, -0.9),
        (column::DECODED, (image % 2) as f32),
        (column::WEIGHT, 1.5 + image as f32),
        (column::SIMPLE_WEIGHT, 0.7),
        (column::TARGET_X0, -0.4),
        (column::TARGET_NOISE, 0.8),
    ] {
        row[i] = value;
    }
    row
}

impl Problem {
    fn new(n: usize, pixels: usize, channels: usize, learned: bool, hold_mean: bool) -> Self {
        let len = pixels * channels;
        let levels = |v: &f32| (v * 8.0).round() / 8.0;
        Problem {
            n,
            pixels,
            channels,
            learned,
            options: Options { hold_mean, half_bin: 1.0 / 16.0, scale: 0.25 },
            prediction: values(1, n * len * if learned { 2 } else { 1 }),
            x0: values(2, n * len).iter().map(levels).collect(),
            rows: (0..n).flat_map(row).collect(),
        }
    }

    fn len(&self) -> usize {
        self.pixels * self.channels
    }

    fn outputs(&self) -> usize {
        self.channels * if self.learned { 2 } else { 1 }
    }

    fn run(&self, images: std::ops::Range<usize>, threads: usize, add: bool) -> [Vec<f32>; 2] {
        let n = images.len();
        let mut plan = Plan::new();
        let shape = [n, self.pixels, 1, self.outputs()];
        let prediction = plan.activation("prediction", &shape, DType::F32, Role::State);
        let x0 = plan.input("x0", &[n, self.pixels, 1, self.channels], DType::F32);
        let rows = plan.input("rows", &[n, COLUMNS], DType::F32);
        let words = plan.input("keys", &[n, 4], DType::U32);
        let loss = plan.variational(prediction, x0, rows, words, self.options).unwrap();
        plan.keep(loss);
        plan.derive(&[(loss, None)], Wrt::Tensors(vec![prediction])).unwrap();
        let gradient = plan.gradient(prediction).unwrap();
        if add {
            plan.nodes[1].outputs[0].as_mut().unwrap().mode = Mode::Add;
            plan.tensors[gradient.index()].role = Role::State;
        }
        let mut machine = Machine::new(plan, threads);
        let mut put = |id: TensorId, all: &[f32], len: usize| {
            machine.upload(id, &all[images.start * len..images.end * len]);
        };
        put(prediction, &self.prediction, self.pixels * self.outputs());
        put(x0, &self.x0, self.len());
        put(rows, &self.rows, COLUMNS);
        machine.upload_u32(words, &keys(self.n)[4 * images.start..4 * images.end]);
        if add {
            machine.upload(gradient, &vec![1.0; self.prediction.len()]);
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        [machine.download(loss), machine.download(gradient)]
    }

    /// The loss of one image in f64; `held` is the prediction that the bound's
    /// mean is taken from.
    fn reference(&self, image: usize, prediction: &[f64], held: &[f64]) -> f64 {
        let c = |i: usize| f64::from(self.rows[image * COLUMNS + i]);
        let eps = noise(self.n, self.len());
        let sum: f64 = (0..self.len())
            .map(|e| {
                let (pixel, channel) = (e / self.channels, e % self.channels);
                let at = (image * self.pixels + pixel) * self.outputs() + channel;
                let x0 = f64::from(self.x0[image * self.len() + e]);
                let eps = f64::from(eps[image * self.len() + e]);
                let v = if self.learned { prediction[at + self.channels] } else { 0.0 };
                let gap = c(column::GAP_X0) * x0
                    + c(column::GAP_NOISE) * eps
                    + c(column::GAP_PREDICTION) * held[at];
                let part = 0.5 * (v + 1.0);
                let ln_variance = part * c(column::LN_LARGE) + (1.0 - part) * c(column::LN_SMALL);
                let std = (0.5 * ln_variance).exp();
                let term = if image % 2 == 1 {
                    // Plain difference of distribution functions.
                    let half = f64::from(self.options.half_bin);
                    let below = |x: f64| 0.5 * libm::erfc(-(x - x0 + gap) / std / 2f64.sqrt());
                    let upper = if x0 > 0.99 { 1.0 } else { below(x0 + half) };
                    let lower = if x0 < -0.99 { 0.0 } else { below(x0 - half) };
                    -(upper - lower).ln()
                } else {
                    let ratio = (c(column::LN_POSTERIOR) - ln_variance).exp();
                    let mean = c(column::C_0) * gap / std;
                    0.5 * (ratio - 1.0 - ratio.ln() + mean * mean)
                };
                let error =
                    prediction[at] - c(column::TARGET_X0) * x0 - c(column::TARGET_NOISE) * eps;
                c(column::SIMPLE_WEIGHT) * error * error + c(column::WEIGHT) * term
            })
            .sum();
        sum / self.len() as f64
    }
}

/// Images, pixels, channels: one, odd, past a chunk of normals.
const SIZES: [(usize, usize, usize); 4] = [(2, 1, 1), (3, 35, 3), (2, 341, 3), (2, 1100, 1)];

fn problems() -> Vec<Problem> {
    let forms = [(false, false), (true, false), (true, true)];
    SIZES
        .iter()
        .flat_map(|&(n, pixels, channels)| {
            forms.map(|(learned, hold)| Problem::new(n, pixels, channels, learned, hold))
        })
        .collect()
}

#[test]
fn variational_matches_f64_with_and_without_a_learned_variance() {
    on_every_backend(|| {
        for problem in problems() {
            let prediction: Vec<f64> = problem.prediction.iter().map(|&v| v.into()).collect();
            let [loss, _] = problem.run(0..problem.n, 1, false);
            let expected: Vec<f64> =
                (0..problem.n).map(|i| problem.reference(i, &prediction, &prediction)).collect();
            assert_close("loss", &loss, &expected, rounding(2), 0.0);
        }
    });
}

#[test]
fn variational_backward_matches_finite_differences_of_the_scaled_sum() {
    on_every_backend(|| {
        for problem in problems() {
            let [_, gradient] = problem.run(0..problem.n, 1, false);
            let fixed: Vec<f64> = problem.prediction.iter().map(|&v| v.into()).collect();
            let mut x = fixed.clone();
            let h = 1e-4;
            let per_image = x.len() / problem.n;
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            for e in (0..x.len()).step_by((x.len() / 40).max(1)) {
                let image = e / per_image;
                let mut objective = |v: f64| {
                    x[e] = v;
                    let held = if problem.options.hold_mean { &fixed } else { &x };
                    f64::from(problem.options.scale) * problem.reference(image, &x, held)
                };
                expected.push((objective(fixed[e] + h) - objective(fixed[e] - h)) / (2.0 * h));
                x[e] = fixed[e];
                found.push(gradient[e]);
            }
            assert_close("d_prediction", &found, &expected, rounding(8), 0.0);
        }
    });
}

#[test]
fn variational_backward_adds_to_what_is_there() {
    on_every_backend(|| {
        let problem = Problem::new(2, 30, 3, true, false);
        let [_, once] = problem.run(0..2, 1, false);
        let [_, added] = problem.run(0..2, 1, true);
        let expected: Vec<f64> = once.iter().map(|&v| f64::from(v) + 1.0).collect();
        assert_close("d_prediction", &added, &expected, rounding(1), 0.0);
    });
}

#[test]
fn threads_and_batches_change_no_bits_of_a_variational_term() {
    on_every_backend(|| {
        let problem = Problem::new(3, 700, 2, true, false);
        let [loss, gradient] = problem.run(0..3, 1, false);
        let [again, gradient_again] = problem.run(0..3, 3, false);
        assert_same_bits("loss", &again, &loss);
        assert_same_bits("gradient", &gradient_again, &gradient);
        let len = gradient.len() / 3;
        for i in 0..3 {
            let [alone, gradient_alone] = problem.run(i..i + 1, 2, false);
            assert_same_bits("loss of one image", &alone, &loss[i..=i]);
            assert_same_bits("gradient of one image", &gradient_alone, &gradient[i * len..][..len]);
        }
    });
}
