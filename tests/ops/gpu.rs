//! The CUDA backend for tests: on the software GPU (tests/softgpu), which stands in
//! for the driver in this process. Nothing in the library knows.
//!
//! With `LANGEVIN_TEST_CUDA=system` (`tests/run --gpu`) it is the system's driver, a
//! card's; schedule seeds then mean nothing and are left alone.
#![allow(unsafe_code)] // Loads a library.

/// Orders in which the software GPU runs blocks and interleaves warps.
pub const SEEDS: u64 = 5;

/// Whether the tests are to run on the system's driver.
pub fn is_system() -> bool {
    std::env::var("LANGEVIN_TEST_CUDA").is_ok_and(|v| v == "system")
}

#[cfg(langevin_cuda)]
pub use with_kernels::*;

#[cfg(langevin_cuda)]
mod with_kernels {
    use std::path::PathBuf;
    use std::sync::{Arc, OnceLock};

    use langevin::backend::cuda::{Cuda, Device};
    use langevin::backend::{Backend, Precision};
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    use super::is_system;

    /// The stand-in driver, which `cargo test` builds beside the tests.
    fn driver() -> &'static Library {
        static DRIVER: OnceLock<Library> = OnceLock::new();
        DRIVER.get_or_init(|| {
            let test = std::env::current_exe().expect("path of the test");
            let deps = test.parent().expect("its folder");
            let path: PathBuf = [deps, deps.parent().expect("the profile's folder")]
                .iter()
                .map(|folder| folder.join("libsoftgpu.so"))
                .find(|path| path.exists())
                .expect("libsoftgpu.so beside the test");
            // SAFETY: the library's initialisers do nothing.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.expect("it loads")
        })
    }

    /// The device that the tests of this process share.
    pub fn device() -> Option<Arc<Device>> {
        static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
        let device = DEVICE.get_or_init(|| {
            if is_system() {
                return Device::open(0).expect("the system's driver");
            }
            driver();
            let device = Device::open(0).expect("the software GPU");
            assert!(device.name().contains("softgpu"), "not a real device: {}", device.name());
            device
        });
        Some(device.clone())
    }

    /// A backend on it, in f32.
    pub fn backend() -> Option<Box<dyn Backend>> {
        backend_in(Precision::F32)
    }

    /// A backend on it in some precision.
    pub fn backend_in(precision: Precision) -> Option<Box<dyn Backend>> {
        let backend = |device: Arc<Device>| Cuda::sharing(&device).expect("a backend");
        let in_precision = |device| backend(device).with_precision(precision);
        device().map(|device| Box::new(in_precision(device)) as Box<dyn Backend>)
    }

    /// Sets the order of blocks and warps for what follows.
    pub fn set_seed(seed: u64) {
        if is_system() {
            return;
        }
        // SAFETY: the library exports it with this type.
        let set = unsafe { driver().get::<extern "C" fn(u64)>(b"softgpu_set_seed\0") };
        set.expect("softgpu_set_seed")(seed);
    }
}

#[cfg(not(langevin_cuda))]
pub fn backend() -> Option<Box<dyn langevin::backend::Backend>> {
    let reason = langevin::backend::cuda::built().unwrap_err();
    eprintln!("SKIPPED on CUDA: the kernels are not built in: {reason}");
    None
}

#[cfg(not(langevin_cuda))]
pub fn backend_in(_: langevin::backend::Precision) -> Option<Box<dyn langevin::backend::Backend>> {
    backend()
}

#[cfg(not(langevin_cuda))]
pub fn set_seed(_: u64) {}
