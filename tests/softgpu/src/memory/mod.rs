//! Device memory and its shadow: what is addressable, what is initialised, who touched it last.

pub mod bits;
mod clocks;
mod device;
pub mod race;
mod region;
mod shared;

pub use clocks::{Access, Listed, Sharing, WordLanes};
pub use device::{AllocError, DeviceMemory};
pub use region::Region;
pub use shared::SharedMemory;

/// Device addresses start here: far from host addresses, so that mixing them up is noticed.
pub const GLOBAL_BASE: u64 = 1 << 44;

/// Generic addresses of shared memory: the window's number is the upper half.
pub const SHARED_WINDOW: u64 = 5 << 32;

/// Generic addresses of local memory.
pub const LOCAL_WINDOW: u64 = 6 << 32;
