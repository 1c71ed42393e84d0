//! The static plan: tensors with fixed shapes and an ordered list of ops.
//!
//! A model turns its configuration and a batch size into a [`Plan`]; every op
//! file under [`crate::ops`] adds one builder method to it. [`Plan::derive`]
//! appends the backward ops by each op's own rule, so that there is no tape at
//! run time, and [`memory`] turns first and last uses into offsets of one arena.

mod copies;
mod derive;
mod epilogues;
pub mod memory;
pub mod parameters;
pub mod precision;
mod signature;
mod types;

pub use derive::{Deriver, Wrt};
pub use parameters::{DiskLayout, Init, Parameter, Parameters};

use crate::error::{Error, Result};
use crate::ops::Op;

/// Index of a tensor in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);

impl TensorId {
    /// The position in [`Plan::tensors`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element type of a tensor in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// Unsigned 32-bit: indices, random keys.
    U32,
    /// The upper half of an f32: what tensor cores multiply, see [`precision`].
    BF16,
    /// Bytes: images as they are stored.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::BF16 => 2,
            DType::U8 => 1,
        }
    }
}

/// The arena a tensor lives in. Weights, optimizer state and activations are
/// separate, so that plans of different batch sizes share the first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Trainable and frozen weights, f32, in [`Parameters`]' offsets.
    Parameters,
    /// Gradients of the weights, same offsets.
    Gradients,
    /// AdamW's first moment, same offsets.
    FirstMoments,
    /// AdamW's second moment, same offsets.
    SecondMoments,
    /// Exponential moving average of the weights, same offsets.
    Average,
    /// The weights again in bf16, same offsets in elements; see [`precision`].
    Half,
    /// Weights in a backend's packed form, written by [`Program::prologue`](crate::backend::Program).
    Packed,
    /// A set of images, for programs that pick theirs from it.
    Images,
    /// Everything of one step: inputs, activations, their gradients, workspace.
    Activations,
}

/// How long a tensor of [`Space::Activations`] must keep its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// From the op that writes it to the last one that reads it.
    Transient,
    /// Uploaded before the run: from the start to the last use.
    Input,
    /// Downloaded after the run: from the op that writes it to the end.
    Output,
    /// Kept from one run to the next (sampler slots).
    State,
}

/// A tensor of a plan.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Unique, readable name; gradients are `d_<name>`.
    pub name: String,
    /// Axes, outermost first. Images are `[n, h, w, c]`.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
    /// Arena.
    pub space: Space,
    /// Lifetime, for [`Space::Activations`].
    pub role: Role,
    /// Byte offset in the arena, for spaces with fixed offsets.
    pub offset: Option<usize>,
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }
}

/// What happens to the former content of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The output is overwritten.
    Write,
    /// The result is added to the output.
    Add,
}

/// A written tensor and how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The tensor.
    pub tensor: TensorId,
    /// Overwrite or add.
    pub mode: Mode,
}

/// One executed op: its descriptor, what it reads, what it writes. Absent
/// optional inputs and skipped outputs are `None`; positions are fixed by the
/// op's documentation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Op and descriptor.
    pub op: Op,
    /// Inputs by position.
    pub inputs: Vec<Option<TensorId>>,
    /// Outputs by position.
    pub outputs: Vec<Option<Write>>,
    /// Scratch memory of this node alone, set when a backend lowers the plan.
    pub workspace: Option<TensorId>,
}

impl Node {
    /// The tensor read at position `i`, which the op requires.
    pub fn input(&self, i: usize) -> TensorId {
        self.inputs[i].expect("required input of an op")
    }
    /// The tensor written at position `i`, if it is not skipped.
    pub fn output(&self, i: usize) -> Option<TensorId> {
        self.output_write(i).map(|w| w.tensor)
    }
    /// The tensor written at position `i` and how, if it is not skipped.
    pub fn output_write(&self, i: usize) -> Option<Write> {
        self.outputs.get(i).copied().flatten()
    }
}

