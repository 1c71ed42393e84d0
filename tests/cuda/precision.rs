//! Whole networks in bf16 and tf32: as close to f64 as PyTorch's bf16 autocast is, the
//! same bits every time, f32 in every file.

use langevin::backend::Precision;
use langevin::plan::Mode;

use crate::engine::{assert_same_bits, distance as apart, floats, losses, state};
use crate::golden::{Derive, Golden, LARGE, Run, STRIDE, nhwc};
use crate::{driver, succeed, text, train};

/// Share of the norm of all gradients that a weight's own error may always have, as in
/// tests/golden/precision.py.
const FLOOR: f64 = 0.01;

/// Networks of tests/golden.
const NETWORKS: [&str; 14] = [
    "ddpm",
    "heads",
    "scale-shift-class",
    "resnet-resampling",
    "ncsnpp",
    "ncsnpp-attention",
    "learned-time",
    "mish-not-square",
    "identity-class",
    "one-level",
    "k",
    "k-attention",
    "mlp-positional",
    "mlp-fourier",
];

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn size(values: &[f32]) -> f64 {
    norm(values.iter().map(|&v| f64::from(v)))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)))
}

/// What tests/golden/precision.py measures: error of the prediction, of all gradients,
/// of the worst weight's gradient.
fn errors(name: &str, precision: Precision) -> [f64; 3] {
    let golden = Golden::read(name);
    let backend = crate::gpu::backend_in(precision).expect("built in");
    let mut run = Run::new(backend, &golden, Derive::Parameters(Mode::Write));
    run.run();
    let expected = nhwc(&golden.tensors["prediction"], golden.y_shape);
    let prediction = distance(&run.get(run.prediction), &expected) / size(&expected);
    let mut of = Vec::new();
    for (name, gradient) in run.gradients() {
        let stride = if gradient.len() <= LARGE { 1 } else { STRIDE };
        let found: Vec<f32> = gradient.into_iter().step_by(stride).collect();
        let expected = &golden.tensors[&format!("d_{name}")];
        of.push((size(expected), distance(&found, expected)));
    }
    let total = norm(of.iter().map(|(size, _)| *size));
    let worst = of.iter().map(|(size, off)| off / (size + FLOOR * total)).fold(0.0, f64::max);
    [prediction, norm(of.iter().map(|(_, off)| *off)) / total, worst]
}

/// Compares with PyTorch's errors in tests/golden/precision.json, times `share`.
fn check(precision: Precision, share: f64) {
    if driver().is_none() {
        return;
    }
    let measured: serde_json::Value =
        serde_json::from_str(include_str!("../golden/precision.json")).expect("valid JSON");
    for name in NETWORKS {
        let found = errors(name, precision);
        for (key, found) in ["prediction", "gradients", "worst"].into_iter().zip(found) {
            let theirs = measured[name][key].as_f64().expect("a number");
            assert!(
                found <= share * theirs,
                "{name} {key} in {precision}: {found:.2e}, PyTorch's bf16 {theirs:.2e}"
            );
        }
    }
}

#[test]
fn every_network_in_bf16_is_at_most_twice_as_far_from_f64_as_pytorchs() {
    check(Precision::Bf16, 2.0);
}

/// tf32 has three bits of fraction more than bf16, so an eighth of its error.
#[test]
fn every_network_in_tf32_is_at_most_an_eighth_of_that_from_f64() {
    check(Precision::Tf32, 2.0 / 8.0);
}

#[test]
fn training_in_bf16_follows_f32_and_resumes_bit_exactly() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, precision: &str, steps: &str, environment: &[(&str, &str)]| {
        let run = folder.path().join(name);
        let more = ["--precision", precision, "--set", "model.dropout=0.1"];
        succeed(driver.path(), &train(text(&run), "cuda", steps, &more), environment);
        run
    };
    let single = run("f32", "f32", "10", &[]);
    let whole = run("whole", "bf16", "10", &[("SOFTGPU_SEED", "1")]);
    for (step, (a, b)) in losses(&single).iter().zip(losses(&whole)).enumerate() {
        assert!((a - b).abs() <= 0.02 * a, "step {}: {a} in f32, {b} in bf16", step + 1);
    }
    // Launch by launch and in another order of blocks; in two parts.
    let eager = run("eager", "bf16", "4", &[("LANGEVIN_CUDA_SYNC", "1"), ("SOFTGPU_SEED", "2")]);
    let out = ["train", "--out", text(&eager), "--resume", "--device", "cuda"];
    let more = ["--steps", "10", "--precision", "bf16"];
    succeed(driver.path(), &[&out[..], &more].concat(), &[("SOFTGPU_SEED", "3")]);
    assert_same_bits(&whole, &eager, 10);
    // Files hold the f32 weights, not their bf16 copies.
    for tensors in state(&whole, 10) {
        let is_half = |v: &f32| v.to_bits() & 0xffff == 0;
        let rounded = tensors.values().flatten().filter(|v| is_half(v)).count();
        let all = tensors.values().map(Vec::len).sum::<usize>();
        assert!(rounded * 10 < all, "{rounded} of {all} values are bf16");
    }

    let need = |precision: &str| {
        let arguments = ["info", text(&whole), "--json", "--device", "cuda"];
        let said =
            succeed(driver.path(), &[&arguments[..], &["--precision", precision]].concat(), &[]);
        let facts: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
        assert_eq!(facts["device"]["precision"], precision);
        let of = |key: &str| facts["model"][key]["weights_bytes"].as_u64().expect("bytes");
        (of("sample"), of("train"))
    };
    let (bytes, _) = need("tf32");
    assert_eq!(need("bf16"), (bytes + bytes / 2, 2 * bytes), "the weights and their copies");
}

