//! The program as a user calls it.

mod edit;
mod errors;
mod evaluate;
mod likelihood;
mod points;
mod processes;
mod resume;
mod sample;
mod schedule;

use std::path::Path;
use std::process::{Command, Output};

/// The binary under test.
pub const LANGEVIN: &str = env!("CARGO_BIN_EXE_langevin");

/// Settings of a network so small that a step takes milliseconds.
pub const TINY: [&str; 8] = [
    "model.block_out_channels=[8, 8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "train.batch=4",
    "train.sample_every=0",
    "sample.count=4",
    "sample.steps=4",
    "sample.sampler=ddim",
];

/// Runs the program and waits.
pub fn langevin(arguments: &[&str]) -> Output {
    Command::new(LANGEVIN).args(arguments).output().expect("the program starts")
}

/// The command line of a tiny training run.
pub fn tiny_train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--data", "digits", "--out", out, "--device", "cpu"];
    for set in TINY {
        arguments.extend(["--set", set]);
    }
    arguments.extend(more);
    arguments
}

/// Standard error as text.
pub fn errors_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, which must succeed.
pub fn succeed(arguments: &[&str]) -> Output {
    let output = langevin(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", errors_of(&output));
    output
}

/// Runs the program, which must fail with this exit code, without a panic, and
/// say each of these words.
pub fn fail(arguments: &[&str], code: i32, words: &[&str]) {
    let output = langevin(arguments);
    let said = errors_of(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not name {word:?}: {said}");
    }
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
