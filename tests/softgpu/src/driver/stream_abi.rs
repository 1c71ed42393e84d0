//! Streams, events, capture.

use std::ffi::{c_int, c_uint, c_void};
use std::time::Instant;

use super::errors::{self, Code};
use super::queue::{Event, HostPtr, Stream, Work};
use super::{Driver, Handle, Kind, LEGACY, enter, give, unsupported};

/// CU_STREAM_NON_BLOCKING
const NON_BLOCKING: c_uint = 1;
/// CU_EVENT_DISABLE_TIMING
const DISABLE_TIMING: c_uint = 2;

impl Driver {
    fn create_stream(&mut self, flags: c_uint) -> Result<Handle, Code> {
        if flags > 1 {
            return Err(errors::INVALID_VALUE);
        }
        let handle = self.handle(Kind::Stream);
        self.streams.insert(handle, Stream::new(flags & NON_BLOCKING == 0));
        Ok(handle)
    }
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(out: *mut Handle, flags: c_uint) -> Code {
    enter("cuStreamCreate", |d| {
        let handle = d.create_stream(flags)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    out: *mut Handle,
    flags: c_uint,
    _priority: c_int,
) -> Code {
    enter("cuStreamCreateWithPriority", |d| {
        let handle = d.create_stream(flags)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Code {
    enter("cuStreamDestroy_v2", |d| {
        if stream == LEGACY || !d.streams.contains_key(&stream) {
            return Err(errors::INVALID_HANDLE);
        }
        // Queued work still completes.
        d.drain(stream, u64::MAX);
        if let Some(id) = d.streams.get(&stream).and_then(|s| s.capture) {
            d.invalidate(id);
        }
        d.streams.remove(&stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> Code {
    enter("cuStreamSynchronize", |d| {
        d.refuse_if_capturing(stream)?;
        if stream == LEGACY {
            d.refuse_legacy_during_capture()?;
        }
        d.drain(stream, u64::MAX);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> Code {
    enter("cuStreamWaitEvent", |d| {
        if d.capture_wait(stream, event)? {
            return Ok(());
        }
        let version = d.events.get(&event).ok_or(errors::INVALID_HANDLE)?.version;
        d.submit(stream, Work::Wait { event, version })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamAttachMemAsync(
    _stream: Handle,
    _p: u64,
    _n: usize,
    _flags: c_uint,
) -> Code {
    unsupported("cuStreamAttachMemAsync")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) -> Code {
    enter("cuStreamBeginCapture_v2", |d| d.begin_capture(stream, mode))
}

/// # Safety
/// `graph` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> Code {
    enter("cuStreamEndCapture", |d| {
        // SAFETY: the caller's promise.
        unsafe { give(graph, 0)? };
        let handle = d.end_capture(stream)?;
        // SAFETY: the caller's promise.
        unsafe { give(graph, handle) }
    })
}

/// # Safety
/// `status` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, status: *mut c_uint) -> Code {
    enter("cuStreamIsCapturing", |d| {
        let value = d.capture_status(stream)?;
        // SAFETY: the caller's promise.
        unsafe { give(status, value) }
    })
}

/// # Safety
/// `function` is a C function that takes `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> Code {
    enter("cuLaunchHostFunc", |d| {
        let function = function.ok_or(errors::INVALID_VALUE)?;
        d.submit(stream, Work::Host { function, data: HostPtr(data) })
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(out: *mut Handle, flags: c_uint) -> Code {
    enter("cuEventCreate", |d| {
        let handle = d.handle(Kind::Event);
        d.events
            .insert(handle, Event { no_timing: flags & DISABLE_TIMING != 0, ..Event::default() });
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

impl Driver {
    fn event(&mut self, event: Handle) -> Result<&mut Event, Code> {
        self.events.get_mut(&event).filter(|e| !e.destroyed).ok_or(errors::INVALID_HANDLE)
    }

    /// An event the host may wait for.
    fn host_event(&mut self, event: Handle) -> Result<u64, Code> {
        let e = self.event(event)?;
        if let Some((id, _)) = e.captured {
            self.invalidate(id);
            return Err(errors::CAPTURED_EVENT);
        }
        Ok(self.event(event)?.version)
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> Code {
    enter("cuEventDestroy_v2", |d| {
        let e = d.event(event)?;
        if e.done >= e.version {
            d.events.remove(&event);
        } else {
            e.destroyed = true;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Code {
    enter("cuEventRecord", |d| {
        d.event(event)?;
        let capture = d.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?.capture;
        if let Some(id) = capture {
            let frontier = d.captured_frontier(id, stream)?;
            d.event(event)?.captured = Some((id, frontier));
            return Ok(());
        }
        let e = d.event(event)?;
        // Waiting for an earlier version can only look in the stream of the latest.
        let moved = e.stream != stream && e.done < e.version;
        let old_version = e.version;
        if moved {
            d.reach(event, old_version);
        }
        let e = d.event(event)?;
        e.captured = None;
        e.version += 1;
        e.stream = stream;
        let version = e.version;
        d.submit(stream, Work::Record { event, version })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: Handle) -> Code {
    enter("cuEventQuery", |d| {
        let version = d.host_event(event)?;
        let e = d.event(event)?;
        if e.done >= version {
            return Ok(());
        }
        // A program that polls must see progress.
        let stream = e.stream;
        d.drain_one(stream);
        if d.sticky != 0 {
            return Err(d.sticky);
        }
        Err(errors::NOT_READY)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> Code {
    enter("cuEventSynchronize", |d| {
        let version = d.host_event(event)?;
        d.reach(event, version);
        Ok(())
    })
}

impl Driver {
    fn elapsed(&mut self, start: Handle, end: Handle) -> Result<f32, Code> {
        let mut times = [Instant::now(); 2];
        for (time, handle) in times.iter_mut().zip([start, end]) {
            self.host_event(handle)?;
            let e = self.event(handle)?;
            if e.no_timing || e.version == 0 {
                return Err(errors::INVALID_HANDLE);
            }
            if e.done < e.version {
                return Err(errors::NOT_READY);
            }
            *time = e.time.ok_or(errors::INVALID_HANDLE)?;
        }
        // The host's time for the work: it says nothing about a GPU.
        let [a, b] = times;
        Ok(if b >= a { (b - a).as_secs_f32() * 1e3 } else { -(a - b).as_secs_f32() * 1e3 })
    }
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(out: *mut f32, start: Handle, end: Handle) -> Code {
    enter("cuEventElapsedTime", |d| {
        let ms = d.elapsed(start, end)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, ms) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(out: *mut f32, start: Handle, end: Handle) -> Code {
    enter("cuEventElapsedTime_v2", |d| {
        let ms = d.elapsed(start, end)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, ms) }
    })
}
