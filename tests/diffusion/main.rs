//! The mathematics of diffusion, against closed forms and against diffusers.

mod control;
mod edit;
mod empirical;
mod exact;
mod gaussian;
mod golden;
mod probe;
mod process;
mod schedule;
mod trajectory;
