//! A data set in a model's place, and likelihoods, from the command line.

use std::path::Path;

use langevin::backend::cpu::Pool;
use langevin::checkpoint::tensors::{self, Values};
use langevin::data::{DataOptions, Dataset};
use langevin::diffusion::empirical::nearest_two;
use serde_json::Value;

use crate::{fail, succeed, text};

fn draw(data: &str, out: &Path, more: &[&str]) -> Vec<f32> {
    let file = out.join("samples.safetensors");
    let picture = out.join("grid.png");
    let arguments = ["sample", "--model-free", data, "--out", text(&picture), "--tensors"];
    succeed(&[&arguments[..], &[text(&file), "--count", "4", "--steps", "24"], more].concat());
    let file = tensors::read(&file).expect("tensors");
    match &file.get("samples").expect("samples").values {
        Values::F32(values) => values.clone(),
        Values::I64(_) => panic!("samples are floats"),
    }
}

#[test]
fn sampling_without_a_model_reproduces_training_images() {
    let folder = tempfile::tempdir().unwrap();
    for (name, more) in [
        ("digits", &["--sampler", "ddim"][..]),
        ("digits", &["--sampler", "ddpm"]),
        ("digits", &["--sampler", "ode-heun", "--set", "process.kind=edm"]),
        (
            "points:moons",
            &[
                "--sampler",
                "ode-heun",
                "--set",
                "process.kind=edm",
                "--set",
                "process.sigma_min=1e-4",
            ],
        ),
    ] {
        let samples = draw(name, folder.path(), more);
        let data = Dataset::open(name, &DataOptions::default()).unwrap();
        let (values, len) = (data.first_values(data.len()), data.image_len());
        let found = nearest_two(&Pool::new(2), &samples, &values, len).unwrap();
        assert_eq!(found.len(), 4);
        for nearest in found {
            assert!(nearest.distance < 1e-3 * (len as f64).sqrt(), "{name} {more:?} {nearest:?}");
        }
    }
}

fn score(more: &[&str]) -> Value {
    let arguments = ["likelihood", "--model-free", "points:moons", "--data", "points:moons"];
    let noisy =
        ["--set", "process.kind=vp", "--set", "process.t_eps=0.1", "--json", "--count", "3"];
    let output = succeed(&[&arguments[..], &noisy, more].concat());
    let mut facts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    facts.as_object_mut().unwrap().remove("seconds").expect("the time it took");
    facts
}

#[test]
fn likelihoods_are_the_same_in_every_batch_and_on_every_number_of_threads() {
    let one = score(&["--batch", "1", "--threads", "1"]);
    assert_eq!(one, score(&["--batch", "2", "--threads", "2"]));
    let bits = one["bits_per_dim"]["mean"].as_f64().unwrap();
    let nats = one["log_density_per_dim"]["mean"].as_f64().unwrap();
    assert!((bits + nats / std::f64::consts::LN_2).abs() < 1e-9, "points are continuous");
    assert!(bits.abs() < 5.0 && one["bits_per_dim"]["standard_error"].is_number());
    // Two unit vectors and many probes estimate the same.
    let exact = score(&["--probe", "exact"]);
    let many = score(&["--probes", "16"]);
    let gap = exact["bits_per_dim"]["mean"].as_f64().unwrap()
        - many["bits_per_dim"]["mean"].as_f64().unwrap();
    assert!(gap.abs() < 0.5, "{exact} {many}");
}

#[test]
fn the_bound_of_digits_is_printed_by_terms() {
    let output = succeed(&[
        "likelihood",
        "--model-free",
        "digits",
        "--data",
        "digits",
        "--method",
        "vlb",
        "--count",
        "2",
        "--terms",
        "10",
        "--json",
    ]);
    let facts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mean = |key: &str| facts[key]["mean"].as_f64().expect(key);
    let sum = mean("prior") + mean("steps") + mean("decoder");
    assert!((mean("bits_per_dim") - sum).abs() < 1e-9);
    // Of 1797 images known by heart, log2(1797) bits tell which.
    assert!((0.0..1.0).contains(&mean("bits_per_dim")), "{facts}");
    assert_eq!(facts["levels"], 17);
    assert_eq!(facts["evaluations"], 22);
}

#[test]
fn flags_that_do_not_fit_are_refused_with_the_reason() {
    let data = ["--model-free", "digits", "--data", "digits"];
    let with = |more: &[&'static str]| [&["likelihood"][..], &data, more].concat();
    fail(&with(&["--terms", "5"]), 2, &["--terms"]);
    fail(&with(&["--method", "vlb", "--rtol", "1e-3"]), 2, &["--rtol"]);
    fail(&with(&["--rtol", "2"]), 2, &["--rtol", "between 0 and 1"]);
    fail(&with(&["--rtol", "1e-3", "--steps", "5"]), 2, &["--steps", "--rtol"]);
    fail(&with(&["--count", "2000"]), 2, &["--count", "1797"]);
    fail(&with(&["--set", "model.hidden=3"]), 2, &["model.hidden"]);
    fail(&["likelihood", "--data", "digits"], 2, &["MODEL"]);
    let points = ["--model-free", "points:moons", "--data", "points:moons", "--method", "vlb"];
    fail(&[&["likelihood"][..], &points].concat(), 2, &["levels"]);
}
