//! The one error type of the library.
//!
//! Every variant names the thing that is wrong and, where there is one, the
//! remedy. Exit codes follow from [`Error::exit_code`]: 2 for flags and
//! configuration, 1 for files, devices and data.

use std::path::{Path, PathBuf};

/// Result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by kind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration key is unknown, of the wrong type or out of range.
    #[error("configuration key `{key}`: {problem}")]
    Config {
        /// Full path of the key, e.g. `model.block_out_channels`.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A flag or argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// A tensor does not have the shape an operation needs.
    #[error("{op}: `{tensor}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The tensor's name.
        tensor: String,
        /// What the operation needs.
        expected: String,
        /// What it was given.
        found: Vec<usize>,
    },
    /// A file could not be read or written.
    #[error("{action} `{}`: {source}", path.display())]
    File {
        /// What was tried, e.g. "cannot read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file was read and its content is not what it should be.
    #[error("`{}`: {problem}", path.display())]
    Content {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A checkpoint's tensors do not fit the network.
    #[error("checkpoint `{}`: {problem}", path.display())]
    Checkpoint {
        /// The checkpoint directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Data cannot be used.
    #[error("data `{spec}`: {problem}")]
    Data {
        /// The data SPEC as given.
        spec: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The device is missing, too small or failed.
    #[error("device {device}: {problem}")]
    Device {
        /// Which device.
        device: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A kernel could not be launched, or failed.
    #[error("{op}: kernel `{kernel}`: {problem}")]
    Launch {
        /// The operation.
        op: &'static str,
        /// The kernel's entry.
        kernel: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A value became NaN or infinite.
    #[error("step {step}: {what} is not finite{}; {remedy}", tensor.as_ref().map(|t| format!(" (first in tensor `{t}`)")).unwrap_or_default())]
    NotFinite {
        /// Training step.
        step: u64,
        /// What was checked.
        what: String,
        /// First tensor, in execution order, that holds such a value.
        tensor: Option<String>,
        /// What to try.
        remedy: String,
    },
    /// The run was interrupted and saved.
    #[error("interrupted at step {step}; saved to `{}`", saved.display())]
    Interrupted {
        /// Last finished step.
        step: u64,
        /// Where it was saved.
        saved: PathBuf,
    },
}

impl Error {
    /// A wrong configuration key.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Config { key: key.into(), problem: problem.into() }
    }

    /// A failed file operation; use as `.map_err(Error::file("cannot read", path))`.
    pub fn file(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::File { action, path, source }
    }

    /// A file whose content is wrong.
    pub fn content(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::Content { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// A checkpoint that cannot be used.
    pub fn checkpoint(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// The process exit code for this error (DESIGN: 2 flags and keys, 1 the
    /// rest, 130 after a saved interrupt).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Config { .. } | Error::Usage(_) => 2,
            Error::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}
