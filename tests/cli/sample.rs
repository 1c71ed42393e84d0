//! `sample`, `predict` and `info` on a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use langevin::checkpoint::tensors::{self, Tensor, Values};

use crate::{errors_of, fail, langevin, succeed, text, tiny_train};

pub fn trained(folder: &Path) -> PathBuf {
    let run = folder.join("run");
    let mut arguments = tiny_train(text(&run), &["--set", "scheduler.num_train_timesteps=20"]);
    arguments.extend(["--steps", "2"]);
    succeed(&arguments);
    run
}

pub fn floats(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensors = tensors::read(path).expect("tensors");
    let tensor = tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
    match &tensor.values {
        Values::F32(values) => (tensor.shape.clone(), values.clone()),
        Values::I64(_) => panic!("{name} is whole"),
    }
}

pub fn draw(run: &Path, file: &Path, more: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let grid = file.with_extension("png");
    let arguments =
        [&["sample", text(run), "--out", text(&grid), "--tensors", text(file)][..], more].concat();
    succeed(&arguments);
    assert!(image::open(&grid).is_ok(), "a readable picture");
    floats(file, "samples")
}

#[test]
fn image_17_of_seed_3_has_the_same_bits_alone_and_in_a_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    for sampler in
        [&["--sampler", "ddpm"][..], &["--sampler", "ddim", "--steps", "5", "--eta", "1"]]
    {
        let file = |name: &str| folder.path().join(name);
        let more = |rest: &[&'static str]| [&["--seed", "3"][..], sampler, rest].concat();
        let (shape, all) = draw(&run, &file("all.safetensors"), &more(&["--count", "64"]));
        assert_eq!(shape, [64, 1, 8, 8]);
        let (_, one) =
            draw(&run, &file("one.safetensors"), &more(&["--first", "17", "--count", "1"]));
        assert_eq!(one, all[17 * 64..18 * 64]);
        let (_, odd) = draw(
            &run,
            &file("odd.safetensors"),
            &more(&["--first", "15", "--count", "10", "--batch", "4", "--threads", "1"]),
        );
        assert_eq!(odd, all[15 * 64..25 * 64]);
        let (_, other) = draw(&run, &file("other.safetensors"), &["--count", "1", "--seed", "4"]);
        assert_ne!(other, all[..64]);
    }
}

#[test]
fn given_noise_replaces_the_drawn_one_and_too_few_rows_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let noise = folder.path().join("noise.safetensors");
    let start: Vec<f32> = (0..3 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
    let z: Vec<f32> = (0..20 * 3 * 64).map(|i| ((i * 53 % 97) as f32 - 48.0) / 28.0).collect();
    let write = |rows: usize| {
        let x = Tensor::f32(&[3, 1, 8, 8], start.clone()).expect("a tensor");
        let z = Tensor::f32(&[rows, 3, 1, 8, 8], z[..rows * 3 * 64].to_vec()).expect("a tensor");
        tensors::write(&noise, &[("x_T", &x), ("z", &z)]).expect("written");
    };
    write(20);
    let out = folder.path().join("a.safetensors");
    let flags = ["--noise", text(&noise), "--count", "3", "--sampler", "ddpm"];
    let (shape, a) = draw(&run, &out, &flags);
    assert_eq!(shape, [3, 1, 8, 8]);
    let (_, b) = draw(&run, &out, &[&flags[..], &["--seed", "9", "--batch", "2"]].concat());
    assert_eq!(a, b, "nothing is drawn from the seed");
    write(5);
    let grid = folder.path().join("few.png");
    let arguments = [&["sample", text(&run), "--out", text(&grid)][..], &flags].concat();
    fail(&arguments, 1, &["z", "5"]);
    assert!(!grid.exists());
}

#[test]
fn a_folder_gets_one_picture_an_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let out = folder.path().join("pictures");
    let out_text = format!("{}/", text(&out));
    succeed(&["sample", text(&run), "--out", &out_text, "--count", "3", "--first", "5"]);
    let mut names: Vec<_> = fs::read_dir(&out)
        .expect("a folder")
        .map(|e| e.expect("entry").file_name().into_string().expect("name"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 3);
    assert!(names[0].contains('5') && names[0].ends_with(".png"), "{names:?}");
}

#[test]
fn sampling_refuses_what_does_not_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let grid = folder.path().join("grid.png");
    let sample =
        |more: &[&'static str]| [&["sample", text(&run), "--out", text(&grid)][..], more].concat();
    fail(&sample(&["--steps", "0"]), 2, &["steps"]);
    fail(&sample(&["--steps", "21", "--sampler", "ddim"]), 2, &["20"]);
    fail(&sample(&["--sampler", "ddmp"]), 2, &["ddmp", "ddim"]);
    fail(&sample(&["--sampler", "ddim", "--eta", "-1"]), 2, &["eta"]);
    fail(&sample(&["--count", "0"]), 2, &["count"]);
    fail(&sample(&["--class", "3"]), 2, &["class"]);
    fail(&sample(&["--count", "100000000000"]), 1, &["memory", "--first"]);
    fail(&sample(&["--tensors", "absent/folder/x.safetensors"]), 1, &["absent"]);
    fail(&["sample", text(&run), "--out", "grid.jpg"], 2, &["grid.jpg", ".png"]);
    assert!(!grid.exists());
}

