//! `langevin`: diffusion models in one binary.
