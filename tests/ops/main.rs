//! Every op, alone: f64 references, finite differences, odd shapes.

mod common;
mod conv2d;
mod dropout;
mod linear;
mod loss;
mod noising;
mod optimizer;
mod pointwise;
