//! Streams as queues of work, and when the work happens: at once (eager), or when something that
//! must wait for it does (late).

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use super::capture::Node;
use super::errors::{self, Code};
use super::{Driver, Handle, IN_HOST_FUNCTION, LEGACY};
use crate::exec::Dims;
use crate::finding::FindingKind;
use crate::isa::Program;
use crate::settings::AsyncMode;

/// A stream never holds more than this much postponed work.
const MOST_POSTPONED: usize = 4096;

/// A host address that crosses threads by the CUDA program's own promise.
#[derive(Clone, Copy)]
pub struct HostPtr(pub *mut c_void);

// SAFETY: the program that passed the pointer to an asynchronous call keeps it valid until the
// call has completed, on whatever thread; that is CUDA's contract.
unsafe impl Send for HostPtr {}
// SAFETY: as above.
unsafe impl Sync for HostPtr {}

/// A piece of work.
#[derive(Clone)]
pub enum Work {
    /// A kernel.
    Launch { program: Arc<Program>, dims: Dims, params: Vec<u8>, cooperative: bool },
    /// Host to device, bytes taken at the call (pageable memory).
    CopyIn { dst: u64, data: Arc<Vec<u8>> },
    /// Host to device, read when it happens (pinned memory).
    CopyInPinned { dst: u64, src: HostPtr, bytes: usize },
    /// Device to host.
    CopyOut { dst: HostPtr, src: u64, bytes: usize },
    /// Device to device.
    Copy { dst: u64, src: u64, bytes: u64 },
    /// Set bytes.
    Fill { dst: u64, value: u8, bytes: u64 },
    /// Record the n-th version of an event.
    Record { event: Handle, version: u64 },
    /// Wait for a version of an event.
    Wait { event: Handle, version: u64 },
    /// Call the host.
    Host { function: extern "C" fn(*mut c_void), data: HostPtr },
    /// Free at this point of the stream.
    Free { address: u64 },
    /// A graph.
    Graph(Arc<Vec<Node>>),
}

impl Work {
    /// Its kind, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Launch { .. } => "kernel",
            Work::CopyIn { .. } | Work::CopyInPinned { .. } => "copy to the device",
            Work::CopyOut { .. } => "copy to the host",
            Work::Copy { .. } => "copy",
            Work::Fill { .. } => "fill",
            Work::Record { .. } | Work::Wait { .. } => "event",
            Work::Host { .. } => "host function",
            Work::Free { .. } => "free",
            Work::Graph(_) => "graph",
        }
    }
}

/// Queued work: its number and what must be done first (stream, up to this number).
pub struct Item {
    ticket: u64,
    after: Vec<(Handle, u64)>,
    work: Work,
}

/// A stream.
pub struct Stream {
    /// Synchronises with the legacy stream.
    pub blocking: bool,
    queue: VecDeque<Item>,
    last: u64,
    /// The capture it takes part in.
    pub capture: Option<u64>,
}

impl Stream {
    /// An empty stream.
    pub fn new(blocking: bool) -> Stream {
        Stream { blocking, queue: VecDeque::new(), last: 0, capture: None }
    }
}

/// An event.
#[derive(Default)]
pub struct Event {
    /// How often it was recorded.
    pub version: u64,
    /// The last version that has happened.
    pub done: u64,
    /// Where it was last recorded.
    pub stream: Handle,
    /// When.
    pub time: Option<Instant>,
    /// Last recorded inside a capture: its number and the nodes then last.
    pub captured: Option<(u64, Vec<usize>)>,
    /// Keeps no time.
    pub no_timing: bool,
    /// Destroyed by the program; pending work may still name it.
    pub destroyed: bool,
}

impl Driver {
    /// Adds work to a stream (or to its capture).
    pub fn submit(&mut self, stream: Handle, work: Work) -> Result<(), Code> {
        let capture = self.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?.capture;
        if let Some(id) = capture {
            return self.capture_node(id, stream, work);
        }
        if stream == LEGACY {
            self.refuse_legacy_during_capture()?;
        }
        let after = self.implicit(stream);
        self.ticket += 1;
        let ticket = self.ticket;
        let s = self.streams.get_mut(&stream).ok_or(errors::INVALID_HANDLE)?;
        s.last = ticket;
        s.queue.push_back(Item { ticket, after, work });
        let full = s.queue.len() > MOST_POSTPONED;
        if self.gpu.settings.asynchrony == AsyncMode::Eager || full {
            self.drain(stream, u64::MAX);
        }
        Ok(())
    }

    /// What the legacy stream's implicit synchronisation puts before new work of `stream`.
    fn implicit(&self, stream: Handle) -> Vec<(Handle, u64)> {
        if stream == LEGACY {
            let others = self.streams.iter().filter(|(h, s)| **h != LEGACY && s.blocking);
            return others
                .filter(|(_, s)| !s.queue.is_empty())
                .map(|(h, s)| (*h, s.last))
                .collect();
        }
        match (self.streams.get(&stream), self.streams.get(&LEGACY)) {
            (Some(s), Some(legacy)) if s.blocking && !legacy.queue.is_empty() => {
                vec![(LEGACY, legacy.last)]
            }
            _ => Vec::new(),
        }
    }

    /// Does the work of a stream up to and including `ticket`.
    pub fn drain(&mut self, stream: Handle, ticket: u64) {
        while self.sticky == 0 {
            let Some(s) = self.streams.get_mut(&stream) else { return };
            if s.queue.front().is_none_or(|i| i.ticket > ticket) {
                return;
            }
            let Some(item) = s.queue.pop_front() else { return };
            for (other, until) in item.after {
                self.drain(other, until);
            }
            self.perform(item.work);
        }
    }