/// Tensors and the ops over them, in execution order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// All tensors.
    pub tensors: Vec<Tensor>,
    /// All ops, in order.
    pub nodes: Vec<Node>,
    /// The network's weights: names, shapes, offsets.
    pub parameters: Parameters,
    /// For each tensor of [`Space::Gradients`] / gradient of an input: what it
    /// is the gradient of.
    gradients: std::collections::HashMap<TensorId, TensorId>,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tensor behind an id.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.index()]
    }

    /// Shape of a tensor.
    pub fn shape(&self, id: TensorId) -> &[usize] {
        &self.tensor(id).shape
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.tensors.iter().position(|t| t.name == name).map(|i| TensorId(i as u32))
    }

    fn add_tensor(&mut self, tensor: Tensor) -> TensorId {
        let id = TensorId(self.tensors.len() as u32);
        self.tensors.push(tensor);
        id
    }

    /// A tensor of [`Space::Activations`] with the given lifetime.
    pub fn activation(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        dtype: DType,
        role: Role,
    ) -> TensorId {
        self.add_tensor(Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            dtype,
            space: Space::Activations,
            role,
            offset: None,
        })
    }

    /// An f32 (or u32) tensor that is uploaded before each run.
    pub fn input(&mut self, name: impl Into<String>, shape: &[usize], dtype: DType) -> TensorId {
        self.activation(name, shape, dtype, Role::Input)
    }

    /// A transient f32 tensor, written by the next op.
    pub fn transient(&mut self, name: impl Into<String>, shape: &[usize]) -> TensorId {
        self.activation(name, shape, DType::F32, Role::Transient)
    }

    /// Keeps a tensor to the end of the run, so that it can be downloaded.
    pub fn keep(&mut self, id: TensorId) {
        let t = &mut self.tensors[id.index()];
        t.role = match t.role {
            Role::Transient | Role::Output => Role::Output,
            Role::Input | Role::State => Role::State,
        };
    }

    /// A weight, at the next offset of [`Parameters`]. `disk_shape` is the
    /// checkpoint's shape; `layout` says how memory differs from it.
    pub fn parameter(
        &mut self,
        name: &str,
        disk_shape: &[usize],
        layout: DiskLayout,
        init: Init,
        trainable: bool,
    ) -> TensorId {
        let p = self.parameters.push(name, disk_shape, layout, init, trainable);
        let (shape, offset) = (p.shape(), p.offset * 4);
        self.add_tensor(Tensor {
            name: name.to_string(),
            shape,
            dtype: DType::F32,
            space: Space::Parameters,
            role: Role::State,
            offset: Some(offset),
        })
    }

    /// A view of a whole arena, as one flat tensor (the optimizer's operands): bf16 for
    /// [`Space::Half`], else f32.
    pub fn whole(&mut self, name: &str, space: Space, len: usize) -> TensorId {
        self.add_tensor(Tensor {
            name: name.to_string(),
            shape: vec![len],
            dtype: if space == Space::Half { DType::BF16 } else { DType::F32 },
            space,
            role: Role::State,
            offset: Some(0),
        })
    }

    /// The set of images `[rows, h, w, c]` of [`Space::Images`].
    pub fn image_set(&mut self, shape: &[usize], dtype: DType) -> TensorId {
        self.add_tensor(Tensor {
            name: "images".to_string(),
            shape: shape.to_vec(),
            dtype,
            space: Space::Images,
            role: Role::State,
            offset: Some(0),
        })
    }

    /// An f32 tensor of [`Space::Packed`], written by the prologue.
    pub fn packed(&mut self, name: impl Into<String>, len: usize) -> TensorId {
        self.add_tensor(Tensor {
            name: name.into(),
            shape: vec![len],
            dtype: DType::F32,
            space: Space::Packed,
            role: Role::State,
            offset: None,
        })
    }

    /// Appends an op.
    pub fn push(
        &mut self,
        op: Op,
        inputs: Vec<Option<TensorId>>,
        outputs: Vec<Option<Write>>,
    ) -> usize {
        self.nodes.push(Node { op, inputs, outputs, workspace: None });
        self.nodes.len() - 1
    }

    /// Appends a forward op whose outputs are all overwritten.
    pub fn push_forward(&mut self, op: Op, inputs: &[Option<TensorId>], outputs: &[TensorId]) {
        let outputs =
            outputs.iter().map(|&tensor| Some(Write { tensor, mode: Mode::Write })).collect();
        self.push(op, inputs.to_vec(), outputs);
    }

    /// Checks a tensor's shape, for builder methods.
    pub fn expect_shape(&self, op: &'static str, id: TensorId, expected: &[usize]) -> Result<()> {
        let t = self.tensor(id);
        if t.shape == expected {
            return Ok(());
        }
        Err(Error::Shape {
            op,
            tensor: t.name.clone(),
            expected: format!("{expected:?}"),
            found: t.shape.clone(),
        })
    }

    /// The four axes of an image tensor `[n, h, w, c]`.
    pub fn image_shape(&self, op: &'static str, id: TensorId) -> Result<[usize; 4]> {
        let t = self.tensor(id);
        t.shape.as_slice().try_into().map_err(|_| Error::Shape {
            op,
            tensor: t.name.clone(),
            expected: "[n, h, w, c]".into(),
            found: t.shape.clone(),
        })
    }

    /// A fresh name derived from a tensor's, for an op's output.
    pub fn derived_name(&self, of: TensorId, suffix: &str) -> String {
        format!("{}.{suffix}", self.tensor(of).name)
    }

    /// Floating-point operations of one run, by the ops' own count.
    pub fn flops(&self) -> u64 {
        self.nodes.iter().map(|n| n.op.flops()).sum()
    }
}
