//! Single CUDA kernels on device tensors, for programs that bring their own loop.
//!
//! Every op has a function here, named as [`Op::name`] names it: outputs (written or added
//! to), then inputs, all tensors of the caller's own.
//! ```no_run
//! use langevin::kernels::{Kernels, Output};
//! use langevin::ops::pointwise::{Activate, Activation};
//!
//! let k = Kernels::open(0)?;
//! let x = k.upload(&[4], &[-1.0, 0.0, 1.0, 2.0])?;
//! let mut y = k.zeros(&[4])?;
//! let silu = Activate { len: 4, activation: Activation::Silu };
//! k.activate_forward(&silu, Output::write(&mut y), &x)?;
//! assert_eq!(k.download(&y)?[1], 0.0);
//! # Ok::<(), langevin::Error>(())
//! ```
//! Descriptors and operands are checked against each other before anything is launched
//! ([`Kernels::launch`]), so that safe code cannot make a kernel leave its operands.
//!
//! Several ops together, with outputs allocated and gradients derived, are written as for
//! any backend, with the methods of [`Plan`]:
//! ```no_run
//! use langevin::kernels::Kernels;
//! use langevin::ops::conv2d::{ConvOptions, Padding};
//!
//! let k = Kernels::open(0)?;
//! let x = k.upload(&[1, 32, 32, 64], &vec![0.5; 65536])?; // [n, h, w, c]
//! let w = k.upload(&[128, 3, 3, 64], &vec![0.01; 73728])?; // [c_out, kh, kw, c_in]
//! let options = ConvOptions { padding: Padding::same(1), ..Default::default() };
//! let y = k.run(&[&x, &w], |plan, t| plan.conv2d(t[0], t[1], None, options))?;
//! assert_eq!(y.shape(), [1, 32, 32, 128]);
//! let d = k.gradients(&[&x, &w], &y, |plan, t| plan.conv2d(t[0], t[1], None, options))?;
//! assert_eq!(d[1].as_ref().map(|d| d.shape()), Some(w.shape()));
//! # Ok::<(), langevin::Error>(())
//! ```
//! Ops that have kernels of bf16 take tensors of it, at the positions that their descriptors
//! and [`precision`](crate::plan::precision) name, all of them or none; sums are f32 inside,
//! and weights' gradients are f32. The results of [`Kernels::run`] and
//! [`Kernels::gradients`] are of the type of what they are made of.
//! ```no_run
//! use half::bf16;
//! use langevin::kernels::{Kernels, Output};
//! use langevin::ops::linear::Linear;
//! use langevin::plan::DType;
//!
//! let k = Kernels::open(0)?;
//! let x = k.upload_bf16(&[16, 64], &[bf16::ONE; 1024])?;
//! let w = k.upload_bf16(&[32, 64], &[bf16::from_f32(0.5); 2048])?;
//! let mut y = k.zeros_of(&[16, 32], DType::BF16)?;
//! let op = Linear::new(16, 64, 32);
//! k.linear_forward(&op, Output::write(&mut y), &x, &w, None)?;
//! assert_eq!(k.download_bf16(&y)?[0].to_f32(), 32.0);
//! # Ok::<(), langevin::Error>(())
//! ```
//! Launches do not wait for each other's results on the host; [`Kernels::download`]
//! does, and a lookup, to report an index outside its table. The functions of
//! [`backend::cpu`](crate::backend::cpu) are the same ops on slices of the host. A whole
//! network is better run as one plan by an [`Engine`](crate::backend::Engine), which plans
//! its memory and replays its launches as one graph.

mod diffusion;
mod elements;
mod layers;
#[cfg(test)]
mod names;
mod samplers;

pub use diffusion::Examples;

use std::cell::RefCell;
use std::sync::Arc;

use half::bf16;

use crate::backend::Precision;
use crate::backend::cuda::{Call, Device, Memory, launch_node, lower};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::plan::{DType, Mode, Plan, Role, Space, TensorId, Write, Wrt};

/// A tensor on a device; freed when dropped.
#[derive(Debug)]
pub struct DeviceTensor {
    memory: Memory,
    shape: Vec<usize>,
    dtype: DType,
}

impl DeviceTensor {
    /// Axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

/// A tensor that an op writes.
#[derive(Debug)]
pub struct Output<'a> {
    tensor: &'a mut DeviceTensor,
    mode: Mode,
}

impl<'a> Output<'a> {
    /// Overwritten, or changed in place by ops that do so.
    pub fn write(tensor: &'a mut DeviceTensor) -> Self {
        Output { tensor, mode: Mode::Write }
    }

    /// Added to.
    pub fn add(tensor: &'a mut DeviceTensor) -> Self {
        Output { tensor, mode: Mode::Add }
    }
}

