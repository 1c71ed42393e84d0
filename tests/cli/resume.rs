//! A run that is stopped, at whatever moment, ends with the same bits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use langevin::checkpoint::tensors::{self, Tensors, Values};

use crate::{LANGEVIN, errors_of, langevin, succeed, text, tiny_train};

/// Every file that must be equal, with its content; wall-clock fields removed.
fn state(run: &Path, step: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let checkpoint = run.join("checkpoints").join(format!("step-{step}"));
    let mut files = Vec::new();
    for name in [
        "unet/diffusion_pytorch_model.safetensors",
        "unet_raw/diffusion_pytorch_model.safetensors",
        "training/state.safetensors",
        "training/state.json",
        "scheduler/scheduler_config.json",
    ] {
        let path = checkpoint.join(name);
        files
            .push((PathBuf::from(name), fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"))));
    }
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let mut lines = String::new();
    for line in metrics.lines() {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let fields = record.as_object_mut().expect("a record");
        assert!(fields.remove("seconds").is_some() && fields.remove("images_per_second").is_some());
        lines += &format!("{record}\n");
    }
    files.push(("metrics".into(), lines.into_bytes()));
    files
}

fn assert_same(a: &Path, b: &Path, step: u64) {
    for ((name, a), (_, b)) in state(a, step).into_iter().zip(state(b, step)) {
        assert!(a == b, "{} differs", name.display());
    }
}

const MORE: [&str; 6] = [
    "--set",
    "train.log_every=2",
    "--set",
    "train.checkpoint_every=3",
    "--set",
    "model.dropout=0.1",
];

fn reference(folder: &Path, steps: &str) -> PathBuf {
    let run = folder.join("reference");
    let mut arguments = tiny_train(text(&run), &MORE);
    arguments.extend(["--steps", steps]);
    succeed(&arguments);
    run
}

#[test]
fn steps_in_two_goes_equal_steps_in_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = reference(folder.path(), "11");
    let run = folder.path().join("parts");
    let mut arguments = tiny_train(text(&run), &MORE);
    arguments.extend(["--steps", "4"]);
    succeed(&arguments);
    // The run knows its own configuration; another thread count changes nothing.
    succeed(&["train", "--out", text(&run), "--resume", "--steps", "11", "--threads", "1"]);
    assert_same(&whole, &run, 11);
}

#[test]
fn accumulated_gradients_resume_too_and_checkpoints_are_pruned() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = [
        "--set",
        "train.accumulation=2",
        "--set",
        "train.checkpoint_every=1",
        "--set",
        "train.log_every=1",
        "--set",
        "train.keep=2",
    ];
    let whole = folder.path().join("whole");
    let mut arguments = tiny_train(text(&whole), &more);
    arguments.extend(["--steps", "5"]);
    succeed(&arguments);
    let parts = folder.path().join("parts");
    let mut arguments = tiny_train(text(&parts), &more);
    arguments.extend(["--steps", "2"]);
    succeed(&arguments);
    succeed(&["train", "--out", text(&parts), "--resume", "--steps", "5"]);
    assert_same(&whole, &parts, 5);
    let mut kept: Vec<_> = fs::read_dir(parts.join("checkpoints"))
        .expect("checkpoints")
        .map(|e| e.expect("entry").file_name().into_string().expect("name"))
        .collect();
    kept.sort();
    assert_eq!(kept, ["step-4", "step-5"]);
}

#[test]
fn kill_at_random_moments_resumes_to_the_same_bits() {
    const STEPS: &str = "40";
    let folder = tempfile::tempdir().expect("a folder");
    let started = std::time::Instant::now();
    let whole = reference(folder.path(), STEPS);
    let duration = started.elapsed();
    // Fixed fractions of the run's duration, spread by the golden ratio.
    for k in 0..20u32 {
        let run = folder.path().join(format!("killed-{k}"));
        let mut arguments = tiny_train(text(&run), &MORE);
        arguments.extend(["--steps", STEPS]);
        let mut child = Command::new(LANGEVIN)
            .args(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let part = (f64::from(k) * 0.618_033_988_75).fract();
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * part));
        // It may have finished already: the rest must hold all the same.
        let _ = child.kill();
        child.wait().expect("ended");
        // Killed before the configuration was saved, the run needs its flags again.
        arguments.push("--resume");
        succeed(&arguments);
        assert_same(&whole, &run, 40);
        fs::remove_dir_all(&run).expect("removed");
    }
}

#[cfg(unix)]
#[test]
fn interrupt_saves_says_how_to_go_on_and_exits_130() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let mut arguments = tiny_train(text(&run), &MORE);
    arguments.extend(["--steps", "1000000"]);
    let child = Command::new(LANGEVIN)
        .args(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    while fs::read_dir(run.join("checkpoints")).map_or(0, |d| d.count()) == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill").success());
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", errors_of(&output));
    assert!(errors_of(&output).contains("--resume"), "{}", errors_of(&output));
    let said = errors_of(&output);
    let step = said.split("interrupted at step ").nth(1).and_then(|s| s.split(';').next());
    let step: u64 = step.expect("names the step").trim().parse().expect("a number");
    assert!(run.join("checkpoints").join(format!("step-{step}")).is_dir(), "{said}");
}

