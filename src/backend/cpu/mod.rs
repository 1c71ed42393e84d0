//! The CPU backend: the default where there is no GPU, and the reference.
#![allow(unsafe_code)] // Arena memory is handed to kernels as slices.

mod arguments;
pub mod attention;
pub mod axis_map;
pub mod broadcast;
pub mod cast;
mod columns;
pub mod concat;
pub mod conv2d;
pub mod dropout;
pub mod embedding;
pub mod empirical;
mod gemm;
pub mod images;
pub mod isa;
pub mod linear;
pub mod loss;
mod lower;
mod machine;
mod math;
pub mod noising;
pub mod norm;
pub mod optimizer;
pub mod pointwise;
pub mod pool;
pub mod pooling;
pub mod resample;
pub mod sampler_control;
pub mod sampler_step;
mod tile;
pub mod variational;

pub use arguments::Arguments;
pub use pool::Pool;

use super::{Arenas, Backend, Buffer, DeviceInfo, Fetch, Precision, Program};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::linear::GATE;
use crate::ops::noising::Pick;
use crate::plan::{DType, Node, Plan, TensorId};

/// Cache-line aligned memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Executes plans on the CPU with a persistent pool of threads.
pub struct Cpu {
    pool: Pool,
    buffers: Vec<Option<Box<[Line]>>>,
    /// Fetched bytes, empty where they were collected; their memory is kept.
    fetched: Vec<Vec<u8>>,
}

impl Cpu {
    /// A backend with that many threads; 0 takes one for each core.
    pub fn new(threads: usize) -> Self {
        Cpu::on(Pool::new(threads))
    }

    /// As [`Cpu::new`], with at most these vector instructions.
    pub fn with_isa(threads: usize, isa: isa::Isa) -> Self {
        Cpu::on(Pool::new(threads).limited_to(isa))
    }

    fn on(pool: Pool) -> Self {
        Cpu { pool, buffers: Vec::new(), fetched: Vec::new() }
    }

    /// The thread pool, to call single kernels.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        let lines = self.buffers[buffer.id].as_ref().expect("buffer in use");
        // SAFETY: Line is 64 initialised bytes without padding; the length is theirs.
        let all =
            unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<u8>(), lines.len() * 64) };
        &all[..buffer.bytes]
    }

    fn bytes_mut(&mut self, buffer: &Buffer) -> &mut [u8] {
        let lines = self.buffers[buffer.id].as_mut().expect("buffer in use");
        let len = lines.len() * 64;
        // SAFETY: as in `bytes`; the exclusive borrow of self makes it unique.
        let all = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), len) };
        &mut all[..buffer.bytes]
    }

    /// Base addresses of the arenas, in the order of [`arguments::slot`].
    fn bases(&mut self, arenas: &Arenas) -> [(*mut u8, usize); arguments::SPACES] {
        arguments::ALL_SPACES.map(|space| match arenas.get(space) {
            Some(buffer) => {
                let bytes = self.bytes_mut(buffer);
                (bytes.as_mut_ptr(), bytes.len())
            }
            None => (std::ptr::null_mut(), 0),
        })
    }
}

/// The operands that lowering has fused into a convolution or linear layer.
fn epilogue<'a>(a: &Arguments<'a>) -> conv2d::Epilogue<'a> {
    conv2d::Epilogue { bias: a.optional(2), per_image: a.optional(4), residual: a.optional(5) }
}

