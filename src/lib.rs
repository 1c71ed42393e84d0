//! `langevin` trains, samples and scores diffusion models: one binary, no
//! Python, no framework.
//!
//! ```text
//! config -> model (a static plan of ops) -> memory plan (one arena)
//!        -> backend (cpu or cuda) -> loop (train, sample, score)
//!        -> checkpoint, pictures, numbers
//! ```
//!
//! - [`model`]: networks: a configuration becomes a plan and its weights.
//! - [`plan`]: tensors with static shapes, an ordered list of [`ops`], derived
//!   backward, lifetimes turned into offsets.
//! - [`backend`]: the narrow trait that executes a plan; [`backend::cpu`],
//!   [`backend::cuda`]; `kernels`: single CUDA kernels on device tensors.
//! - [`diffusion`]: processes, denoisers, losses and samplers on one pair of
//!   functions of time.
//! - [`random`]: counter-based random numbers, the same bits on every backend.
//! - [`checkpoint`]: diffusers directories in and out, training state, atomic
//!   files.
//! - [`data`]: pictures to learn from; [`picture`]: pictures to look at.
//! - [`config`]: one validated value for everything; [`train`]: the loop;
//!   [`predict`]: the bare network; [`evaluate`]: scores of samples.

pub mod backend;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod diffusion;
pub mod error;
pub mod evaluate;
#[cfg(langevin_cuda)]
pub mod kernels;
pub mod likelihood;
pub mod model;
pub mod ops;
pub mod picture;
pub mod plan;
pub mod predict;
pub mod random;
pub mod sample;
pub mod train;

pub use error::{Error, Result};
