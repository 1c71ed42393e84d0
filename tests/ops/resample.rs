//! Nearest, average pooling and FIR.

use super::common::{Case, Input, Terms, assert_close};
use langevin::ops::resample::{Edge, Method};
use langevin::plan::{DType, Plan};

const UP: [f32; 4] = [0.25, 0.75, 0.75, 0.25];
const DOWN: [f32; 4] = [0.125, 0.375, 0.375, 0.125];

/// upfirdn2d as diffusers writes it: insert zeros, pad, correlate with the
/// flipped kernel, keep every `down`-th.
fn upfirdn(x: &[f64], [n, h, w, c]: [usize; 4], method: Method) -> Vec<f64> {
    let Method::Fir { up, down, pad, edge, taps } = method else { unreachable!() };
    let (ph, pw) = (h * up + pad[0] + pad[1], w * up + pad[0] + pad[1]);
    // The pixel that a padded position shows, if any.
    let pixel = |position: usize, len: usize| {
        let at = position as isize - pad[0] as isize;
        let i = at.div_euclid(up as isize);
        let inside = (0..len as isize).contains(&i);
        match (at.rem_euclid(up as isize) == 0, inside, edge) {
            (false, ..) | (_, false, Edge::Zero) => None,
            (true, true, _) => Some(i as usize),
            (true, false, Edge::Reflect) if i < 0 => Some(-i as usize),
            (true, false, Edge::Reflect) => Some(2 * (len - 1) - i as usize),
        }
    };
    let mut padded = vec![0.0; n * ph * pw * c];
    for (i, p) in padded.iter_mut().enumerate() {
        let (ch, px, py, image) = (i % c, i / c % pw, i / c / pw % ph, i / c / pw / ph);
        if let (Some(iy), Some(ix)) = (pixel(py, h), pixel(px, w)) {
            *p = x[((image * h + iy) * w + ix) * c + ch];
        }
    }
    let mut y = Vec::new();
    for image in 0..n {
        for oy in (0..=ph - 4).step_by(down) {
            for ox in (0..=pw - 4).step_by(down) {
                for ch in 0..c {
                    let mut sum = 0.0;
                    for ky in 0..4 {
                        for kx in 0..4 {
                            let at = ((image * ph + oy + ky) * pw + ox + kx) * c + ch;
                            sum += f64::from(taps[3 - ky]) * f64::from(taps[3 - kx]) * padded[at];
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}

/// Mean over squares of `reduce`, after repeating every pixel `enlarge` times.
fn boxes(x: &[f64], [n, h, w, c]: [usize; 4], enlarge: usize, reduce: usize) -> Vec<f64> {
    let (oh, ow) = (h * enlarge / reduce, w * enlarge / reduce);
    let mut y = vec![0.0; n * oh * ow * c];
    for (i, y) in y.iter_mut().enumerate() {
        let (ch, ox, oy, image) = (i % c, i / c % ow, i / c / ow % oh, i / c / ow / oh);
        for k in 0..reduce * reduce {
            let (iy, ix) = (oy * reduce + k / reduce, ox * reduce + k % reduce);
            let at = ((image * h + iy / enlarge) * w + ix / enlarge) * c + ch;
            *y += x[at] / (reduce * reduce) as f64;
        }
    }
    y
}

#[test]
fn nearest_matches_f64_in_both_passes() {
    for (shape, factor) in [([1, 1, 1, 1], 2), ([2, 3, 5, 7], 2), ([2, 4, 3, 16], 3)] {
        let terms = Terms { forward: 1, backward: factor * factor };
        Case::new(&[Input::image(&shape)], |p, t| {
            p.resample(t[0], Method::Nearest { factor }).unwrap()
        })
        .check(terms, |x| boxes(&x[0], shape, factor, 1));
    }
}

#[test]
fn average_pool_matches_f64_and_drops_the_remainder() {
    for (shape, factor) in [([1, 2, 2, 1], 2), ([2, 5, 7, 3], 2), ([2, 7, 8, 16], 3)] {
        let terms = Terms { forward: factor * factor, backward: 2 };
        Case::new(&[Input::image(&shape)], |p, t| {
            p.resample(t[0], Method::AveragePool { factor }).unwrap()
        })
        .check(terms, |x| boxes(&x[0], shape, 1, factor));
    }
}

#[test]
fn fir_matches_upfirdn2d_in_both_passes() {
    let methods = [
        Method::Fir { up: 2, down: 1, pad: [2, 1], edge: Edge::Zero, taps: UP },
        Method::Fir { up: 1, down: 2, pad: [1, 1], edge: Edge::Zero, taps: DOWN },
        Method::Fir { up: 1, down: 1, pad: [2, 2], edge: Edge::Zero, taps: [0.1, -0.2, 0.4, 0.7] },
        Method::Fir { up: 3, down: 2, pad: [0, 5], edge: Edge::Zero, taps: [0.1, -0.2, 0.4, 0.7] },
        Method::Fir { up: 2, down: 1, pad: [2, 1], edge: Edge::Reflect, taps: UP },
        Method::Fir { up: 1, down: 2, pad: [1, 1], edge: Edge::Reflect, taps: DOWN },
        Method::Fir {
            up: 2,
            down: 1,
            pad: [3, 2],
            edge: Edge::Reflect,
            taps: [0.1, -0.2, 0.4, 0.7],
        },
    ];
    for method in methods {
        for shape in [[1, 2, 3, 1], [2, 5, 4, 3], [2, 4, 7, 19]] {
            let terms = Terms { forward: 16, backward: 16 };
            Case::new(&[Input::image(&shape)], |p, t| p.resample(t[0], method).unwrap())
                .check(terms, |x| upfirdn(&x[0], shape, method));
        }
    }
}

#[test]
fn fir_refuses_to_mirror_further_than_the_image_reaches() {
    let resample = |size: usize, pad: [usize; 2]| {
        let mut plan = Plan::new();
        let x = plan.input("x", &[1, size, 9, 1], DType::F32);
        plan.resample(x, Method::Fir { up: 2, down: 1, pad, edge: Edge::Reflect, taps: UP })
    };
    assert!(resample(1, [2, 1]).is_err());
    assert!(resample(2, [3, 3]).is_err());
    assert!(resample(2, [3, 2]).is_ok());
}

/// FirUpsample2D and FirDownsample2D of diffusers 0.42.1, channels = 1, no
/// convolution, on the 3 x 4 image 0, 1, ..., 11 squared.
#[test]
fn fir_gives_the_numbers_of_diffusers() {
    let image: Vec<f32> = (0..12).map(|i| (i * i) as f32).collect();
    let input = Input::image(&[1, 3, 4, 1]).with(&image);
    let run = |method: Method| {
        let case = Case::new(std::slice::from_ref(&input), |p, t| {
            p.resample(t[0], method).expect("an image large enough")
        });
        case.run(1, None).output
    };
    let up = run(Method::Fir { up: 2, down: 1, pad: [2, 1], edge: Edge::Zero, taps: UP });
    assert_close("upsampled", &up, &FIR_UP, 1e-6, 0.0);
    let down = run(Method::Fir { up: 1, down: 2, pad: [1, 1], edge: Edge::Zero, taps: DOWN });
    assert_close("downsampled", &down, &FIR_DOWN, 1e-6, 0.0);
}

const FIR_UP: [f64; 48] = [
    0.0, 0.1875, 0.5625, 1.3125, 2.4375, 3.9375, 5.8125, 5.0625, 3.0, 4.75, 6.25, 8.25, 10.75,
    13.75, 17.25, 14.25, 9.0, 13.75, 17.25, 21.25, 25.75, 30.75, 36.25, 29.25, 21.0, 30.75, 36.25,
    42.25, 48.75, 55.75, 63.25, 50.25, 39.0, 55.75, 63.25, 71.25, 79.75, 88.75, 98.25, 77.25, 36.0,
    51.1875, 57.5625, 64.3125, 71.4375, 78.9375, 86.8125, 68.0625,
];

const FIR_DOWN: [f64; 2] = [16.140625, 26.625];
