//! [`Cuda`]: arenas on a device, and the [`Backend`] trait over them.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::arguments::{Call, Launch, SPACES, each, packs};
use super::device::Device;
use super::entries::{CHECK_BF16, CHECK_F32, params};
use super::graph::{Graphs, Key, Next};
use super::memory::Memory;
use super::staging::Staging;
use super::{execute, lower};
use crate::backend::{Arenas, Backend, Buffer, DeviceInfo, Fetch, Precision, Program};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::plan::{DType, Node, Plan, Space, TensorId};

/// Executes plans on a CUDA device.
pub struct Cuda {
    device: Arc<Device>,
    precision: Precision,
    buffers: Vec<Option<Memory>>,
    /// Words that kernels report through; see [`flag`].
    flags: Memory,
    /// Rows of the table of the last lookup since the flag was read.
    looked_up: Cell<Option<usize>>,
    graphs: Graphs,
    staging: Staging,
    /// Fetches behind which the word of [`flag::BAD_INDEX`] arrives, with the rows of
    /// the table.
    fetched_lookups: Vec<(usize, usize)>,
}

/// Words of [`Cuda::flags`].
mod flag {
    /// A value was not finite.
    pub const NOT_FINITE: usize = 0;
    /// 1 + the image whose index lay outside its table.
    pub const BAD_INDEX: usize = 1;
    /// Words.
    pub const COUNT: usize = 2;
}

/// All arenas.
const ALL_SPACES: [Space; SPACES] = [
    Space::Parameters,
    Space::Gradients,
    Space::FirstMoments,
    Space::SecondMoments,
    Space::Average,
    Space::Half,
    Space::Packed,
    Space::Images,
    Space::Activations,
];

impl Cuda {
    /// The backend on device `ordinal`.
    pub fn new(ordinal: usize, precision: Precision) -> Result<Self> {
        Ok(Cuda { precision, ..Cuda::on(Device::open(ordinal)?)? })
    }

    /// The backend on an open device, whose loaded kernels it shares, with a stream of
    /// its own; in f32.
    pub fn sharing(device: &Device) -> Result<Self> {
        Cuda::on(device.with_own_stream()?)
    }

    /// The same in another precision, for programs that are lowered from now on.
    pub fn with_precision(self, precision: Precision) -> Self {
        Cuda { precision, ..self }
    }