/// Executes one node. Exhaustive, so that a forgotten op does not compile.
fn execute(pool: &Pool, node: &Node, a: &mut Arguments) -> Result<()> {
    let isa = pool.isa();
    match &node.op {
        Op::Conv2d(op) => {
            let (y, mode) = a.required(0);
            conv2d::forward(pool, isa, op, a.input(0), a.input(3), epilogue(a), y, mode);
        }
        Op::Conv2dBackwardData(op) => {
            let (d_x, mode) = a.required(0);
            conv2d::backward_data(pool, isa, op, a.input(0), a.input(2), d_x, mode);
        }
        Op::Conv2dBackwardWeight(op) => {
            let gradients = (a.output(0), a.output(1));
            let (x, d_y, workspace) = (a.input(0), a.input(1), a.workspace());
            conv2d::backward_weight(pool, isa, op, x, d_y, gradients.0, gradients.1, workspace);
        }
        Op::Linear(op) => {
            let (y, mode) = a.required(0);
            let finish = linear::Finish { gate: a.optional(GATE), epilogue: epilogue(a) };
            linear::forward(pool, isa, op, a.input(0), a.input(3), finish, y, mode);
        }
        Op::LinearBackwardData(op) => {
            let (d_x, mode) = a.required(0);
            linear::backward_data(pool, isa, op, a.input(0), a.input(2), d_x, mode);
        }
        Op::LinearBackwardWeight(op) => {
            let gradients = (a.output(0), a.output(1));
            let (x, d_y, workspace) = (a.input(0), a.input(1), a.workspace());
            linear::backward_weight(pool, isa, op, x, d_y, gradients.0, gradients.1, workspace);
        }
        Op::LinearGroup(_) => {
            // Only CUDA's lowering makes groups.
            let problem = format!("the operation {} is CUDA's alone", node.op.name());
            return Err(Error::Device { device: "cpu".into(), problem });
        }
        Op::PackWeight(op) => conv2d::pack(pool, op, a.input(0), a.written(0)),
        Op::Activate(op) => pointwise::activate(pool, op, a.input(0), a.required(0)),
        Op::ActivateBackward(op) => {
            pointwise::activate_backward(pool, op, a.input(0), a.input(1), a.required(0));
        }
        Op::Add(op) => pointwise::add(pool, op, a.input(0), a.input(1), a.required(0)),
        Op::Scale(op) => pointwise::scale(pool, op, a.input(0), a.required(0)),
        Op::ScaleRows(op) => {
            pointwise::scale_rows(pool, op, a.input(0), a.input(1), a.required(0));
        }
        Op::Dropout(op) | Op::DropoutBackward(op) => {
            dropout::dropout(pool, op, a.input(0), a.input_u32(1), a.required(0));
        }
        Op::Noising(op) => {
            let (x_t, kept) = (a.required(0), a.output(1).map(|(x0, _)| x0));
            let images = images_of(a, op.pick, 0, 3);
            noising::noising(pool, op, &images, a.input(1), a.input_u32(2), x_t, kept);
        }
        Op::Loss(op) => {
            let images = images_of(a, op.pick, 1, 4);
            loss::loss(pool, op, a.input(0), target(a, &images), a.required(0));
        }
        Op::LossBackward(op) => {
            let images = images_of(a, op.pick, 1, 4);
            loss::loss_backward(pool, op, a.input(0), target(a, &images), a.required(0));
        }
        Op::Variational(op) => {
            variational::variational(pool, op, bounded(a), a.required(0));
        }
        Op::VariationalBackward(op) => {
            variational::variational_backward(pool, op, bounded(a), a.required(0));
        }
        Op::GlobalNorm(op) => optimizer::global_norm(pool, op, a.input(0), a.written(0)),
        Op::AdamW(op) => {
            let state = optimizer::State {
                parameters: a.written(0),
                first_moments: a.written(1),
                second_moments: a.written(2),
                average: a.written(3),
            };
            optimizer::adamw(pool, op, a.input(0), a.input(1), a.input(2), state);
        }
        Op::Norm(op) => {
            let operands = norm::Operands::new(a);
            let (y, mean, rstd) = (a.required(0), a.written(1), a.written(2));
            norm::norm(pool, op, &operands, y, mean, rstd, a.workspace());
        }
        Op::NormBackward(op) => {
            let operands = norm::Operands::new(a);
            let outputs = [a.output(0), a.output(1), a.output(2), a.output(3)];
            let (mean, rstd, d_y) = (a.input(4), a.input(5), a.input(6));
            norm::norm_backward(pool, op, &operands, mean, rstd, d_y, outputs, a.workspace());
        }
        Op::Attention(op) => {
            let (q, k, v) = (a.input(0), a.input(1), a.input(2));
            let (o, lse) = (a.written(0), a.written(1));
            attention::attention(pool, op, q, k, v, o, lse, a.workspace());
        }
        Op::AttentionBackward(op) => {
            let [q, k, v, o, lse, d_o] = std::array::from_fn(|i| a.input(i));
            let saved = attention::Saved { q, k, v, o, lse, d_o };
            let outputs = [a.output(0), a.output(1), a.output(2)];
            attention::attention_backward(pool, op, &saved, outputs, a.workspace());
        }
        Op::AddPerImage(op) => {
            broadcast::add_per_image(pool, op, a.input(0), a.input(1), a.required(0));
        }
        Op::ScalePerImage(op) => {
            broadcast::scale_per_image(pool, op, a.input(0), a.input(1), a.required(0));
        }
        Op::SumPerImage(op) => {
            broadcast::sum_per_image(pool, op, a.input(0), a.optional(1), a.required(0));
        }
        Op::Concat(op) => concat::concat(pool, op, a.input(0), a.input(1), a.required(0)),
        Op::ConcatBackward(op) => {
            for (i, from) in [0, op.c_a].into_iter().enumerate() {
                if let Some(d) = a.output(i) {
                    concat::concat_backward(pool, op, a.input(0), from, d);
                }
            }
        }
        Op::Resample(op) => resample::resample(pool, op, a.input(0), a.required(0)),
        Op::ResampleBackward(op) => {
            resample::resample_backward(pool, op, a.input(0), a.required(0));
        }
        Op::Pooling(op) => pooling::pooling(pool, op, a.input(0), a.required(0)),
        Op::PoolingBackward(op) => {
            pooling::pooling_backward(pool, op, a.input(0), a.input(1), a.required(0));
        }
        Op::SinusoidalEmbedding(op) => {
            embedding::sinusoidal(pool, op, a.input(0), a.required(0));
        }
        Op::FourierEmbedding(op) => {
            embedding::fourier(pool, op, a.input(0), a.input(1), a.required(0));
        }
        Op::Lookup(op) => {
            embedding::lookup(pool, op, a.input(0), a.input_u32(1), a.required(0))?;
        }
        Op::LookupBackward(op) => {
            embedding::lookup_backward(pool, op, a.input_u32(0), a.input(1), a.required(0))?;
        }
        Op::Empirical(op) => {
            let (y, log_sum) = (a.required(0), a.written(1));
            empirical::empirical(pool, op, denoised(a), y, log_sum, a.workspace());
        }
        Op::EmpiricalBackward(op) => {
            let (y, log_sum, d_y) = (a.input(4), a.input(5), a.input(6));
            let saved = empirical::Saved { y, log_sum, d_y };
            let d_x = a.required(0);
            empirical::empirical_backward(pool, op, denoised(a), saved, d_x, a.workspace());
        }
        Op::SamplerQuantile(op) => sampler_step::execute_quantile(pool, op, a),
        Op::SamplerStep(op) => sampler_step::execute_step(pool, op, a),
        Op::SamplerNorms(op) => {
            let slots = std::array::from_fn(|j| match j < op.step.slots {
                true => a.input(6 + j),
                false => Default::default(),
            });
            let operands = sampler_control::NormOperands {
                prediction: a.input(0),
                table: a.input(1),
                stage: a.input_u32(2)[0] as usize,
                keys: a.input_u32(3),
                noise: a.optional(4),
                rules: a.input(5),
                slots,
            };
            sampler_control::sampler_norms(pool, op, operands, a.written(0));
        }
        Op::SamplerLangevin(op) => {
            let stage = a.input_u32(1)[0] as usize;
            let (rules, norms) = (a.input(2), a.input(3));
            sampler_control::sampler_langevin(op, a.input(0), stage, rules, norms, a.written(0));
        }
        Op::SamplerError(op) => {
            let stage = a.input_u32(0)[0] as usize;
            let operands = [a.input(1), a.input(2), a.input(3)];
            sampler_control::sampler_error(pool, op, stage, operands, a.written(0));
        }
        Op::SamplerRk45(op) => {
            let operands = sampler_control::Rk45Operands {
                table: a.input(0),
                stage: a.input_u32(1)[0] as usize,
                curve: a.input(2),
                error: a.input(3),
                rows: a.written(0),
                state: a.written(1),
                running: a.written(2),
            };
            sampler_control::sampler_rk45(op, operands);
        }
        Op::SamplerBlend(op) => {
            let operands = sampler_control::BlendOperands {
                table: a.input(0),
                stage: a.input_u32(1)[0] as usize,
                keys: a.input_u32(2),
                known: a.input(3),
                mask: a.input(4),
            };
            sampler_control::sampler_blend(pool, op, operands, a.written(0));
        }
        Op::SamplerEstimate(op) => {
            let row = &a.input(1)[op.step.row(a.input_u32(2)[0] as usize, 0)..];
            let (prediction, x) = (a.input(0), a.input(3));
            sampler_control::sampler_estimate(pool, op, prediction, row, x, a.required(0));
        }
        Op::SamplerEstimateBackward(op) => {
            let row = &a.input(1)[op.step.row(a.input_u32(2)[0] as usize, 0)..];
            let (d_x0, d_prediction, d_state) = (a.input(0), a.output(0), a.output(1));
            let outputs = (d_prediction, d_state);
            sampler_control::sampler_estimate_backward(pool, op, d_x0, row, outputs.0, outputs.1);
        }
        Op::SamplerResidual(op) => {
            let (pair, mask) = ([a.input(0), a.input(1)], a.optional(2));
            sampler_control::sampler_residual(pool, op, pair, mask, a.written(0), a.written(1));
        }
        Op::AxisMap(op) => axis_map::axis_map(pool, op, a.input(0), a.input(1), a.required(0)),
        Op::Cast(_) if a.dtype(0) == DType::F32 => cast::narrow(a.input(0), a.required_half(0)),
        Op::Cast(_) => cast::widen(a.input_half(0), a.required(0)),
    }
    Ok(())
}