#[test]
fn an_image_has_the_same_bits_alone_in_every_precision() {
    if driver().is_none() {
        return;
    }
    for (name, precision) in ["ddpm", "k-attention", "mlp-fourier"]
        .into_iter()
        .flat_map(|name| [(name, Precision::Bf16), (name, Precision::Tf32)])
    {
        let mut golden = Golden::read(name);
        let predict = |golden: &Golden| {
            let backend = crate::gpu::backend_in(precision).expect("built in");
            let mut run = Run::new(backend, golden, Derive::Nothing);
            run.run();
            run.get(run.prediction)
        };
        let together = predict(&golden);
        // The inputs of the first image do not depend on how many there are.
        (golden.x_shape[0], golden.y_shape[0]) = (1, 1);
        golden.tensors.get_mut("t").expect("times").truncate(1);
        let alone = predict(&golden);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&alone), bits(&together[..alone.len()]), "{name} in {precision}");
    }
}

/// How far the pictures of one checkpoint may lie apart, of the largest value: one rounding
/// to the 8 bits that bf16 keeps of a value, to tf32's 11, to some of f32's 24.
fn allowed(precision: &str) -> f64 {
    match precision {
        "f32" => 1e-5,
        "tf32" => 2f64.powi(-11),
        _ => 2f64.powi(-8),
    }
}

#[test]
fn one_checkpoint_draws_the_same_pictures_in_every_precision() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    succeed(driver.path(), &train(text(&run), "cpu", "20", &[]), &[]);
    let draw = |device: &str, precision: &str, sampler: &str| {
        let (grid, file) = (folder.path().join("grid.png"), folder.path().join("s.safetensors"));
        let arguments = ["sample", text(&run), "--out", text(&grid), "--tensors", text(&file)];
        let more = ["--count", "3", "--steps", "4", "--sampler", sampler];
        let on = ["--device", device, "--precision", precision];
        succeed(driver.path(), &[&arguments[..], &more, &on].concat(), &[]);
        floats(&file)
    };
    for sampler in ["ddim", "dpmpp-2m", "ddpm"] {
        let exact = draw("cpu", "f32", sampler);
        let mut last = 0.0;
        for precision in ["f32", "tf32", "bf16"] {
            let off = apart(&exact, &draw("cuda", precision, sampler));
            println!("{sampler} in {precision}: {off:.1e} of the largest value");
            assert!(off <= allowed(precision), "{sampler} in {precision}: {off:e}");
            assert!(off > last, "{sampler}: {precision} rounds more than what came before");
            last = off;
        }
    }
}

#[test]
fn a_run_in_bf16_goes_on_in_f32_on_the_cpu_and_comes_back() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let [mixed, cpu] = ["mixed", "cpu"].map(|name| folder.path().join(name));
    succeed(driver.path(), &train(text(&cpu), "cpu", "9", &[]), &[]);
    let half = ["--precision", "bf16"];
    succeed(driver.path(), &train(text(&mixed), "cuda", "3", &half), &[]);
    let on = |steps: &str, device: &str, precision: &str| {
        let arguments = ["train", "--out", text(&mixed), "--resume", "--steps", steps];
        let more = ["--device", device, "--precision", precision];
        succeed(driver.path(), &[&arguments[..], &more].concat(), &[]);
    };
    on("6", "cpu", "f32");
    on("9", "cuda", "bf16");
    let (a, b) = (losses(&mixed), losses(&cpu));
    assert_eq!((a.len(), b.len()), (9, 9));
    for (step, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= 0.02 * b, "step {}: {a} and {b}", step + 1);
    }
    // The CPU's three steps took up the weights of the bf16 run as they were, unrounded.
    let off = apart(&state(&mixed, 9)[1], &state(&cpu, 9)[1]);
    assert!(off > 0.0 && off <= 0.1, "weights after nine steps: {off:e}");
}
