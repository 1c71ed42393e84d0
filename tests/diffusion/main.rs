//! The mathematics of diffusion, against closed forms and against diffusers.

mod golden;
mod schedule;
