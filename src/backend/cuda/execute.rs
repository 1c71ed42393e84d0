//! Executes one node: the exhaustive match over [`Op`], so that a forgotten op does
//! not compile.

use super::arguments::Call;
use super::{
    attention, axis_map, broadcast, cast, concat, conv2d, dropout, embedding, empirical, linear,
    loss, matmul, noising, norm, optimizer, pointwise, pooling, resample, sampler_control,
    sampler_step, variational,
};
use crate::error::{Error, Result};
use crate::ops::Op;

/// Launches an op's kernels. Without a call launches nothing and only says whether
/// there are kernels.
pub(super) fn execute(op: &Op, call: Option<&Call>) -> Result<()> {
    /// Runs the launcher where there is a call.
    fn with<T>(call: Option<&Call>, op: &T, f: impl Fn(&T, &Call) -> Result<()>) -> Result<()> {
        call.map_or(Ok(()), |call| f(op, call))
    }
    match op {
        Op::Conv2d(op) => with(call, op, conv2d::forward),
        Op::Conv2dBackwardData(op) => with(call, op, conv2d::backward_data),
        Op::Conv2dBackwardWeight(op) => with(call, op, conv2d::backward_weight),
        Op::Linear(op) => with(call, op, matmul::forward),
        Op::LinearBackwardData(op) => with(call, op, matmul::backward_data),
        Op::LinearBackwardWeight(op) => with(call, op, matmul::backward_weight),
        Op::LinearGroup(op) => with(call, op, linear::linear_group),
        Op::Activate(op) => with(call, op, pointwise::activate),
        Op::ActivateBackward(op) => with(call, op, pointwise::activate_backward),
        Op::Add(op) => with(call, op, pointwise::add),
        Op::Scale(op) => with(call, op, pointwise::scale),
        Op::ScaleRows(op) => with(call, op, pointwise::scale_rows),
        Op::AddPerImage(op) => with(call, op, broadcast::add_per_image),
        Op::ScalePerImage(op) => with(call, op, broadcast::scale_per_image),
        Op::SumPerImage(op) => with(call, op, broadcast::sum_per_image),
        Op::Concat(op) => with(call, op, concat::concat),
        Op::ConcatBackward(op) => with(call, op, concat::concat_backward),
        Op::Resample(op) => with(call, op, resample::resample),
        Op::ResampleBackward(op) => with(call, op, resample::resample_backward),
        Op::SinusoidalEmbedding(op) => with(call, op, embedding::sinusoidal),
        Op::FourierEmbedding(op) => with(call, op, embedding::fourier),
        Op::Lookup(op) => with(call, op, embedding::lookup),
        Op::LookupBackward(op) => with(call, op, embedding::lookup_backward),
        Op::Dropout(op) | Op::DropoutBackward(op) => with(call, op, dropout::dropout),
        Op::SamplerQuantile(op) => with(call, op, sampler_step::sampler_quantile),
        Op::SamplerStep(op) => with(call, op, sampler_step::sampler_step),
        Op::Noising(op) => with(call, op, noising::noising),
        Op::Loss(op) => with(call, op, loss::loss),
        Op::LossBackward(op) => with(call, op, loss::loss_backward),
        Op::Norm(op) => with(call, op, norm::norm),
        Op::NormBackward(op) => with(call, op, norm::norm_backward),
        Op::Attention(op) => {
            attention::check(op)?;
            with(call, op, attention::attention)
        }
        Op::AttentionBackward(op) => with(call, op, attention::attention_backward),
        Op::GlobalNorm(op) => with(call, op, optimizer::global_norm),
        Op::AdamW(op) => with(call, op, optimizer::adamw),
        Op::SamplerNorms(op) => with(call, op, sampler_control::norms),
        Op::SamplerLangevin(op) => with(call, op, sampler_control::langevin),
        Op::SamplerError(op) => with(call, op, sampler_control::error),
        Op::SamplerRk45(op) => with(call, op, sampler_control::rk45),
        Op::SamplerBlend(op) => with(call, op, sampler_control::blend),
        Op::SamplerEstimate(op) => with(call, op, sampler_control::estimate),
        Op::SamplerEstimateBackward(op) => with(call, op, sampler_control::estimate_backward),
        Op::SamplerResidual(op) => with(call, op, sampler_control::residual),
        Op::AxisMap(op) => with(call, op, axis_map::axis_map),
        Op::Cast(op) => with(call, op, cast::cast),
        Op::Pooling(op) => with(call, op, pooling::pooling),
        Op::PoolingBackward(op) => with(call, op, pooling::pooling_backward),
        Op::Variational(op) => with(call, op, variational::variational),
        Op::VariationalBackward(op) => with(call, op, variational::variational_backward),
        Op::Empirical(op) => with(call, op, empirical::empirical),
        Op::EmpiricalBackward(op) => with(call, op, empirical::empirical_backward),
        // Only the CPU's lowering packs weights.
        Op::PackWeight(_) => Err(missing(op)),
    }
}

/// The op has no kernel yet.
fn missing(op: &Op) -> Error {
    let problem = format!("no CUDA kernel yet for the operation {}; use --device cpu", op.name());
    Error::Device { device: "cuda".into(), problem }
}
