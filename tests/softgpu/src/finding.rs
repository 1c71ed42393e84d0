//! What strictness reports.

use std::fmt;

use serde::Serialize;

/// The kinds of defects, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum FindingKind {
    OutOfBounds,
    Misaligned,
    UseAfterFree,
    UninitialisedGlobal,
    UninitialisedShared,
    UninitialisedLocal,
    UninitialisedRegister,
    AsyncCopyNotAwaited,
    AsyncCopyMisuse,
    SharedRace,
    GlobalRace,
    ReadOnlyWritten,
    BarrierDivergence,
    MissingLanes,
    Deadlock,
    StepLimit,
    Trap,
    Assertion,
    LaunchLimit,
    CallDepth,
    InvalidOperand,
    DoubleFree,
    InvalidFree,
    Leak,
    HostRead,
}

impl FindingKind {
    /// The name in reports and messages.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_string))
            .unwrap_or_default()
    }
}

/// A defect with its place.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// Kernel, or the driver call outside kernels.
    pub kernel: String,
    /// Block index.
    pub block: [u32; 3],
    /// Thread index in the block.
    pub thread: [u32; 3],
    /// PTX line; 0 outside kernels.
    pub line: u32,
    /// The PTX of that line.
    pub text: String,
    /// Source file and line where nvcc left them (-lineinfo).
    pub source: Option<(String, u32)>,
    /// Particulars.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)?;
        if self.line != 0 {
            let [x, y, z] = self.block;
            let [i, j, k] = self.thread;
            write!(
                f,
                " (kernel {}, block {x},{y},{z}, thread {i},{j},{k}, ptx line {}: `{}`",
                self.kernel, self.line, self.text
            )?;
            if let Some((file, line)) = &self.source {
                write!(f, ", {file}:{line}")?;
            }
            write!(f, ")")?;
        } else if !self.kernel.is_empty() {
            write!(f, " ({})", self.kernel)?;
        }
        Ok(())
    }
}

impl std::error::Error for Finding {}
