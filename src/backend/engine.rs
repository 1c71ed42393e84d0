//! A network's weights on a device, and the programs that run over them.
//!
//! The engine owns a backend, the weight and optimizer arenas, and one
//! activation arena that all programs share (only one runs at a time; what a
//! program needs from before it runs is uploaded again).

use half::bf16;

use super::{Arenas, Backend, Buffer, Fetch, Program};
use crate::error::{Error, Result};
use crate::plan::{DType, Plan, Role, Space, TensorId};

/// Which weights a program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightSet {
    /// The weights being trained.
    Raw,
    /// Their exponential moving average.
    Average,
}

/// A program with the memory that is its own.
#[derive(Debug)]
pub struct Loaded {
    /// The program.
    pub program: Program,
    update: Option<Program>,
    packed: Option<Buffer>,
    weights: WeightSet,
    /// Sets whose bf16 copies are old after a run.
    ages: [bool; 2],
}

impl Loaded {
    /// The tensor of that name, which the caller has put into the plan.
    pub fn tensor(&self, name: &str) -> Result<TensorId> {
        self.program
            .plan
            .find(name)
            .ok_or_else(|| Error::Usage(format!("the plan has no tensor `{name}`")))
    }
}

/// Bytes a run needs on its device, by use. Known before anything is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Requirement {
    pub weights: usize,
    pub optimizer: usize,
    pub packed: usize,
    pub activations: usize,
    /// Images that lie on the device from beginning to end.
    pub images: usize,
    /// On the host: the copies from which a checkpoint is written.
    pub staging: usize,
}

