//! The operands of one node as slices of the arenas.
#![allow(unsafe_code)] // The one place where offsets become slices.

use half::bf16;

use crate::backend::Program;
use crate::plan::{DType, Mode, Node, Space, TensorId};

/// Number of arenas.
pub const SPACES: usize = 9;
/// All arenas, in the order of their slots.
pub const ALL_SPACES: [Space; SPACES] = [
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

fn slot(space: Space) -> usize {
    ALL_SPACES.iter().position(|&s| s == space).expect("every space has a slot")
}

/// Inputs, outputs and workspace of a node, by position.
///
/// Inputs are shared and outputs exclusive slices: the memory plan gives tensors
/// that are alive at the same time disjoint bytes, and a node never lists a tensor
/// both as input and as output; [`Program::new`] checks both. `execute` takes each
/// output once.
pub struct Arguments<'a> {
    program: &'a Program,
    node: &'a Node,
    bases: [(*mut u8, usize); SPACES],
}

impl<'a> Arguments<'a> {
    pub(super) fn new(
        program: &'a Program,
        node: &'a Node,
        bases: [(*mut u8, usize); SPACES],
    ) -> Self {
        Arguments { program, node, bases }
    }

    fn address(&self, id: TensorId, dtype: DType) -> (*mut u8, usize) {
        let tensor = self.program.plan.tensor(id);
        debug_assert_eq!(tensor.dtype, dtype, "{}", tensor.name);
        let (space, offset) = self.program.place(id);
        let (base, bytes) = self.bases[slot(space)];
        assert!(offset + tensor.bytes() <= bytes, "`{}` lies outside its arena", tensor.name);
        // SAFETY: the assertion keeps offset inside the allocation.
        (unsafe { base.add(offset) }, tensor.len())
    }

    /// f32 input at position `i`, if it is there.
    pub fn optional(&self, i: usize) -> Option<&'a [f32]> {
        let id = self.node.inputs.get(i).copied().flatten()?;
        let (p, len) = self.address(id, DType::F32);
        // SAFETY: inside the arena, aligned to 64, initialised, and no output of this node overlaps it.
        Some(unsafe { std::slice::from_raw_parts(p.cast(), len) })
    }

    /// bf16 input at position `i`, which the op requires.
    pub fn input_half(&self, i: usize) -> &'a [bf16] {
        let (p, len) = self.address(self.node.input(i), DType::BF16);
        // SAFETY: as in `optional`; bf16 is any two bytes.
        unsafe { std::slice::from_raw_parts(p.cast(), len) }
    }

    /// bf16 output at position `i` and its mode, of an op that is only run for it.
    pub fn required_half(&mut self, i: usize) -> (&'a mut [bf16], Mode) {
        let write = self.node.output_write(i).expect("required output of an op");
        let (p, len) = self.address(write.tensor, DType::BF16);
        // SAFETY: as in `output`.
        (unsafe { std::slice::from_raw_parts_mut(p.cast(), len) }, write.mode)
    }

    /// Element type of the input at position `i`, which the op requires.
    pub fn dtype(&self, i: usize) -> DType {
        self.program.plan.tensor(self.node.input(i)).dtype
    }

    /// f32 input at position `i`, which the op requires.
    pub fn input(&self, i: usize) -> &'a [f32] {
        self.optional(i).expect("required input of an op")
    }

    /// u32 input at position `i`, if it is there.
    pub fn optional_u32(&self, i: usize) -> Option<&'a [u32]> {
        let id = self.node.inputs.get(i).copied().flatten()?;
        let (p, len) = self.address(id, DType::U32);
        // SAFETY: as in `optional`.
        Some(unsafe { std::slice::from_raw_parts(p.cast(), len) })
    }

    /// u32 input at position `i`, which the op requires.
    pub fn input_u32(&self, i: usize) -> &'a [u32] {
        self.optional_u32(i).expect("required input of an op")
    }

    /// u8 input at position `i`, which the op requires.
    pub fn input_u8(&self, i: usize) -> &'a [u8] {
        let (p, len) = self.address(self.node.input(i), DType::U8);
        // SAFETY: as in `optional`.
        unsafe { std::slice::from_raw_parts(p, len) }
    }

    /// Output at position `i` and its mode; `None` when it is skipped.
    pub fn output(&mut self, i: usize) -> Option<(&'a mut [f32], Mode)> {
        let write = self.node.outputs.get(i).copied().flatten()?;
        let (p, len) = self.address(write.tensor, DType::F32);
        // SAFETY: inside the arena, aligned, and disjoint from the node's other
        // operands; `execute` takes each position once.
        Some((unsafe { std::slice::from_raw_parts_mut(p.cast(), len) }, write.mode))
    }

    /// Output at position `i` and its mode, of an op that is only run for it.
    pub fn required(&mut self, i: usize) -> (&'a mut [f32], Mode) {
        self.output(i).expect("required output of an op")
    }

    /// Output at position `i`, overwritten, which the op requires.
    pub fn written(&mut self, i: usize) -> &'a mut [f32] {
        self.output(i).expect("required output of an op").0
    }

    /// Whether there is an output at position `i`.
    pub fn has_output(&self, i: usize) -> bool {
        self.node.output_write(i).is_some()
    }

    /// u32 output at position `i`, overwritten, which the op requires.
    pub fn written_u32(&mut self, i: usize) -> &'a mut [u32] {
        let write = self.node.outputs[i].expect("required output of an op");
        let (p, len) = self.address(write.tensor, DType::U32);
        // SAFETY: as in `output`.
        unsafe { std::slice::from_raw_parts_mut(p.cast(), len) }
    }

    /// The node's scratch memory, empty when it asked for none.
    pub fn workspace(&mut self) -> &'a mut [f32] {
        let Some(id) = self.node.workspace else { return &mut [] };
        let (p, len) = self.address(id, DType::F32);
        // SAFETY: as for outputs; a node has one workspace.
        unsafe { std::slice::from_raw_parts_mut(p.cast(), len) }
    }
}
