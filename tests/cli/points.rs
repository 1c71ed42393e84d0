//! A perceptron on points in the plane, from training to pictures.

use std::path::Path;

use langevin::checkpoint::tensors::{self, Values};
use langevin::data::points::{Points, Shape};

use crate::{errors_of, fail, succeed, text};

fn train(out: &Path, steps: &str) {
    let output = succeed(&[
        "train",
        "--data",
        "points:moons",
        "--out",
        text(out),
        "--steps",
        steps,
        "--set",
        "model.hidden=48",
        "--set",
        "train.decay_steps=600",
        "--set",
        "train.batch=128",
        "--set",
        "train.ema_decay=0.98",
        "--set",
        "train.sample_every=0",
        "--set",
        "scheduler.num_train_timesteps=50",
        "--set",
        "sample.count=200",
    ]);
    let said = errors_of(&output);
    assert!(said.contains("preset points"), "{said}");
    assert!(said.contains("diffusers has no class `LangevinMlp`"), "{said}");
}

fn draw(run: &Path, out: &Path, more: &[&str]) -> Vec<f32> {
    let picture = out.with_extension("png");
    let arguments =
        ["sample", text(run), "--out", text(&picture), "--tensors", text(out), "--count", "400"];
    succeed(&[&arguments[..], more].concat());
    let size = image::image_dimensions(&picture).expect("a picture");
    assert!(size.0 >= 600 && size.1 >= 600, "a plot, not a grid of single pixels");
    let file = tensors::read(out).expect("tensors");
    let tensor = file.get("samples").expect("samples");
    assert_eq!(tensor.shape, [400, 2, 1, 1]);
    match &tensor.values {
        Values::F32(values) => values.clone(),
        Values::I64(_) => panic!("samples are floats"),
    }
}

/// Energy distance of two sets of points: 2 E|X - Y| - E|X - X'| - E|Y - Y'|.
fn energy(x: &[f32], y: &[f32]) -> f64 {
    let mean = |a: &[f32], b: &[f32]| {
        let mut sum = 0.0;
        for p in a.chunks_exact(2) {
            for q in b.chunks_exact(2) {
                sum += f64::from((p[0] - q[0]).hypot(p[1] - q[1]));
            }
        }
        sum / (a.len() / 2 * (b.len() / 2)) as f64
    };
    2.0 * mean(x, y) - mean(x, x) - mean(y, y)
}

#[test]
fn a_trained_perceptron_draws_the_data_and_an_untrained_one_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = Points { shape: Shape::Moons, seed: 9, count: 400 }.coordinates();
    let run = folder.path().join("run");
    train(&run, "600");
    let samples = draw(&run, &folder.path().join("a.safetensors"), &[]);
    let trained = energy(&samples, &data);
    let again = draw(&run, &folder.path().join("b.safetensors"), &["--batch", "7"]);
    assert_eq!(samples, again, "same seed, same bits, whatever the batch");
    let untrained = folder.path().join("untrained");
    train(&untrained, "0");
    let noise = energy(&draw(&untrained, &folder.path().join("c.safetensors"), &[]), &data);
    // Two draws of the data differ by 0.01.
    assert!(trained < 0.03, "energy distance {trained}");
    assert!(noise > 0.06, "energy distance {noise}");
}

#[test]
fn every_plot_of_points_is_drawn_and_is_refused_for_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    train(&run, "20");
    for (plot, width) in [("scatter", 640), ("trajectory", 640), ("field", 1280)] {
        let out = folder.path().join(format!("{plot}.png"));
        succeed(&["sample", text(&run), "--out", text(&out), "--count", "50", "--plot", plot]);
        assert_eq!(image::image_dimensions(&out).expect("a picture").0, width, "{plot}");
    }
    let folder_out = folder.path().join("pictures");
    let arguments = ["sample", text(&run), "--out", text(&folder_out), "--plot", "scatter"];
    fail(&arguments, 2, &["--plot", ".png"]);
    let config = std::fs::read_to_string(run.join("config.toml")).expect("a configuration");
    assert!(config.contains("LangevinMlp"), "{config}");
    succeed(&["train", "--out", text(&run), "--resume", "--steps", "22"]);
    succeed(&["info", text(&run)]);
}
