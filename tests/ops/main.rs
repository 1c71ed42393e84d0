//! Every op, alone: f64 references, finite differences, odd shapes.

mod broadcast;
mod common;
<<<<<<< HEAD
mod conv2d;
mod dropout;
mod linear;
mod loss;
mod noising;
mod optimizer;
=======
mod concat;
mod embedding;
mod norm;
>>>>>>> 4be9f8b (Run norms, broadcasts, concat, resampling and embeddings on the CPU)
mod pointwise;
mod resample;