#[test]
fn an_existing_run_is_refused_and_a_different_configuration_cannot_resume() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let mut arguments = tiny_train(text(&run), &[]);
    arguments.extend(["--steps", "1"]);
    succeed(&arguments);
    let again = langevin(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(errors_of(&again).contains("--resume"), "{}", errors_of(&again));
    crate::fail(
        &[
            "train",
            "--out",
            text(&run),
            "--resume",
            "--steps",
            "2",
            "--set",
            "train.learning_rate=0.5",
        ],
        2,
        &["train.learning_rate"],
    );
    crate::fail(&["train", "--out", text(&run), "--resume", "--steps", "0"], 2, &["steps"]);
}

#[test]
fn resume_without_a_run_starts_at_step_0_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let mut arguments = tiny_train(text(&run), &["--resume"]);
    arguments.extend(["--steps", "1"]);
    let output = succeed(&arguments);
    assert!(errors_of(&output).contains("step 0"), "{}", errors_of(&output));

    // One whose checkpoints are all damaged is not overwritten.
    let state = run.join("checkpoints/step-1/training/state.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&state).expect("a checkpoint");
    file.set_len(100).expect("truncated");
    let metrics = std::fs::read(run.join("metrics.csv")).expect("metrics");
    *arguments.last_mut().expect("steps") = "2";
    crate::fail(&arguments, 1, &["step-1", "no checkpoint of the run is whole", "--out"]);
    assert_eq!(std::fs::read(run.join("metrics.csv")).expect("metrics"), metrics);
    crate::fail(&["info", text(&run), "--threads", "9999"], 2, &["at most 1024"]);
}

#[test]
fn accumulated_gradients_equal_those_of_the_large_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    // Some layers start at zero, and with them most gradients: train a little first.
    let first = folder.path().join("first");
    let mut arguments = tiny_train(text(&first), &["--set", "train.warmup_steps=0"]);
    arguments.extend(["--steps", "20"]);
    succeed(&arguments);
    let moments = |name: &str, batch: &str, accumulation: &str| {
        let run = folder.path().join(name);
        let mut arguments = tiny_train(text(&run), &["--set", accumulation, "--set", batch]);
        arguments.extend(["--steps", "1", "--init", text(&first)]);
        succeed(&arguments);
        // After one step AdamW's first moments are the gradients times 1 - beta1.
        let file = run.join("checkpoints/step-1/training/state.safetensors");
        tensors::read(file).expect("moments")
    };
    let large = moments("large", "train.batch=8", "train.accumulation=1");
    let small = moments("small", "train.batch=2", "train.accumulation=4");
    let gradients = |tensors: &Tensors, name: &str| match &tensors.get(name).expect(name).values {
        Values::F32(values) => values.clone(),
        Values::I64(_) => panic!("{name} is whole"),
    };
    let magnitude = |values: &[f32]| values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let names: Vec<_> = large.names().filter(|n| n.starts_with("first_moments.")).collect();
    let all = names.iter().map(|n| magnitude(&gradients(&large, n))).fold(0f32, f32::max);
    let mut compared = 0;
    for name in names {
        let (a, b) = (gradients(&large, name), gradients(&small, name));
        let largest = magnitude(&a);
        // Keys' biases have no gradient in exact arithmetic.
        let tolerance = (2e-5 * largest).max(1e-6 * all);
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= tolerance, "{name}: {a} {b}, largest {largest}");
        }
        compared += usize::from(largest > 1e-3 * all);
    }
    assert!(compared > 10, "gradients were compared");
}

#[test]
fn a_run_with_given_weights_that_is_killed_early_resumes_from_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = folder.path().join("first");
    let mut arguments = tiny_train(text(&first), &["--set", "train.warmup_steps=0"]);
    arguments.extend(["--steps", "3"]);
    succeed(&arguments);
    let run = folder.path().join("run");
    let mut arguments = tiny_train(text(&run), &["--init", text(&first)]);
    arguments.extend(["--steps", "1000000", "--set", "train.checkpoint_every=1000000"]);
    let mut child = Command::new(LANGEVIN)
        .args(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    while !run.join("config.toml").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    // The first step's learning rate is 0: the weights are still the given ones.
    succeed(&["train", "--out", text(&run), "--resume", "--steps", "1"]);
    let weights = |run: &Path, step: u32, folder: &str| {
        let file = format!("checkpoints/step-{step}/{folder}/diffusion_pytorch_model.safetensors");
        let tensors = tensors::read(run.join(file)).expect("weights");
        tensors.names().map(|n| format!("{n} {:?}", tensors.get(n).expect(n))).collect::<Vec<_>>()
    };
    assert!(weights(&run, 1, "unet_raw") == weights(&first, 3, "unet"), "other weights");
}
