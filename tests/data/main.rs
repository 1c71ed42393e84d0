//! Data sets in every format, good and bad; their order; pictures and metrics.

mod digits;
mod order;
mod picture;
