//! Allocation, copies, fills, pools.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::errors::{self, Code};
use super::queue::{HostPtr, Work};
use super::{Driver, Handle, Kind, enter, give, unsupported};
use crate::finding::FindingKind;
use crate::memory::AllocError;

impl Driver {
    fn allocate(&mut self, bytes: usize, call: &'static str) -> Result<u64, Code> {
        let address = self.gpu.memory.alloc(bytes as u64).map_err(|e| match e {
            AllocError::OutOfMemory => errors::OUT_OF_MEMORY,
            _ => errors::INVALID_VALUE,
        })?;
        self.owned.insert(address, call);
        Ok(address)
    }

    fn bad_free(&mut self, address: u64, call: &str) -> Code {
        let error = self.gpu.memory.free(address);
        let (kind, what) = match error {
            Err(AllocError::DoubleFree) => (FindingKind::DoubleFree, "was freed before"),
            _ => (FindingKind::InvalidFree, "is not the start of an allocation"),
        };
        self.host_finding(kind, call, format!("0x{address:x} {what}"));
        errors::INVALID_VALUE
    }

    fn pinned(&self, p: *const c_void, bytes: usize) -> bool {
        let at = p as usize;
        self.pinned.range(..=at).next_back().is_some_and(|(&start, &len)| at + bytes <= start + len)
    }

