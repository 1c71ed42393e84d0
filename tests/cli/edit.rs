//! `edit`, and the samplers whose images decide for themselves, on a run.

use std::path::Path;

use langevin::checkpoint::tensors::{self, Tensor};

use crate::sample::{draw, floats, trained};
use crate::{fail, succeed, text, tiny_train};

/// Values of an 8 x 8 image.
const LEN: usize = 64;

/// Two pictures of the run, `one.png` and `two.png`, and a mask of their left half.
fn pictures(folder: &Path, run: &Path) {
    let out = folder.join("drawn");
    succeed(&["sample", text(run), "--out", text(&out), "--count", "2"]);
    std::fs::rename(out.join("000000.png"), folder.join("one.png")).unwrap();
    std::fs::rename(out.join("000001.png"), folder.join("two.png")).unwrap();
    let half = image::GrayImage::from_fn(8, 8, |x, _| image::Luma([if x < 4 { 255 } else { 0 }]));
    half.save(folder.join("mask.png")).unwrap();
}

#[test]
fn samplers_that_decide_image_by_image_draw_the_same_bits_in_any_batch() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let file = |name: &str| folder.path().join(name);
    for sampler in [
        &["--sampler", "pc", "--steps", "4", "--set", "sampler.n_steps=2"][..],
        &["--sampler", "ald", "--steps", "3", "--set", "sampler.n_steps=2"],
        &["--sampler", "ode-rk45", "--set", "sampler.atol=0.01", "--set", "sampler.rtol=0.01"],
    ] {
        let more = |rest: &[&'static str]| [sampler, rest].concat();
        let (_, all) =
            draw(&run, &file("all.safetensors"), &more(&["--count", "5", "--batch", "3"]));
        let (_, one) = draw(
            &run,
            &file("one.safetensors"),
            &more(&["--first", "3", "--count", "1", "--threads", "1"]),
        );
        assert_eq!(one, all[3 * LEN..4 * LEN], "{sampler:?}");
    }
}

#[test]
fn edit_completes_changes_inverts_and_recovers_images() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    pictures(folder.path(), &run);
    let file = |name: &str| text(&folder.path().join(name)).to_string();
    let (one, two, mask) = (file("one.png"), file("two.png"), file("mask.png"));
    let (grid, out) = (file("edited.png"), file("edited.safetensors"));
    let edit = |method: &str, more: &[&str]| {
        let arguments = [
            &["edit", text(&run), "--method", method, "--out", &grid, "--tensors", &out][..],
            &["--steps", "5"],
            more,
        ];
        succeed(&arguments.concat());
        assert!(image::open(&grid).is_ok(), "a readable picture");
        floats(Path::new(&out), "samples")
    };
    let original: Vec<f32> = image::open(&one)
        .unwrap()
        .into_luma8()
        .into_raw()
        .into_iter()
        .map(|b| f32::from(b) / 127.5 - 1.0)
        .collect();

    let jumps = ["--jump-length", "2", "--resamples", "2"];
    let known = [&["--image", one.as_str(), "--mask", mask.as_str()][..], &jumps].concat();
    let (shape, filled) =
        edit("repaint", &[&known[..], &["--count", "3", "--batch", "2"]].concat());
    assert_eq!(shape, [3, 1, 8, 8]);
    for (i, x) in filled.iter().enumerate() {
        if i % 8 < 4 {
            assert_eq!(*x, original[i % LEN], "known pixel {i}");
        }
    }
    assert_ne!(filled[..LEN], filled[LEN..2 * LEN]);
    let (_, alone) = edit("repaint", &[&known[..], &["--count", "1", "--first", "2"]].concat());
    assert_eq!(alone, filled[2 * LEN..]);

    let (shape, _) = edit("sdedit", &["--image", &one, "--strength", "0.4", "--count", "2"]);
    assert_eq!(shape, [2, 1, 8, 8]);
    for operator in ["downsample:2", "blur:1.0"] {
        let more = ["--image", &one, "--operator", operator, "--noise-std", "0.1"];
        assert_eq!(edit("dps", &more).0, [1, 1, 8, 8]);
    }
    let (_, seen) = edit("dps", &["--image", &one, "--mask", &mask, "--scale", "0.5"]);
    let y = Tensor::f32(&[1, 1, 8, 8], original.clone()).unwrap();
    let measured = file("y.safetensors");
    tensors::write(&measured, &[("y", &y)]).unwrap();
    let (_, again) = edit("dps", &["--measured", &measured, "--mask", &mask, "--scale", "0.5"]);
    assert_eq!(seen, again, "the same measurement");

    // What invert finds, sample turns back into the same image.
    let (_, inverted) = edit("invert", &["--image", &one, "--iterations", "3"]);
    let drawn = ["--sampler", "ddim", "--steps", "5", "--count", "1", "--noise", &out];
    let unlimited = [&drawn[..], &["--set", "sampler.clip=none"]].concat();
    let (_, sampled) = draw(&run, &folder.path().join("back.safetensors"), &unlimited);
    for (a, b) in inverted.iter().zip(&sampled) {
        assert!((a - b).abs() < 1e-3 * (1.0 + b.abs()), "{a} {b}");
    }
    let both = ["--image", &one, "--image", &two, "--iterations", "3"];
    let (shape, between) = edit("interpolate", &[&both[..], &["--frames", "4"]].concat());
    assert_eq!(shape, [4, 1, 8, 8]);
    for (a, b) in between[..LEN].iter().zip(&inverted) {
        assert!((a - b).abs() < 1e-3 * (1.0 + b.abs()), "an end is its image: {a} {b}");
    }
}

