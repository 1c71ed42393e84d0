//! The forward process in one pass, and the noise that the loss draws again.

use langevin::ops::noising::coefficient;
use langevin::random::{Purpose, fill_normal, image_keys};

use super::common::{Case, Input, Terms};

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
