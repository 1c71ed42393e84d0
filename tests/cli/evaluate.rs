//! `evaluate` on everything it reads.

use langevin::checkpoint::tensors::{self, Tensor};
use langevin::data::{DataOptions, Dataset};
use serde_json::Value;

use crate::{fail, succeed, text, tiny_train};

fn scores(arguments: &[&str]) -> Value {
    let output = succeed(&[&["evaluate", "--json", "--subsets", "5"], arguments].concat());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_first_digits_against_the_others_in_every_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = Dataset::open("digits", &DataOptions::default()).expect("built in");
    let (n, values) = (300, data.first_values(300));
    let file = folder.path().join("samples.safetensors");
    let tensor = Tensor::f32(&[n, 1, 8, 8], values.clone()).expect("a tensor");
    tensors::write(&file, &[("samples", &tensor)]).expect("written");
    let pairs = folder.path().join("pairs.png");
    let whole = scores(&[text(&file), "--data", "digits", "--pairs", text(&pairs)]);
    assert_eq!(whole["samples"]["count"], 300);
    assert_eq!(whole["data"]["count"], 1797);
    assert_eq!(whole["neighbours"]["precision"], 1.0);
    // They are training images: the audit says so.
    assert_eq!(whole["nearest"]["copies"], 1.0);
    assert!(image::open(&pairs).is_ok());

    let same = scores(&[text(&file), "--data", "digits", "--set", "data.limit=300"]);
    assert!(same["frechet"]["distance"].as_f64().expect("a number").abs() < 1e-6, "{same}");

    // The same digits as pictures of 8 bits.
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).expect("made");
    for (i, image) in values.chunks_exact(64).take(40).enumerate() {
        let png = langevin::picture::image_png(image, [8, 8, 1]);
        std::fs::write(pictures.join(format!("{i:03}.png")), png).expect("written");
    }
    let read = scores(&[text(&pictures), "--data", "digits"]);
    assert_eq!(read["samples"]["count"], 40);
    assert_eq!(read["nearest"]["copies"], 1.0);

    // A data SPEC, and features of a file alone.
    let of_spec = scores(&["points:moons:1:500", "--data", "points:moons:0:500"]);
    assert!(of_spec["frechet"]["distance"].as_f64().expect("a number") < 0.05, "{of_spec}");
    let features = folder.path().join("features.safetensors");
    let rows = |from: usize| Tensor::f32(&[100, 64], values[from * 64..][..6400].to_vec());
    let (a, b) = (rows(0).expect("a tensor"), rows(100).expect("a tensor"));
    tensors::write(&features, &[("samples", &a), ("data", &b)]).expect("written");
    let alone = scores(&["--features", text(&features)]);
    assert_eq!(alone["on"]["dim"], 64);
    assert!(alone["nearest"].is_null(), "no images, no audit");
}

#[test]
fn a_run_is_drawn_and_scored_whatever_the_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let settings = ["--set", "scheduler.num_train_timesteps=20", "--steps", "2"];
    succeed(&tiny_train(text(&run), &settings));
    let base =
        [text(&run), "--data", "digits", "--count", "12", "--steps", "3", "--sampler", "ddim"];
    let first = scores(&base);
    assert_eq!(first["samples"]["count"], 12);
    let from = first["samples"]["from"].as_str().expect("text");
    assert!(from.contains("ddim with 3 evaluations"), "{from}");
    let other = [&base[..], &["--batch", "5", "--threads", "1"]].concat();
    assert_eq!(first, scores(&other));
    let table = succeed(&[&["evaluate"], &base[..]].concat());
    assert!(String::from_utf8_lossy(&table.stdout).contains("frechet"));
}

#[test]
fn what_cannot_be_compared_is_refused_with_the_reason() {
    let evaluate = |more: &[&'static str]| [&["evaluate"], more].concat();
    fail(&evaluate(&[]), 2, &["--data"]);
    fail(&evaluate(&["points:moons:1:9", "--data", "digits"]), 2, &["1x1x2", "8x8x1"]);
    fail(&evaluate(&["nothing", "--data", "digits"]), 2, &["nothing", "data SPEC"]);
    fail(&evaluate(&["points:moons:1:3", "--data", "points:moons"]), 2, &["at least 4"]);
    fail(&evaluate(&["digits", "--data", "digits", "--steps", "3"]), 2, &["--steps"]);
    fail(&evaluate(&["digits", "--data", "digits", "--neighbours", "0"]), 2, &["neighbour"]);
    fail(&evaluate(&["--features", "absent.npz"]), 1, &["absent.npz"]);
}
