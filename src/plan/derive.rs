//! Reverse-mode differentiation of a plan: appends backward ops by each op's
//! own rule ([`crate::ops::Op::backward`]).

use std::collections::{HashMap, HashSet};

use super::{DType, Mode, Node, Plan, Role, Space, Tensor, TensorId, Write};
use crate::error::Result;
use crate::ops::Op;

/// What to differentiate with respect to.
#[derive(Clone, Debug)]
pub enum Wrt {
    /// Every trainable weight, gradients written over the gradient arena
    /// (`Mode::Write`) or added to it (`Mode::Add`, gradient accumulation).
    Parameters(Mode),
    /// The given tensors (the network's input, for likelihoods and guidance).
    Tensors(Vec<TensorId>),
}

/// Handed to the backward rule of one node.
pub struct Deriver<'a> {
    plan: &'a mut Plan,
    needed: &'a HashSet<TensorId>,
    gradients: &'a mut HashMap<TensorId, TensorId>,
    written: &'a mut HashSet<TensorId>,
    parameter_mode: Mode,
}

impl Deriver<'_> {
    /// The plan, to look up shapes and to make scratch tensors.
    pub fn plan(&mut self) -> &mut Plan {
        self.plan
    }

    /// Gradient of the loss by the tensor, if any later op produced one.
    pub fn gradient_of(&self, tensor: TensorId) -> Option<TensorId> {
        self.gradients.get(&tensor).copied()
    }

    /// Gradient of the loss by output `i` of the node.
    pub fn d_output(&self, node: &Node, i: usize) -> Option<TensorId> {
        node.output(i).and_then(|t| self.gradient_of(t))
    }

    /// Whether the gradient by input `i` of the node is wanted.
    pub fn needs(&self, node: &Node, i: usize) -> bool {
        node.inputs.get(i).copied().flatten().is_some_and(|t| self.needed.contains(&t))
    }

    /// Where the gradient by input `i` goes: `None` if it is not wanted;
    /// overwritten by the first op that asks, added to by later ones. Call once
    /// per contribution, and push the op that makes it before asking again.
    pub fn d_input(&mut self, node: &Node, i: usize) -> Option<Write> {
        let tensor = node.inputs.get(i).copied().flatten()?;
        if !self.needed.contains(&tensor) {
            return None;
        }
        let gradient = match self.gradients.get(&tensor) {
            Some(&g) => g,
            None => {
                let t = self.plan.tensor(tensor);
                let g = Tensor {
                    name: format!("d_{}", t.name),
                    shape: t.shape.clone(),
                    dtype: DType::F32,
                    space: match t.space {
                        Space::Parameters => Space::Gradients,
                        _ => Space::Activations,
                    },
                    role: match t.space {
                        Space::Parameters => Role::State,
                        _ => Role::Transient,
                    },
                    offset: t.offset,
                };
                let is_parameter = g.space == Space::Gradients;
                let g = self.plan.add_tensor(g);
                self.gradients.insert(tensor, g);
                if is_parameter && self.parameter_mode == Mode::Add {
                    self.written.insert(g);
                }
                g
            }
        };
        let mode = if self.written.insert(gradient) { Mode::Write } else { Mode::Add };
        Some(Write { tensor: gradient, mode })
    }

    /// Appends a backward op; does nothing when every output is skipped.
    pub fn push(&mut self, op: Op, inputs: &[Option<TensorId>], outputs: &[Option<Write>]) {
        if outputs.iter().any(Option::is_some) {
            self.plan.push(op, inputs.to_vec(), outputs.to_vec());
        }
    }
}

impl Plan {
    /// Appends the backward ops of everything so far.
    ///
    /// `seeds` are the tensors to start from: a loss (whose op's rule needs no
    /// upstream gradient) with `None`, or any tensor with the tensor that holds
    /// the upstream gradient. Afterwards [`Plan::gradient`] gives the results.
    pub fn derive(&mut self, seeds: &[(TensorId, Option<TensorId>)], wrt: Wrt) -> Result<()> {
        let mut needed: HashSet<TensorId> = match &wrt {
            Wrt::Parameters(_) => {
                let trainable: HashSet<&str> = self
                    .parameters
                    .entries
                    .iter()
                    .filter(|p| p.trainable)
                    .map(|p| p.name.as_str())
                    .collect();
                self.tensors
                    .iter()
                    .enumerate()
                    .filter(|(_, t)| {
                        t.space == Space::Parameters && trainable.contains(t.name.as_str())
                    })
                    .map(|(i, _)| TensorId(i as u32))
                    .collect()
            }
            Wrt::Tensors(tensors) => tensors.iter().copied().collect(),
        };
        for node in &self.nodes {
            let depends = node.inputs.iter().enumerate().any(|(i, t)| {
                t.is_some_and(|t| needed.contains(&t)) && node.op.is_differentiable(i)
            });
            if depends {
                needed.extend(node.outputs.iter().flatten().map(|w| w.tensor));
            }
        }
        let parameter_mode = match wrt {
            Wrt::Parameters(mode) => mode,
            Wrt::Tensors(_) => Mode::Write,
        };
        let mut gradients: HashMap<TensorId, TensorId> = HashMap::new();
        let mut written: HashSet<TensorId> = HashSet::new();
        let mut starts: HashSet<TensorId> = HashSet::new();
        for &(tensor, gradient) in seeds {
            starts.insert(tensor);
            if let Some(g) = gradient {
                gradients.insert(tensor, g);
                written.insert(g);
            }
        }
        let forward = self.nodes.len();
        for i in (0..forward).rev() {
            let node = self.nodes[i].clone();
            let reached = node
                .outputs
                .iter()
                .flatten()
                .any(|w| gradients.contains_key(&w.tensor) || starts.contains(&w.tensor));
            let wanted = node.outputs.iter().flatten().any(|w| needed.contains(&w.tensor));
            if reached && wanted {
                node.op.backward(
                    &node,
                    &mut Deriver {
                        plan: self,
                        needed: &needed,
                        gradients: &mut gradients,
                        written: &mut written,
                        parameter_mode,
                    },
                )?;
            }
        }
        if let Wrt::Tensors(tensors) = wrt {
            for t in tensors {
                if let Some(&g) = gradients.get(&t) {
                    self.keep(g);
                }
            }
        }
        self.gradients.extend(gradients);
        Ok(())
    }

    /// The gradient tensor of `tensor`, after [`Plan::derive`].
    pub fn gradient(&self, tensor: TensorId) -> Option<TensorId> {
        self.gradients.get(&tensor).copied()
    }
}
