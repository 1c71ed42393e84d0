//! Data sets in every format, good and bad; their order; pictures and metrics.

mod cifar;
mod digits;
mod folder;
mod idx;
mod metrics;
mod npz;
mod order;
mod picture;
mod points;
mod progress;
mod spec;

use std::path::Path;

use langevin::data::{DataOptions, Dataset};
use langevin::{Error, Result};

/// Opens `kind:path` with default options.
fn open(kind: &str, path: &Path) -> Result<Dataset> {
    Dataset::open(&format!("{kind}:{}", path.display()), &DataOptions::default())
}

/// Asserts that opening fails on files (exit code 1) with a message that holds
/// every one of `parts`.
#[track_caller]
fn assert_refused(result: Result<Dataset>, parts: &[&str]) {
    let error = result.expect_err("must be refused");
    assert_eq!(error.exit_code(), 1, "{error}");
    assert_says(&error, parts);
}

#[track_caller]
fn assert_says(error: &Error, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}
