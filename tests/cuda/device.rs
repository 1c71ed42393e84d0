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
    // The driver's own answers: no device (100), a version that cannot be read (3).
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
