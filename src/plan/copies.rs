//! Copies that the derived backward makes and nobody needs.
//!
//! The gradient of a sum is the same tensor for both operands, so its rule
//! copies it. Where no later op changes one while another still reads the
//! other, both can be one tensor, and the copy is dropped: in a U-Net that is
//! every copy of a residual connection and of the time embedding.

use super::{Mode, Plan, Role, Space, TensorId};
use crate::ops::Op;

/// Later uses of a tensor: the last node that reads it, the first that writes it.
#[derive(Default)]
struct Uses {
    last_read: Option<usize>,
    first_write: Option<usize>,
}

impl Plan {
    /// Drops copies whose two tensors can share their bytes: for a backend's
    /// lowering, when all ops are there. Results keep their bits; tensors that
    /// are uploaded, downloaded or kept stay as they are.
    pub fn drop_copies(&mut self) {
        let mut i = 0;
        while i < self.nodes.len() {
            match self.shareable_copy(i) {
                Some((from, to)) => {
                    self.nodes.remove(i);
                    self.replace_from(i, to, from);
                }
                None => i += 1,
            }
        }
    }

    /// Source and target of node `i`, if it is a copy that can be dropped.
    fn shareable_copy(&self, i: usize) -> Option<(TensorId, TensorId)> {
        let node = &self.nodes[i];
        let Op::Scale(op) = &node.op else { return None };
        let write = node.output_write(0)?;
        if op.scale != 1.0 || op.offset != 0.0 || write.mode != Mode::Write {
            return None;
        }
        let (from, to) = (node.input(0), write.tensor);
        let is_activation = |id: TensorId| self.tensor(id).space == Space::Activations;
        let is_transient =
            |id: TensorId| is_activation(id) && self.tensor(id).role == Role::Transient;
        if from == to || !is_activation(from) || !is_transient(to) || self.touches(to, ..i) {
            return None;
        }
        // Both hold the same values until one of them is written.
        let (a, b) = (self.uses_after(i, from), self.uses_after(i, to));
        let unread_from = |uses: &Uses, at: usize| uses.last_read.is_none_or(|r| r < at);
        let sound = match (a.first_write, b.first_write) {
            (None, None) => true,
            (Some(at), None) => unread_from(&b, at),
            (None, Some(at)) => is_transient(from) && unread_from(&a, at),
            (Some(_), Some(_)) => false,
        };
        sound.then_some((from, to))
    }

    fn touches(&self, id: TensorId, nodes: std::ops::RangeTo<usize>) -> bool {
        self.nodes[nodes].iter().any(|n| {
            let written = n.outputs.iter().flatten().any(|w| w.tensor == id);
            written || n.inputs.contains(&Some(id))
        })
    }

    fn uses_after(&self, i: usize, id: TensorId) -> Uses {
        let mut uses = Uses::default();
        for (at, node) in self.nodes.iter().enumerate().skip(i + 1) {
            if node.inputs.contains(&Some(id)) {
                uses.last_read = Some(at);
            }
            if uses.first_write.is_none() && node.outputs.iter().flatten().any(|w| w.tensor == id) {
                uses.first_write = Some(at);
            }
        }
        uses
    }

    fn replace_from(&mut self, first: usize, old: TensorId, new: TensorId) {
        for node in &mut self.nodes[first..] {
            for input in node.inputs.iter_mut().flatten().filter(|t| **t == old) {
                *input = new;
            }
            for write in node.outputs.iter_mut().flatten().filter(|w| w.tensor == old) {
                write.tensor = new;
            }
        }
    }
}