/// What both passes of the empirical denoiser read.
fn denoised<'a>(a: &Arguments<'a>) -> empirical::Operands<'a> {
    let (x, data, std, signal) = (a.input(0), a.input(1), a.input(2), a.optional(3));
    empirical::Operands { x, data, std, signal }
}

/// The target of a loss op.
fn target<'a>(a: &Arguments<'a>, x0: &'a images::Images<'a>) -> loss::Target<'a> {
    loss::Target { x0, coefficients: a.input(2), keys: a.optional_u32(3) }
}

/// Clean images at input `at`, or picked from the set there by input `picks`.
fn images_of<'a>(
    a: &Arguments<'a>,
    pick: Option<Pick>,
    at: usize,
    picks: usize,
) -> images::Images<'a> {
    let Some(pick) = pick else { return images::Images::given(a.input(at)) };
    let set = match pick.levels {
        0 => images::Set::Values(a.input(at)),
        _ => images::Set::Bytes(a.input_u8(at)),
    };
    images::Images::picked(pick, set, a.input_u32(picks))
}

/// What both passes of a variational term read.
fn bounded<'a>(a: &Arguments<'a>) -> variational::Operands<'a> {
    let (prediction, x0, coefficients) = (a.input(0), a.input(1), a.input(2));
    variational::Operands { prediction, x0, coefficients, keys: a.input_u32(3) }
}

