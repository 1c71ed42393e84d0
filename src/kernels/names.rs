//! Every op has its function, named as the op is.

use std::any::type_name_of_val;

use super::Kernels;
use crate::ops::Op;
use crate::ops::linear::GroupPass;

/// The function of an op. Exhaustive, so that an op without one does not compile.
fn function(op: &Op) -> &'static str {
    match op {
        Op::Conv2d(_) => type_name_of_val(&Kernels::conv2d_forward),
        Op::Conv2dBackwardData(_) => type_name_of_val(&Kernels::conv2d_backward_data),
        Op::Conv2dBackwardWeight(_) => type_name_of_val(&Kernels::conv2d_backward_weight),
        Op::Linear(_) => type_name_of_val(&Kernels::linear_forward),
        Op::LinearBackwardData(_) => type_name_of_val(&Kernels::linear_backward_data),
        Op::LinearBackwardWeight(_) => type_name_of_val(&Kernels::linear_backward_weight),
        Op::LinearGroup(o) => match o.pass {
            GroupPass::Forward => type_name_of_val(&Kernels::linear_group_forward),
            GroupPass::BackwardData => type_name_of_val(&Kernels::linear_group_backward_data),
            GroupPass::BackwardWeight => type_name_of_val(&Kernels::linear_group_backward_weight),
        },
        Op::Norm(_) => type_name_of_val(&Kernels::norm_forward),
        Op::NormBackward(_) => type_name_of_val(&Kernels::norm_backward),
        Op::Attention(_) => type_name_of_val(&Kernels::attention_forward),
        Op::AttentionBackward(_) => type_name_of_val(&Kernels::attention_backward),
        Op::Pooling(_) => type_name_of_val(&Kernels::pooling_forward),
        Op::PoolingBackward(_) => type_name_of_val(&Kernels::pooling_backward),
        Op::Resample(_) => type_name_of_val(&Kernels::resample_forward),
        Op::ResampleBackward(_) => type_name_of_val(&Kernels::resample_backward),
        Op::Activate(_) => type_name_of_val(&Kernels::activate_forward),
        Op::ActivateBackward(_) => type_name_of_val(&Kernels::activate_backward),
        Op::Add(_) => type_name_of_val(&Kernels::add),
        Op::Scale(_) => type_name_of_val(&Kernels::scale),
        Op::ScaleRows(_) => type_name_of_val(&Kernels::scale_rows),
        Op::AddPerImage(_) => type_name_of_val(&Kernels::add_per_image),
        Op::ScalePerImage(_) => type_name_of_val(&Kernels::scale_per_image),
        Op::SumPerImage(_) => type_name_of_val(&Kernels::sum_per_image),
        Op::Concat(_) => type_name_of_val(&Kernels::concat_forward),
        Op::ConcatBackward(_) => type_name_of_val(&Kernels::concat_backward),
        Op::Dropout(_) => type_name_of_val(&Kernels::dropout_forward),
        Op::DropoutBackward(_) => type_name_of_val(&Kernels::dropout_backward),
        Op::Cast(_) => type_name_of_val(&Kernels::cast),
        Op::AxisMap(_) => type_name_of_val(&Kernels::axis_map),
        Op::SinusoidalEmbedding(_) => type_name_of_val(&Kernels::sinusoidal_embedding),
        Op::FourierEmbedding(_) => type_name_of_val(&Kernels::fourier_embedding),
        Op::Lookup(_) => type_name_of_val(&Kernels::lookup_forward),
        Op::LookupBackward(_) => type_name_of_val(&Kernels::lookup_backward),
        Op::PackWeight(_) => type_name_of_val(&Kernels::pack_weight),
        Op::Noising(_) => type_name_of_val(&Kernels::noising),
        Op::Loss(_) => type_name_of_val(&Kernels::loss_forward),
        Op::LossBackward(_) => type_name_of_val(&Kernels::loss_backward),
        Op::Variational(_) => type_name_of_val(&Kernels::variational_forward),
        Op::VariationalBackward(_) => type_name_of_val(&Kernels::variational_backward),
        Op::Empirical(_) => type_name_of_val(&Kernels::empirical_forward),
        Op::EmpiricalBackward(_) => type_name_of_val(&Kernels::empirical_backward),
        Op::GlobalNorm(_) => type_name_of_val(&Kernels::global_norm),
        Op::AdamW(_) => type_name_of_val(&Kernels::adamw),
        Op::SamplerQuantile(_) => type_name_of_val(&Kernels::sampler_quantile),
        Op::SamplerStep(_) => type_name_of_val(&Kernels::sampler_step),
        Op::SamplerNorms(_) => type_name_of_val(&Kernels::sampler_norms),
        Op::SamplerLangevin(_) => type_name_of_val(&Kernels::sampler_langevin),
        Op::SamplerError(_) => type_name_of_val(&Kernels::sampler_error),
        Op::SamplerRk45(_) => type_name_of_val(&Kernels::sampler_rk45),
        Op::SamplerBlend(_) => type_name_of_val(&Kernels::sampler_blend),
        Op::SamplerEstimate(_) => type_name_of_val(&Kernels::sampler_estimate),
        Op::SamplerEstimateBackward(_) => type_name_of_val(&Kernels::sampler_estimate_backward),
        Op::SamplerResidual(_) => type_name_of_val(&Kernels::sampler_residual),
    }
}

#[test]
fn functions_are_named_as_their_ops() {
    use crate::ops::{cast::Cast, embedding::Lookup, linear::Linear, pointwise::Scale};
    let linear = Linear::new(1, 1, 1);
    let lookup = Lookup { n: 1, rows: 1, dim: 1 };
    let ops = [
        Op::Linear(linear),
        Op::LinearBackwardData(linear),
        Op::LinearBackwardWeight(linear),
        Op::Lookup(lookup),
        Op::LookupBackward(lookup),
        Op::Scale(Scale { len: 1, scale: 1.0, offset: 0.0 }),
        Op::Cast(Cast { len: 1 }),
    ];
    for op in ops {
        let name = function(&op);
        assert!(name.ends_with(&format!("::{}", op.name())), "{name} is not {}", op.name());
    }
}