#[test]
fn edit_is_guided_towards_a_class() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    succeed(&tiny_train(text(&run), &["--steps", "3", "--set", "model.num_class_embeds=11"]));
    pictures(folder.path(), &run);
    let file = |name: &str| text(&folder.path().join(name)).to_string();
    let (one, mask, grid, out) =
        (file("one.png"), file("mask.png"), file("grid.png"), file("out.safetensors"));
    let image = ["--image", one.as_str()];
    let start = ["edit", text(&run), "--out", &grid, "--steps", "3"];
    for method in [
        &["sdedit", "--strength", "0.7"][..],
        &["repaint", "--mask", &mask, "--resamples", "1"],
        &["invert"],
    ] {
        let mut drawn = Vec::new();
        for more in [&["--class", "4"][..], &["--class", "4", "--guidance", "3"]] {
            let tail = ["--tensors", &out];
            succeed(&[&start[..], &["--method"], method, &image, more, &tail].concat());
            drawn.push(floats(Path::new(&out), "samples").1);
        }
        assert_ne!(drawn[0], drawn[1], "{method:?}");
    }
    let refused = |more: &[&str], words: &[&str]| {
        fail(&[&start[..], &image, &["--guidance", "3"], more].concat(), 2, words);
    };
    refused(&["--method", "sdedit"], &["--class"]);
    refused(&["--method", "dps", "--class", "4", "--mask", &mask], &["dps", "--guidance"]);
}

#[test]
fn edit_refuses_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    pictures(folder.path(), &run);
    let file = |name: &str| text(&folder.path().join(name)).to_string();
    let (one, mask, grid) = (file("one.png"), file("mask.png"), file("grid.png"));
    let small = file("small.png");
    image::GrayImage::new(5, 4).save(&small).unwrap();
    let refused = |method: &str, more: &[&str], code: i32, words: &[&str]| {
        let start = ["edit", text(&run), "--out", &grid, "--method", method];
        fail(&[&start[..], more].concat(), code, words);
    };
    refused("sdedit", &[], 2, &["--image"]);
    refused("paint", &["--image", &one], 2, &["repaint"]);
    refused("repaint", &["--image", &one], 2, &["--mask"]);
    refused("repaint", &["--image", &one, "--mask", &small], 1, &["4 x 5", "8 x 8"]);
    refused("sdedit", &["--image", &small], 1, &["4 x 5", "8 x 8"]);
    refused("sdedit", &["--image", "absent.png"], 1, &["absent.png"]);
    refused("sdedit", &["--image", &one, "--strength", "0"], 2, &["--strength"]);
    refused("sdedit", &["--image", &one, "--eta", "2"], 2, &["--eta"]);
    refused("sdedit", &["--image", &one, "--steps", "0"], 2, &["steps"]);
    refused("sdedit", &["--image", &one, "--guidance", "2"], 2, &["no classes"]);
    refused("sdedit", &["--image", &one, "--set", "sampler.snr=0.1"], 2, &["sampler.snr", "pc"]);
    refused("dps", &["--image", &one], 2, &["--mask"]);
    refused("dps", &["--image", &one, "--operator", "downsample:3"], 2, &["divide"]);
    refused("dps", &["--image", &one, "--operator", "blur:1", "--mask", &mask], 2, &["--mask"]);
    refused("dps", &["--image", &one, "--operator", "sharpen"], 2, &["downsample"]);
    refused("dps", &["--image", &one, "--measured", &one], 2, &["--measured"]);
    refused("interpolate", &["--image", &one], 2, &["2 images"]);
    refused("invert", &["--image", &one, "--iterations", "0"], 2, &["--iterations"]);
    assert!(!Path::new(&grid).exists());
}
