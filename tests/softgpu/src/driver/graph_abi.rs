//! Graphs.

use super::capture::Node;
use super::errors::{self, Code};
use super::queue::Work;
use super::{Driver, Handle, Kind, enter, give};

/// CUDA_GRAPH_INSTANTIATE_FLAG_: AUTO_FREE_ON_LAUNCH | USE_NODE_PRIORITY.
const KNOWN_FLAGS: u64 = 1 | 8;

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    out: *mut Handle,
    graph: Handle,
    flags: u64,
) -> Code {
    enter("cuGraphInstantiateWithFlags", |d| {
        if flags & !KNOWN_FLAGS != 0 {
            return Err(errors::INVALID_VALUE);
        }
        let nodes = d.graphs.get(&graph).ok_or(errors::INVALID_HANDLE)?.clone();
        let handle = d.handle(Kind::Exec);
        d.execs.insert(handle, nodes);
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: Handle, stream: Handle) -> Code {
    enter("cuGraphLaunch", |d| {
        let nodes = d.execs.get(&exec).ok_or(errors::INVALID_HANDLE)?.clone();
        for node in nodes.iter() {
            *d.graph_nodes.entry(node.work.kind()).or_insert(0) += 1;
        }
        d.submit(stream, Work::Graph(nodes))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphUpload(exec: Handle, stream: Handle) -> Code {
    enter("cuGraphUpload", |d| {
        if !d.streams.contains_key(&stream) {
            return Err(errors::INVALID_HANDLE);
        }
        // Nothing to prepare: an instantiated graph is ready.
        d.execs.get(&exec).map(|_| ()).ok_or(errors::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: Handle) -> Code {
    enter("cuGraphExecDestroy", |d| d.execs.remove(&exec).map(|_| ()).ok_or(errors::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: Handle) -> Code {
    enter("cuGraphDestroy", |d| d.graphs.remove(&graph).map(|_| ()).ok_or(errors::INVALID_HANDLE))
}

// CUgraphExecUpdateResult
const UPDATED: u32 = 0;
const TOPOLOGY_CHANGED: u32 = 2;
const NODE_TYPE_CHANGED: u32 = 3;

/// CUgraphExecUpdateResultInfo.
#[repr(C)]
pub struct ExecUpdateResult {
    result: u32,
    error_node: Handle,
    error_from_node: Handle,
}

impl Driver {
    /// Gives an instantiated graph the parameters of another one of the same shape. Nodes
    /// correspond by the order in which they were captured.
    fn update_exec(&mut self, exec: Handle, graph: Handle) -> Result<u32, Code> {
        let new = self.graphs.get(&graph).ok_or(errors::INVALID_HANDLE)?.clone();
        let old = self.execs.get_mut(&exec).ok_or(errors::INVALID_HANDLE)?;
        let same_edges = |(a, b): (&Node, &Node)| a.after == b.after;
        let same_kind = |(a, b): (&Node, &Node)| {
            std::mem::discriminant(&a.work) == std::mem::discriminant(&b.work)
        };
        if old.len() != new.len() || !old.iter().zip(new.iter()).all(same_edges) {
            return Ok(TOPOLOGY_CHANGED);
        }
        if !old.iter().zip(new.iter()).all(same_kind) {
            return Ok(NODE_TYPE_CHANGED);
        }
        // Launches under way keep the nodes they were given.
        *old = new;
        Ok(UPDATED)
    }
}

fn update_code(result: u32) -> Result<(), Code> {
    if result == UPDATED { Ok(()) } else { Err(errors::GRAPH_EXEC_UPDATE_FAILURE) }
}

/// # Safety
/// `info` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecUpdate_v2(
    exec: Handle,
    graph: Handle,
    info: *mut ExecUpdateResult,
) -> Code {
    enter("cuGraphExecUpdate_v2", |d| {
        let result = d.update_exec(exec, graph)?;
        // SAFETY: the caller's promise. Nodes have no handles here, so none is named.
        unsafe { give(info, ExecUpdateResult { result, error_node: 0, error_from_node: 0 })? };
        update_code(result)
    })
}

/// # Safety
/// Both out-pointers are valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecUpdate(
    exec: Handle,
    graph: Handle,
    error_node: *mut Handle,
    result_out: *mut u32,
) -> Code {
    enter("cuGraphExecUpdate", |d| {
        let result = d.update_exec(exec, graph)?;
        // SAFETY: the caller's promise.
        unsafe {
            give(error_node, 0)?;
            give(result_out, result)?;
        }
        update_code(result)
    })
}
