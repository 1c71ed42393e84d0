//! Every op, alone: f64 references, finite differences, odd shapes.

mod common;
mod pointwise;
