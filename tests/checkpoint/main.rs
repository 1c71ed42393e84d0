//! Checkpoints: files in and out, damage of every kind, run directories.

mod atomic;
mod damage;
mod diffusers;
mod support;
mod tensors;
mod training;
mod weights;
