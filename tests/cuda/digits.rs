//! The digits preset with its own network: twenty steps of it and four images, against the
//! CPU. By default a step takes few images; `LANGEVIN_TEST_DIGITS=64` takes the preset's
//! batch and all steps of its sampler, which is minutes on two cores.

use std::path::{Path, PathBuf};

use crate::engine::{distance, floats, losses};
use crate::{driver, succeed, text};

/// Images of a step, unless the environment names another number.
const FEW: usize = 2;

fn batch() -> usize {
    let named = std::env::var("LANGEVIN_TEST_DIGITS").ok();
    named.map_or(FEW, |n| n.parse().expect("LANGEVIN_TEST_DIGITS is a number of images"))
}

/// Trains for 20 steps; the grid at the end is small.
fn trained(driver: &Path, run: &Path, on: &[&str]) -> PathBuf {
    let batch = batch().to_string();
    let arguments = ["train", "--data", "digits", "--out", text(run), "--steps", "20"];
    let more = ["--batch", &batch, "--set", "train.log_every=1"];
    let grid = ["--set", "sample.sampler=ddim", "--set", "sample.steps=2"];
    let count = ["--set", "sample.count=4"];
    succeed(driver, &[&arguments[..], &more, &grid, &count, on].concat(), &[]);
    run.to_path_buf()
}

/// Follows the CPU's losses and pictures: the losses to `loss`, pictures to `pixels` of the
/// largest value.
fn follows(precision: &str, loss: f64, pixels: f64) {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cpu = trained(driver.path(), &folder.path().join("cpu"), &["--device", "cpu"]);
    let on = ["--device", "cuda", "--precision", precision];
    let cuda = trained(driver.path(), &folder.path().join("cuda"), &on);
    let (a, b) = (losses(&cpu), losses(&cuda));
    assert_eq!((a.len(), b.len()), (20, 20));
    let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
    println!("losses in {precision}: {off:.1e} apart");
    assert!(off <= loss, "losses {a:?} and {b:?}");

    let steps = if batch() == FEW { "5" } else { "250" };
    let draw = |on: &[&str]| {
        let (grid, file) = (folder.path().join("grid.png"), folder.path().join("s.safetensors"));
        let arguments = ["sample", text(&cpu), "--out", text(&grid), "--tensors", text(&file)];
        let more = ["--count", "4", "--sampler", "ddpm", "--steps", steps];
        succeed(driver.path(), &[&arguments[..], &more, on].concat(), &[]);
        floats(&file)
    };
    let off = distance(&draw(&["--device", "cpu"]), &draw(&on));
    println!("pictures in {precision}: {off:.1e} of the largest value apart");
    assert!(off <= pixels, "{off:e}");
}

#[test]
fn twenty_steps_of_the_preset_and_four_images_agree_with_the_cpu() {
    follows("f32", 1e-5, 1e-5);
}

#[test]
fn twenty_steps_of_the_preset_and_four_images_agree_with_the_cpu_in_bf16() {
    follows("bf16", 2f64.powi(-9), 2f64.powi(-8));
}
