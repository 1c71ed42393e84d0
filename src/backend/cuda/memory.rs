//! Device memory that frees itself.
#![allow(unsafe_code)] // Driver calls on addresses.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result};

/// An allocation on a device.
#[derive(Debug)]
pub struct Memory {
    context: Arc<CudaContext>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Uninitialised bytes, at an address that is a multiple of 256.
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the context is current; an allocation of 0 bytes is an error to the driver.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }?;
        Ok(Memory { context: context.clone(), address, bytes })
    }

    /// First byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of `bytes` bytes from `offset` on, which lie inside.
    pub(super) fn at(&self, offset: usize, bytes: usize) -> u64 {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "outside the allocation");
        self.address + offset as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // An error here (a context that a failed kernel ended) has been reported
        // by the call that met it first, and frees the memory by itself.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
