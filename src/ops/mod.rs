//! Every operation a plan can hold.
//!
//! One file an op family: the descriptor (sizes and constants, never data),
//! its equation, the builder method it adds to [`Plan`](crate::plan::Plan), and the rule by which
//! [`Plan::derive`](crate::plan::Plan::derive) appends its backward. A backend executes [`Op`] with one
//! exhaustive `match`.

pub mod attention;
pub mod axis_map;
pub mod broadcast;
pub mod cast;
pub mod concat;
pub mod conv2d;
pub mod dropout;
pub mod embedding;
pub mod empirical;
pub mod linear;
pub mod loss;
pub mod noising;
pub mod norm;
pub mod optimizer;
pub mod pack;
pub mod pointwise;
pub mod pooling;
pub mod resample;
pub mod sampler_blend;
pub mod sampler_estimate;
pub mod sampler_langevin;
pub mod sampler_rk45;
pub mod sampler_step;
pub mod variational;

use crate::error::Result;
use crate::plan::{Deriver, Node};

/// An operation and its descriptor. Backward passes are ops of their own.
/// Inputs and outputs by position are documented at each descriptor.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Conv2d(conv2d::Conv2d),
    Conv2dBackwardData(conv2d::Conv2d),
    Conv2dBackwardWeight(conv2d::Conv2d),
    Linear(linear::Linear),
    LinearBackwardData(linear::Linear),
    LinearBackwardWeight(linear::Linear),
    LinearGroup(linear::LinearGroup),
    Norm(norm::Norm),
    NormBackward(norm::Norm),
    Attention(attention::Attention),
    AttentionBackward(attention::Attention),
    Activate(pointwise::Activate),
    ActivateBackward(pointwise::Activate),
    Add(pointwise::Add),
    Scale(pointwise::Scale),
    ScaleRows(pointwise::ScaleRows),
    AddPerImage(broadcast::PerImage),
    ScalePerImage(broadcast::PerImage),
    SumPerImage(broadcast::PerImage),
    Concat(concat::Concat),
    ConcatBackward(concat::Concat),
    Resample(resample::Resample),
    ResampleBackward(resample::Resample),
    Pooling(pooling::Pooling),
    PoolingBackward(pooling::Pooling),
    SinusoidalEmbedding(embedding::Sinusoidal),
    FourierEmbedding(embedding::Fourier),
    Lookup(embedding::Lookup),
    LookupBackward(embedding::Lookup),
    Dropout(dropout::Dropout),
    DropoutBackward(dropout::Dropout),
    Empirical(empirical::Empirical),
    EmpiricalBackward(empirical::Empirical),
    Noising(noising::Noising),
    Loss(loss::Loss),
    LossBackward(loss::Loss),
    Variational(variational::Variational),
    VariationalBackward(variational::Variational),
    SamplerQuantile(sampler_step::SamplerQuantile),
    SamplerStep(sampler_step::SamplerStep),
    SamplerNorms(sampler_langevin::SamplerNorms),
    SamplerLangevin(sampler_langevin::SamplerLangevin),
    SamplerError(sampler_rk45::SamplerError),
    SamplerRk45(sampler_rk45::SamplerRk45),
    SamplerBlend(sampler_blend::SamplerBlend),
    SamplerEstimate(sampler_estimate::SamplerEstimate),
    SamplerEstimateBackward(sampler_estimate::SamplerEstimate),
    SamplerResidual(sampler_estimate::SamplerResidual),
    AxisMap(axis_map::AxisMap),
    GlobalNorm(optimizer::GlobalNorm),
    AdamW(optimizer::AdamW),
    PackWeight(pack::PackWeight),
    Cast(cast::Cast),
}

