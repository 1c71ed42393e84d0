//! Every op, alone: f64 references, finite differences, odd shapes.

mod common;
mod conv2d;
mod linear;
mod pointwise;
