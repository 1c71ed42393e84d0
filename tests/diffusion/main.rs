//! The mathematics of diffusion, against closed forms and against diffusers.

mod control;
mod edit;
mod empirical;
mod exact;
mod correction;
mod denoiser;
mod forward;
mod gaussian;
mod golden;
mod gradients;
mod loss;
mod likelihood;
mod probe;
mod process;
mod schedule;
mod trajectory;