    fn copy_in(&mut self, dst: u64, src: *const c_void, bytes: usize) -> Result<Work, Code> {
        if src.is_null() && bytes > 0 {
            return Err(errors::INVALID_VALUE);
        }
        if self.pinned(src, bytes) {
            return Ok(Work::CopyInPinned { dst, src: HostPtr(src.cast_mut()), bytes });
        }
        // Pageable memory is staged before the call returns.
        // SAFETY: the program promises `bytes` readable bytes.
        let data = unsafe { std::slice::from_raw_parts(src.cast::<u8>(), bytes) }.to_vec();
        Ok(Work::CopyIn { dst, data: Arc::new(data) })
    }
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(out: *mut u64, bytes: usize) -> Code {
    enter("cuMemAlloc_v2", |d| {
        d.refuse_unsafe_during_capture()?;
        let address = d.allocate(bytes, "cuMemAlloc_v2")?;
        // SAFETY: the caller's promise.
        unsafe { give(out, address) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    enter("cuMemFree_v2", |d| {
        if address == 0 {
            return Ok(());
        }
        d.refuse_unsafe_during_capture()?;
        // cuMemFree waits for the device.
        d.drain_all();
        if d.sticky != 0 {
            return Err(d.sticky);
        }
        if d.owned.remove(&address).is_none() {
            return Err(d.bad_free(address, "cuMemFree_v2"));
        }
        d.gpu.memory.free(address).map_err(|_| errors::INVALID_VALUE)
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: Handle) -> Code {
    enter("cuMemAllocAsync", |d| {
        d.refuse_allocation_in_capture(stream, "cuMemAllocAsync")?;
        let address = d.allocate(bytes, "cuMemAllocAsync").or_else(|code| {
            // Frees that were postponed give their memory back before the allocation fails.
            d.drain_all();
            if code == errors::OUT_OF_MEMORY {
                d.allocate(bytes, "cuMemAllocAsync")
            } else {
                Err(code)
            }
        })?;
        // SAFETY: the caller's promise.
        unsafe { give(out, address) }
    })
}

impl Driver {
    fn refuse_allocation_in_capture(&mut self, stream: Handle, call: &str) -> Result<(), Code> {
        let capturing = self.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?.capture;
        if let Some(id) = capturing {
            eprintln!("softgpu: {call} inside a capture (memory nodes) is not supported");
            self.invalidate(id);
            return Err(errors::CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocFromPoolAsync(
    out: *mut u64,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> Code {
    enter("cuMemAllocFromPoolAsync", |d| {
        if !d.pools.contains_key(&pool) {
            return Err(errors::INVALID_HANDLE);
        }
        d.refuse_allocation_in_capture(stream, "cuMemAllocFromPoolAsync")?;
        let address = d.allocate(bytes, "cuMemAllocFromPoolAsync")?;
        // SAFETY: the caller's promise.
        unsafe { give(out, address) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> Code {
    enter("cuMemFreeAsync", |d| {
        if address == 0 {
            return Ok(());
        }
        d.refuse_allocation_in_capture(stream, "cuMemFreeAsync")?;
        if d.owned.remove(&address).is_none() {
            return Err(d.bad_free(address, "cuMemFreeAsync"));
        }
        d.submit(stream, Work::Free { address })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocManaged(_out: *mut u64, _bytes: usize, _flags: c_uint) -> Code {
    unsupported("cuMemAllocManaged")
}

/// # Safety
/// Both pointers are null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    enter("cuMemGetInfo_v2", |d| {
        let limit = d.gpu.memory.limit();
        // SAFETY: the caller's promise.
        unsafe {
            give(free, (limit - d.gpu.memory.used()) as usize)?;
            give(total, limit as usize)
        }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(
    out: *mut *mut c_void,
    bytes: usize,
    _flags: c_uint,
) -> Code {
    enter("cuMemHostAlloc", |d| {
        d.refuse_unsafe_during_capture()?;
        if bytes == 0 {
            return Err(errors::INVALID_VALUE);
        }
        let mut p = std::ptr::null_mut();
        // SAFETY: p is a local out-pointer; 4096 is a valid alignment.
        if unsafe { libc::posix_memalign(&mut p, 4096, bytes) } != 0 {
            return Err(errors::OUT_OF_MEMORY);
        }
        d.pinned.insert(p as usize, bytes);
        // SAFETY: the caller's promise.
        unsafe { give(out, p) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(p: *mut c_void) -> Code {
    enter("cuMemFreeHost", |d| {
        d.refuse_unsafe_during_capture()?;
        d.drain_all();
        if d.pinned.remove(&(p as usize)).is_none() {
            d.host_finding(
                FindingKind::InvalidFree,
                "cuMemFreeHost",
                format!("{p:?} is not pinned memory"),
            );
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the pointer came from posix_memalign and leaves the table once.
        unsafe { libc::free(p) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(dst: u64, src: *const c_void, bytes: usize) -> Code {
    enter("cuMemcpyHtoD_v2", |d| {
        let work = d.copy_in(dst, src, bytes)?;
        d.synchronous(work)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(
    dst: u64,
    src: *const c_void,
    bytes: usize,
    stream: Handle,
) -> Code {
    enter("cuMemcpyHtoDAsync_v2", |d| {
        let work = d.copy_in(dst, src, bytes)?;
        d.submit(stream, work)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(dst: *mut c_void, src: u64, bytes: usize) -> Code {
    enter("cuMemcpyDtoH_v2", |d| d.synchronous(Work::CopyOut { dst: HostPtr(dst), src, bytes }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(
    dst: *mut c_void,
    src: u64,
    bytes: usize,
    stream: Handle,
) -> Code {
    enter("cuMemcpyDtoHAsync_v2", |d| {
        let pinned = d.pinned(dst, bytes);
        d.submit(stream, Work::CopyOut { dst: HostPtr(dst), src, bytes })?;
        // To pageable memory the call returns when the copy has completed.
        if !pinned && d.capture_status(stream)? == 0 {
            d.drain(stream, u64::MAX);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: usize) -> Code {
    enter("cuMemcpyDtoD_v2", |d| d.synchronous(Work::Copy { dst, src, bytes: bytes as u64 }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: Handle) -> Code {
    enter("cuMemcpyDtoDAsync_v2", |d| {
        d.submit(stream, Work::Copy { dst, src, bytes: bytes as u64 })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyPeerAsync(
    dst: u64,
    _dst_context: Handle,
    src: u64,
    _src_context: Handle,
    bytes: usize,
    stream: Handle,
) -> Code {
    enter("cuMemcpyPeerAsync", |d| d.submit(stream, Work::Copy { dst, src, bytes: bytes as u64 }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(dst: u64, value: u8, n: usize) -> Code {
    enter("cuMemsetD8_v2", |d| d.synchronous(Work::Fill { dst, value, bytes: n as u64 }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(dst: u64, value: u8, n: usize, stream: Handle) -> Code {
    enter("cuMemsetD8Async", |d| d.submit(stream, Work::Fill { dst, value, bytes: n as u64 }))
}

/// CUmemLocation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemLocation {
    kind: c_int,
    id: c_int,
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAdvise_v2(
    _p: u64,
    _n: usize,
    _advice: c_uint,
    _location: MemLocation,
) -> Code {
    unsupported("cuMemAdvise_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPrefetchAsync_v2(
    _p: u64,
    _n: usize,
    _location: MemLocation,
    _flags: c_uint,
    _stream: Handle,
) -> Code {
    unsupported("cuMemPrefetchAsync_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuImportExternalMemory(_out: *mut Handle, _desc: *const c_void) -> Code {
    unsupported("cuImportExternalMemory")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuExternalMemoryGetMappedBuffer(
    _out: *mut u64,
    _memory: Handle,
    _desc: *const c_void,
) -> Code {
    unsupported("cuExternalMemoryGetMappedBuffer")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDestroyExternalMemory(_memory: Handle) -> Code {
    unsupported("cuDestroyExternalMemory")
}

impl Driver {
    /// The device's own pool, made when first asked for.
    fn default_pool(&mut self) -> Handle {
        let handle = (Kind::Pool as u64) << 48;
        self.pools.entry(handle).or_default();
        handle
    }
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(out: *mut Handle, _dev: c_int) -> Code {
    enter("cuDeviceGetDefaultMemPool", |d| {
        let pool = d.default_pool();
        // SAFETY: the caller's promise.
        unsafe { give(out, pool) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetMemPool(out: *mut Handle, _dev: c_int) -> Code {
    enter("cuDeviceGetMemPool", |d| {
        let pool = d.default_pool();
        // SAFETY: the caller's promise.
        unsafe { give(out, pool) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceSetMemPool(_dev: c_int, pool: Handle) -> Code {
    enter("cuDeviceSetMemPool", |d| {
        // All pools are the device's memory; which one is current makes no difference.
        if d.pools.contains_key(&pool) { Ok(()) } else { Err(errors::INVALID_HANDLE) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolCreate(out: *mut Handle, _properties: *const c_void) -> Code {
    enter("cuMemPoolCreate", |d| {
        let pool = d.handle(Kind::Pool);
        d.pools.insert(pool, Default::default());
        // SAFETY: the caller's promise.
        unsafe { give(out, pool) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolDestroy(pool: Handle) -> Code {
    enter("cuMemPoolDestroy", |d| d.pools.remove(&pool).map(|_| ()).ok_or(errors::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(pool: Handle, _keep: usize) -> Code {
    enter("cuMemPoolTrimTo", |d| {
        if d.pools.contains_key(&pool) { Ok(()) } else { Err(errors::INVALID_HANDLE) }
    })
}

/// Attributes 1 to 3 are ints, the others 64-bit.
fn is_int(attribute: c_uint) -> bool {
    (1..=3).contains(&attribute)
}

/// # Safety
/// `value` points at the attribute's type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(
    pool: Handle,
    attribute: c_uint,
    value: *mut c_void,
) -> Code {
    enter("cuMemPoolGetAttribute", |d| {
        if !(1..=8).contains(&attribute) {
            return Err(errors::INVALID_VALUE);
        }
        let stored = d.pools.get(&pool).ok_or(errors::INVALID_HANDLE)?.get(&attribute).copied();
        let number = match attribute {
            1..=3 => stored.unwrap_or(1),
            5 | 7 => d.gpu.memory.used(),
            6 | 8 => d.gpu.memory.peak(),
            _ => stored.unwrap_or(0),
        };
        // SAFETY: the caller's promise.
        unsafe {
            if is_int(attribute) {
                give(value.cast::<c_int>(), number as c_int)
            } else {
                give(value.cast::<u64>(), number)
            }
        }
    })
}

/// # Safety
/// `value` points at the attribute's type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: Handle,
    attribute: c_uint,
    value: *mut c_void,
) -> Code {
    enter("cuMemPoolSetAttribute", |d| {
        if !(1..=8).contains(&attribute) || value.is_null() {
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let number = unsafe {
            if is_int(attribute) {
                value.cast::<c_int>().read_unaligned() as u64
            } else {
                value.cast::<u64>().read_unaligned()
            }
        };
        d.pools.get_mut(&pool).ok_or(errors::INVALID_HANDLE)?.insert(attribute, number);
        Ok(())
    })
}
