//! Predictions, losses and gradients of the U-Net against diffusers and PyTorch
//! in f64.

use langevin::backend::cpu::Cpu;
use langevin::plan::Mode;

use crate::golden::{Derive, Golden, LARGE, Run, STRIDE, largest, nhwc};

const FORWARD_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Of the largest gradient, for gradients that are zero in exact arithmetic.
const GRADIENT_FLOOR: f64 = 1e-6;

fn on_cpu(golden: &Golden, derive: Derive) -> Run {
    Run::new(Box::new(Cpu::new(2)), golden, derive)
}

/// max |a - b| against tol * max |reference|, at least `floor`.
fn assert_close(what: &str, found: &[f32], reference: &[f32], tol: f64, floor: f64) {
    assert_eq!(found.len(), reference.len(), "{what}: number of elements");
    let error = found
        .iter()
        .zip(reference)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        // f64::max drops a NaN.
        .fold(0.0, |m, e| if e > m || e.is_nan() { e } else { m });
    let allowed = (tol * largest(reference)).max(floor);
    assert!(error <= allowed, "{what}: error {error:.3e}, allowed {allowed:.3e}");
}

fn check(name: &str) {
    let golden = Golden::read(name);
    let prediction = nhwc(&golden.tensors["prediction"], golden.y_shape);

    let mut forward = on_cpu(&golden, Derive::Nothing);
    forward.run();
    let inferred = forward.get(forward.prediction);
    assert_close("prediction", &inferred, &prediction, FORWARD_TOLERANCE, 0.0);

    let mut training = on_cpu(&golden, Derive::Parameters(Mode::Write));
    training.run();
    assert_eq!(training.get(training.prediction), inferred, "training changes the prediction");
    let losses = training.get(training.loss);
    let mean = losses.iter().sum::<f32>() / losses.len() as f32;
    assert_close("loss", &[mean], &golden.tensors["loss"], FORWARD_TOLERANCE, 0.0);
    let gradients = training.gradients();
    let stored = golden.tensors.keys().filter(|k| k.starts_with("d_") && *k != "d_x").count();
    assert_eq!(gradients.len(), stored, "number of trainable weights");
    let reference = |name: &str| &golden.tensors[&format!("d_{name}")];
    let max = gradients.iter().map(|(name, _)| largest(reference(name))).fold(0.0, f64::max);
    for (name, gradient) in &gradients {
        let found: Vec<f32> = match gradient.len() {
            0..=LARGE => gradient.clone(),
            _ => gradient.iter().copied().step_by(STRIDE).collect(),
        };
        let what = format!("gradient of {name}");
        assert_close(&what, &found, reference(name), GRADIENT_TOLERANCE, GRADIENT_FLOOR * max);
    }

    let mut input = on_cpu(&golden, Derive::Input);
    input.run();
    let d_x = input.get(input.d_x.expect("the loss depends on x"));
    let expected = nhwc(&golden.tensors["d_x"], golden.x_shape);
    assert_close("gradient of x", &d_x, &expected, GRADIENT_TOLERANCE, 0.0);
}

macro_rules! golden {
    ($($test:ident: $file:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            check($file);
        })*
    };
}

golden! {
    ddpm_matches_diffusers: "ddpm",
    multi_head_attention_matches_diffusers: "heads",
    scale_shift_with_classes_matches_diffusers: "scale-shift-class",
    resnet_resampling_matches_diffusers: "resnet-resampling",
    skip_blocks_with_fourier_time_match_diffusers: "ncsnpp",
    attention_skip_blocks_match_diffusers: "ncsnpp-attention",
    learned_time_without_a_middle_block_matches_diffusers: "learned-time",
    mish_on_images_that_are_not_square_matches_diffusers: "mish-not-square",
    identity_class_matches_diffusers: "identity-class",
    one_level_of_odd_size_matches_diffusers: "one-level",
    k_blocks_match_diffusers: "k",
    k_blocks_with_attention_match_diffusers: "k-attention",
    perceptron_matches_pytorch: "mlp-positional",
    perceptron_with_fourier_time_matches_pytorch: "mlp-fourier",
}

#[test]
fn accumulated_gradients_of_two_runs_are_twice_those_of_one() {
    let golden = Golden::read("scale-shift-class");
    let mut once = on_cpu(&golden, Derive::Parameters(Mode::Write));
    once.run();
    let mut twice = on_cpu(&golden, Derive::Parameters(Mode::Add));
    twice.run();
    twice.run();
    for ((name, one), (_, two)) in once.gradients().into_iter().zip(twice.gradients()) {
        let largest = largest(&one);
        for (a, b) in one.iter().zip(&two) {
            // Written and added gradients may round differently where an op sums in the target.
            let error = f64::from((2.0 * a - b).abs());
            assert!(error <= 1e-6 * largest, "{name}: {a} twice gave {b}");
        }
    }
}
