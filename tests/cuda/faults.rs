//! Errors of the driver, injected at each function that the backend calls: a clear
//! message with the driver's own name for it, exit code 1, no panic.

use crate::{driver, errors_of, langevin, text, train};

/// Functions, the call that fails, and the error (719: launch failed, 2: out of
/// memory, 999: unknown).
const FAULTS: [&str; 26] = [
    "cuInit:1:999",
    "cuDeviceGetCount:1:100",
    "cuDeviceGet:1:101",
    "cuDevicePrimaryCtxRetain:1:2",
    "cuDeviceGetAttribute:1:999",
    "cuCtxSetCurrent:1:201",
    "cuCtxGetCurrent:40:201",
    "cuDeviceGetName:1:999",
    "cuStreamCreate:1:999",
    "cuMemAlloc_v2:3:2",
    "cuMemsetD8Async:2:719",
    "cuMemcpyHtoDAsync_v2:3:719",
    "cuMemcpyDtoHAsync_v2:1:719",
    "cuMemHostAlloc:2:2",
    "cuEventCreate:2:999",
    "cuEventRecord:1:999",
    "cuEventSynchronize:1:719",
    "cuStreamSynchronize:2:719",
    "cuModuleLoadData:2:218",
    "cuModuleGetFunction:3:500",
    "cuFuncSetAttribute:1:1",
    "cuLaunchKernel:7:719",
    "cuStreamBeginCapture_v2:1:900",
    "cuStreamEndCapture:1:901",
    "cuGraphInstantiateWithFlags:1:2",
    "cuGraphLaunch:1:719",
];

/// Functions that free, whose errors come too late to matter, and the free memory that
/// is only shown: their errors end nothing.
const HARMLESS: [&str; 9] = [
    "cuMemGetInfo_v2:1:999",
    "cuMemFree_v2:1:719",
    "cuMemFreeHost:1:719",
    "cuEventDestroy_v2:1:719",
    "cuGraphExecDestroy:1:719",
    "cuGraphDestroy:1:719",
    "cuModuleUnload:1:719",
    "cuStreamDestroy_v2:1:719",
    "cuDevicePrimaryCtxRelease_v2:1:999",
];

/// Trains with each error in turn.
fn meet_all(precision: &str) {
    let Some(driver) = driver() else { return };
    for fault in FAULTS.into_iter().chain(HARMLESS) {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("run");
        let environment = [("SOFTGPU_FAULT", fault), ("SOFTGPU_ASYNC", "eager")];
        let arguments = train(text(&run), "cuda", "2", &["--precision", precision]);
        let output = langevin(driver.path(), &arguments, &environment);
        let said = errors_of(&output);
        assert!(!said.contains("panicked"), "{fault}: {said}");
        if HARMLESS.contains(&fault) {
            assert!(output.status.success(), "{fault}: {said}");
            continue;
        }
        assert!(said.contains("injected error"), "{fault} was never met: {said}");
        assert_eq!(output.status.code(), Some(1), "{fault}: {said}");
        assert!(said.contains("CUDA_ERROR_"), "{fault}: {said}");
    }
}

#[test]
fn no_driver_function_that_a_run_calls_is_left_out() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.json");
    for precision in ["f32", "bf16"] {
        let run = folder.path().join(precision);
        let arguments = train(text(&run), "cuda", "3", &["--precision", precision]);
        let output = langevin(driver.path(), &arguments, &[("SOFTGPU_REPORT", text(&report))]);
        assert!(output.status.success(), "{}", errors_of(&output));
        let said = std::fs::read_to_string(&report).expect("a report");
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        for function in said["calls"].as_object().expect("functions").keys() {
            let mut faults = FAULTS.iter().chain(&HARMLESS);
            let tried = faults.any(|fault| fault.split(':').next() == Some(function));
            assert!(tried, "{function} has no fault of its own");
        }
    }
}

#[test]
fn every_error_of_the_driver_is_told_and_none_is_a_panic() {
    meet_all("f32");
}

#[test]
fn every_error_of_the_driver_is_told_in_bf16_too() {
    meet_all("bf16");
}

#[test]
fn the_debug_switch_names_the_operation_and_the_kernel() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let environment = [("SOFTGPU_FAULT", "cuStreamSynchronize:9:719"), ("LANGEVIN_CUDA_SYNC", "1")];
    let output = langevin(driver.path(), &train(text(&run), "cuda", "1", &[]), &environment);
    let said = errors_of(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("kernel `") && said.contains("CUDA_ERROR_LAUNCH_FAILED"), "{said}");
}
