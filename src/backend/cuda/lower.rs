//! From a plan to what the GPU executes: dropped copies, fused additions, scratch memory.

use super::execute::execute;
use super::{attention, conv2d, empirical, matmul, norm, optimizer};
use crate::backend::Program;
use crate::error::Result;
use crate::ops::Op;
use crate::plan::{DType, Node, Plan, Role};

/// Lowers a plan for CUDA; refuses it where an op has no kernel.
pub(crate) fn lower(mut plan: Plan) -> Result<Program> {
    plan.nodes.iter().try_for_each(|node| execute(&node.op, None))?;
    plan.drop_copies();
    plan.fuse_epilogues();
    for i in 0..plan.nodes.len() {
        let len = workspace_len(&plan.nodes[i]);
        if len > 0 {
            let tensor =
                plan.activation(format!("workspace.{i}"), &[len], DType::F32, Role::Transient);
            plan.nodes[i].workspace = Some(tensor);
        }
    }
    Ok(Program::new(plan, Vec::new()))
}

/// Floats of scratch memory that a node needs.
fn workspace_len(node: &Node) -> usize {
    match &node.op {
        Op::Conv2d(op) => conv2d::forward_workspace_len(op),
        Op::Conv2dBackwardData(op) => conv2d::backward_data_workspace_len(op),
        Op::Conv2dBackwardWeight(op) => conv2d::backward_weight_workspace_len(op),
        Op::LinearBackwardWeight(op) => matmul::backward_weight_workspace_len(op),
        Op::NormBackward(op) => norm::backward_workspace_len(op),
        Op::AttentionBackward(op) => attention::backward_workspace_len(op),
        Op::Empirical(op) | Op::EmpiricalBackward(op) => empirical::workspace_len(op),
        Op::GlobalNorm(op) => optimizer::norm_workspace_len(op),
        _ => 0,
    }
}