#[test]
fn predict_runs_the_bare_network_and_its_gradients_have_the_checkpoints_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let input = folder.path().join("input.safetensors");
    let output = folder.path().join("output.safetensors");
    let gradients = folder.path().join("gradients.safetensors");
    let x: Vec<f32> = (0..2 * 64).map(|i| ((i * 29 % 83) as f32 - 41.0) / 40.0).collect();
    let x = Tensor::f32(&[2, 1, 8, 8], x).expect("a tensor");
    let t = Tensor::i64(&[2], vec![3, 17]).expect("a tensor");
    let target = Tensor::f32(&[2, 1, 8, 8], vec![0.25; 128]).expect("a tensor");
    tensors::write(&input, &[("x", &x), ("t", &t), ("target", &target)]).expect("written");
    let base = ["predict", text(&run), "--input", text(&input), "--output", text(&output)];
    succeed(&base);
    let (shape, plain) = floats(&output, "prediction");
    assert_eq!(shape, [2, 1, 8, 8]);
    succeed(&[&base[..], &["--gradients", text(&gradients)]].concat());
    let (_, with) = floats(&output, "prediction");
    for (a, b) in plain.iter().zip(&with) {
        assert!((a - b).abs() <= 1e-5, "{a} {b}");
    }
    let (shape, loss) = floats(&gradients, "loss");
    assert!(shape.is_empty());
    let expected =
        with.iter().map(|p| f64::from(p - 0.25).powi(2)).sum::<f64>() / with.len() as f64;
    assert!((f64::from(loss[0]) - expected).abs() <= 1e-5 * expected);
    let weights =
        tensors::read(run.join("checkpoints/step-2/unet/diffusion_pytorch_model.safetensors"))
            .expect("weights");
    let shapes = |t: &tensors::Tensors| -> BTreeMap<String, Vec<usize>> {
        t.names().map(|n| (n.to_string(), t.get(n).expect("listed").shape.clone())).collect()
    };
    let mut of_gradients = shapes(&tensors::read(&gradients).expect("gradients"));
    of_gradients.remove("loss");
    assert_eq!(of_gradients, shapes(&weights));
    // The raw weights are others after two steps.
    succeed(&[&base[..], &["--weights", "raw"]].concat());
    assert_ne!(floats(&output, "prediction").1, plain);
}

#[test]
fn predict_names_what_is_wrong_with_its_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let input = folder.path().join("input.safetensors");
    let output = folder.path().join("output.safetensors");
    let base = ["predict", text(&run), "--input", text(&input), "--output", text(&output)];
    fail(&base, 1, &["input.safetensors"]);
    fs::write(&input, "not tensors").expect("written");
    fail(&base, 1, &["input.safetensors"]);
    let x = Tensor::f32(&[2, 3, 8, 8], vec![0.0; 384]).expect("a tensor");
    let t = Tensor::f32(&[2], vec![0.0; 2]).expect("a tensor");
    tensors::write(&input, &[("x", &x)]).expect("written");
    fail(&base, 1, &["`t`"]);
    tensors::write(&input, &[("x", &x), ("t", &t)]).expect("written");
    fail(&base, 1, &["x", "1 channels"]);
    assert!(!output.exists());
}

#[test]
fn info_counts_parameters_flops_and_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let output = succeed(&["info", text(&run), "--batch", "2", "--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let weights =
        tensors::read(run.join("checkpoints/step-2/unet/diffusion_pytorch_model.safetensors"))
            .expect("weights");
    let count: usize = weights
        .names()
        .map(|n| weights.get(n).expect("listed").shape.iter().product::<usize>())
        .sum();
    assert_eq!(facts["model"]["parameters"], count);
    let (sample, train) = (&facts["model"]["sample"], &facts["model"]["train"]);
    assert!(train["flops"].as_u64() > sample["flops"].as_u64());
    assert!(train["peak_bytes"].as_u64() > sample["peak_bytes"].as_u64());
    let text_output = langevin(&["info", text(&run)]);
    assert!(String::from_utf8_lossy(&text_output.stdout).contains("parameters"));
    assert!(langevin(&["info"]).status.success(), "{}", errors_of(&text_output));
}

#[test]
fn weights_of_one_run_start_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = trained(folder.path());
    let next = folder.path().join("next");
    // Network and schedule are the model's, not the preset's.
    let next_text = text(&next);
    let init = ["train", "--data", "digits", "--out", next_text, "--init", text(&run)];
    succeed(&[&init[..], &["--steps", "0", "--set", "sample.count=1"]].concat());
    let saved = fs::read_to_string(next.join("config.toml")).expect("a configuration");
    assert!(saved.contains("num_train_timesteps = 20"), "{saved}");
    let weights = |run: &Path, step: u32| {
        let file = format!("checkpoints/step-{step}/unet/diffusion_pytorch_model.safetensors");
        let tensors = tensors::read(run.join(file)).expect("weights");
        tensors
            .names()
            .map(|n| (n.to_string(), format!("{:?}", tensors.get(n).expect("listed"))))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(weights(&next, 0), weights(&run, 2));
}
