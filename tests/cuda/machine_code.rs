//! Which machine code a card is offered, and that the PTX takes its place where the driver
//! refuses it. The software GPU refuses all of it, and says what it was offered.

#![cfg(langevin_cuda)]

use std::path::Path;
use std::process::{Command, Output};

use langevin::backend::cuda::entries::{IMAGES, Image};

use crate::{driver, errors_of, gpu};

/// What a build for all of them would hold.
const ARCHS: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// Tells the process that a test starts from the test.
const INSIDE: &str = "LANGEVIN_TEST_MACHINE_CODE";

/// The header of machine code for an architecture, as nvcc 13 writes it: an ELF file, the
/// architecture in the second byte of its flags. A driver that refuses it reads no more.
fn machine_code(arch: u32) -> &'static [u8] {
    let mut bytes = vec![0; 64];
    bytes[..9].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0x41, 8]);
    bytes[48..52].copy_from_slice(&(arch << 8 | 4).to_le_bytes());
    bytes.leak()
}

/// Loads a small source's kernels as a build for all architectures would.
fn load() -> langevin::Result<()> {
    let device = gpu::device().expect("built in");
    let own = IMAGES.iter().find(|image| image.name == "axis_map").expect("a source");
    let cubins = ARCHS.map(|arch| (arch, machine_code(arch))).to_vec().leak();
    let image = Image { name: own.name, ptx: own.ptx, cubins };
    let module = device.load(&image)?;
    module.load_function("axis_map_f32").expect("the PTX holds it");
    Ok(())
}

/// Loads them in a process of its own, with a report of what was offered.
fn loaded(name: &str, report: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("path of the test"));
    command.args([&format!("machine_code::{name}")]).args(["--exact", "--nocapture"]);
    command.env(INSIDE, name).env("SOFTGPU_REPORT", report).envs(environment.iter().copied());
    command.output().expect("it starts")
}

fn offered(report: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(report).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let codes = report["refused_code"].as_array().expect("a list").iter();
    codes.map(|code| code.as_u64().expect("a number")).collect()
}

#[test]
fn a_card_is_offered_its_own_code_and_takes_the_ptx_where_that_is_refused() {
    let name = "a_card_is_offered_its_own_code_and_takes_the_ptx_where_that_is_refused";
    if std::env::var(INSIDE).is_ok_and(|v| v == name) {
        return load().expect("the PTX was taken");
    }
    if driver().is_none() {
        return;
    }
    if gpu::is_system() {
        return eprintln!("SKIPPED: the software GPU alone refuses code");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.json");
    for (capability, arch) in
        [("8.0", 80), ("8.6", 86), ("8.9", 89), ("9.0", 90), ("10.0", 100), ("12.0", 120)]
    {
        let output = loaded(name, &report, &[("SOFTGPU_CC", capability)]);
        assert!(output.status.success(), "{capability}: {}", errors_of(&output));
        assert_eq!(offered(&report), [arch], "{capability}");
    }
    // A form that the driver does not know is refused with another word (200).
    let output = loaded(name, &report, &[("SOFTGPU_FAULT", "cuModuleLoadData:1:200")]);
    assert!(output.status.success(), "{}", errors_of(&output));
    assert!(errors_of(&output).contains("injected error 200"), "{}", errors_of(&output));
}

#[test]
fn other_errors_of_loading_are_told_and_so_is_a_refusal_of_both() {
    let name = "other_errors_of_loading_are_told_and_so_is_a_refusal_of_both";
    if std::env::var(INSIDE).is_ok_and(|v| v == name) {
        let said = load().expect_err("an error was injected").to_string();
        return eprintln!("{said}");
    }
    if driver().is_none() {
        return;
    }
    if gpu::is_system() {
        return eprintln!("SKIPPED: the software GPU alone refuses code");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.json");
    let said = |fault: &str| {
        let output = loaded(name, &report, &[("SOFTGPU_FAULT", fault)]);
        let said = errors_of(&output);
        assert!(output.status.success(), "{fault}: {said}");
        said
    };
    let no_memory = said("cuModuleLoadData:1:2");
    assert!(no_memory.contains("kernels of `axis_map`: CUDA_ERROR_OUT_OF_MEMORY"), "{no_memory}");
    assert!(!no_memory.contains("machine code"), "{no_memory}");
    let both = said("cuModuleLoadData:2:222");
    for word in ["CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "CUDA_ERROR_NO_BINARY_FOR_GPU"] {
        assert!(both.contains(word), "`{word}` in {both}");
    }
}
