//! Convolutions on memory of one's own.
#![allow(unsafe_code)] // Launches on addresses whose sizes were checked.

use super::super::device::Device;
use super::super::memory::Memory;
use super::layer::{GatherOperands, Launch, Layer, OuterOperands, Pass};
use super::{Arithmetic, Source, tiles};
use crate::error::{Error, Result};
use crate::ops::conv2d::Conv2d;
use crate::plan::Mode;

/// A convolution (or, with images of one pixel and one tap, a linear layer) on memory
/// of one's own. Elements of x, y, the weight and what is added per image or as a
/// residual have [`Arithmetic::bytes`]; biases, gradients by the weight and the
/// workspace are f32. Layouts are those of [`Conv2d`].
///
/// Passes are launched on the device's stream and return at once.
#[derive(Clone, Copy, Debug)]
pub struct Convolution<'a> {
    device: &'a Device,
    layer: Layer,
}

/// What is added to a convolution's sums before they are stored, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[c_out]`, f32.
    pub bias: Option<&'a Memory>,
    /// `[n, c_out]`
    pub per_image: Option<&'a Memory>,
    /// As the output.
    pub residual: Option<&'a Memory>,
}

fn address(memory: Option<&Memory>) -> *const f32 {
    memory.map_or(std::ptr::null(), |m| m.address() as *const f32)
}

fn address_mut(memory: Option<&mut Memory>) -> *mut f32 {
    memory.map_or(std::ptr::null_mut(), |m| m.address() as *mut f32)
}

