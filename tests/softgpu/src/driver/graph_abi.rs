//! Graphs.

use super::errors::{self, Code};
use super::queue::Work;
use super::{Handle, Kind, enter, give};

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
