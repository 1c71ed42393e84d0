//! From a plan to what the GPU executes: dropped copies, fused additions, grouped layers,
//! element types, scratch memory.

use super::execute::execute;
use super::{attention, conv2d, empirical, fuse, group, matmul, norm, optimizer};
use crate::backend::{Precision, Program};
use crate::error::Result;
use crate::ops::Op;
use crate::ops::linear::Linear;
use crate::plan::{DType, Node, Plan, Role, Space};

/// Lowers a plan for CUDA; refuses it where an op has no kernel.
pub(crate) fn lower(mut plan: Plan, precision: Precision) -> Result<Program> {
    plan.nodes.iter().try_for_each(|node| execute(&node.op, None))?;
    plan.drop_copies();
    plan.fuse_epilogues(Linear::fills_chunks);
    fuse::fuse(&mut plan, precision);
    if precision == Precision::Bf16 {
        plan.halve();
        plan.update_halves();
    }
    group::group_linears(&mut plan, precision);
    let reads_halves =
        |node: &Node| node.inputs.iter().flatten().any(|&id| plan.tensor(id).space == Space::Half);
    let prologue = match plan.nodes.iter().any(reads_halves) {
        true => vec![plan.halve_weights()],
        false => Vec::new(),
    };
    for i in 0..plan.nodes.len() {
        let len = workspace_len(&plan, &plan.nodes[i], precision);
        if len > 0 {
            let tensor =
                plan.activation(format!("workspace.{i}"), &[len], DType::F32, Role::Transient);
            plan.nodes[i].workspace = Some(tensor);
        }
    }
    Ok(Program { precision, ..Program::new(plan, prologue) })
}

/// Floats of scratch memory that a node needs.
fn workspace_len(plan: &Plan, node: &Node, precision: Precision) -> usize {
    let arithmetic = || conv2d::arithmetic(plan.tensor(node.input(0)).dtype, precision);
    match &node.op {
        Op::Conv2d(op) => conv2d::forward_workspace_len(op, arithmetic()),
        Op::Conv2dBackwardData(op) => conv2d::backward_data_workspace_len(op, arithmetic()),
        Op::Conv2dBackwardWeight(op) => conv2d::backward_weight_workspace_len(op, arithmetic()),
        Op::LinearBackwardWeight(op) => matmul::backward_weight_workspace_len(op, arithmetic()),
        Op::NormBackward(op) => norm::backward_workspace_len(op, plan.tensor(node.input(0)).dtype),
        Op::AttentionBackward(op) => {
            attention::backward_workspace_len(op, plan.tensor(node.input(0)).dtype, precision)
        }
        Op::Empirical(op) | Op::EmpiricalBackward(op) => empirical::workspace_len(op),
        Op::GlobalNorm(op) => optimizer::norm_workspace_len(op),
        _ => 0,
    }
}