impl Requirement {
    /// What the given programs need together, with training state or without. Weights
    /// count their bf16 copies, in training those of the average too.
    pub fn of(arena_len: usize, training: bool, programs: &[&Program]) -> Self {
        let arena = arena_len * 4;
        let halves = match programs.iter().any(|p| p.uses(Space::Half)) {
            true => arena / 2 * if training { 2 } else { 1 },
            false => 0,
        };
        Requirement {
            weights: arena + halves,
            // Gradients, two moments, the average.
            optimizer: if training { 4 * arena } else { 0 },
            packed: programs.iter().map(|p| p.memory.packed_bytes).sum(),
            activations: programs.iter().map(|p| p.memory.activation_bytes).max().unwrap_or(0),
            images: programs.iter().map(|p| p.image_bytes()).max().unwrap_or(0),
            staging: if training { 4 * arena } else { 0 },
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.optimizer + self.packed + self.activations + self.images + self.staging
    }
}

/// A backend with a network's arenas.
pub struct Engine {
    backend: Box<dyn Backend>,
    arenas: Arenas,
    /// bf16 copies of the weights, by [`WeightSet`], and whether they are up to date.
    halves: [(Option<Buffer>, bool); 2],
    arena_len: usize,
}

impl Engine {
    /// Allocates the weights of a network: `arena_len` elements
    /// ([`Parameters::arena_len`](crate::plan::Parameters::arena_len)), and with `training` the gradients, moments
    /// and average.
    pub fn new(mut backend: Box<dyn Backend>, arena_len: usize, training: bool) -> Result<Self> {
        let bytes = arena_len * 4;
        let mut arenas =
            Arenas { parameters: Some(backend.allocate(bytes, "weights")?), ..Arenas::default() };
        if training {
            arenas.gradients = Some(backend.allocate(bytes, "gradients")?);
            arenas.first_moments = Some(backend.allocate(bytes, "first moments")?);
            arenas.second_moments = Some(backend.allocate(bytes, "second moments")?);
            arenas.average = Some(backend.allocate(bytes, "averaged weights")?);
        }
        Ok(Engine { backend, arenas, halves: Default::default(), arena_len })
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Gives the backend back and forgets the network.
    pub fn into_backend(mut self) -> Box<dyn Backend> {
        let a = std::mem::take(&mut self.arenas);
        let all = [
            a.parameters,
            a.gradients,
            a.first_moments,
            a.second_moments,
            a.average,
            a.packed,
            a.images,
            a.activations,
            self.halves[0].0,
            self.halves[1].0,
        ];
        for buffer in all.into_iter().flatten() {
            self.backend.free(buffer);
        }
        self.backend
    }

    /// Lowers a plan, without allocating: its memory need is in the result.
    pub fn lower(&self, plan: Plan) -> Result<Program> {
        self.backend.lower(plan)
    }

    /// Refuses a requirement that the device cannot hold, with the numbers.
    pub fn check(&self, requirement: &Requirement, remedy: &str) -> Result<()> {
        let info = self.backend.info();
        let needed = match info.is_host {
            true => requirement.total(),
            false => requirement.total() - requirement.staging,
        };
        // 0: the device does not say.
        if info.memory_bytes > 0 && needed as u64 > info.memory_bytes {
            return Err(Error::Device {
                device: info.name,
                problem: format!(
                    "the run needs {} and the device has {} available; {remedy}",
                    human_bytes(needed as u64),
                    human_bytes(info.memory_bytes)
                ),
            });
        }
        Ok(())
    }

    /// Allocates what a program needs.
    pub fn load(&mut self, program: Program, weights: WeightSet) -> Result<Loaded> {
        let m = &program.memory;
        let packed = match m.packed_bytes {
            0 => None,
            bytes => Some(self.backend.allocate(bytes, "packed weights")?),
        };
        if self.arenas.activations.is_none_or(|b| b.bytes < m.activation_bytes) {
            if let Some(old) = self.arenas.activations.take() {
                self.backend.free(old);
            }
            self.arenas.activations =
                Some(self.backend.allocate(m.activation_bytes, "activations")?);
        }
        let half = &mut self.halves[weights as usize].0;
        if program.uses(Space::Half) && half.is_none() {
            *half = Some(self.backend.allocate(self.arena_len * 2, "bf16 weights")?);
        }
        let ages = [
            program.writes(Space::Parameters) && !program.writes(Space::Half),
            program.writes(Space::Average),
        ];
        let update = program.update();
        Ok(Loaded { program, update, packed, weights, ages })
    }

    /// Frees what belongs to the program alone.
    pub fn unload(&mut self, loaded: Loaded) {
        if let Some(buffer) = loaded.packed {
            self.backend.free(buffer);
        }
    }

    fn arenas_for(&self, loaded: &Loaded) -> Arenas {
        let mut arenas = self.arenas;
        arenas.packed = loaded.packed;
        arenas.half = self.halves[loaded.weights as usize].0;
        if loaded.weights == WeightSet::Average {
            arenas.parameters = arenas.average;
        }
        arenas
    }

    /// Call after the weights a program reads have changed. Does nothing where the
    /// program before has written them in the form that this one reads.
    pub fn refresh(&mut self, loaded: &Loaded) -> Result<()> {
        let arenas = self.arenas_for(loaded);
        let prologue = &loaded.program.prologue;
        let makes_halves = prologue
            .iter()
            .flat_map(|n| n.outputs.iter().flatten())
            .any(|w| loaded.program.plan.tensor(w.tensor).space == Space::Half);
        let half = loaded.weights as usize;
        if makes_halves && self.halves[half].1 {
            return Ok(());
        }
        self.backend.refresh(&loaded.program, &arenas)?;
        self.halves[half].1 |= makes_halves;
        Ok(())
    }

    /// Runs a program.
    pub fn run(&mut self, loaded: &Loaded) -> Result<()> {
        let arenas = self.arenas_for(loaded);
        for (half, ages) in self.halves.iter_mut().zip(loaded.ages) {
            half.1 &= !ages;
        }
        self.backend.run(&loaded.program, &arenas)
    }

    /// Runs the sampler's update of a program without its network
    /// ([`Program::update`]).
    pub fn run_update(&mut self, loaded: &Loaded) -> Result<()> {
        let arenas = self.arenas_for(loaded);
        match &loaded.update {
            Some(update) => self.backend.run(update, &arenas),
            None => Err(Error::Usage("the plan does not end in a sampler's update".into())),
        }
    }

    /// Runs a program and names the first tensor that holds a NaN or an infinity.
    pub fn run_checked(&mut self, loaded: &Loaded) -> Result<Option<String>> {
        let arenas = self.arenas_for(loaded);
        let found = self.backend.run_checked(&loaded.program, &arenas)?;
        Ok(found.map(|id| loaded.program.plan.tensor(id).name.clone()))
    }

    /// Uploads an f32 tensor of a program, or one that lowering has made bf16.
    pub fn set(&mut self, loaded: &Loaded, id: TensorId, values: &[f32]) -> Result<()> {
        if loaded.program.plan.tensor(id).dtype == DType::BF16 {
            let rounded: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
            return self.set_bytes(loaded, id, DType::BF16, bytemuck::cast_slice(&rounded));
        }
        self.set_bytes(loaded, id, DType::F32, bytemuck::cast_slice(values))
    }

    /// Uploads a u32 tensor of a program.
    pub fn set_u32(&mut self, loaded: &Loaded, id: TensorId, values: &[u32]) -> Result<()> {
        self.set_bytes(loaded, id, DType::U32, bytemuck::cast_slice(values))
    }

    /// Uploads a u8 tensor of a program.
    pub fn set_u8(&mut self, loaded: &Loaded, id: TensorId, values: &[u8]) -> Result<()> {
        self.set_bytes(loaded, id, DType::U8, values)
    }

    /// Puts the set of images that programs pick from ([`Space::Images`]) on the
    /// device: u8, or the bytes of f32.
    pub fn set_images(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(old) = self.arenas.images.take() {
            self.backend.free(old);
        }
        let buffer = self.backend.allocate(bytes.len(), "images")?;
        self.arenas.images = Some(buffer);
        self.backend.upload(&buffer, 0, bytes)
    }

    fn set_bytes(
        &mut self,
        loaded: &Loaded,
        id: TensorId,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<()> {
        let tensor = loaded.program.plan.tensor(id);
        if tensor.bytes() != bytes.len() || tensor.dtype != dtype {
            return Err(Error::Shape {
                op: "upload",
                tensor: tensor.name.clone(),
                expected: format!("{} values of {:?}", tensor.len(), tensor.dtype),
                found: vec![bytes.len() / dtype.bytes()],
            });
        }
        debug_assert_ne!(tensor.role, Role::Transient, "`{}` is not kept", tensor.name);
        let (space, offset) = loaded.program.place(id);
        let arenas = self.arenas_for(loaded);
        let buffer = self.buffer(&arenas, space)?;
        self.backend.upload(&buffer, offset, bytes)
    }

    /// Downloads an f32 tensor of a program.
    pub fn get(&mut self, loaded: &Loaded, id: TensorId, values: &mut [f32]) -> Result<()> {
        let (buffer, offset) = self.output(loaded, id, values.len())?;
        self.backend.download(&buffer, offset, bytemuck::cast_slice_mut(values))
    }

    /// Starts to download an f32 tensor of a program, as it is after the runs so far,
    /// without waiting; the values come from [`Engine::collect`].
    pub fn fetch(&mut self, loaded: &Loaded, id: TensorId) -> Result<Fetch> {
        let len = loaded.program.plan.tensor(id).len();
        let (buffer, offset) = self.output(loaded, id, len)?;
        self.backend.fetch(&buffer, offset, len * DType::F32.bytes())
    }

    /// Waits for a fetched tensor; runs that were started after it go on.
    pub fn collect(&mut self, fetch: Fetch, values: &mut [f32]) -> Result<()> {
        self.backend.collect(fetch, bytemuck::cast_slice_mut(values))
    }

    /// Where a tensor that is to be downloaded lies.
    fn output(&self, loaded: &Loaded, id: TensorId, len: usize) -> Result<(Buffer, usize)> {
        let tensor = loaded.program.plan.tensor(id);
        if tensor.len() != len || tensor.dtype != DType::F32 {
            return Err(Error::Shape {
                op: "download",
                tensor: tensor.name.clone(),
                expected: format!("{} values of {:?}", tensor.len(), tensor.dtype),
                found: vec![len],
            });
        }
        debug_assert_ne!(tensor.role, Role::Transient, "`{}` is not kept", tensor.name);
        let (space, offset) = loaded.program.place(id);
        let arenas = self.arenas_for(loaded);
        Ok((self.buffer(&arenas, space)?, offset))
    }

    fn buffer(&self, arenas: &Arenas, space: Space) -> Result<Buffer> {
        arenas.get(space).copied().ok_or_else(|| Error::Device {
            device: self.backend.info().name,
            problem: format!("{space:?} was not allocated: the engine was made without training"),
        })
    }

    /// Elements of a weight arena.
    pub fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Uploads a whole weight or optimizer arena.
    pub fn set_arena(&mut self, space: Space, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.arena_len, "a whole arena");
        let buffer = self.buffer(&self.arenas, space)?;
        match space {
            Space::Parameters => self.halves[WeightSet::Raw as usize].1 = false,
            Space::Average => self.halves[WeightSet::Average as usize].1 = false,
            _ => {}
        }
        self.backend.upload(&buffer, 0, bytemuck::cast_slice(values))
    }

    /// Downloads a whole weight or optimizer arena.
    pub fn get_arena(&mut self, space: Space) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.arena_len];
        let buffer = self.buffer(&self.arenas, space)?;
        self.backend.download(&buffer, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// "412.5 MiB"
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
