//! Captured runs: a program that runs again over the same arenas is captured once
//! as a CUDA graph, and from then on one call launches all of it. Nothing inside is
//! allocated, copied or waited for: operands are addresses, and what changes from
//! run to run (stage, learning rate, keys) is read from device memory.
#![allow(unsafe_code)] // Graph handles move between threads with their owner.

use std::collections::HashMap;

use cudarc::driver::{CudaGraph, sys};

use super::device::{Device, say};
use super::{arguments::SPACES, device_error};
use crate::error::Result;

/// What a captured run depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub program: u64,
    pub arenas: [u64; SPACES],
}

/// An instantiated graph.
pub(super) struct Captured(CudaGraph);

// SAFETY: the driver's graph calls need serialisation, not one thread; the owner
// launches and drops it under an exclusive borrow.
unsafe impl Send for Captured {}

/// The runs of a backend: how often they were made, then their graphs.
#[derive(Default)]
pub(super) struct Graphs {
    runs: HashMap<Key, Option<Captured>>,
}

/// How to make a run.
pub(super) enum Next<'a> {
    /// Launch by launch: the first time.
    Eager,
    /// Capture, then replay: the second time.
    Capture,
    /// Replay.
    Replay(&'a Captured),
}

impl Graphs {
    /// How to make the next run.
    pub fn next(&mut self, key: Key) -> Next<'_> {
        use std::collections::hash_map::Entry;
        match self.runs.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(None);
                Next::Eager
            }
            Entry::Occupied(entry) => match entry.into_mut() {
                None => Next::Capture,
                Some(graph) => Next::Replay(graph),
            },
        }
    }

    /// Keeps a graph.
    pub fn keep(&mut self, key: Key, graph: Captured) -> &Captured {
        self.runs.entry(key).insert_entry(Some(graph)).into_mut().as_ref().expect("just put there")
    }

    /// Drops the graphs over an arena that is about to be freed.
    pub fn forget(&mut self, address: u64) {
        self.runs.retain(|key, _| !key.arenas.contains(&address));
    }
}

impl Device {
    /// Captures what `work` launches.
    pub(super) fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let failed = |e| device_error(self.ordinal(), say("cannot capture the run", e));
        self.stream().begin_capture(mode).map_err(failed)?;
        let worked = work();
        // Also after an error: the stream must leave the capture.
        let graph = self.stream().end_capture(sys::CUgraphInstantiate_flags(0));
        worked?;
        match graph.map_err(failed)? {
            Some(graph) => Ok(Captured(graph)),
            None => Err(device_error(self.ordinal(), "capturing the run gave no graph")),
        }
    }

    /// Launches a captured run.
    pub(super) fn replay(&self, graph: &Captured) -> Result<()> {
        graph.0.launch().map_err(self.failed("cannot launch the captured run"))
    }
}
