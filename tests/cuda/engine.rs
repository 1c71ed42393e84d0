//! Training and sampling on CUDA: against the CPU, repeated, resumed, replayed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use langevin::checkpoint::tensors::{self, Values};

use crate::{driver, succeed, text, train};

/// Losses of the steps, from the metrics.
pub fn losses(run: &Path) -> Vec<f64> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let of = |line: &str| -> Option<f64> {
        let record: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        record["loss"].as_f64()
    };
    metrics.lines().filter_map(of).collect()
}

/// The tensors of a file.
pub fn floats(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let read = tensors::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let of = |name: &str| match &read.get(name).expect("a name of the file").values {
        Values::F32(values) => Some((name.to_string(), values.clone())),
        Values::I64(_) => None,
    };
    read.names().filter_map(of).collect()
}

/// Everything a step leaves behind.
pub fn state(run: &Path, step: u64) -> [BTreeMap<String, Vec<f32>>; 3] {
    let checkpoint = run.join("checkpoints").join(format!("step-{step}"));
    [
        "unet/diffusion_pytorch_model.safetensors",
        "unet_raw/diffusion_pytorch_model.safetensors",
        "training/state.safetensors",
    ]
    .map(|name| floats(&checkpoint.join(name)))
}

pub fn assert_same_bits(a: &Path, b: &Path, step: u64) {
    for (a, b) in state(a, step).into_iter().zip(state(b, step)) {
        for (name, values) in a {
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(&b[&name]), "{name} differs");
        }
    }
}

/// Largest difference of any tensor, as a share of its largest value.
pub fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut worst = 0f64;
    for (name, a) in a {
        let scale = a.iter().fold(1e-3f64, |m, v| m.max(f64::from(v.abs())));
        for (&a, &b) in a.iter().zip(&b[name]) {
            worst = worst.max((f64::from(a) - f64::from(b)).abs() / scale);
        }
    }
    worst
}

fn trained(driver: &Path, run: &Path, device: &str, steps: &str, more: &[&str]) {
    succeed(driver, &train(text(run), device, steps, more), &[]);
}

#[test]
fn twenty_steps_of_training_and_a_sample_agree_with_the_cpu() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| -> PathBuf {
        let run = folder.path().join(device);
        trained(driver.path(), &run, device, "20", &["--set", "model.dropout=0.1"]);
        run
    });
    let (a, b) = (losses(&cpu), losses(&cuda));
    assert_eq!((a.len(), b.len()), (20, 20));
    for (step, (a, b)) in a.iter().zip(&b).enumerate() {
        // The first loss has seen no update; AdamW then turns the rounding of a
        // gradient that is almost 0 into a step of its own sign.
        let tolerance = if step == 0 { 1e-6 } else { 1e-3 };
        assert!((a - b).abs() <= tolerance * a.abs(), "step {}: {a} and {b}", step + 1);
    }

    // The same weights, so the same pictures, to rounding.
    let draw = |device: &str, sampler: &[&str]| {
        let (grid, file) = (folder.path().join("grid.png"), folder.path().join("s.safetensors"));
        let arguments = ["sample", text(&cpu), "--out", text(&grid), "--tensors", text(&file)];
        let more = ["--count", "4", "--steps", "4", "--device", device];
        succeed(driver.path(), &[&arguments[..], &more[..], sampler].concat(), &[]);
        floats(&file)
    };
    for sampler in
        [&["--sampler", "ddpm"][..], &["--sampler", "ddim", "--eta", "1"], &["--sampler", "unipc"]]
    {
        let off = distance(&draw("cpu", sampler), &draw("cuda", sampler));
        assert!(off <= 1e-4, "{sampler:?}: {off:e} of the largest value");
    }
}

#[test]
fn captured_runs_have_the_bits_of_single_launches_in_every_order_of_blocks() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, environment: &[(&str, &str)]| {
        let run = folder.path().join(name);
        let more = ["--set", "model.dropout=0.1", "--set", "train.accumulation=2"];
        succeed(driver.path(), &train(text(&run), "cuda", "4", &more), environment);
        run
    };
    let replayed = run("replayed", &[("SOFTGPU_SEED", "1")]);
    let eager = run("eager", &[("LANGEVIN_CUDA_SYNC", "1"), ("SOFTGPU_SEED", "2")]);
    assert_same_bits(&replayed, &eager, 4);
}

#[test]
fn a_run_resumes_bit_exactly_on_cuda_and_goes_on_from_the_cpu() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let [whole, parts, mixed, cpu] =
        ["whole", "parts", "mixed", "cpu"].map(|name| folder.path().join(name));
    trained(driver.path(), &whole, "cuda", "5", &[]);
    trained(driver.path(), &parts, "cuda", "2", &[]);
    trained(driver.path(), &mixed, "cpu", "2", &[]);
    trained(driver.path(), &cpu, "cpu", "5", &[]);
    for run in [&parts, &mixed] {
        let more = ["train", "--out", text(run), "--resume", "--steps", "5", "--device", "cuda"];
        succeed(driver.path(), &more, &[]);
    }
    assert_same_bits(&whole, &parts, 5);
    let (a, b) = (losses(&mixed), losses(&cpu));
    assert_eq!(a[..2], b[..2], "the CPU's own steps");
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= 1e-3 * b.abs(), "{a} and {b}");
    }
}

#[test]
fn predictions_and_gradients_agree_with_the_cpu() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    trained(driver.path(), &run, "cpu", "2", &[]);
    let tensor = |shape: &[usize], seed: u64| {
        let len: usize = shape.iter().product();
        let mut values = vec![0f32; len];
        let keys = langevin::random::image_keys(seed, 0);
        langevin::random::fill_normal(keys, langevin::random::Purpose::Probe, 0, 0, &mut values);
        tensors::Tensor { shape: shape.to_vec(), values: Values::F32(values) }
    };
    let (x, target) = (tensor(&[3, 1, 8, 8], 1), tensor(&[3, 1, 8, 8], 2));
    let t = tensors::Tensor { shape: vec![3], values: Values::F32(vec![0.0, 500.0, 999.0]) };
    let input = folder.path().join("input.safetensors");
    tensors::write(&input, &[("x", &x), ("t", &t), ("target", &target)]).expect("written");
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| {
        let (output, gradients) = (folder.path().join("o"), folder.path().join("g"));
        let arguments = ["predict", text(&run), "--input", text(&input)];
        let more = ["--output", text(&output), "--gradients", text(&gradients), "--device", device];
        succeed(driver.path(), &[&arguments[..], &more].concat(), &[]);
        [floats(&output), floats(&gradients)]
    });
    assert!(distance(&cpu[0], &cuda[0]) <= 1e-5, "{:e}", distance(&cpu[0], &cuda[0]));
    // Per tensor, with a floor for gradients that are zero in exact arithmetic.
    let largest =
        cpu[1].values().flatten().fold(0f64, |largest, v| largest.max(f64::from(v.abs())));
    for (name, a) in &cpu[1] {
        let scale = a.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
        for (&a, &b) in a.iter().zip(&cuda[1][name]) {
            let off = (f64::from(a) - f64::from(b)).abs();
            assert!(off <= (2e-5 * scale).max(1e-6 * largest), "{name}: {a:e} and {b:e}");
        }
    }
}
