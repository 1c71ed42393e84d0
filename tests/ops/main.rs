//! Every op, alone: f64 references, finite differences, odd shapes.

mod attention;
mod attention_half;
mod axis_map;
mod broadcast;
mod common;
mod concat;
mod conv2d;
mod conv2d_kernels;
mod dropout;
mod embedding;
mod empirical;
mod gpu;
mod linear;
mod linear_group;
mod loss;
mod lowering;
mod noising;
mod norm;
mod norm_half;
mod optimizer;
mod pointwise;
mod pooling;
mod resample;
mod sampler_control;
mod sampler_step;
mod variational;
