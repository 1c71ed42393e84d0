//! A lowered plan in memory of its own, for ops that do not fit a case.

use super::*;

/// A lowered plan in memory of its own, every byte of it a sentinel at first.
pub struct Machine {
    backend: Box<dyn Backend>,
    /// What runs.
    pub program: Program,
    arenas: Arenas,
}

impl Machine {
    /// Lowers the plan and allocates every arena that its tensors use.
    pub fn new(plan: Plan, threads: usize) -> Self {
        Machine::with_isa(plan, threads, Isa::detect())
    }

    /// The same with at most these vector instructions.
    pub fn with_isa(plan: Plan, threads: usize, isa: Isa) -> Self {
        let backend: Box<dyn Backend> = match TARGET.get() {
            Target::Cpu => Box::new(Cpu::with_isa(threads, isa)),
            Target::Cuda => gpu::backend().expect("found before"),
            Target::Half => gpu::backend_in(Precision::Bf16).expect("found before"),
            Target::Tf32 => gpu::backend_in(Precision::Tf32).expect("found before"),
        };
        Machine::of(backend, plan)
    }

    /// The same on a backend of one's own.
    pub fn of(mut backend: Box<dyn Backend>, plan: Plan) -> Self {
        let program = backend.lower(plan).expect("the plan lowers");
        let spaces = [
            Space::Parameters,
            Space::Gradients,
            Space::FirstMoments,
            Space::SecondMoments,
            Space::Average,
        ];
        let weights = program.plan.parameters.arena_len() * 4;
        let mut arenas = Arenas::default();
        let others = [Space::Half, Space::Packed, Space::Images, Space::Activations];
        for space in spaces.into_iter().chain(others) {
            let (slot, needed) = match space {
                Space::Parameters => (&mut arenas.parameters, weights),
                Space::Gradients => (&mut arenas.gradients, weights),
                Space::FirstMoments => (&mut arenas.first_moments, weights),
                Space::SecondMoments => (&mut arenas.second_moments, weights),
                Space::Average => (&mut arenas.average, weights),
                Space::Half => (&mut arenas.half, weights / 2),
                Space::Packed => (&mut arenas.packed, program.memory.packed_bytes),
                Space::Images => (&mut arenas.images, program.image_bytes()),
                Space::Activations => (&mut arenas.activations, program.memory.activation_bytes),
            };
            // One line more, to see writes past the end.
            let buffer = backend.allocate(needed + ALIGNMENT, "a test").expect("memory");
            *slot = Some(buffer);
        }
        let mut machine = Machine { backend, program, arenas };
        for space in spaces.into_iter().chain([Space::Half, Space::Packed, Space::Activations]) {
            machine.fill(space, f32::from_bits(SENTINEL));
        }
        machine
    }

    /// Sets every element of an arena.
    pub fn fill(&mut self, space: Space, value: f32) {
        let buffer = self.arenas.get(space).expect("allocated");
        let bytes = value.to_le_bytes().repeat(buffer.bytes / 4);
        self.backend.upload(buffer, 0, &bytes).expect("upload");
    }

    /// Copies f32 values into a tensor.
    pub fn upload(&mut self, id: TensorId, values: &[f32]) {
        self.upload_u32(id, &values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    }

    /// Copies u32 values into a tensor.
    pub fn upload_u32(&mut self, id: TensorId, values: &[u32]) {
        assert_eq!(values.len(), self.program.plan.tensor(id).len());
        let (space, offset) = self.program.place(id);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let buffer = self.arenas.get(space).expect("allocated");
        self.backend.upload(buffer, offset, &bytes).expect("upload");
    }

    /// Copies bytes into a tensor of u8.
    pub fn upload_u8(&mut self, id: TensorId, values: &[u8]) {
        assert_eq!(values.len(), self.program.plan.tensor(id).len());
        let (space, offset) = self.program.place(id);
        let buffer = self.arenas.get(space).expect("allocated");
        self.backend.upload(buffer, offset, values).expect("upload");
    }

    /// The values of a tensor.
    pub fn download(&mut self, id: TensorId) -> Vec<f32> {
        let len = self.program.plan.tensor(id).len();
        let (space, offset) = self.program.place(id);
        self.download_range(space, offset, len)
    }

    /// The values of a bf16 tensor.
    pub fn download_half(&mut self, id: TensorId) -> Vec<half::bf16> {
        let (space, offset) = self.program.place(id);
        let mut bytes = vec![0; self.program.plan.tensor(id).bytes()];
        let buffer = self.arenas.get(space).expect("allocated");
        self.backend.download(buffer, offset, &mut bytes).expect("download");
        let value = |b: &[u8]| half::bf16::from_le_bytes([b[0], b[1]]);
        bytes.chunks_exact(2).map(value).collect()
    }

    fn download_range(&mut self, space: Space, offset: usize, len: usize) -> Vec<f32> {
        let mut bytes = vec![0; len * 4];
        let buffer = self.arenas.get(space).expect("allocated");
        self.backend.download(buffer, offset, &mut bytes).expect("download");
        let word = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
        bytes.chunks_exact(4).map(word).collect()
    }

    /// Runs the prologue and the plan.
    pub fn try_run(&mut self) -> Result<()> {
        self.backend.refresh(&self.program, &self.arenas)?;
        self.backend.run(&self.program, &self.arenas)?;
        self.backend.synchronize()
    }

    /// Runs the prologue and the plan, which must succeed.
    #[track_caller]
    pub fn run(&mut self) {
        self.try_run().expect("the plan runs");
    }

    /// Asserts that no byte outside the tensors was written.
    #[track_caller]
    pub fn assert_only_tensors_were_written(&mut self) {
        for space in [Space::Parameters, Space::Gradients, Space::Activations] {
            let words = self.arenas.get(space).expect("allocated").bytes / 4;
            let mut owned = vec![false; words];
            for (i, t) in self.program.plan.tensors.iter().enumerate() {
                if t.space == space {
                    // Tensors start at whole words; half of one may be the last's end.
                    let from = self.program.memory.offsets[i] / 4;
                    owned[from..from + t.bytes().div_ceil(4)].fill(true);
                }
            }
            let content = self.download_range(space, 0, words);
            for (i, (v, owned)) in content.iter().zip(owned).enumerate() {
                assert!(
                    owned || v.to_bits() == SENTINEL,
                    "element {i} of {space:?}, which belongs to no tensor, became {v:e}"
                );
            }
        }
    }
}
