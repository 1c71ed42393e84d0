//! Launches and occupancy.

use std::ffi::{c_int, c_uint, c_void};

use super::errors::{self, Code};
use super::queue::Work;
use super::{Driver, Handle, enter, give, unsupported};
use crate::exec::Dims;

// CU_LAUNCH_PARAM_ of the `extra` array.
const BUFFER_POINTER: usize = 1;
const BUFFER_SIZE: usize = 2;

/// Arguments of a launch as C passes them.
#[derive(Clone, Copy)]
struct Arguments {
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
}

impl Driver {
    fn launch(
        &mut self,
        function: Handle,
        dims: Dims,
        stream: Handle,
        arguments: Arguments,
        cooperative: bool,
    ) -> Result<(), Code> {
        let f = self.functions.get(&function).ok_or(errors::INVALID_HANDLE)?;
        let program = f.program.clone();
        if let Some(why) = self.gpu.refuse(&program, &dims, f.max_dynamic) {
            eprintln!("softgpu: launch-limit: launch of {} refused: {why}", program.name);
            return Err(errors::INVALID_VALUE);
        }
        if cooperative {
            let shared = dims.dynamic_shared + program.shared_bytes;
            let per_sm = self.gpu.chip.occupancy(dims.threads(), program.registers, shared);
            let blocks = dims.grid.iter().map(|&g| u64::from(g)).product::<u64>();
            if blocks > u64::from(per_sm * self.gpu.chip.multiprocessors) {
                return Err(errors::COOPERATIVE_LAUNCH_TOO_LARGE);
            }
        }
        let mut params = vec![0u8; program.param_bytes as usize];
        if !arguments.params.is_null() {
            for (k, p) in program.params.iter().enumerate() {
                // SAFETY: the launch contract: one pointer a parameter, each to a value of its size.
                unsafe {
                    let value = (*arguments.params.add(k)).cast::<u8>();
                    if value.is_null() {
                        return Err(errors::INVALID_VALUE);
                    }
                    let to = params.as_mut_ptr().add(p.offset as usize);
                    std::ptr::copy_nonoverlapping(value, to, p.bytes as usize);
                }
            }
        } else if !arguments.extra.is_null() {
            // SAFETY: the launch contract: keys and values until a null key.
            unsafe { copy_extra(arguments.extra, &mut params)? };
        } else if !program.params.is_empty() {
            return Err(errors::INVALID_VALUE);
        }
        self.submit(stream, Work::Launch { program, dims, params, cooperative })
    }
}

unsafe fn copy_extra(extra: *mut *mut c_void, params: &mut [u8]) -> Result<(), Code> {
    let (mut buffer, mut bytes) = (std::ptr::null::<u8>(), 0usize);
    let mut at = 0;
    // SAFETY: the caller's promise.
    unsafe {
        loop {
            match *extra.add(at) as usize {
                0 => break,
                BUFFER_POINTER => buffer = (*extra.add(at + 1)).cast(),
                BUFFER_SIZE => bytes = (*extra.add(at + 1)).cast::<usize>().read_unaligned(),
                _ => return Err(errors::INVALID_VALUE),
            }
            at += 2;
        }
        if buffer.is_null() || bytes < params.len() {
            return Err(errors::INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(buffer, params.as_mut_ptr(), params.len());
    }
    Ok(())
}

/// # Safety
/// The arguments follow the launch contract of the CUDA driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    stream: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    enter("cuLaunchKernel", |d| {
        let dims = Dims { grid: [gx, gy, gz], block: [bx, by, bz], dynamic_shared: shared };
        d.launch(function, dims, stream, Arguments { params, extra }, false)
    })
}

/// # Safety
/// The arguments follow the launch contract of the CUDA driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    stream: Handle,
    params: *mut *mut c_void,
) -> Code {
    enter("cuLaunchCooperativeKernel", |d| {
        let dims = Dims { grid: [gx, gy, gz], block: [bx, by, bz], dynamic_shared: shared };
        let arguments = Arguments { params, extra: std::ptr::null_mut() };
        d.launch(function, dims, stream, arguments, true)
    })
}

/// CUlaunchAttribute: 64 bytes of value behind the number.
#[repr(C)]
pub struct LaunchAttribute {
    id: c_uint,
    pad: [u8; 4],
    value: [u32; 16],
}

/// CUlaunchConfig.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: Handle,
    attributes: *mut LaunchAttribute,
    attribute_len: c_uint,
}

// CUlaunchAttributeID
const ATTRIBUTE_COOPERATIVE: c_uint = 2;
const ATTRIBUTE_CLUSTER: c_uint = 4;
const ATTRIBUTE_PROGRAMMATIC: c_uint = 6;
const ATTRIBUTE_PRIORITY: c_uint = 8;