/// Runs single kernels on one device, in the order of the calls.
pub struct Kernels {
    device: Arc<Device>,
    /// Intermediate results and workspace, kept for the next call.
    scratch: RefCell<Option<Memory>>,
    /// Where a lookup reports an index outside its table.
    bad_index: Memory,
}

impl Kernels {
    /// Opens device `ordinal`; says what is missing where there is none.
    pub fn open(ordinal: usize) -> Result<Self> {
        Kernels::on(&*Device::open(ordinal)?)
    }

    /// On an open device, whose loaded kernels are shared.
    pub fn on(device: &Device) -> Result<Self> {
        let device = device.with_own_stream()?;
        let bad_index = device.allocate(4, "a flag")?;
        Ok(Kernels { device, scratch: RefCell::default(), bad_index })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies f32 values to the device; there are as many as the shape says.
    pub fn upload(&self, shape: &[usize], values: &[f32]) -> Result<DeviceTensor> {
        self.upload_bytes(shape, DType::F32, values.len(), bytemuck::cast_slice(values))
    }

    /// Copies u32 values (keys, indices) to the device.
    pub fn upload_u32(&self, shape: &[usize], values: &[u32]) -> Result<DeviceTensor> {
        self.upload_bytes(shape, DType::U32, values.len(), bytemuck::cast_slice(values))
    }

    /// Copies bf16 values to the device.
    pub fn upload_bf16(&self, shape: &[usize], values: &[bf16]) -> Result<DeviceTensor> {
        self.upload_bytes(shape, DType::BF16, values.len(), bytemuck::cast_slice(values))
    }

    fn upload_bytes(
        &self,
        shape: &[usize],
        dtype: DType,
        len: usize,
        bytes: &[u8],
    ) -> Result<DeviceTensor> {
        let wanted = shape.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis));
        if shape.is_empty() || wanted != Some(len) {
            return Err(Error::Shape {
                op: "upload",
                tensor: "values".into(),
                expected: format!("axes, and as many values as {shape:?} has elements"),
                found: vec![len],
            });
        }
        let tensor = self.allocate(shape, dtype)?;
        self.device.upload(&tensor.memory, 0, bytes)?;
        Ok(tensor)
    }

    /// Copies bytes (image data) to the device.
    pub fn upload_u8(&self, shape: &[usize], values: &[u8]) -> Result<DeviceTensor> {
        self.upload_bytes(shape, DType::U8, values.len(), values)
    }

    /// Zeros of any element type.
    pub fn zeros_of(&self, shape: &[usize], dtype: DType) -> Result<DeviceTensor> {
        self.allocate(shape, dtype)
    }

    /// Zeros, f32.
    pub fn zeros(&self, shape: &[usize]) -> Result<DeviceTensor> {
        self.allocate(shape, DType::F32)
    }

    fn allocate(&self, shape: &[usize], dtype: DType) -> Result<DeviceTensor> {
        let axes = shape.iter().try_fold(dtype.bytes(), |product, &axis| product.checked_mul(axis));
        let Some(bytes) = axes.filter(|_| !shape.is_empty()) else {
            let problem = format!("{shape:?} is not the shape of a tensor");
            return Err(Error::Usage(problem));
        };
        let memory = self.device.allocate(bytes, "a tensor")?;
        Ok(DeviceTensor { memory, shape: shape.to_vec(), dtype })
    }

    /// Waits for everything before and copies f32 values back.
    pub fn download(&self, tensor: &DeviceTensor) -> Result<Vec<f32>> {
        self.download_values(tensor, DType::F32)
    }

    /// Waits for everything before and copies bf16 values back.
    pub fn download_bf16(&self, tensor: &DeviceTensor) -> Result<Vec<bf16>> {
        self.download_values(tensor, DType::BF16)
    }

    fn download_values<T: bytemuck::Pod>(
        &self,
        tensor: &DeviceTensor,
        dtype: DType,
    ) -> Result<Vec<T>> {
        if tensor.dtype != dtype {
            let problem = format!("a tensor of {:?} is not downloaded as {dtype:?}", tensor.dtype);
            return Err(Error::Usage(problem));
        }
        let mut values = vec![T::zeroed(); tensor.shape.iter().product()];
        self.device.download(&tensor.memory, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Runs the ops that `build` appends over the given tensors and returns what the
    /// last tensor it names becomes.
    ///
    /// # Errors
    /// Shapes that do not fit, ops without a kernel, failures of the driver.
    pub fn run(
        &self,
        inputs: &[&DeviceTensor],
        build: impl FnOnce(&mut Plan, &[TensorId]) -> Result<TensorId>,
    ) -> Result<DeviceTensor> {
        let mut plan = Plan::new();
        let mut bound = Bound::new(&mut plan, inputs);
        let y = build(&mut plan, &bound.ids())?;
        plan.follow_types();
        let made = match plan.tensors.get(y.index()) {
            Some(t) if t.space == Space::Activations => self.allocate(&t.shape, t.dtype)?,
            _ => return Err(Error::Usage("run: the result is not what an op writes".into())),
        };
        bound.bind(&mut plan, y, &made);
        self.execute(plan, &bound)?;
        drop(bound);
        Ok(made)
    }

    /// Gradients of `sum upstream y` by each input of f32 or bf16, y as in [`Kernels::run`];
    /// `None` for an input that y does not depend on differentiably.
    pub fn gradients(
        &self,
        inputs: &[&DeviceTensor],
        upstream: &DeviceTensor,
        build: impl FnOnce(&mut Plan, &[TensorId]) -> Result<TensorId>,
    ) -> Result<Vec<Option<DeviceTensor>>> {
        let mut plan = Plan::new();
        let all: Vec<&DeviceTensor> = inputs.iter().copied().chain([upstream]).collect();
        let mut bound = Bound::new(&mut plan, &all);
        let ids = bound.ids();
        let (of, d_y) = (&ids[..inputs.len()], ids[inputs.len()]);
        let y = build(&mut plan, of)?;
        let shape = plan.shape(y).to_vec();
        plan.expect_shape("gradients", d_y, &shape)?;
        let is_float = |t: &TensorId| matches!(plan.tensor(*t).dtype, DType::F32 | DType::BF16);
        let wanted: Vec<TensorId> = of.iter().copied().filter(is_float).collect();
        plan.derive(&[(y, Some(d_y))], Wrt::Tensors(wanted))?;
        plan.follow_types();
        let gradients: Vec<Option<TensorId>> = of.iter().map(|&t| plan.gradient(t)).collect();
        let mut made = Vec::new();
        for d in &gradients {
            let of = d.map(|d| plan.tensor(d));
            made.push(of.map(|of| self.allocate(&of.shape, of.dtype)).transpose()?);
        }
        for (d, tensor) in gradients.iter().zip(&made) {
            if let (Some(d), Some(tensor)) = (d, tensor) {
                bound.bind(&mut plan, *d, tensor);
            }
        }
        self.execute(plan, &bound)?;
        drop(bound);
        Ok(made)
    }

    /// Runs ops that write into given tensors (sampler stages, optimizer steps):
    /// `build` appends them over the tensors' ids, first those that are read, then
    /// those that are changed.
    pub fn update(
        &self,
        inputs: &[&DeviceTensor],
        changed: &mut [&mut DeviceTensor],
        build: impl FnOnce(&mut Plan, &[TensorId], &[TensorId]) -> Result<()>,
    ) -> Result<()> {
        let mut plan = Plan::new();
        let reads = inputs.len();
        let all: Vec<&DeviceTensor> =
            inputs.iter().copied().chain(changed.iter().map(|t| &**t)).collect();
        let bound = Bound::new(&mut plan, &all);
        let ids = bound.ids();
        build(&mut plan, &ids[..reads], &ids[reads..])?;
        let written = |t: &TensorId| {
            plan.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).any(|w| w.tensor == *t)
        };
        if ids[..reads].iter().any(written) {
            return Err(Error::Usage("update: an op writes to a tensor given as input".into()));
        }
        plan.follow_types();
        self.execute(plan, &bound)
    }

    /// Launches one op: operands by position, as its descriptor documents them. What does not
    /// agree with the descriptor in length or element type is refused.
    ///
    /// # Errors
    /// Operands that do not fit, ops without a kernel, failures of the driver.
    pub fn launch(
        &self,
        op: Op,
        outputs: Vec<Option<Output>>,
        inputs: &[Option<&DeviceTensor>],
    ) -> Result<()> {
        let mut plan = Plan::new();
        let given: Vec<&DeviceTensor> = inputs.iter().flatten().copied().collect();
        let modes: Vec<Option<Mode>> = outputs.iter().map(|o| o.as_ref().map(|o| o.mode)).collect();
        let written: Vec<&DeviceTensor> =
            outputs.into_iter().flatten().map(|o| &*o.tensor).collect();
        let bound = Bound::new(&mut plan, &[given, written].concat());
        let mut ids = bound.ids().into_iter();
        let mut next = || ids.next().expect("an id for each operand");
        let inputs = inputs.iter().map(|input| input.map(|_| next())).collect();
        let outputs = modes.iter().map(|m| m.map(|mode| Write { tensor: next(), mode })).collect();
        plan.push(op, inputs, outputs);
        self.execute(plan, &bound)
    }

    fn execute(&self, plan: Plan, bound: &Bound) -> Result<()> {
        // Whatever built the plan: ops touch their operands alone, and operands are these
        // tensors or intermediate results.
        bound.check(&plan)?;
        plan.check()?;
        plan.check_indices()?;
        plan.check_types()?;
        for node in &plan.nodes {
            let written: Vec<_> = node.outputs.iter().flatten().map(|w| w.tensor).collect();
            if written.iter().enumerate().any(|(i, w)| written[..i].contains(w)) {
                let problem = format!("{}: a tensor is written twice", node.op.name());
                return Err(Error::Usage(problem));
            }
        }
        let lookup = plan.nodes.iter().rev().find_map(|node| match &node.op {
            Op::Lookup(op) => Some((op.rows, node.input(1))),
            Op::LookupBackward(op) => Some((op.rows, node.input(0))),
            _ => None,
        });
        let program = lower(plan, Precision::F32)?;
        let needed = program.memory.activation_bytes;
        let mut scratch = self.scratch.borrow_mut();
        if scratch.as_ref().is_none_or(|memory| memory.bytes() < needed) {
            *scratch = None;
            *scratch = Some(self.device.allocate(needed, "intermediate results")?);
        }
        let arena = scratch.as_ref().map_or((0, 0), |m| (m.address(), m.bytes()));
        let bad_index = self.bad_index.address() as *mut u32;
        let addresses = bound.addresses();
        for node in &program.plan.nodes {
            let call = Call::bound(&self.device, &program, node, arena, &addresses, bad_index);
            launch_node(&call)?;
        }
        lookup.map_or(Ok(()), |(rows, index)| self.check_lookup(rows, index, bound))
    }

    /// Reports an index outside a table of `rows`.
    fn check_lookup(&self, rows: usize, index: TensorId, bound: &Bound) -> Result<()> {
        let mut word = [0; 4];
        self.device.download(&self.bad_index, 0, &mut word)?;
        let found = u32::from_le_bytes(word) as usize;
        if found == 0 {
            return Ok(());
        }
        self.device.upload(&self.bad_index, 0, &[0; 4])?;
        let image = found - 1;
        let class = match bound.tensor(index) {
            Some(tensor) => {
                self.device.download(&tensor.memory, 4 * image, &mut word)?;
                format!("class {}", u32::from_le_bytes(word))
            }
            None => "the class".into(),
        };
        Err(Error::Usage(format!(
            "{class} of image {image} is out of range: the table has rows 0..{rows}"
        )))
    }
}

