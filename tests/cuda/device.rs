//! What is missing is named, with what to do about it.

use std::process::Command;

use crate::{driver, errors_of, langevin, succeed};

#[test]
fn info_names_the_device_and_the_kernels() {
    let Some(driver) = driver() else { return };
    let output = succeed(driver.path(), &["info", "--device", "cuda", "--json"], &[]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(facts["device"]["name"], "cuda:0");
    assert!(facts["device"]["description"].as_str().expect("text").contains("softgpu 8.0"));
    assert!(facts["device"]["memory_bytes"].as_u64().expect("bytes") > 1 << 30);
    assert_eq!(facts["kernels"]["cuda"], true);
    let output = succeed(driver.path(), &["info"], &[]);
    assert!(errors_of(&output).contains("device: cuda:0"), "auto takes CUDA");
}

#[test]
fn without_a_driver_the_error_says_so_and_auto_takes_the_cpu() {
    if driver().is_none() {
        return;
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_langevin"));
        command.args(arguments).env_remove("LD_LIBRARY_PATH").output().expect("it starts")
    };
    let output = run(&["info", "--device", "cuda"]);
    if output.status.success() {
        eprintln!("SKIPPED: this machine has a CUDA driver");
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    let said = errors_of(&output);
    assert!(said.contains("no CUDA driver found") && said.contains("--device cpu"), "{said}");
    let output = run(&["info"]);
    assert!(output.status.success() && errors_of(&output).contains("device: cpu"));
}

#[test]
fn a_device_that_is_not_there_and_one_that_is_too_old_are_refused() {
    let Some(driver) = driver() else { return };
    let refused = |device: &str, environment: &[(&str, &str)], words: &[&str]| {
        let output = langevin(driver.path(), &["info", "--device", device], environment);
        let said = errors_of(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` in {said}");
        }
    };
    refused("cuda:7", &[], &["cuda:7", "no such device"]);
    refused("cuda", &[("SOFTGPU_CC", "7.5")], &["capability 7.5", "8.0 (Ampere)"]);
    let words = ["supports CUDA 12.2", "built with CUDA", "update the driver"];
    refused("cuda", &[("SOFTGPU_DRIVER", "12020")], &words);
    // The driver's own answers: no device (100), an error without a reason (999).
    refused("cuda", &[("SOFTGPU_FAULT", "cuDeviceGetCount:1:100")], &["CUDA_ERROR_NO_DEVICE"]);
    refused("cuda", &[("SOFTGPU_FAULT", "cuInit:1:999")], &["CUDA_ERROR_UNKNOWN"]);
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_the_numbers() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let arguments = crate::train(crate::text(&run), "cuda", "1", &["--set", "train.batch=256"]);
    let output = langevin(driver.path(), &arguments, &[("SOFTGPU_MEMORY", "8388608")]);
    let said = errors_of(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the run needs") && said.contains("MiB available"), "{said}");
}

#[test]
fn auto_takes_the_cpu_where_the_device_refuses_the_run_and_says_why() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str| crate::text(&folder.path().join(name)).to_string();
    let on_cpu = |arguments: &[&str], environment: &[(&str, &str)], why: &str| {
        let output = langevin(driver.path(), arguments, environment);
        let said = errors_of(&output);
        assert!(output.status.success(), "{said}");
        let told: Vec<_> = said.lines().filter(|line| line.starts_with("device:")).collect();
        let (Some(told), 1..=2) = (told.last(), told.len()) else {
            panic!("a line says which device: {said}")
        };
        assert!(told.starts_with("device: cpu (") && told.contains(why), "`{why}` in {told}");
    };
    let few = [("SOFTGPU_MEMORY", "8388608")];
    let (first, wide) = (run("first"), run("wide"));
    let train = crate::train(&first, "auto", "1", &["--set", "train.batch=256"]);
    on_cpu(&train, &few, "the run needs");
    let grid = run("grid.png");
    let sample = ["sample", first.as_str(), "--out", &grid, "--count", "512", "--batch", "512"];
    let fewer = [("SOFTGPU_MEMORY", "2097152")];
    on_cpu(&sample, &fewer, "the run needs");
    on_cpu(&sample[..6], &[("SOFTGPU_FAULT", "cuMemAlloc_v2:3:2")], "CUDA_ERROR_OUT_OF_MEMORY");
    let likelihood = ["likelihood", first.as_str(), "--data", "digits", "--count", "2"];
    let likelihood = [&likelihood[..], &["--method", "vlb", "--terms", "1"]].concat();
    on_cpu(&likelihood, &[("SOFTGPU_FAULT", "cuLaunchKernel:1:719")], "CUDA_ERROR_LAUNCH_FAILED");
    let heads = [
        "--set",
        "model.block_out_channels=[8, 264]",
        "--set",
        "model.attention_head_dim=264",
        "--set",
        "sample.count=1",
    ];
    on_cpu(&crate::train(&wide, "auto", "1", &heads), &[], "heads of 264 channels");
    on_cpu(&["info"], &[("SOFTGPU_DRIVER", "12020")], "update the driver");

    // A device that was named, a precision that the CPU has not, a run that had begun.
    let refused = |arguments: &[&str], environment: &[(&str, &str)], why: &str| {
        let output = langevin(driver.path(), arguments, environment);
        let said = errors_of(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && !said.contains("device: cpu"), "`{why}` in {said}");
    };
    refused(&[&sample[..], &["--device", "cuda"]].concat(), &fewer, "the run needs");
    refused(&[&sample[..], &["--precision", "bf16"]].concat(), &fewer, "the run needs");
    let again = ["train", "--out", &first, "--resume", "--steps", "6"];
    let again = [&again[..], &["--set", "train.batch=256"]].concat();
    refused(&again, &[("SOFTGPU_FAULT", "cuGraphLaunch:1:719")], "cannot launch the captured run");
}
