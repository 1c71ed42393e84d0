//! Stream capture: work becomes nodes, streams keep the nodes their next one follows.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;

use super::errors::{self, Code};
use super::queue::Work;
use super::{Driver, Handle, Kind, LEGACY};

/// A node of a graph.
#[derive(Clone)]
pub struct Node {
    /// What it does.
    pub work: Work,
    /// Nodes before it.
    pub after: Vec<usize>,
}

/// A capture under way.
pub struct Capture {
    origin: Handle,
    thread: ThreadId,
    /// CU_STREAM_CAPTURE_MODE: 0 global, 1 thread-local, 2 relaxed.
    mode: u32,
    nodes: Vec<Node>,
    frontier: HashMap<Handle, Vec<usize>>,
    invalid: bool,
}

impl Driver {
    /// cuStreamBeginCapture.
    pub fn begin_capture(&mut self, stream: Handle, mode: u32) -> Result<(), Code> {
        if stream == LEGACY {
            return Err(errors::CAPTURE_UNSUPPORTED);
        }
        if mode > 2 {
            return Err(errors::INVALID_VALUE);
        }
        self.ticket += 1;
        let id = self.ticket;
        let s = self.streams.get_mut(&stream).ok_or(errors::INVALID_HANDLE)?;
        if s.capture.is_some() {
            return Err(errors::CAPTURE_UNSUPPORTED);
        }
        s.capture = Some(id);
        let capture = Capture {
            origin: stream,
            thread: std::thread::current().id(),
            mode,
            nodes: Vec::new(),
            frontier: HashMap::from([(stream, Vec::new())]),
            invalid: false,
        };
        self.captures.insert(id, capture);
        Ok(())
    }

    /// Adds a node behind what the stream did last.
    pub fn capture_node(&mut self, id: u64, stream: Handle, work: Work) -> Result<(), Code> {
        let capture = self.captures.get_mut(&id).ok_or(errors::CAPTURE_INVALIDATED)?;
        if capture.invalid {
            return Err(errors::CAPTURE_INVALIDATED);
        }
        let after = capture.frontier.get(&stream).cloned().unwrap_or_default();
        capture.frontier.insert(stream, vec![capture.nodes.len()]);
        capture.nodes.push(Node { work, after });
        Ok(())
    }

    /// The nodes a record in a capturing stream stands for.
    pub fn captured_frontier(&self, id: u64, stream: Handle) -> Result<Vec<usize>, Code> {
        let capture = self.captures.get(&id).ok_or(errors::CAPTURE_INVALIDATED)?;
        if capture.invalid {
            return Err(errors::CAPTURE_INVALIDATED);
        }
        Ok(capture.frontier.get(&stream).cloned().unwrap_or_default())
    }

    /// A wait that involves a capture on either side; false when it involves none.
    pub fn capture_wait(&mut self, stream: Handle, event: Handle) -> Result<bool, Code> {
        let captured = self.events.get(&event).ok_or(errors::INVALID_HANDLE)?.captured.clone();
        let mine = self.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?.capture;
        let (id, nodes) = match (mine, captured) {
            (None, None) => return Ok(false),
            (Some(id), None) => {
                self.invalidate(id);
                return Err(errors::CAPTURE_ISOLATION);
            }
            (None, Some((id, nodes))) => {
                if !self.captures.contains_key(&id) {
                    // The capture is over: the event never happens by itself.
                    return Err(errors::CAPTURED_EVENT);
                }
                if stream == LEGACY {
                    self.invalidate(id);
                    return Err(errors::CAPTURE_IMPLICIT);
                }
                (id, nodes)
            }
            (Some(own), Some((id, nodes))) => {
                if own != id {
                    self.invalidate(own);
                    self.invalidate(id);
                    return Err(errors::CAPTURE_MERGE);
                }
                (id, nodes)
            }
        };
        if let Some(s) = self.streams.get_mut(&stream) {
            s.capture = Some(id);
        }
        let capture = self.captures.get_mut(&id).ok_or(errors::CAPTURE_INVALIDATED)?;
        if capture.invalid {
            return Err(errors::CAPTURE_INVALIDATED);
        }
        let frontier = capture.frontier.entry(stream).or_default();
        for node in nodes {
            if !frontier.contains(&node) {
                frontier.push(node);
            }
        }
        Ok(true)
    }

    /// cuStreamEndCapture.
    pub fn end_capture(&mut self, stream: Handle) -> Result<Handle, Code> {
        let s = self.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?;
        let id = s.capture.ok_or(errors::INVALID_VALUE)?;
        let origin = self.captures.get(&id).ok_or(errors::INVALID_VALUE)?.origin;
        if origin != stream {
            self.invalidate(id);
            return Err(errors::CAPTURE_UNMATCHED);
        }
        let capture = self.captures.remove(&id).ok_or(errors::INVALID_VALUE)?;
        for s in self.streams.values_mut().filter(|s| s.capture == Some(id)) {
            s.capture = None;
        }
        if capture.invalid {
            return Err(errors::CAPTURE_INVALIDATED);
        }
        // Everything captured must lead to the origin's last node.
        let mut reached = vec![false; capture.nodes.len()];
        let mut work = capture.frontier.get(&stream).cloned().unwrap_or_default();
        while let Some(node) = work.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                work.extend(&capture.nodes[node].after);
            }
        }
        if reached.contains(&false) {
            return Err(errors::CAPTURE_UNJOINED);
        }
        let handle = self.handle(Kind::Graph);
        self.graphs.insert(handle, Arc::new(capture.nodes));
        Ok(handle)
    }

    /// CU_STREAM_CAPTURE_STATUS: 0 none, 1 active, 2 invalidated.
    pub fn capture_status(&self, stream: Handle) -> Result<u32, Code> {
        let s = self.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?;
        Ok(match s.capture.and_then(|id| self.captures.get(&id)) {
            None => 0,
            Some(c) if c.invalid => 2,
            Some(_) => 1,
        })
    }

    /// Marks a capture as failed.
    pub fn invalidate(&mut self, id: u64) {
        if let Some(capture) = self.captures.get_mut(&id) {
            capture.invalid = true;
        }
    }

    /// A stream that must be waited for must not be capturing.
    pub fn refuse_if_capturing(&mut self, stream: Handle) -> Result<(), Code> {
        let s = self.streams.get(&stream).ok_or(errors::INVALID_HANDLE)?;
        if let Some(id) = s.capture {
            self.invalidate(id);
            return Err(errors::CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// Calls that wait for the device or change its memory are refused while this thread (or, in
    /// global mode, any) captures.
    pub fn refuse_unsafe_during_capture(&mut self) -> Result<(), Code> {
        let me = std::thread::current().id();
        let hit: Vec<u64> = self
            .captures
            .iter()
            .filter(|(_, c)| c.mode == 0 || (c.mode == 1 && c.thread == me))
            .map(|(&id, _)| id)
            .collect();
        for &id in &hit {
            self.invalidate(id);
        }
        if hit.is_empty() { Ok(()) } else { Err(errors::CAPTURE_UNSUPPORTED) }
    }

    /// The legacy stream would depend on capturing streams that synchronise with it.
    pub fn refuse_legacy_during_capture(&mut self) -> Result<(), Code> {
        let ids: Vec<u64> =
            self.streams.values().filter(|s| s.blocking).filter_map(|s| s.capture).collect();
        for &id in &ids {
            self.invalidate(id);
        }
        if ids.is_empty() { Ok(()) } else { Err(errors::CAPTURE_IMPLICIT) }
    }
}
