//! The forward process in one pass, and the noise that the loss draws again.

use langevin::ops::noising::{Pick, Picked, coefficient, pick};
use langevin::plan::{DType, Plan, Role, TensorId};
use langevin::random::{Purpose, fill_normal, image_keys};

use super::common::{
    Case, Input, Machine, Terms, assert_same_bits, in_half, on_every_backend, rounded_to_half,
    values,
};

/// Keys of images 5, 6, .. of a seed, `[n, 4]`.
pub fn keys(n: usize) -> Vec<u32> {
    (0..n).flat_map(|i| image_keys(0x1234_5678_9abc, 5 + i as u64)).collect()
}

/// eps of the images of [`keys`], `[n, len]`.
pub fn noise(n: usize, len: usize) -> Vec<f32> {
    let mut eps = vec![0.0; n * len];
    for (keys, eps) in keys(n).chunks_exact(4).zip(eps.chunks_exact_mut(len)) {
        fill_normal(keys.try_into().unwrap(), Purpose::TrainNoise, 0, 0, eps);
    }
    eps
}

#[test]
fn noising_is_signal_times_data_plus_std_times_the_normals_of_the_keys() {
    // One chunk of normals is 1024 and one task 8192 elements.
    for (n, shape) in
        [(1, [1, 1, 1]), (3, [5, 7, 1]), (2, [16, 32, 2]), (2, [11, 31, 3]), (2, [83, 33, 3])]
    {
        let len = shape.iter().product();
        let [h, w, c] = shape;
        let inputs = [
            Input::image(&[n, h, w, c]).fixed(),
            Input::image(&[n, coefficient::COLUMNS]).fixed(),
            Input::words(&[n, 4], &keys(n)),
        ];
        let eps = noise(n, len);
        Case::new(&inputs, |p, t| p.noising(t[0], t[1], t[2]).unwrap()).check(
            Terms { forward: 2, backward: 1 },
            |x| {
                let row = |e: usize, column: usize| x[1][e / len * coefficient::COLUMNS + column];
                x[0].iter()
                    .zip(&eps)
                    .enumerate()
                    .map(|(e, (x0, &eps))| {
                        row(e, coefficient::SIGNAL) * x0 + row(e, coefficient::STD) * f64::from(eps)
                    })
                    .collect()
            },
        );
    }
}

#[test]
fn a_byte_of_a_set_has_the_value_that_the_data_loader_gives_it() {
    for levels in 2..=256usize {
        let pick = Pick { rows: 1, width: 1, channels: 1, levels };
        for byte in 0..=255u8 {
            let v = usize::from(byte).min(levels - 1) as f64;
            let expected = (2.0 * v / (levels - 1) as f64 - 1.0) as f32;
            assert_eq!(pick.value(byte).to_bits(), expected.to_bits(), "{byte} of {levels}");
        }
    }
}

/// A set of images and what a batch picks from it.
struct Set {
    /// `[rows, h, w, c]`
    shape: [usize; 4],
    levels: usize,
    /// Of each image of the batch.
    picks: Vec<[u32; pick::COLUMNS]>,
}

impl Set {
    fn len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    fn bytes(&self) -> Vec<u8> {
        (0..self.shape[0] * self.len()).map(|i| (i * 37 % 251) as u8).collect()
    }

    /// x_0 of the batch.
    fn clean(&self) -> Vec<f32> {
        let [rows, h, width, channels] = self.shape;
        let pick = Pick { rows, width, channels, levels: self.levels };
        let (bytes, floats) = (self.bytes(), values(5, rows * self.len()));
        let mut clean = Vec::new();
        for &[row, mirrored] in &self.picks {
            for (y, x, c) in (0..h)
                .flat_map(|y| (0..width).flat_map(move |x| (0..channels).map(move |c| (y, x, c))))
            {
                let x = if mirrored == 1 { width - 1 - x } else { x };
                let at = ((row as usize * h + y) * width + x) * channels + c;
                clean.push(if self.levels == 0 { floats[at] } else { pick.value(bytes[at]) });
            }
        }
        clean
    }

    /// x_t, x_0 where it is kept, losses and their gradient.
    fn run(&self, picked: bool, keep: bool) -> [Vec<f32>; 4] {
        let predictions = values(9, self.picks.len() * self.len());
        self.run_with(picked, keep, &predictions, false)
    }