    fn on(device: Arc<Device>) -> Result<Self> {
        let flags = device.allocate(4 * flag::COUNT, "flags")?;
        Ok(Cuda {
            staging: Staging::new(device.clone()),
            device,
            precision: Precision::F32,
            buffers: Vec::new(),
            flags,
            looked_up: Cell::new(None),
            graphs: Graphs::default(),
            fetched_lookups: Vec::new(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The launches of each op of a program, in order: the nodes of the graph that its
    /// runs become. Allocates and launches nothing.
    pub fn graph_nodes(&self, program: &Program) -> Result<Vec<(&'static str, usize)>> {
        let nodes = program.plan.nodes.iter();
        nodes.map(|n| Ok((n.op.name(), self.launches_of(program, n)?.len()))).collect()
    }

    /// All launches of a program, in order. Allocates and launches nothing.
    pub fn launches(&self, program: &Program) -> Result<Vec<Launch>> {
        let mut all = Vec::new();
        for node in &program.plan.nodes {
            all.extend(self.launches_of(program, node)?);
        }
        Ok(all)
    }

    fn launches_of(&self, program: &Program, node: &Node) -> Result<Vec<Launch>> {
        let recorder = RefCell::new(Vec::new());
        let call = Call::recording(&self.device, program, node, &recorder);
        execute::execute(&node.op, Some(&call))?;
        Ok(recorder.into_inner())
    }

    fn memory(&self, buffer: &Buffer) -> &Memory {
        self.buffers[buffer.id].as_ref().expect("buffer in use")
    }

    /// Address and size of each arena, by `Space as usize`.
    fn arenas(&self, arenas: &Arenas) -> [(u64, usize); SPACES] {
        let mut all = [(0, 0); SPACES];
        for space in ALL_SPACES {
            if let Some(buffer) = arenas.get(space) {
                all[space as usize] = (self.memory(buffer).address(), buffer.bytes);
            }
        }
        all
    }

    fn execute(&self, program: &Program, nodes: &[Node], arenas: &Arenas) -> Result<()> {
        self.device.bind()?;
        let arenas = self.arenas(arenas);
        nodes.iter().try_for_each(|node| {
            execute::execute(&node.op, Some(&self.call(program, node, arenas)))
        })
    }

    fn call<'a>(
        &'a self,
        program: &'a Program,
        node: &'a Node,
        arenas: [(u64, usize); SPACES],
    ) -> Call<'a> {
        let bad_index = self.flags.address() as *mut u32;
        Call::new(&self.device, program, node, arenas, bad_index.wrapping_add(flag::BAD_INDEX))
    }

    /// Reads a flag, and clears it where it was set.
    fn take_flag(&self, index: usize) -> Result<u32> {
        let mut word = [0; 4];
        self.device.download(&self.flags, 4 * index, &mut word)?;
        if word != [0; 4] {
            self.device.upload(&self.flags, 4 * index, &[0; 4])?;
        }
        Ok(u32::from_le_bytes(word))
    }

    /// Whether a tensor holds no NaN and no infinity.
    fn is_finite(&self, call: &Call, id: TensorId, dtype: DType) -> Result<bool> {
        let found = (self.flags.address() as *mut u32).wrapping_add(flag::NOT_FINITE);
        let (address, len) = call.address(id, dtype);
        let params = params::Check { found, x: address as *const _, len: len as i64 };
        let entry = if dtype == DType::BF16 { &CHECK_BF16 } else { &CHECK_F32 };
        call.launch(entry, packs(entry, each(dtype), len, 1), 0, &params)?;
        Ok(self.take_flag(flag::NOT_FINITE)? == 0)
    }

    /// Reports an index outside its table, if a lookup since the last time met one.
    fn check_lookups(&self) -> Result<()> {
        let Some(rows) = self.looked_up.take() else { return Ok(()) };
        bad_index(self.take_flag(flag::BAD_INDEX)?, rows)
    }
}

/// The error that a word of [`flag::BAD_INDEX`] stands for.
fn bad_index(word: u32, rows: usize) -> Result<()> {
    match word {
        0 => Ok(()),
        image => Err(Error::Usage(format!(
            "the class of image {} is out of range: the table has rows 0..{rows}",
            image - 1
        ))),
    }
}

impl Backend for Cuda {
    fn info(&self) -> DeviceInfo {
        let (major, minor) = self.device.capability();
        DeviceInfo {
            name: format!("cuda:{}", self.device.ordinal()),
            description: format!(
                "{}, compute capability {major}.{minor}, driver for CUDA {}",
                self.device.name(),
                self.device.driver_version()
            ),
            memory_bytes: self.device.memory().map_or(0, |(free, _)| free as u64),
            threads: 1,
            is_host: false,
            precision: self.precision,
        }
    }

    fn lower(&self, plan: Plan) -> Result<Program> {
        plan.check()?;
        plan.check_indices()?;
        let program = lower::lower(plan, self.precision)?;
        program.plan.check_types()?;
        Ok(program)
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer> {
        self.buffers.push(Some(self.device.allocate(bytes, what)?));
        Ok(Buffer { id: self.buffers.len() - 1, bytes })
    }

    fn free(&mut self, buffer: Buffer) {
        if let Some(memory) = self.buffers[buffer.id].take() {
            self.graphs.forget(memory.address());
        }
    }

    fn upload(&mut self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.memory(buffer).at(offset, bytes.len());
        self.staging.upload(to, bytes)
    }

    fn download(&mut self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.device.download(self.memory(buffer), offset, bytes)?;
        self.check_lookups()
    }

    fn fetch(&mut self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<Fetch> {
        let from = self.memory(buffer).at(offset, bytes);
        let Some(rows) = self.looked_up.take() else {
            return Ok(Fetch { id: self.staging.fetch(&[(from, bytes)])?, bytes });
        };
        let flag = self.flags.at(4 * flag::BAD_INDEX, 4);
        let id = self.staging.fetch(&[(from, bytes), (flag, 4)])?;
        self.fetched_lookups.push((id, rows));
        Ok(Fetch { id, bytes })
    }

    fn collect(&mut self, fetch: Fetch, bytes: &mut [u8]) -> Result<()> {
        let Fetch { id, bytes: len } = fetch;
        let word = self.staging.collect(id, |staged| {
            bytes.copy_from_slice(&staged[..len]);
            staged[len..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
        })?;
        let lookup = self.fetched_lookups.iter().position(|(of, _)| *of == id);
        let Some(lookup) = lookup else { return Ok(()) };
        let (_, rows) = self.fetched_lookups.swap_remove(lookup);
        if word != 0 {
            self.device.upload(&self.flags, 4 * flag::BAD_INDEX, &[0; 4])?;
        }
        bad_index(word, rows)
    }

    fn refresh(&mut self, program: &Program, arenas: &Arenas) -> Result<()> {
        self.execute(program, &program.prologue, arenas)
    }

    fn run(&mut self, program: &Program, arenas: &Arenas) -> Result<()> {
        let mut lookups = program.plan.nodes.iter().filter_map(|node| match &node.op {
            Op::Lookup(op) | Op::LookupBackward(op) => Some(op.rows),
            _ => None,
        });
        if let Some(rows) = lookups.next_back() {
            self.looked_up.set(Some(rows));
        }
        // The first run loads kernels, and may be the only one.
        let key = Key { program: program.id, arenas: self.arenas(arenas).map(|(a, _)| a) };
        let next = match self.device.syncs_each_op() {
            true => Next::Eager,
            false => self.graphs.next(key),
        };
        match next {
            Next::Eager => self.execute(program, &program.plan.nodes, arenas),
            Next::Capture => {
                self.device.bind()?;
                let graph =
                    self.device.capture(|| self.execute(program, &program.plan.nodes, arenas))?;
                self.device.replay(self.graphs.keep(key, graph))
            }
            Next::Replay(graph) => self.device.replay(graph),
        }
    }

    fn run_checked(&mut self, program: &Program, arenas: &Arenas) -> Result<Option<TensorId>> {
        self.device.bind()?;
        let arenas = self.arenas(arenas);
        for node in program.plan.nodes.iter().filter(|n| !n.op.is_optimizer()) {
            let call = self.call(program, node, arenas);
            execute::execute(&node.op, Some(&call))?;
            for write in node.outputs.iter().flatten() {
                let dtype = program.plan.tensor(write.tensor).dtype;
                if dtype != DType::U32 && !self.is_finite(&call, write.tensor, dtype)? {
                    return Ok(Some(write.tensor));
                }
            }
        }
        Ok(None)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.device.synchronize()?;
        self.check_lookups()
    }
}