    /// Does one piece of a stream's work; false when it had none.
    pub fn drain_one(&mut self, stream: Handle) -> bool {
        let front = self.streams.get(&stream).and_then(|s| s.queue.front()).map(|i| i.ticket);
        if let Some(ticket) = front {
            self.drain(stream, ticket);
        }
        front.is_some()
    }

    /// True when a stream has nothing left to do.
    pub fn is_idle(&self, stream: Handle) -> bool {
        self.streams.get(&stream).is_none_or(|s| s.queue.is_empty())
    }

    /// Does everything, streams in a seeded order.
    pub fn drain_all(&mut self) {
        let mut handles: Vec<Handle> = self.streams.keys().copied().collect();
        while !handles.is_empty() {
            let k = (self.draw() % handles.len() as u64) as usize;
            let handle = handles.swap_remove(k);
            self.drain(handle, u64::MAX);
        }
    }

    /// Work of a synchronous call: after the legacy stream, waited for.
    pub fn synchronous(&mut self, work: Work) -> Result<(), Code> {
        self.refuse_unsafe_during_capture()?;
        self.submit(LEGACY, work)?;
        self.drain(LEGACY, u64::MAX);
        Ok(())
    }

    fn fail(&mut self, code: Code) {
        self.sticky = code;
    }

    fn bad_range(&mut self, call: &str, address: u64, bytes: u64) {
        let (freed, place) = self.gpu.memory.describe(address);
        let end = self.gpu.memory.describe(address.wrapping_add(bytes.saturating_sub(1))).1;
        let kind = if freed { FindingKind::UseAfterFree } else { FindingKind::OutOfBounds };
        self.host_finding(kind, call, format!("{bytes} bytes from {place} to {end}"));
        self.fail(errors::ILLEGAL_ADDRESS);
    }

    /// Does a piece of work.
    pub fn perform(&mut self, work: Work) {
        match work {
            Work::Launch { program, dims, params, cooperative } => {
                if let Err(finding) = self.gpu.launch(&program, dims, &params, cooperative) {
                    self.fail(errors::of_finding(finding.kind));
                }
            }
            Work::CopyIn { dst, data } => {
                if !self.gpu.memory.write(dst, &data) {
                    self.bad_range("copy to device", dst, data.len() as u64);
                }
            }
            Work::CopyInPinned { dst, src, bytes } => {
                // SAFETY: the program keeps the source valid until the copy has completed.
                let data = unsafe { std::slice::from_raw_parts(src.0.cast::<u8>(), bytes) };
                if !self.gpu.memory.write(dst, data) {
                    self.bad_range("copy to device", dst, bytes as u64);
                }
            }
            Work::CopyOut { dst, src, bytes } => {
                if !self.gpu.memory.contains(src, bytes as u64) {
                    return self.bad_range("copy to host", src, bytes as u64);
                }
                if let Some(first) = self.gpu.memory.first_uninitialised(src, bytes as u64) {
                    let (_, place) = self.gpu.memory.describe(first);
                    self.host_finding(
                        FindingKind::HostRead,
                        "copy to host",
                        format!(
                            "the host reads {bytes} bytes of which some were never written: {place}"
                        ),
                    );
                    return self.fail(errors::LAUNCH_FAILED);
                }
                // SAFETY: the program keeps the destination valid until the copy has completed.
                let data = unsafe { std::slice::from_raw_parts_mut(dst.0.cast::<u8>(), bytes) };
                self.gpu.memory.read(src, data);
            }
            Work::Copy { dst, src, bytes } => {
                if !self.gpu.memory.copy(src, dst, bytes) {
                    let bad = if self.gpu.memory.contains(src, bytes) { dst } else { src };
                    self.bad_range("copy on device", bad, bytes);
                }
            }
            Work::Fill { dst, value, bytes } => {
                if !self.gpu.memory.fill(dst, value, bytes) {
                    self.bad_range("memset", dst, bytes);
                }
            }
            Work::Record { event, version } => {
                if let Some(e) = self.events.get_mut(&event) {
                    e.done = e.done.max(version);
                    e.time = Some(Instant::now());
                }
            }
            Work::Wait { event, version } => self.reach(event, version),
            Work::Host { function, data } => {
                IN_HOST_FUNCTION.set(true);
                function(data.0);
                IN_HOST_FUNCTION.set(false);
            }
            Work::Free { address } => {
                if self.gpu.memory.free(address).is_err() {
                    self.bad_range("free", address, 1);
                }
            }
            Work::Graph(nodes) => self.run_graph(&nodes),
        }
    }

    /// Does what an event's version waits for.
    pub fn reach(&mut self, event: Handle, version: u64) {
        while self.sticky == 0 {
            let Some(e) = self.events.get(&event) else { return };
            if e.done >= version {
                return;
            }
            let stream = e.stream;
            if !self.drain_one(stream) {
                return;
            }
        }
    }

    /// Runs a graph's nodes in a seeded order that respects their dependencies.
    fn run_graph(&mut self, nodes: &[Node]) {
        let mut left: Vec<usize> = (0..nodes.len()).collect();
        let mut done = vec![false; nodes.len()];
        while !left.is_empty() && self.sticky == 0 {
            let ready: Vec<usize> = (0..left.len())
                .filter(|&k| nodes[left[k]].after.iter().all(|&d| done[d]))
                .collect();
            if ready.is_empty() {
                return;
            }
            let pick = ready[(self.draw() % ready.len() as u64) as usize];
            let node = left.remove(pick);
            self.perform(nodes[node].work.clone());
            done[node] = true;
        }
    }
}