impl<'a> Convolution<'a> {
    /// A convolution whose x comes from `source`. Refuses what the kernels cannot
    /// address: a second tensor with groups, an enlarged image of odd size.
    pub fn new(
        device: &'a Device,
        op: Conv2d,
        arithmetic: Arithmetic,
        source: Source,
    ) -> Result<Self> {
        let enlarged = 1usize << source.enlarge;
        let fits = source.second_channels < op.c_in
            && (source.second_channels == 0 || op.options.groups == 1)
            && op.h.is_multiple_of(enlarged)
            && op.w.is_multiple_of(enlarged)
            && i32::try_from(op.x_len().max(op.y_len()).max(op.weight_len())).is_ok();
        if !fits {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: "x".into(),
                expected: format!("what {source:?} can make of fewer than 2^31 elements"),
                found: vec![op.n, op.h, op.w, op.c_in],
            });
        }
        Ok(Convolution { device, layer: Layer { op, arithmetic, source, tile: None } })
    }

    /// The same by blocks of that many rows and columns of results, in the passes
    /// that have such a kernel: for measurements. Results keep their bits.
    pub fn with_tile(mut self, rows: usize, columns: usize) -> Self {
        self.layer.tile = Some([rows, columns]);
        self
    }

    /// Bytes of scratch memory that the passes need: forward, to the data, to the weight.
    pub fn workspace_bytes(&self) -> [usize; 3] {
        let l = &self.layer;
        [
            l.gather_workspace_len(Pass::Forward),
            l.gather_workspace_len(Pass::BackwardData),
            l.outer_workspace_len(),
        ]
        .map(|len| len * 4)
    }

    /// Rows and columns of a tile and the number of blocks that the passes launch:
    /// forward, to the data (all residues), to the weight.
    pub fn tiles(&self) -> [([usize; 2], usize); 3] {
        let mut found = [([0; 2], 0); 3];
        let mut note = |i: usize, rows: usize, columns: usize, grid: &[usize; 3]| {
            found[i] = ([rows, columns], found[i].1 + grid.iter().product::<usize>());
        };
        let null = std::ptr::null();
        let operands = GatherOperands {
            y: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            counters: std::ptr::null_mut(),
            x: null,
            x2: null,
            weight: null,
            bias: null,
            per_image: null,
            residual: null,
            add: false,
        };
        let (forward, data) = (Pass::Forward, Pass::BackwardData);
        for (i, pass) in [forward, data].into_iter().enumerate() {
            let noted = self.layer.launch_gather(pass, &operands, &mut |launch| {
                if let Launch::Gather(entry, grid, ..) = launch {
                    let [rows, columns] = tiles::sides(entry);
                    note(i, rows, columns, &grid);
                }
                Ok(())
            });
            noted.expect("nothing is launched");
        }
        let operands = OuterOperands {
            d_weight: std::ptr::null_mut(),
            d_bias: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            counters: std::ptr::null_mut(),
            x: null,
            x2: null,
            d_y: null,
            add: false,
            add_bias: false,
        };
        let noted = self.layer.launch_outer(&operands, &mut |launch| {
            if let Launch::Outer(entry, grid, ..) = launch {
                let [rows, columns] = tiles::sides(entry);
                note(2, rows, columns, &grid);
            }
            Ok(())
        });
        noted.expect("nothing is launched");
        found
    }

    fn check(&self, tensor: &str, memory: Option<&Memory>, bytes: usize) -> Result<()> {
        match memory {
            Some(memory) if memory.bytes() < bytes => Err(Error::Shape {
                op: "conv2d",
                tensor: tensor.into(),
                expected: format!("{bytes} bytes"),
                found: vec![memory.bytes()],
            }),
            _ => Ok(()),
        }
    }

    fn check_source(&self, x: &Memory, x2: Option<&Memory>) -> Result<()> {
        let Layer { op, arithmetic, source, .. } = &self.layer;
        let second = source.second_channels;
        let pixels = op.n * (op.h >> source.enlarge) * (op.w >> source.enlarge);
        self.check("x", Some(x), pixels * (op.c_in - second) * arithmetic.bytes())?;
        self.check("x2", x2, pixels * second * arithmetic.bytes())?;
        if x2.is_none() && second > 0 {
            return Err(Error::Shape {
                op: "conv2d",
                tensor: "x2".into(),
                expected: format!("a tensor of {second} channels"),
                found: vec![],
            });
        }
        Ok(())
    }

    /// `y = conv(x, weight) + epilogue`, or added to y.
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    pub fn forward(
        &self,
        y: &mut Memory,
        x: &Memory,
        x2: Option<&Memory>,
        weight: &Memory,
        epilogue: Epilogue,
        workspace: &mut Memory,
        mode: Mode,
    ) -> Result<()> {
        let (op, bytes) = (&self.layer.op, self.layer.arithmetic.bytes());
        self.check("y", Some(y), op.y_len() * bytes)?;
        self.check_source(x, x2)?;
        self.check("weight", Some(weight), op.weight_len() * bytes)?;
        self.check("bias", epilogue.bias, op.c_out * 4)?;
        self.check("per_image", epilogue.per_image, op.n * op.c_out * bytes)?;
        self.check("residual", epilogue.residual, op.y_len() * bytes)?;
        self.check("workspace", Some(workspace), self.workspace_bytes()[0])?;
        let operands = GatherOperands {
            y: address_mut(Some(y)),
            workspace: address_mut(Some(workspace)),
            counters: self.device.counters(),
            x: address(Some(x)),
            x2: address(x2),
            weight: address(Some(weight)),
            bias: address(epilogue.bias),
            per_image: address(epilogue.per_image),
            residual: address(epilogue.residual),
            add: mode == Mode::Add,
        };
        // SAFETY: the sizes were checked; memory outlives the stream's work, which its
        // release waits for.
        self.layer.launch_gather(Pass::Forward, &operands, &mut |launch| unsafe {
            launch.on(self.device, "conv2d_forward")
        })
    }

    /// d_x `[n,h,w,c_in]` (as the convolution sees x: enlarged, both tensors side by
    /// side) from d_y and the weight, written or added.
    pub fn backward_data(
        &self,
        d_x: &mut Memory,
        d_y: &Memory,
        weight: &Memory,
        workspace: &mut Memory,
        mode: Mode,
    ) -> Result<()> {
        let (op, bytes) = (&self.layer.op, self.layer.arithmetic.bytes());
        self.check("d_x", Some(d_x), op.x_len() * bytes)?;
        self.check("d_y", Some(d_y), op.y_len() * bytes)?;
        self.check("weight", Some(weight), op.weight_len() * bytes)?;
        self.check("workspace", Some(workspace), self.workspace_bytes()[1])?;
        let operands = GatherOperands {
            y: address_mut(Some(d_x)),
            workspace: address_mut(Some(workspace)),
            counters: self.device.counters(),
            x: address(Some(d_y)),
            x2: std::ptr::null(),
            weight: address(Some(weight)),
            bias: std::ptr::null(),
            per_image: std::ptr::null(),
            residual: std::ptr::null(),
            add: mode == Mode::Add,
        };
        // SAFETY: as in `forward`.
        self.layer.launch_gather(Pass::BackwardData, &operands, &mut |launch| unsafe {
            launch.on(self.device, "conv2d_backward_data")
        })
    }

    /// f32 d_weight and d_bias from x and d_y, each written, added or skipped.
    pub fn backward_weight(
        &self,
        d_weight: Option<(&mut Memory, Mode)>,
        d_bias: Option<(&mut Memory, Mode)>,
        x: &Memory,
        x2: Option<&Memory>,
        d_y: &Memory,
        workspace: &mut Memory,
    ) -> Result<()> {
        let (op, bytes) = (&self.layer.op, self.layer.arithmetic.bytes());
        let mode = |o: &Option<(&mut Memory, Mode)>| o.as_ref().is_some_and(|o| o.1 == Mode::Add);
        let (add, add_bias) = (mode(&d_weight), mode(&d_bias));
        self.check("d_weight", d_weight.as_ref().map(|o| &*o.0), op.weight_len() * 4)?;
        self.check("d_bias", d_bias.as_ref().map(|o| &*o.0), op.c_out * 4)?;
        self.check_source(x, x2)?;
        self.check("d_y", Some(d_y), op.y_len() * bytes)?;
        self.check("workspace", Some(workspace), self.workspace_bytes()[2])?;
        let operands = OuterOperands {
            d_weight: address_mut(d_weight.map(|o| o.0)),
            d_bias: address_mut(d_bias.map(|o| o.0)),
            workspace: address_mut(Some(workspace)),
            counters: self.device.counters(),
            x: address(Some(x)),
            x2: address(x2),
            d_y: address(Some(d_y)),
            add,
            add_bias,
        };
        // SAFETY: as in `forward`.
        self.layer.launch_outer(&operands, &mut |launch| unsafe {
            launch.on(self.device, "conv2d_backward_weight")
        })
    }
}
