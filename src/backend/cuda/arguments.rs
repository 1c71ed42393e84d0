//! One node being executed: the device addresses of its operands, and launches in
//! its name.
#![allow(unsafe_code)] // Launches on addresses from the memory plan.

use std::cell::RefCell;
use std::ffi::c_void;

use super::device::Device;
use super::entries::Entry;
use crate::backend::{Precision, Program};
use crate::error::Result;
use crate::plan::{DType, Mode, Node, Space, TensorId};

/// Number of arenas.
pub(super) const SPACES: usize = 9;

/// A node's operands by position, as addresses, and its launches.
///
/// Tensors that are alive at the same time have disjoint bytes, and a node never
/// lists a tensor both as input and as output; [`Program::new`] checks both.
pub struct Call<'a> {
    device: &'a Device,
    program: &'a Program,
    node: &'a Node,
    /// Address and size of each arena, by `Space as usize`.
    arenas: [(u64, usize); SPACES],
    /// Tensors that lie outside the arenas.
    bound: &'a [(TensorId, u64)],
    /// Where kernels report an index outside its table.
    bad_index: *mut u32,
    /// Takes down launches that are not to be made.
    recorder: Option<&'a RefCell<Vec<Launch>>>,
}

/// A launch of a kernel for an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the op.
    pub op: &'static str,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Shared memory of a block beside that which the kernel's code declares.
    pub shared_bytes: u32,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        device: &'a Device,
        program: &'a Program,
        node: &'a Node,
        arenas: [(u64, usize); SPACES],
        bad_index: *mut u32,
    ) -> Self {
        Call { device, program, node, arenas, bound: &[], bad_index, recorder: None }
    }

    /// A call that launches nothing and takes down what it would launch.
    pub(super) fn recording(
        device: &'a Device,
        program: &'a Program,
        node: &'a Node,
        recorder: &'a RefCell<Vec<Launch>>,
    ) -> Self {
        // Far from 0 and from overflow; never used.
        let arenas = [(1 << 40, usize::MAX >> 1); SPACES];
        let call = Call::new(device, program, node, arenas, std::ptr::null_mut());
        Call { recorder: Some(recorder), ..call }
    }

    /// A call with an arena of activations (address, bytes) and tensors elsewhere.
    pub(crate) fn bound(
        device: &'a Device,
        program: &'a Program,
        node: &'a Node,
        activations: (u64, usize),
        bound: &'a [(TensorId, u64)],
        bad_index: *mut u32,
    ) -> Self {
        let mut arenas = [(0, 0); SPACES];
        arenas[Space::Activations as usize] = activations;
        Call { device, program, node, arenas, bound, bad_index, recorder: None }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node
    }

    /// The device, for its limits.
    pub fn device(&self) -> &Device {
        self.device
    }

    pub(super) fn address(&self, id: TensorId, dtype: DType) -> (u64, usize) {
        let tensor = self.program.plan.tensor(id);
        assert_eq!(tensor.dtype, dtype, "`{}`", tensor.name);
        if let Some((_, address)) = self.bound.iter().find(|(bound, _)| *bound == id) {
            return (*address, tensor.len());
        }
        let (space, offset) = self.program.place(id);
        let (base, bytes) = self.arenas[space as usize];
        assert!(offset + tensor.bytes() <= bytes, "`{}` lies outside its arena", tensor.name);
        (base + offset as u64, tensor.len())
    }

    /// Precision that the program was lowered for.
    pub fn precision(&self) -> Precision {
        self.program.precision
    }

    /// Shape of the input at position `i`; `None` where it is absent.
    pub fn shape(&self, i: usize) -> Option<&[usize]> {
        let id = self.node.inputs.get(i).copied().flatten()?;
        Some(self.program.plan.shape(id))
    }

    /// Element type of the input at position `i`, which the op requires.
    pub fn dtype(&self, i: usize) -> DType {
        self.program.plan.tensor(self.node.input(i)).dtype
    }

    /// Elements of the input at position `i`; 0 where it is absent.
    pub fn elements(&self, i: usize) -> usize {
        let id = self.node.inputs.get(i).copied().flatten();
        id.map_or(0, |id| self.program.plan.tensor(id).len())
    }

    /// Element type of the output at position `i`, of an op that is only run for it.
    pub fn written_dtype(&self, i: usize) -> DType {
        let id = self.node.output(i).expect("required output of an op");
        self.program.plan.tensor(id).dtype
    }

    /// Address of a tensor of `dtype` that a kernel takes in either type.
    fn either(&self, id: TensorId, dtype: DType) -> u64 {
        assert!(matches!(dtype, DType::F32 | DType::BF16), "{dtype:?} is neither f32 nor bf16");
        self.address(id, dtype).0
    }

    /// Input of `dtype` (f32 or bf16) at position `i`; null where it is absent.
    pub fn optional_as(&self, i: usize, dtype: DType) -> *const c_void {
        let id = self.node.inputs.get(i).copied().flatten();
        id.map_or(std::ptr::null(), |id| self.either(id, dtype) as *const c_void)
    }

    /// Input of `dtype` (f32 or bf16) at position `i`, which the op requires.
    pub fn input_as(&self, i: usize, dtype: DType) -> *const c_void {
        self.either(self.node.input(i), dtype) as *const c_void
    }

    /// Output of `dtype` (f32 or bf16) at position `i` and 1 where it is added to; `None`
    /// when it is skipped.
    pub fn output_as(&self, i: usize, dtype: DType) -> Option<(*mut c_void, u32)> {
        let write = self.node.output_write(i)?;
        let address = self.either(write.tensor, dtype);
        Some((address as *mut c_void, u32::from(write.mode == Mode::Add)))
    }

    /// Output of `dtype` (f32 or bf16) at position `i` and 1 where it is added to, of an op
    /// that is only run for it.
    pub fn required_as(&self, i: usize, dtype: DType) -> (*mut c_void, u32) {
        self.output_as(i, dtype).expect("required output of an op")
    }

    fn read(&self, i: usize, dtype: DType) -> Option<u64> {
        let id = self.node.inputs.get(i).copied().flatten()?;
        Some(self.address(id, dtype).0)
    }

    /// f32 input at position `i`; null where it is absent.
    pub fn optional(&self, i: usize) -> *const f32 {
        self.read(i, DType::F32).map_or(std::ptr::null(), |a| a as *const f32)
    }

    /// f32 input at position `i`, which the op requires.
    pub fn input(&self, i: usize) -> *const f32 {
        self.read(i, DType::F32).expect("required input of an op") as *const f32
    }

    /// u32 input at position `i`; null where it is absent.
    pub fn optional_u32(&self, i: usize) -> *const u32 {
        self.read(i, DType::U32).map_or(std::ptr::null(), |a| a as *const u32)
    }

    /// u32 input at position `i`, which the op requires.
    pub fn input_u32(&self, i: usize) -> *const u32 {
        self.read(i, DType::U32).expect("required input of an op") as *const u32
    }

    /// u8 input at position `i`, which the op requires.
    pub fn input_u8(&self, i: usize) -> *const u8 {
        self.read(i, DType::U8).expect("required input of an op") as *const u8
    }

    /// Output at position `i` and 1 where it is added to; `None` when it is skipped.
    pub fn output(&self, i: usize) -> Option<(*mut f32, u32)> {
        let write = self.node.output_write(i)?;
        let (address, _) = self.address(write.tensor, DType::F32);
        Some((address as *mut f32, u32::from(write.mode == Mode::Add)))
    }

    /// Output at position `i` and 1 where it is added to, of an op that is only run
    /// for it.
    pub fn required(&self, i: usize) -> (*mut f32, u32) {
        self.output(i).expect("required output of an op")
    }

    /// Output at position `i`, overwritten or changed in place.
    pub fn written(&self, i: usize) -> *mut f32 {
        self.required(i).0
    }

    /// u32 output at position `i`, overwritten.
    pub fn written_u32(&self, i: usize) -> *mut u32 {
        let id = self.node.output(i).expect("required output of an op");
        self.address(id, DType::U32).0 as *mut u32
    }

    /// The node's scratch memory, of [`lower::workspace_len`](super::lower) floats.
    pub fn workspace(&self) -> *mut f32 {
        match self.node.workspace {
            Some(id) => self.address(id, DType::F32).0 as *mut f32,
            None => std::ptr::null_mut(),
        }
    }

    /// Where blocks that share a result count who is last; see [`Device::counters`].
    pub fn counters(&self) -> *mut u32 {
        self.device.counters()
    }

    /// A word that is 0 until a kernel writes 1 + the image whose index lies outside
    /// its table.
    pub fn bad_index(&self) -> *mut u32 {
        self.bad_index
    }

    /// Launches a kernel of this node; see [`Device::launch`].
    pub fn launch<P>(
        &self,
        entry: &Entry<P>,
        grid: [usize; 3],
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        if let Some(recorder) = self.recorder {
            if !grid.contains(&0) {
                let (op, kernel) = (self.node.op.name(), entry.name);
                recorder.borrow_mut().push(Launch { op, kernel, shared_bytes });
            }
            return Ok(());
        }
        // SAFETY: the addresses come from this call, whose tensors lie inside their
        // arenas; the arenas outlive the stream's work, which frees wait for.
        unsafe { self.device.launch(self.node.op.name(), entry, grid, shared_bytes, params) }
    }
}

/// Elements that a thread of an elementwise kernel handles, as in common.cuh.
const GROUP: usize = 4;

/// Elements that a thread of an elementwise kernel of either type handles, as in half.cuh.
pub(super) fn each(dtype: DType) -> usize {
    16 / dtype.bytes()
}

/// The kernel for tensors of that type, f32 or bf16.
pub(super) fn for_type<P>(
    dtype: DType,
    single: &'static Entry<P>,
    half: &'static Entry<P>,
) -> &'static Entry<P> {
    if dtype == DType::BF16 { half } else { single }
}

/// Grid of a kernel whose threads handle `each` of `len` elements, `rows` times.
pub(super) fn packs<P>(entry: &Entry<P>, each: usize, len: usize, rows: usize) -> [usize; 3] {
    [len.div_ceil(each * entry.threads as usize), rows, 1]
}

/// Grid of an elementwise kernel over `len` elements, `rows` times.
pub(super) fn groups<P>(entry: &Entry<P>, len: usize, rows: usize) -> [usize; 3] {
    [len.div_ceil(GROUP * entry.threads as usize), rows, 1]
}
