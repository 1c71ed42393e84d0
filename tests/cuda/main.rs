//! The program on the CUDA backend, as a user calls it, with the software GPU as its
//! driver; and against the CPU backend.

mod device;
mod digits;
mod engine;
mod faults;
#[path = "../model/golden.rs"]
#[allow(dead_code)] // Shared with the networks' tests.
mod golden;
#[path = "../ops/gpu.rs"]
#[allow(dead_code)] // Shared with the ops' tests, each of which uses a part.
mod gpu;
mod graphs;
mod kernels;
mod machine_code;
#[cfg(langevin_cuda)]
mod precision;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Settings of a network so small that a step is quick on the software GPU too.
const TINY: [&str; 9] = [
    "model.block_out_channels=[8, 8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "train.batch=2",
    "train.sample_every=0",
    "train.log_every=1",
    "sample.sampler=ddim",
    "sample.steps=2",
    "sample.count=2",
];

/// A folder in which the software GPU goes by the driver's name (an empty one where the
/// tests are to run on the system's driver); none, said aloud, where the kernels are not
/// built in.
fn driver() -> Option<tempfile::TempDir> {
    if let Err(reason) = langevin::backend::cuda::built() {
        eprintln!("SKIPPED: the CUDA kernels are not built in: {reason}");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    if gpu::is_system() {
        return Some(folder);
    }
    let test = std::env::current_exe().expect("path of the test");
    let deps = test.parent().expect("its folder");
    let library: PathBuf = [deps, deps.parent().expect("the profile's folder")]
        .iter()
        .map(|folder| folder.join("libsoftgpu.so"))
        .find(|path| path.exists())
        .expect("libsoftgpu.so beside the test");
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.path().join(name)).expect("a link");
    }
    Some(folder)
}

/// Where the loader looks first.
fn library_path(driver: &Path) -> std::ffi::OsString {
    let mut folders = vec![driver.to_path_buf()];
    if gpu::is_system()
        && let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH")
    {
        folders.extend(std::env::split_paths(&inherited));
    }
    std::env::join_paths(folders).expect("folders without a colon")
}

/// Runs the program on that driver.
fn langevin(driver: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_langevin"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", library_path(driver))
        .envs(environment.iter().copied())
        .output()
        .expect("the program starts")
}

/// Standard error as text.
fn errors_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, which must succeed and leave no finding.
fn succeed(driver: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let output = langevin(driver, arguments, environment);
    let said = errors_of(&output);
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert!(!said.contains("softgpu:"), "{arguments:?}: {said}");
    output
}

/// The command line of a tiny training run.
fn train<'a>(out: &'a str, device: &'a str, steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments =
        vec!["train", "--data", "digits", "--out", out, "--device", device, "--steps", steps];
    for set in TINY {
        arguments.extend(["--set", set]);
    }
    arguments.extend(more);
    arguments
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}
