//! Bad input: one clear error, the right exit code, no panic, nothing lost.

use std::fs;

use crate::{fail, succeed, text, tiny_train};

#[test]
fn wrong_flags_and_keys_exit_with_2_and_name_the_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let out = text(&out);
    let train = |more: &[&'static str]| [&["train", "--out", out][..], more].concat();
    fail(&train(&["--data", "digits", "--set", "train.bach=3"]), 2, &["bach"]);
    fail(&train(&["--data", "digits", "--set", "train.batch=0"]), 2, &["train.batch"]);
    fail(&train(&["--data", "digits", "--set", "train.batch"]), 2, &["key=value"]);
    fail(
        &train(&["--data", "digits", "--set", "train.accumulation=9223372036854775807"]),
        2,
        &["train.accumulation"],
    );
    fail(
        &train(&["--data", "digits", "--set", "model.layers_per_block=99999999999"]),
        2,
        &["layers_per_block"],
    );
    fail(&train(&["--data", "digits", "--set", "train.eps=1e-300"]), 2, &["train.eps"]);
    fail(&train(&["--data", "digits", "--seed", "18446744073709551615"]), 2, &["train.seed"]);
    fail(&["info", "--batch", "18446744073709551615"], 2, &["--batch"]);
    fail(&train(&["--data", "digitz"]), 2, &["digitz", "digits", "folder:"]);
    fail(
        &train(&["--data", "digits", "--config", "nowhere.toml"]),
        2,
        &["nowhere.toml", "cifar10"],
    );
    fail(&train(&["--data", "digits", "--device", "gpu"]), 2, &["--device", "cuda"]);
    for precision in ["bf16", "tf32"] {
        let arguments = ["--data", "digits", "--device", "cpu", "--precision", precision];
        fail(&train(&arguments), 2, &[precision, "CUDA", "--precision f32"]);
    }
    fail(&train(&["--data", "digits", "--precision", "f16"]), 2, &["f16", "tf32, bf16"]);
    fail(&train(&[]), 2, &["--data"]);
    fail(&["sample", out], 2, &["--out"]);
    fail(&["fly"], 2, &["fly"]);
    assert!(!folder.path().join("run").exists(), "a refused run leaves nothing behind");
}

#[test]
fn a_network_that_does_not_fit_the_data_is_refused_with_both_sizes() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    fail(
        &["train", "--data", "digits", "--out", text(&out), "--set", "model.in_channels=3"],
        2,
        &["model.in_channels", "3", "1"],
    );
    fail(
        &["train", "--data", "digits", "--out", text(&out), "--config", "mnist"],
        2,
        &["model.sample_size", "28", "8"],
    );
}

#[test]
fn missing_devices_models_and_data_exit_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    fail(&["info", text(&missing)], 1, &["missing"]);
    fail(&["info", text(&empty)], 1, &["empty"]);
    fail(&["info", "--device", "cuda"], 1, &["cuda", "--device cpu"]);
    fail(&["info", "--device", "cuda:1"], 1, &["cuda:1"]);
    let out = folder.path().join("run");
    let spec = format!("folder:{}", text(&empty));
    fail(&["train", "--data", &spec, "--out", text(&out)], 1, &["empty"]);
    let spec = format!("idx:{}", text(&missing));
    fail(&["train", "--data", &spec, "--out", text(&out)], 1, &["missing"]);
}

#[test]
fn a_diverging_run_stops_names_step_and_tensor_and_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let more = [
        "--set",
        "train.learning_rate=1e30",
        "--set",
        "train.warmup_steps=0",
        "--set",
        "train.clip=0",
        "--set",
        "train.checkpoint_every=1",
        "--set",
        "train.eps=1e-30",
        "--steps",
        "50",
    ];
    let arguments = tiny_train(text(&out), &more);
    fail(&arguments, 1, &["step ", "not finite", "tensor `", "train.learning_rate"]);
    let checkpoints = fs::read_dir(out.join("checkpoints")).expect("checkpoints");
    assert!(checkpoints.count() >= 1, "the last checkpoint stays");
    succeed(&["info", text(&out)]);
}

#[cfg(unix)]
#[test]
fn an_unwritable_place_is_one_clear_error() {
    // A file in the way works for every user, root included.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "in the way").expect("a file");
    let out = file.join("run");
    fail(&tiny_train(text(&out), &["--steps", "1"]), 1, &["file"]);
    assert_eq!(fs::read_to_string(&file).expect("still there"), "in the way");
}

#[cfg(target_os = "linux")]
#[test]
fn no_space_left_is_one_clear_error_and_keeps_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    succeed(&tiny_train(text(&run), &["--steps", "1"]));
    let grid = folder.path().join("grid.png");
    fs::write(&grid, "old").expect("a file");
    // The shell's file size limit stands in for a full disk: writes fail with EFBIG.
    let command = format!(
        "ulimit -f 0; trap '' XFSZ; exec {} sample {} --out {} --count 1 --steps 2 --sampler ddim",
        crate::LANGEVIN,
        text(&run),
        text(&grid)
    );
    let output = std::process::Command::new("bash").args(["-c", &command]).output().expect("bash");
    let said = crate::errors_of(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("grid.png") && !said.contains("panicked"), "{said}");
    assert_eq!(fs::read_to_string(&grid).expect("still there"), "old");
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|e| e.expect("entry").file_name().into_string().expect("name"))
        .filter(|name| name != "run" && name != "grid.png")
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn two_runs_cannot_write_one_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let mut arguments = tiny_train(text(&run), &["--set", "train.checkpoint_every=1"]);
    arguments.extend(["--steps", "1000000"]);
    let mut child = std::process::Command::new(crate::LANGEVIN)
        .args(&arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program starts");
    while fs::read_dir(run.join("checkpoints")).map_or(0, |d| d.count()) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let second = crate::langevin(&["train", "--out", text(&run), "--resume"]);
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(second.status.code(), Some(1), "{}", crate::errors_of(&second));
    assert!(crate::errors_of(&second).contains("is writing"), "{}", crate::errors_of(&second));
}
