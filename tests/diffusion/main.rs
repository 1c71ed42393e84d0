//! The mathematics of diffusion, against closed forms and against diffusers.

mod empirical;
mod gaussian;
mod golden;
mod probe;
mod process;
mod schedule;
mod trajectory;
