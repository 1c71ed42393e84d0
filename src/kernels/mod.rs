//! Single CUDA kernels on device tensors, for programs that bring their own loop.
//!
//! A kernel is named by the [`Plan`] method that appends its op: that method checks
//! shapes, documents layout and equation, and is the same for every backend. Here it
//! runs at once, on tensors that lie on the device:
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
//! Launches do not wait for each other's results on the host; [`Kernels::download`]
//! does. The functions of [`backend::cpu`](crate::backend::cpu) are the same ops on
//! slices of the host. A whole network is better run as one plan by an
//! [`Engine`](crate::backend::Engine), which plans its memory and replays its
//! launches as one graph.

use std::cell::RefCell;
use std::sync::Arc;

use crate::backend::Precision;
use crate::backend::cuda::{Call, Device, Memory, launch_node, lower};
use crate::error::{Error, Result};
use crate::plan::{DType, Plan, Role, Space, TensorId, Wrt};

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

    fn upload_bytes(
        &self,
        shape: &[usize],
        dtype: DType,
        len: usize,
        bytes: &[u8],
    ) -> Result<DeviceTensor> {
        if shape.iter().product::<usize>() != len {
            return Err(Error::Shape {
                op: "upload",
                tensor: "values".into(),
                expected: format!("as many values as {shape:?} has elements"),
                found: vec![len],
            });
        }
        let tensor = self.allocate(shape, dtype)?;
        self.device.upload(&tensor.memory, 0, bytes)?;
        Ok(tensor)
    }

    /// Zeros, f32.
    pub fn zeros(&self, shape: &[usize]) -> Result<DeviceTensor> {
        self.allocate(shape, DType::F32)
    }

    fn allocate(&self, shape: &[usize], dtype: DType) -> Result<DeviceTensor> {
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let memory = self.device.allocate(bytes, "a tensor")?;
        Ok(DeviceTensor { memory, shape: shape.to_vec(), dtype })
    }

    /// Waits for everything before and copies f32 values back.
    pub fn download(&self, tensor: &DeviceTensor) -> Result<Vec<f32>> {
        if tensor.dtype != DType::F32 {
            return Err(Error::Usage("download takes tensors of f32".into()));
        }
        let mut values = vec![0f32; tensor.shape.iter().product()];
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
        let made = self.allocate(plan.shape(y), plan.tensor(y).dtype)?;
        bound.bind(&mut plan, y, &made);
        self.execute(plan, &bound)?;
        Ok(made)
    }

    /// Gradients of `sum upstream y` by each f32 input, y as in [`Kernels::run`];
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
        let wanted = of.iter().copied().filter(|&t| plan.tensor(t).dtype == DType::F32);
        let wanted: Vec<TensorId> = wanted.collect();
        plan.derive(&[(y, Some(d_y))], Wrt::Tensors(wanted))?;
        let mut made = Vec::new();
        for &input in of {
            let Some(d) = plan.gradient(input) else {
                made.push(None);
                continue;
            };
            let tensor = self.allocate(plan.shape(d), DType::F32)?;
            bound.bind(&mut plan, d, &tensor);
            made.push(Some(tensor));
        }
        self.execute(plan, &bound)?;
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
        self.execute(plan, &bound)
    }

    fn execute(&self, plan: Plan, bound: &Bound) -> Result<()> {
        let program = lower(plan, Precision::F32)?;
        let needed = program.memory.activation_bytes;
        let mut scratch = self.scratch.borrow_mut();
        if scratch.as_ref().is_none_or(|memory| memory.bytes() < needed) {
            *scratch = None;
            *scratch = Some(self.device.allocate(needed, "intermediate results")?);
        }
        let arena = scratch.as_ref().map_or((0, 0), |m| (m.address(), m.bytes()));
        let bad_index = self.bad_index.address() as *mut u32;
        for node in &program.plan.nodes {
            let call = Call::bound(&self.device, &program, node, arena, &bound.0, bad_index);
            launch_node(&call)?;
        }
        Ok(())
    }
}

/// Tensors of a plan that lie in memory of their own.
struct Bound(Vec<(TensorId, u64)>);

impl Bound {
    fn new(plan: &mut Plan, tensors: &[&DeviceTensor]) -> Self {
        let mut bound = Bound(Vec::new());
        for (i, tensor) in tensors.iter().enumerate() {
            let name = format!("operand_{i}");
            let id = plan.activation(name, &tensor.shape, tensor.dtype, Role::State);
            bound.bind(plan, id, tensor);
        }
        bound
    }

    fn bind(&mut self, plan: &mut Plan, id: TensorId, tensor: &DeviceTensor) {
        // Outside the activations, so that the memory plan gives it no room and no
        // copy of it is taken for the tensor itself.
        let planned = &mut plan.tensors[id.index()];
        assert_eq!((&planned.shape, planned.dtype), (&tensor.shape, tensor.dtype));
        (planned.space, planned.offset, planned.role) = (Space::Parameters, Some(0), Role::State);
        self.0.push((id, tensor.memory.address()));
    }

    fn ids(&self) -> Vec<TensorId> {
        self.0.iter().map(|(id, _)| *id).collect()
    }
}
