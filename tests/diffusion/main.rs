//! The mathematics of diffusion, against closed forms and against diffusers.

mod control;
mod correction;
mod denoiser;
mod edit;
mod empirical;
mod exact;
mod forward;
mod gaussian;
mod golden;
mod gradients;
mod likelihood;
mod loss;
mod probe;
mod process;
mod schedule;
mod trajectory;
