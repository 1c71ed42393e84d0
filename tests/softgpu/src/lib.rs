//! A CUDA driver that executes PTX on the CPU: test equipment.
//!
//! ```text
//!  driver    the libcuda ABI: contexts, streams, events, graphs, modules
//!    |
//!  gpu       memory + modules + launches, without the ABI
//!    |    \
//!  exec    memory      blocks, warps, lanes | device and shared memory with their shadows
//!    |
//!  isa       decoded programs, lane loops
//!    |
//!  ptx       text to syntax tree
//! ```
//!
//! It proves function, memory safety and access patterns. It says nothing about time.

pub mod chip;

pub mod driver;
pub mod exec;
pub mod finding;
pub mod gpu;
pub mod isa;
pub mod memory;
pub mod ptx;
pub mod settings;