impl Backend for Cpu {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "cpu".into(),
            description: machine::description(self.pool.threads()),
            memory_bytes: machine::available_bytes(),
            threads: self.pool.threads(),
            is_host: true,
            precision: Precision::F32,
        }
    }

    fn lower(&self, plan: Plan) -> Result<Program> {
        plan.check()?;
        plan.check_single()?;
        Ok(lower::lower(plan))
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer> {
        let lines = bytes.div_ceil(64);
        let mut memory: Vec<Line> = Vec::new();
        memory.try_reserve_exact(lines).map_err(|_| Error::Device {
            device: "cpu".into(),
            problem: format!("not enough memory for {what}: {bytes} bytes"),
        })?;
        memory.resize(lines, Line([0; 64]));
        self.buffers.push(Some(memory.into_boxed_slice()));
        Ok(Buffer { id: self.buffers.len() - 1, bytes })
    }

    fn free(&mut self, buffer: Buffer) {
        self.buffers[buffer.id] = None;
    }

    fn upload(&mut self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        self.bytes_mut(buffer)[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&mut self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.bytes(buffer)[offset..offset + bytes.len()]);
        Ok(())
    }

    fn fetch(&mut self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<Fetch> {
        let free = self.fetched.iter().position(Vec::is_empty);
        let id = free.unwrap_or_else(|| {
            self.fetched.push(Vec::new());
            self.fetched.len() - 1
        });
        let mut copy = std::mem::take(&mut self.fetched[id]);
        copy.extend_from_slice(&self.bytes(buffer)[offset..offset + bytes]);
        self.fetched[id] = copy;
        Ok(Fetch { id, bytes })
    }

    fn collect(&mut self, fetch: Fetch, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.fetched[fetch.id]);
        self.fetched[fetch.id].clear();
        Ok(())
    }

    fn refresh(&mut self, program: &Program, arenas: &Arenas) -> Result<()> {
        let bases = self.bases(arenas);
        for node in &program.prologue {
            execute(&self.pool, node, &mut Arguments::new(program, node, bases))?;
        }
        Ok(())
    }

    fn run(&mut self, program: &Program, arenas: &Arenas) -> Result<()> {
        let bases = self.bases(arenas);
        for node in &program.plan.nodes {
            execute(&self.pool, node, &mut Arguments::new(program, node, bases))?;
        }
        Ok(())
    }

    fn run_checked(&mut self, program: &Program, arenas: &Arenas) -> Result<Option<TensorId>> {
        let bases = self.bases(arenas);
        for node in program.plan.nodes.iter().filter(|n| !n.op.is_optimizer()) {
            let mut a = Arguments::new(program, node, bases);
            execute(&self.pool, node, &mut a)?;
            for (i, write) in node.outputs.iter().enumerate() {
                let Some(write) = write else { continue };
                if program.plan.tensor(write.tensor).dtype != DType::F32 {
                    continue;
                }
                if a.output(i).is_some_and(|(y, _)| y.iter().any(|v| !v.is_finite())) {
                    return Ok(Some(write.tensor));
                }
            }
        }
        Ok(None)
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}