/// Tensors of a plan that lie in memory of their own.
struct Bound<'a>(Vec<(TensorId, &'a DeviceTensor)>);

impl<'a> Bound<'a> {
    fn new(plan: &mut Plan, tensors: &[&'a DeviceTensor]) -> Self {
        let mut bound = Bound(Vec::new());
        for (i, tensor) in tensors.iter().enumerate() {
            let name = format!("operand_{i}");
            let id = plan.activation(name, &tensor.shape, tensor.dtype, Role::State);
            bound.bind(plan, id, tensor);
        }
        bound
    }

    fn bind(&mut self, plan: &mut Plan, id: TensorId, tensor: &'a DeviceTensor) {
        // Outside the activations, so that the memory plan gives it no room and no
        // copy of it is taken for the tensor itself.
        let planned = &mut plan.tensors[id.index()];
        (planned.space, planned.offset, planned.role) = (Space::Parameters, Some(0), Role::State);
        self.0.push((id, tensor));
    }

    /// Every tensor of the plan is one of these, as it was bound, or an activation.
    fn check(&self, plan: &Plan) -> Result<()> {
        for (i, planned) in plan.tensors.iter().enumerate() {
            let holds = match self.tensor(TensorId(i as u32)) {
                Some(t) => {
                    planned.space == Space::Parameters
                        && (&planned.shape, planned.dtype) == (&t.shape, t.dtype)
                }
                None => planned.space == Space::Activations,
            };
            if !holds {
                let problem = format!("`{}` is neither an operand nor made by an op", planned.name);
                return Err(Error::Usage(problem));
            }
        }
        Ok(())
    }

    fn tensor(&self, id: TensorId) -> Option<&'a DeviceTensor> {
        self.0.iter().find(|(bound, _)| *bound == id).map(|(_, tensor)| *tensor)
    }

    fn ids(&self) -> Vec<TensorId> {
        self.0.iter().map(|(id, _)| *id).collect()
    }

    fn addresses(&self) -> Vec<(TensorId, u64)> {
        self.0.iter().map(|(id, tensor)| (*id, tensor.memory.address())).collect()
    }
}
