//! PTX text to syntax tree. Nothing here knows what an instruction means.

pub mod ast;
mod lexer;
mod parser;

pub use parser::parse;

/// Why a module was refused, with the place in the PTX text.
#[derive(Debug, Clone, thiserror::Error)]
#[error("ptx line {line}: {message}: `{text}`")]
pub struct PtxError {
    /// 1-based line in the PTX text; 0 when no single line is to blame.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// The offending token or instruction.
    pub text: String,
}

impl PtxError {
    /// An error at `line` about `text`.
    pub fn new(line: u32, message: impl Into<String>, text: impl Into<String>) -> Self {
        PtxError { line, message: message.into(), text: text.into() }
    }
}
