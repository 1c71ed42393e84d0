//! The CUDA backend: hand-written kernels (`kernels/`), compiled by nvcc when the
//! crate is built and launched through the driver.
//!
//! CUDA is found, not demanded. Kernels are in a build that found nvcc and libclang
//! ([`built`]); a driver and a device are looked for when the backend is opened
//! ([`open`]). What is missing is named with what to do about it.
//!
//! ```text
//! kernels/<op>.cu   equation, layout, thread mapping; params.h: what it is given
//! entries           the typed table of what nvcc made of them
//! device            context, modules, checked launches
//! <op>              node -> params and grid, one file an op family
//! execute           the exhaustive match over Op
//! ```

use super::{Backend, Precision};
use crate::error::{Error, Result};

#[cfg(langevin_cuda)]
mod arguments;
#[cfg(langevin_cuda)]
mod attention;
#[cfg(langevin_cuda)]
mod axis_map;
#[cfg(langevin_cuda)]
mod backend;
#[cfg(langevin_cuda)]
mod broadcast;
#[cfg(langevin_cuda)]
mod cast;
#[cfg(langevin_cuda)]
mod concat;
#[cfg(langevin_cuda)]
pub mod conv2d;
#[cfg(langevin_cuda)]
pub mod device;
#[cfg(langevin_cuda)]
mod dropout;
#[cfg(langevin_cuda)]
mod embedding;
#[cfg(langevin_cuda)]
mod empirical;
#[cfg(langevin_cuda)]
pub mod entries;
#[cfg(langevin_cuda)]
mod execute;
#[cfg(langevin_cuda)]
mod fuse;
#[cfg(langevin_cuda)]
mod graph;
#[cfg(langevin_cuda)]
mod group;
mod linear;
#[cfg(langevin_cuda)]
mod loss;
#[cfg(langevin_cuda)]
mod lower;
#[cfg(langevin_cuda)]
mod matmul;
#[cfg(langevin_cuda)]
mod memory;
#[cfg(langevin_cuda)]
mod noising;
#[cfg(langevin_cuda)]
mod norm;
#[cfg(langevin_cuda)]
mod optimizer;
#[cfg(langevin_cuda)]
mod pointwise;
#[cfg(langevin_cuda)]
mod pooling;
#[cfg(langevin_cuda)]
mod resample;
#[cfg(langevin_cuda)]
mod sampler_control;
#[cfg(langevin_cuda)]
mod sampler_step;
#[cfg(langevin_cuda)]
mod staging;
#[cfg(langevin_cuda)]
mod variational;

#[cfg(langevin_cuda)]
pub use arguments::{Call, Launch};
#[cfg(langevin_cuda)]
pub use backend::Cuda;
#[cfg(langevin_cuda)]
pub use device::Device;
#[cfg(langevin_cuda)]
pub use entries::params;
#[cfg(langevin_cuda)]
pub(crate) use lower::lower;
#[cfg(langevin_cuda)]
pub use memory::Memory;

/// Whether the kernels are in this build; otherwise why not.
pub fn built() -> std::result::Result<(), &'static str> {
    match option_env!("LANGEVIN_CUDA_MISSING") {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// The backend on device `ordinal`, as `nvidia-smi` numbers them.
pub fn open(ordinal: usize, precision: Precision) -> Result<Box<dyn Backend>> {
    #[cfg(langevin_cuda)]
    {
        Ok(Box::new(Cuda::new(ordinal, precision)?))
    }
    #[cfg(not(langevin_cuda))]
    {
        let _ = precision;
        Err(Error::Device {
            device: format!("cuda:{ordinal}"),
            problem: format!(
                "this build has no CUDA kernels ({}); use --device cpu, or build again where \
                 nvcc and libclang are found",
                built().err().unwrap_or("unknown reason")
            ),
        })
    }
}

/// Launches the kernels of a call's node.
#[cfg(langevin_cuda)]
pub(crate) fn launch_node(call: &Call) -> Result<()> {
    execute::execute(&call.node().op, Some(call))
}

/// What is wrong with a device, in the library's error.
#[cfg(langevin_cuda)]
fn device_error(ordinal: usize, problem: impl Into<String>) -> Error {
    Error::Device { device: format!("cuda:{ordinal}"), problem: problem.into() }
}