    /// The same of given predictions; with `half` these, x_t and the gradient are bf16
    /// tensors.
    fn run_with(&self, picked: bool, keep: bool, predictions: &[f32], half: bool) -> [Vec<f32>; 4] {
        let n = self.picks.len();
        let batch = [n, self.shape[1], self.shape[2], self.shape[3]];
        let mut plan = Plan::new();
        let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
        let key_words = plan.input("keys", &[n, 4], DType::U32);
        let uploaded = plan.activation("prediction", &batch, DType::F32, Role::State);
        let prediction = if half { plan.cast(uploaded, DType::BF16) } else { uploaded };
        let dtype = if self.levels == 0 { DType::F32 } else { DType::U8 };
        let (mut given, mut images) = (None, None);
        let (x_t, x0, loss) = if picked {
            let set = plan.image_set(&self.shape, dtype);
            let picks = plan.input("picks", &[n, pick::COLUMNS], DType::U32);
            let from = Picked { set, picks, levels: self.levels };
            images = Some(from);
            let (x_t, x0) = plan.noising_picked(from, coefficients, key_words, keep).unwrap();
            let loss = plan.loss_picked(prediction, from, coefficients, key_words, 0.5).unwrap();
            (x_t, x0, loss)
        } else {
            let x0 = plan.activation("x_0", &batch, DType::F32, Role::State);
            given = Some(x0);
            let x_t = plan.noising(x0, coefficients, key_words).unwrap();
            let loss = plan.loss(prediction, x0, coefficients, Some(key_words), 0.5).unwrap();
            (x_t, Some(x0), loss)
        };
        plan.derive(&[(loss, None)], langevin::plan::Wrt::Tensors(vec![prediction])).unwrap();
        let mut gradient = plan.gradient(prediction).unwrap();
        let mut x_t = x_t;
        if half {
            plan.tensors[gradient.index()].role = Role::Transient;
            (gradient, x_t) = (plan.cast(gradient, DType::F32), plan.cast(x_t, DType::F32));
            plan.keep(gradient);
        }
        [Some(x_t), x0, Some(loss)].into_iter().flatten().for_each(|id| plan.keep(id));
        let mut machine = Machine::new(plan, 2);
        let mut rows = values(8, n * coefficient::COLUMNS);
        // The first image's target is its noise alone.
        rows[coefficient::TARGET_X0] = 0.0;
        machine.upload(coefficients, &rows);
        machine.upload_u32(key_words, &keys(n));
        machine.upload(uploaded, predictions);
        if let Some(x0) = given {
            machine.upload(x0, &self.clean());
        }
        if let Some(images) = images {
            machine.upload_u32(images.picks, self.picks.as_flattened());
            match self.levels {
                0 => machine.upload(images.set, &values(5, self.shape[0] * self.len())),
                _ => machine.upload_u8(images.set, &self.bytes()),
            }
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        let mut get = |id: Option<TensorId>| id.map_or(Vec::new(), |id| machine.download(id));
        [get(Some(x_t)), get(x0), get(Some(loss)), get(Some(gradient))]
    }
}

#[test]
fn picked_images_have_the_bits_of_given_ones() {
    on_every_backend(|| {
        let picks = vec![[2, 1], [0, 0], [1, 1], [2, 0]];
        for shape in [[3, 1, 1, 2], [3, 5, 7, 3], [3, 8, 8, 1], [3, 33, 32, 3]] {
            for levels in [0, 17, 256] {
                let set = Set { shape, levels, picks: picks.clone() };
                let given = set.run(false, true);
                let what = ["x_t", "x_0", "loss", "gradient"];
                for keep in [true, false] {
                    let picked = set.run(true, keep);
                    for ((what, found), expected) in what.iter().zip(&picked).zip(&given) {
                        if keep || *what != "x_0" {
                            assert_same_bits(&format!("{what} of {shape:?}"), found, expected);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn in_bf16_x_t_and_the_gradient_are_those_of_f32_rounded() {
    in_half(|| {
        for shape in [[3, 1, 1, 2], [3, 5, 7, 3], [3, 16, 8, 4], [3, 33, 32, 3]] {
            for levels in [0, 256] {
                let set = Set { shape, levels, picks: vec![[2, 1], [0, 0], [1, 1], [2, 0]] };
                let predictions = rounded_to_half(&values(9, 4 * set.len()));
                let [x_t, x0, loss, gradient] = set.run_with(true, true, &predictions, false);
                let expected = [rounded_to_half(&x_t), x0, loss, rounded_to_half(&gradient)];
                let found = set.run_with(true, true, &predictions, true);
                let what = ["x_t", "x_0", "loss", "gradient"];
                for ((what, found), expected) in what.iter().zip(&found).zip(&expected) {
                    assert_same_bits(&format!("{what} of {shape:?} in bf16"), found, expected);
                }
            }
        }
    });
}
