//! Largest and mean values of windows.

use super::common::{Case, Input, Terms, on_every_backend};
use langevin::ops::pooling::Reduction;
use langevin::plan::{DType, Plan};

/// kernel, stride, padding
type Windows = ([usize; 2], usize, usize);

fn reference(
    x: &[f64],
    [n, h, w, c]: [usize; 4],
    (kernel, stride, padding): Windows,
    reduction: Reduction,
) -> Vec<f64> {
    let size = |len: usize, k: usize| (len + 2 * padding - k) / stride + 1;
    let (oh, ow) = (size(h, kernel[0]), size(w, kernel[1]));
    let mut y = vec![0.0; n * oh * ow * c];
    for (i, y) in y.iter_mut().enumerate() {
        let (ch, ox, oy, image) = (i % c, i / c % ow, i / c / ow % oh, i / c / ow / oh);
        let mut inside = Vec::new();
        for ky in 0..kernel[0] {
            for kx in 0..kernel[1] {
                let (iy, ix) = (oy * stride + ky, ox * stride + kx);
                if (padding..h + padding).contains(&iy) && (padding..w + padding).contains(&ix) {
                    let (iy, ix) = (iy - padding, ix - padding);
                    inside.push(x[((image * h + iy) * w + ix) * c + ch]);
                }
            }
        }
        *y = match reduction {
            Reduction::Max => inside.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Reduction::Mean => inside.iter().sum::<f64>() / inside.len() as f64,
        };
    }
    y
}

fn check(shape: [usize; 4], windows: Windows, reduction: Reduction) {
    let (kernel, stride, padding) = windows;
    let taps = kernel[0] * kernel[1];
    // Values apart by more than a difference quotient's step, whose order is no one's.
    let len: usize = shape.iter().product();
    let apart: Vec<f32> =
        (0..len).map(|i| (i * 7919 % len) as f32 / len as f32 * 2.0 - 1.0).collect();
    Case::new(&[Input::image(&shape).with(&apart)], |p, t| {
        p.pooling(t[0], kernel, stride, padding, reduction).unwrap()
    })
    .check(Terms { forward: taps, backward: taps }, |x| {
        reference(&x[0], shape, windows, reduction)
    });
}

#[test]
fn pooling_matches_f64_in_both_passes() {
    for reduction in [Reduction::Max, Reduction::Mean] {
        check([1, 1, 1, 1], ([1, 1], 1, 0), reduction);
        check([2, 5, 7, 3], ([3, 3], 2, 0), reduction);
        check([2, 5, 4, 35], ([3, 3], 1, 1), reduction);
        check([1, 6, 9, 2], ([2, 5], 3, 1), reduction);
        check([2, 4, 4, 33], ([4, 4], 1, 0), reduction);
    }
}

#[test]
fn the_gradient_of_equal_values_goes_to_the_first() {
    on_every_backend(|| {
        let mut plan = Plan::new();
        let x = plan.input("x", &[1, 2, 2, 1], DType::F32);
        let y = plan.pooling(x, [2, 2], 1, 0, Reduction::Max).expect("fits");
        let case = Case::new(&[Input::image(&[1, 2, 2, 1]).with(&[0.5; 4])], |p, t| {
            p.pooling(t[0], [2, 2], 1, 0, Reduction::Max).unwrap()
        });
        let outcome = case.run(1, None);
        let gradient = outcome.gradients[0].as_ref().expect("a gradient");
        assert!(gradient[0] != 0.0 && gradient[1..] == [0.0; 3], "{gradient:?}");
        assert_eq!(plan.shape(y), [1, 1, 1, 1]);
    });
}

#[test]
fn windows_that_see_no_pixel_are_refused() {
    let mut plan = Plan::new();
    let x = plan.input("x", &[1, 4, 4, 2], DType::F32);
    for (kernel, stride, padding) in
        [([2, 2], 0, 0), ([2, 2], 1, 2), ([5, 5], 1, 0), ([0, 1], 1, 0)]
    {
        let error = plan.pooling(x, kernel, stride, padding, Reduction::Mean);
        assert!(error.is_err(), "{kernel:?} {stride} {padding}");
    }
}
