//! The contract between a plan and the machine that executes it.
//!
//! A backend first lowers a plan (packing, workspace, fusion are its business),
//! the memory plan then gives every tensor an offset, and [`Backend::run`]
//! executes the result. Only `download`, `collect` and `synchronize` wait for results.

pub mod cpu;
pub mod cuda;
mod devices;
mod engine;

pub use crate::plan::precision::Precision;
pub use devices::Devices;
pub use engine::{Engine, Loaded, Requirement, WeightSet, human_bytes};

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::plan::memory::{MemoryPlan, plan_memory};
use crate::plan::{Node, Plan, Space, TensorId};

/// What a device is, for people and for limits.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// E.g. "AMD EPYC, 2 threads, AVX-512".
    pub description: String,
    /// Available; 0 where the device does not say.
    pub memory_bytes: u64,
    pub threads: usize,
    /// Whether its memory is the host's, which staging then shares.
    pub is_host: bool,
    /// Of the network's arithmetic.
    pub precision: Precision,
}

/// Memory of a backend, by handle. Freed with [`Backend::free`] or with the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Index in the backend's table.
    pub(crate) id: usize,
    /// Size.
    pub bytes: usize,
}

/// Bytes on their way from the device; see [`Backend::fetch`].
#[derive(Debug)]
pub struct Fetch {
    /// Index in the backend's table.
    pub(crate) id: usize,
    /// Size.
    pub bytes: usize,
}

/// The arenas a program runs in, one for each [`Space`] it uses.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Arenas {
    pub parameters: Option<Buffer>,
    pub gradients: Option<Buffer>,
    pub first_moments: Option<Buffer>,
    pub second_moments: Option<Buffer>,
    pub average: Option<Buffer>,
    pub half: Option<Buffer>,
    pub packed: Option<Buffer>,
    pub images: Option<Buffer>,
    pub activations: Option<Buffer>,
}

impl Arenas {
    /// The buffer of a space.
    pub fn get(&self, space: Space) -> Option<&Buffer> {
        match space {
            Space::Parameters => self.parameters.as_ref(),
            Space::Gradients => self.gradients.as_ref(),
            Space::FirstMoments => self.first_moments.as_ref(),
            Space::SecondMoments => self.second_moments.as_ref(),
            Space::Average => self.average.as_ref(),
            Space::Half => self.half.as_ref(),
            Space::Packed => self.packed.as_ref(),
            Space::Images => self.images.as_ref(),
            Space::Activations => self.activations.as_ref(),
        }
    }
}

/// A lowered plan with its memory plan, ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Tells this program from every other one of the process.
    pub(crate) id: u64,
    /// The lowered plan.
    pub plan: Plan,
    /// Nodes that depend on weights alone (packing): run once whenever the
    /// weights have changed, before the plan.
    pub prologue: Vec<Node>,
    /// Offsets.
    pub memory: MemoryPlan,
    /// Arithmetic of its convolutions and linear layers on f32 tensors.
    pub precision: Precision,
}

impl Program {
    /// Lays out the memory of a lowered plan.
    pub fn new(plan: Plan, prologue: Vec<Node>) -> Self {
        let memory = plan_memory(&plan);
        // The executors hand out slices on the strength of this.
        let conflicts = crate::plan::memory::conflicts(&plan, &memory);
        assert!(conflicts.is_empty(), "tensors share bytes: {conflicts:?}");
        for node in plan.nodes.iter().chain(&prologue) {
            let written = || node.outputs.iter().flatten().map(|w| w.tensor).chain(node.workspace);
            let aliased = written().find(|t| node.inputs.contains(&Some(*t)));
            assert!(aliased.is_none(), "{} reads what it writes", node.op.name());
        }
        Program { id: next_id(), plan, prologue, memory, precision: Precision::F32 }
    }

    /// The sampler's update at the end of this program, alone and in the same
    /// memory: what a stage without an evaluation of the network runs. `None`
    /// where the program does not end in one.
    pub fn update(&self) -> Option<Program> {
        let from = self.plan.nodes.iter().rposition(|n| !n.op.is_update()).map_or(0, |i| i + 1);
        if from == self.plan.nodes.len() {
            return None;
        }
        let mut update = Program { id: next_id(), ..self.clone() };
        update.plan.nodes.drain(..from);
        update.prologue.clear();
        update.memory.packed_bytes = 0;
        Some(update)
    }

    /// Whether its ops read or write tensors of that arena.
    pub fn uses(&self, space: Space) -> bool {
        self.plan.nodes.iter().any(|node| {
            let mut ids = node.inputs.iter().flatten().copied();
            ids.any(|id| self.plan.tensor(id).space == space)
        }) || self.writes(space)
    }

    /// Whether its ops write tensors of that arena.
    pub fn writes(&self, space: Space) -> bool {
        let mut written = self.plan.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        written.any(|w| self.plan.tensor(w.tensor).space == space)
    }

    /// Bytes of the set of images that it picks from; 0 where there is none.
    pub fn image_bytes(&self) -> usize {
        let sets = self.plan.tensors.iter().filter(|t| t.space == Space::Images);
        sets.map(|t| t.bytes()).max().unwrap_or(0)
    }

    /// Arena and byte offset of a tensor.
    pub fn place(&self, id: TensorId) -> (Space, usize) {
        (self.plan.tensor(id).space, self.memory.offsets[id.index()])
    }
}

/// A number that no program has yet.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What executes programs. Object-safe; one instance a device.
pub trait Backend: Send {
    /// What it runs on.
    fn info(&self) -> DeviceInfo;

    /// Adds packing, workspace and fusion to a plan and lays out its memory.
    fn lower(&self, plan: Plan) -> Result<Program>;

    /// Allocates zeroed memory; `what` names it in the error when it does not fit.
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer>;

    /// Gives memory back.
    fn free(&mut self, buffer: Buffer);

    /// Copies bytes to the device, ordered before later runs.
    fn upload(&mut self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies bytes from the device after everything before has finished.
    fn download(&mut self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Starts to copy bytes from the device after everything before, and does not
    /// wait: later runs may overwrite them. Every fetch is collected once.
    fn fetch(&mut self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<Fetch>;

    /// Waits until a fetch, and what came before it, has finished; not for later runs.
    fn collect(&mut self, fetch: Fetch, bytes: &mut [u8]) -> Result<()>;

    /// Runs the prologue: call after the weights have changed.
    fn refresh(&mut self, program: &Program, arenas: &Arenas) -> Result<()>;

    /// Runs all nodes in order. Allocates nothing.
    fn run(&mut self, program: &Program, arenas: &Arenas) -> Result<()>;

    /// As `run`, but leaves the weights as they are ([`Op::is_optimizer`](crate::ops::Op::is_optimizer)), looks at
    /// every output of every node and returns the first tensor that holds a NaN or an
    /// infinity.
    fn run_checked(&mut self, program: &Program, arenas: &Arenas) -> Result<Option<TensorId>>;

    /// Waits until everything has finished.
    fn synchronize(&mut self) -> Result<()>;
}