/// # Safety
/// The arguments follow the launch contract of the CUDA driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    enter("cuLaunchKernelEx", |d| {
        if config.is_null() {
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let config = unsafe { &*config };
        let mut cooperative = false;
        for k in 0..config.attribute_len as usize {
            // SAFETY: the array has attribute_len entries.
            let a = unsafe { &*config.attributes.add(k) };
            match a.id {
                0 | 1 | ATTRIBUTE_PROGRAMMATIC | ATTRIBUTE_PRIORITY => {}
                ATTRIBUTE_COOPERATIVE => cooperative = a.value[0] != 0,
                ATTRIBUTE_CLUSTER if a.value[..3] == [1, 1, 1] => {}
                id => {
                    eprintln!("softgpu: cuLaunchKernelEx attribute {id} is not supported");
                    return Err(errors::NOT_SUPPORTED);
                }
            }
        }
        let dims = Dims { grid: config.grid, block: config.block, dynamic_shared: config.shared };
        d.launch(function, dims, config.stream, Arguments { params, extra }, cooperative)
    })
}

impl Driver {
    fn occupancy(&self, function: Handle, threads: c_int, dynamic: usize) -> Result<u32, Code> {
        let f = self.functions.get(&function).ok_or(errors::INVALID_HANDLE)?;
        let threads =
            u32::try_from(threads).ok().filter(|&t| t > 0).ok_or(errors::INVALID_VALUE)?;
        let dynamic = u32::try_from(dynamic).map_err(|_| errors::INVALID_VALUE)?;
        let shared = f.program.shared_bytes + dynamic;
        if dynamic > f.max_dynamic {
            return Ok(0);
        }
        Ok(self.gpu.chip.occupancy(threads, f.program.registers, shared))
    }

    fn best_block(
        &self,
        function: Handle,
        shared_of: Option<extern "C" fn(c_int) -> usize>,
        dynamic: usize,
        limit: c_int,
    ) -> Result<(c_int, c_int), Code> {
        let f = self.functions.get(&function).ok_or(errors::INVALID_HANDLE)?;
        let bound = f.program.max_threads.map_or(1024, |(m, _)| (m[0] * m[1] * m[2]) as c_int);
        let most = if limit > 0 { bound.min(limit) } else { bound };
        let mut best = (0, 0, 0);
        let mut threads = most / 32 * 32;
        while threads >= 32 {
            let bytes = shared_of.map_or(dynamic, |of| of(threads));
            let blocks = self.occupancy(function, threads, bytes)? as c_int;
            if blocks * threads > best.0 {
                best = (blocks * threads, threads, blocks);
            }
            threads -= 32;
        }
        Ok((best.2 * self.gpu.chip.multiprocessors as c_int, best.1))
    }
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: *mut c_int,
    function: Handle,
    threads: c_int,
    dynamic: usize,
) -> Code {
    enter("cuOccupancyMaxActiveBlocksPerMultiprocessor", |d| {
        let blocks = d.occupancy(function, threads, dynamic)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, blocks as c_int) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    out: *mut c_int,
    function: Handle,
    threads: c_int,
    dynamic: usize,
    _flags: c_uint,
) -> Code {
    enter("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", |d| {
        let blocks = d.occupancy(function, threads, dynamic)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, blocks as c_int) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    out: *mut usize,
    function: Handle,
    blocks: c_int,
    _threads: c_int,
) -> Code {
    enter("cuOccupancyAvailableDynamicSMemPerBlock", |d| {
        let f = d.functions.get(&function).ok_or(errors::INVALID_HANDLE)?;
        let blocks = u32::try_from(blocks).ok().filter(|&b| b > 0).ok_or(errors::INVALID_VALUE)?;
        let each = (d.gpu.chip.shared_per_sm / blocks)
            .saturating_sub(crate::chip::SHARED_RESERVED + f.program.shared_bytes);
        // SAFETY: the caller's promise.
        unsafe { give(out, each.min(f.max_dynamic) as usize) }
    })
}

/// # Safety
/// The out-pointers are valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    shared_of: Option<extern "C" fn(c_int) -> usize>,
    dynamic: usize,
    limit: c_int,
) -> Code {
    enter("cuOccupancyMaxPotentialBlockSize", |d| {
        let (g, b) = d.best_block(function, shared_of, dynamic, limit)?;
        // SAFETY: the caller's promise.
        unsafe {
            give(grid, g)?;
            give(block, b)
        }
    })
}

/// # Safety
/// The out-pointers are valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    shared_of: Option<extern "C" fn(c_int) -> usize>,
    dynamic: usize,
    limit: c_int,
    _flags: c_uint,
) -> Code {
    enter("cuOccupancyMaxPotentialBlockSizeWithFlags", |d| {
        let (g, b) = d.best_block(function, shared_of, dynamic, limit)?;
        // SAFETY: the caller's promise.
        unsafe {
            give(grid, g)?;
            give(block, b)
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveClusters(
    _out: *mut c_int,
    _function: Handle,
    _config: *const c_void,
) -> Code {
    unsupported("cuOccupancyMaxActiveClusters")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxPotentialClusterSize(
    _out: *mut c_int,
    _function: Handle,
    _config: *const c_void,
) -> Code {
    unsupported("cuOccupancyMaxPotentialClusterSize")
}
