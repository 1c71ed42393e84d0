//! Checkpoints: diffusers directories in and out, the training state beside
//! them, and files that are replaced whole or not at all.
//!
//! - [`atomic`]: every output of the program is written aside, synced, renamed.
//! - [`format`]: safetensors files, with a checksum in those we write.
//! - [`weights`]: a network's weights, from safetensors (sharded, half
//!   precision) or PyTorch `.bin`, into a parameter arena and back.
//! - [`diffusers`]: finding a model behind a path; writing a pipeline directory.
//! - [`training`]: the optimizer's state, run directories, locks, pruning.
//! - [`tensors`]: named tensors for the command line, NCHW.

pub mod atomic;
pub mod diffusers;
pub mod format;
mod pickle;
pub mod tensors;
mod torch;
pub mod training;
pub mod weights;