impl Op {
    /// The op's one name: `<op>` or `<op>_<pass>`.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Conv2d(_) => "conv2d_forward",
            Op::Conv2dBackwardData(_) => "conv2d_backward_data",
            Op::Conv2dBackwardWeight(_) => "conv2d_backward_weight",
            Op::Linear(_) => "linear_forward",
            Op::LinearBackwardData(_) => "linear_backward_data",
            Op::LinearBackwardWeight(_) => "linear_backward_weight",
            Op::LinearGroup(op) => match op.pass {
                linear::GroupPass::Forward => "linear_group_forward",
                linear::GroupPass::BackwardData => "linear_group_backward_data",
                linear::GroupPass::BackwardWeight => "linear_group_backward_weight",
            },
            Op::Norm(_) => "norm_forward",
            Op::NormBackward(_) => "norm_backward",
            Op::Attention(_) => "attention_forward",
            Op::AttentionBackward(_) => "attention_backward",
            Op::Activate(_) => "activate_forward",
            Op::ActivateBackward(_) => "activate_backward",
            Op::Add(_) => "add",
            Op::Scale(_) => "scale",
            Op::ScaleRows(_) => "scale_rows",
            Op::AddPerImage(_) => "add_per_image",
            Op::ScalePerImage(_) => "scale_per_image",
            Op::SumPerImage(_) => "sum_per_image",
            Op::Concat(_) => "concat_forward",
            Op::ConcatBackward(_) => "concat_backward",
            Op::Resample(_) => "resample_forward",
            Op::ResampleBackward(_) => "resample_backward",
            Op::Pooling(_) => "pooling_forward",
            Op::PoolingBackward(_) => "pooling_backward",
            Op::SinusoidalEmbedding(_) => "sinusoidal_embedding",
            Op::FourierEmbedding(_) => "fourier_embedding",
            Op::Lookup(_) => "lookup_forward",
            Op::LookupBackward(_) => "lookup_backward",
            Op::Dropout(_) => "dropout_forward",
            Op::DropoutBackward(_) => "dropout_backward",
            Op::Empirical(_) => "empirical_forward",
            Op::EmpiricalBackward(_) => "empirical_backward",
            Op::Noising(_) => "noising",
            Op::Loss(_) => "loss_forward",
            Op::LossBackward(_) => "loss_backward",
            Op::Variational(_) => "variational_forward",
            Op::VariationalBackward(_) => "variational_backward",
            Op::SamplerQuantile(_) => "sampler_quantile",
            Op::SamplerStep(_) => "sampler_step",
            Op::SamplerNorms(_) => "sampler_norms",
            Op::SamplerLangevin(_) => "sampler_langevin",
            Op::SamplerError(_) => "sampler_error",
            Op::SamplerRk45(_) => "sampler_rk45",
            Op::SamplerBlend(_) => "sampler_blend",
            Op::SamplerEstimate(_) => "sampler_estimate",
            Op::SamplerEstimateBackward(_) => "sampler_estimate_backward",
            Op::SamplerResidual(_) => "sampler_residual",
            Op::AxisMap(_) => "axis_map",
            Op::GlobalNorm(_) => "global_norm",
            Op::AdamW(_) => "adamw",
            Op::PackWeight(_) => "pack_weight",
            Op::Cast(_) => "cast",
        }
    }

    /// Whether it belongs to a sampler's update, which a stage without an
    /// evaluation of the network runs alone.
    pub fn is_update(&self) -> bool {
        matches!(
            self,
            Op::SamplerQuantile(_)
                | Op::SamplerNorms(_)
                | Op::SamplerLangevin(_)
                | Op::SamplerError(_)
                | Op::SamplerRk45(_)
                | Op::SamplerBlend(_)
                | Op::SamplerStep(_)
        )
    }

    /// Whether it changes weights and the optimizer's state.
    pub fn is_optimizer(&self) -> bool {
        matches!(self, Op::AdamW(_))
    }

    /// Whether input `i` influences the outputs differentiably.
    pub fn is_differentiable(&self, i: usize) -> bool {
        match self {
            Op::SinusoidalEmbedding(_) | Op::FourierEmbedding(_) => false,
            Op::Lookup(_) => i == 0,
            Op::Dropout(_) | Op::Empirical(_) => i == 0,
            Op::Loss(_) | Op::Variational(_) => i == 0,
            Op::ScaleRows(_) => i == 0,
            Op::Noising(_) | Op::SamplerQuantile(_) | Op::SamplerStep(_) => false,
            Op::SamplerNorms(_) | Op::SamplerLangevin(_) | Op::SamplerError(_) => false,
            Op::SamplerRk45(_) | Op::SamplerBlend(_) | Op::SamplerResidual(_) => false,
            Op::SamplerEstimate(_) => i == 0 || i == 3,
            Op::AxisMap(_) => i == 0,
            Op::GlobalNorm(_) | Op::AdamW(_) => false,
            _ => true,
        }
    }

    /// Appends the backward of this forward op to the plan.
    pub fn backward(&self, node: &Node, d: &mut Deriver) -> Result<()> {
        match self {
            Op::Conv2d(op) => op.backward(node, d),
            Op::Linear(op) => op.backward(node, d),
            Op::Norm(op) => op.backward(node, d),
            Op::Attention(op) => op.backward(node, d),
            Op::Activate(op) => op.backward(node, d),
            Op::Add(op) => op.backward(node, d),
            Op::Scale(op) => op.backward(node, d),
            Op::ScaleRows(op) => op.backward(node, d),
            Op::AddPerImage(op) => op.backward(node, d),
            Op::ScalePerImage(op) => op.backward_of_scale(node, d),
            Op::Concat(op) => op.backward(node, d),
            Op::Resample(op) => op.backward(node, d),
            Op::Pooling(op) => op.backward(node, d),
            Op::Lookup(op) => op.backward(node, d),
            Op::Dropout(op) => op.backward(node, d),
            Op::Loss(op) => op.backward(node, d),
            Op::Variational(op) => op.backward(node, d),
            Op::Empirical(op) => op.backward(node, d),
            Op::SamplerEstimate(op) => op.backward(node, d),
            Op::AxisMap(op) => op.backward(node, d),
            Op::Cast(op) => op.backward(node, d),
            Op::SinusoidalEmbedding(_) | Op::FourierEmbedding(_) => Ok(()),
            Op::Conv2dBackwardData(_)
            | Op::Conv2dBackwardWeight(_)
            | Op::LinearBackwardData(_)
            | Op::LinearBackwardWeight(_)
            | Op::LinearGroup(_)
            | Op::NormBackward(_)
            | Op::AttentionBackward(_)
            | Op::ActivateBackward(_)
            | Op::SumPerImage(_)
            | Op::ConcatBackward(_)
            | Op::ResampleBackward(_)
            | Op::PoolingBackward(_)
            | Op::LookupBackward(_)
            | Op::DropoutBackward(_)
            | Op::EmpiricalBackward(_)
            | Op::Noising(_)
            | Op::LossBackward(_)
            | Op::VariationalBackward(_)
            | Op::SamplerQuantile(_)
            | Op::SamplerStep(_)
            | Op::SamplerNorms(_)
            | Op::SamplerLangevin(_)
            | Op::SamplerError(_)
            | Op::SamplerRk45(_)
            | Op::SamplerBlend(_)
            | Op::SamplerEstimateBackward(_)
            | Op::SamplerResidual(_)
            | Op::GlobalNorm(_)
            | Op::AdamW(_)
            | Op::PackWeight(_) => {
                unreachable!("{} is not a forward op of a network", self.name())
            }
        }
    }

    /// Floating-point operations of one execution; a multiply-add counts two.
    /// Only ops whose cost is arithmetic are counted (convolution, linear,
    /// attention), as is usual for networks.
    pub fn flops(&self) -> u64 {
        match self {
            Op::Conv2d(op) | Op::Conv2dBackwardData(op) | Op::Conv2dBackwardWeight(op) => {
                op.flops()
            }
            Op::Linear(op) | Op::LinearBackwardData(op) | Op::LinearBackwardWeight(op) => {
                op.flops()
            }
            Op::LinearGroup(op) => op.flops(),
            Op::Attention(op) => op.flops(),
            Op::AttentionBackward(op) => op.flops() * 5 / 2,
            Op::Empirical(op) | Op::EmpiricalBackward(op) => op.flops(),
            _ => 0,
        }
    }
}
