//! Memory plan: byte offsets in one arena from first and last uses.
//!
//! Greedy by size: the largest tensor first, each at the lowest offset where it
//! overlaps no tensor that is alive at the same time (Pisarchyk & Lee 2020,
//! "Efficient Memory Management for Deep Neural Net Inference", greedy by size).
//! Where that leaves gaps, the tensor that ended highest goes first and all is
//! laid out again, a few times; the smallest arena counts.

use std::cmp::Reverse;

use super::{Plan, Role, Space, TensorId};

/// Offsets are multiples of this many bytes.
pub const ALIGNMENT: usize = 64;

/// Orders that are tried when the first leaves gaps.
const ATTEMPTS: usize = 64;

/// Where each activation lies, and how large the arena is.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Byte offset of each tensor in its own arena.
    pub offsets: Vec<usize>,
    /// Bytes of the activation arena.
    pub activation_bytes: usize,
    /// Bytes of the packed-weights arena.
    pub packed_bytes: usize,
    /// Largest sum of bytes alive at one node: no plan can be smaller.
    pub lower_bound_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lifetime {
    first: usize,
    last: usize,
}

impl Lifetime {
    fn overlaps(self, other: Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// First and last node that touches each activation; `None` for tensors no
/// node touches and that nobody uploads.
fn lifetimes(plan: &Plan) -> Vec<Option<Lifetime>> {
    let end = plan.nodes.len();
    let mut lifetimes: Vec<Option<Lifetime>> = vec![None; plan.tensors.len()];
    // Node i runs at time i + 1; time 0 is the upload, `end + 1` the download.
    let mut touch = |id: TensorId, time: usize| {
        let entry = &mut lifetimes[id.index()];
        *entry = Some(match *entry {
            None => Lifetime { first: time, last: time },
            Some(l) => Lifetime { first: l.first.min(time), last: l.last.max(time) },
        });
    };
    for (i, node) in plan.nodes.iter().enumerate() {
        let reads = node.inputs.iter().flatten().copied();
        let writes = node.outputs.iter().flatten().map(|w| w.tensor);
        for id in reads.chain(writes).chain(node.workspace) {
            touch(id, i + 1);
        }
    }
    for (i, tensor) in plan.tensors.iter().enumerate() {
        let id = TensorId(i as u32);
        match tensor.role {
            Role::Transient => {}
            Role::Input => touch(id, 0),
            Role::Output => touch(id, end + 1),
            Role::State => {
                touch(id, 0);
                touch(id, end + 1);
            }
        }
    }
    lifetimes
}

/// Lays out every tensor of the plan.
pub fn plan_memory(plan: &Plan) -> MemoryPlan {
    let lifetimes = lifetimes(plan);
    let mut offsets = vec![0usize; plan.tensors.len()];
    let mut packed_bytes = 0;
    let mut order: Vec<usize> = Vec::new();
    for (i, tensor) in plan.tensors.iter().enumerate() {
        match tensor.space {
            Space::Activations if lifetimes[i].is_some() => order.push(i),
            Space::Activations => {}
            Space::Packed => {
                offsets[i] = packed_bytes;
                packed_bytes += tensor.bytes().next_multiple_of(ALIGNMENT);
            }
            _ => offsets[i] = tensor.offset.expect("fixed spaces have offsets"),
        }
    }
    let size = |i: usize| plan.tensors[i].bytes().next_multiple_of(ALIGNMENT);
    let alive = |i: usize| lifetimes[i].expect("only tensors with a lifetime are placed");
    let mut change = vec![0isize; plan.nodes.len() + 3];
    for &i in &order {
        change[alive(i).first] += size(i) as isize;
        change[alive(i).last + 1] -= size(i) as isize;
    }
    let mut now = 0isize;
    let lower_bound_bytes = change
        .iter()
        .map(|c| {
            now += c;
            now as usize
        })
        .max()
        .unwrap_or(0);
    order.sort_by_key(|&i| (Reverse(size(i)), i));
    let mut activation_bytes = usize::MAX;
    for _ in 0..ATTEMPTS {
        let (placed, bytes) = place(&order, size, alive);
        if bytes < activation_bytes {
            activation_bytes = bytes;
            for (&i, &offset) in order.iter().zip(&placed) {
                offsets[i] = offset;
            }
        }
        let highest = (0..order.len()).find(|&k| placed[k] + size(order[k]) == bytes);
        match highest {
            Some(k) if activation_bytes > lower_bound_bytes => order[..=k].rotate_right(1),
            _ => break,
        }
    }
    MemoryPlan { offsets, activation_bytes, packed_bytes, lower_bound_bytes }
}

/// Puts each tensor, in the given order, at the lowest offset where it overlaps
/// no placed tensor that is alive at the same time. Returns the offsets in that
/// order, and the end of the last.
fn place(
    order: &[usize],
    size: impl Fn(usize) -> usize,
    alive: impl Fn(usize) -> Lifetime,
) -> (Vec<usize>, usize) {
    let mut offsets = Vec::with_capacity(order.len());
    // (offset, tensor), sorted by offset.
    let mut placed: Vec<(usize, usize)> = Vec::with_capacity(order.len());
    let mut end = 0;
    for &i in order {
        let mut offset = 0;
        for &(at, j) in &placed {
            if !alive(i).overlaps(alive(j)) {
                continue;
            }
            if offset + size(i) <= at {
                break;
            }
            offset = offset.max(at + size(j));
        }
        placed.insert(placed.partition_point(|&(at, _)| at <= offset), (offset, i));
        offsets.push(offset);
        end = end.max(offset + size(i));
    }
    (offsets, end)
}

/// Every pair of activations alive at the same time that share bytes. Empty for
/// a correct memory plan; the executor's soundness rests on it.
pub fn conflicts(plan: &Plan, memory: &MemoryPlan) -> Vec<(TensorId, TensorId)> {
    let lifetimes = lifetimes(plan);
    let mut found = Vec::new();
    let placed: Vec<usize> = (0..plan.tensors.len())
        .filter(|&i| plan.tensors[i].space == Space::Activations && lifetimes[i].is_some())
        .collect();
    let mut by_offset = placed;
    by_offset.sort_by_key(|&i| memory.offsets[i]);
    for (k, &i) in by_offset.iter().enumerate() {
        let end = memory.offsets[i] + plan.tensors[i].bytes();
        for &j in &by_offset[k + 1..] {
            if memory.offsets[j] >= end {
                break;
            }
            let (a, b) = (lifetimes[i].expect("placed"), lifetimes[j].expect("placed"));
            if a.overlaps(b) {
                found.push((TensorId(i as u32), TensorId(j as u32)));
            }
        }
    }
    found
}
