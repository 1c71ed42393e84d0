//! The mathematics of diffusion, which sees neither a network's insides nor a
//! backend's. Everything follows from one pair of functions of time, signal
//! alpha(t) and std sigma(t), with p(x_t | x_0) = N(alpha x_0, sigma^2 I).
//!
//! ```text
//! scheduler (diffusers' configuration) -> schedule (table of pairs)
//!     -> loss    (rows of coefficients for training)
//!     -> sampler (program of stages -> rows of coefficients -> ops::sampler_step)
//! ```
//!
//! - [`process`]: the pair, the posterior between any two times.
//! - [`schedule`]: beta schedules and DDPM's discrete table.
//! - [`denoiser`]: what a network predicts, and limits on x_0.
//! - [`edit`]: inpainting, SDEdit, inversion and linear inverse problems.
//! - [`empirical`]: a data set in place of a network, and its nearest images.
//! - [`forward`]: the forward process, simulated.
//! - [`correction`]: the linear correction's coordinates.
//! - [`likelihood`]: bits for a dimension of the data, by the ODE and by the bound.
//! - [`loss`]: training targets and weights.
//! - [`scheduler`]: diffusers' `scheduler_config.json`.
//! - [`vlb`]: the variational bound by terms, and the discretised decoder.
//! - [`sampler`]: samplers as programs, and the loop that runs them.

pub mod correction;
pub mod denoiser;
pub mod edit;
pub mod empirical;
pub mod forward;
pub mod likelihood;
pub mod loss;
pub mod process;
pub mod sampler;
pub mod schedule;
pub mod scheduler;
pub mod vlb;
