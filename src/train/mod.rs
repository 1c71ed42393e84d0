//! The training loop's parts: what a run reports of its steps, and how far it is.

pub mod metrics;
pub mod progress;
pub mod schedules;
