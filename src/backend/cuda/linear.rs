//! Launches of `kernels/linear.cu` and `kernels/linear_group.cu`: linear layers over the same
//! rows, and layers with what follows them.

use super::arguments::Call;
use super::conv2d::{self, Arithmetic};
use super::entries::*;
use super::matmul;
use super::pointwise::activation_code;
use crate::error::{Error, Result};
use crate::ops::conv2d::{PER_IMAGE, RESIDUAL};
use crate::ops::linear::{GATE, GroupPass, Linear, LinearGroup};
use crate::plan::DType;

/// Results of a block of linear_group.cu, along each side.
const SIDE: usize = 32;

/// Multiprocessors that large tiles should keep busy. Only speed depends on it.
const MULTIPROCESSORS: usize = 108;

const _: () = assert!(LinearGroup::MOST == params::MOST_MEMBERS as usize);

type Of = &'static Entry<params::LinearGroup>;

/// A kernel of square tiles, whose sides end its name.
#[derive(Clone, Copy)]
struct Tile {
    entry: Of,
    side: usize,
}

impl Tile {
    /// Two stages of 128 bytes of every row of both operands.
    fn shared_bytes(&self) -> u32 {
        (2 * 2 * self.side * 128) as u32
    }

    /// Blocks of results of so many rows, beside so many columns of each member.
    fn blocks(&self, rows: usize, columns: &[usize]) -> usize {
        rows.div_ceil(self.side) * columns.iter().map(|c| c.div_ceil(self.side)).sum::<usize>()
    }
}

/// Tiles of a pass of linear.cu, the larger first; none where linear_group.cu runs it.
fn tiles(pass: GroupPass, arithmetic: Arithmetic) -> &'static [Tile] {
    macro_rules! tiles {
        ($($entry:ident $side:literal),*) => {{
            static TILES: &[Tile] = &[$(Tile { entry: &$entry, side: $side }),*];
            TILES
        }};
    }
    match (pass, arithmetic) {
        (GroupPass::Forward, Arithmetic::F32) => {
            tiles!(LINEAR_FORWARD_F32_128X128 128, LINEAR_FORWARD_F32_32X32 32)
        }
        (GroupPass::Forward, Arithmetic::Tf32) => {
            tiles!(LINEAR_FORWARD_TF32_128X128 128, LINEAR_FORWARD_TF32_32X32 32)
        }
        (GroupPass::Forward, Arithmetic::Bf16) => {
            tiles!(LINEAR_FORWARD_BF16_128X128 128, LINEAR_FORWARD_BF16_32X32 32)
        }
        (_, Arithmetic::F32) => &[],
        (GroupPass::BackwardData, Arithmetic::Tf32) => {
            tiles!(LINEAR_BACKWARD_DATA_TF32_128X128 128, LINEAR_BACKWARD_DATA_TF32_32X32 32)
        }
        (GroupPass::BackwardData, Arithmetic::Bf16) => {
            tiles!(LINEAR_BACKWARD_DATA_BF16_128X128 128, LINEAR_BACKWARD_DATA_BF16_32X32 32)
        }
        (GroupPass::BackwardWeight, Arithmetic::Tf32) => {
            tiles!(LINEAR_BACKWARD_WEIGHT_TF32_64X64 64)
        }
        (GroupPass::BackwardWeight, Arithmetic::Bf16) => {
            tiles!(LINEAR_BACKWARD_WEIGHT_BF16_64X64 64)
        }
    }
}

/// The largest tile of which there are enough, else the smallest.
fn choose(tiles: &'static [Tile], rows: usize, columns: &[usize]) -> Option<Tile> {
    let fills = |tile: &&Tile| tile.blocks(rows, columns) >= MULTIPROCESSORS;
    tiles.iter().find(fills).or(tiles.last()).copied()
}

/// Launches a group.
pub(super) fn linear_group(op: &LinearGroup, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let arithmetic = conv2d::arithmetic(dtype, call.precision());
    let fills = op.columns.iter().all(|&c| Linear::new(op.rows, op.c_in, c).fills_chunks());
    let tile = match op.pass {
        _ if !fills => None,
        GroupPass::Forward => choose(tiles(op.pass, arithmetic), op.rows, &op.columns),
        GroupPass::BackwardData => choose(tiles(op.pass, arithmetic), op.rows, &[op.c_in]),
        GroupPass::BackwardWeight => choose(tiles(op.pass, arithmetic), op.c_in, &op.columns),
    };
    if tile.is_none() && dtype != DType::F32 {
        let rule = "groups of linear layers in bf16 have multiples of 8 channels";
        return Err(Error::Usage(format!("{}: {rule}: {op:?}", call.node().op.name())));
    }
    let side = tile.map_or(SIDE, |tile| tile.side);
    let mut p = params::LinearGroup {
        rows: op.rows as u32,
        c_in: op.c_in as u32,
        count: op.columns.len() as u32,
        gate_rows: 1,
        activation: activation_code(None),
        ..Default::default()
    };
    let mut blocks = 0;
    for (i, &c_out) in op.columns.iter().enumerate() {
        let m = &mut p.members[i];
        (m.columns, m.first_block) = (c_out as u32, blocks as u32);
        blocks += c_out.div_ceil(side);
        match op.pass {
            GroupPass::Forward => {
                m.weight = call.input_as(1 + 2 * i, dtype);
                m.bias = call.optional(2 + 2 * i);
                (m.y, _) = call.required_as(i, dtype);
            }
            GroupPass::BackwardData => {
                m.d_y = call.input_as(2 * i, dtype);
                m.weight = call.input_as(2 * i + 1, dtype);
            }
            GroupPass::BackwardWeight => {
                m.d_y = call.input_as(1 + i, dtype);
                let null = (std::ptr::null_mut(), 0);
                (m.d_weight, m.add) = call.output(2 * i).unwrap_or(null);
                (m.d_bias, m.add_bias) = call.output(2 * i + 1).unwrap_or(null);
                m.lanes = lanes(op, c_out) as u32;
            }
        }
    }
    if op.pass == GroupPass::BackwardData {
        (p.d_x, p.add) = call.required_as(0, dtype);
    } else {
        p.x = call.input_as(0, dtype);
    }
    let [rows, along] = [op.rows, op.c_in].map(|len| len.div_ceil(side));
    let (few, few_grid, grid): (Of, _, _) = match op.pass {
        GroupPass::Forward => (&LINEAR_GROUP_FORWARD_F32, [blocks, rows, 1], [rows, blocks, 1]),
        GroupPass::BackwardData => {
            (&LINEAR_GROUP_BACKWARD_DATA_F32, [along, rows, 1], [rows, along, 1])
        }
        GroupPass::BackwardWeight => {
            (&LINEAR_GROUP_BACKWARD_WEIGHT_F32, [blocks, along, 1], [along, blocks, 1])
        }
    };
    match tile {
        Some(tile) => call.launch(tile.entry, grid, tile.shared_bytes(), &p),
        None => call.launch(few, few_grid, 0, &p),
    }
}

/// Launches a layer that is followed by more than additions.
pub(super) fn finished(op: &Linear, call: &Call) -> Result<()> {
    let dtype = call.dtype(0);
    let arithmetic = conv2d::arithmetic(dtype, call.precision());
    let tile = choose(tiles(GroupPass::Forward, arithmetic), op.rows, &[op.c_out]);
    let tile = tile.expect("every arithmetic has tiles of the forward pass");
    let gates = call.elements(GATE) / op.c_out;
    let mut p = params::LinearGroup {
        x: call.input_as(0, dtype),
        per_row: call.optional_as(PER_IMAGE, dtype),
        gate: call.optional_as(GATE, dtype),
        residual: call.optional_as(RESIDUAL, dtype),
        rows: op.rows as u32,
        c_in: op.c_in as u32,
        count: 1,
        gate_rows: (op.rows / gates.max(1)).max(1) as u32,
        activation: activation_code(op.activation),
        ..Default::default()
    };
    p.members[0].weight = call.input_as(1, dtype);
    p.members[0].bias = call.optional(2);
    (p.members[0].y, _) = call.required_as(0, dtype);
    p.members[0].columns = op.c_out as u32;
    let grid = [op.rows.div_ceil(tile.side), op.c_out.div_ceil(tile.side), 1];
    call.launch(tile.entry, grid, tile.shared_bytes(), &p)
}

/// Lanes in which the layer alone would split its weight gradient.
fn lanes(op: &LinearGroup, c_out: usize) -> usize {
    let layer = Linear::new(op.rows, op.c_in, c_out);
    matmul::backward_weight_lanes(&layer, Arithmetic::F32)
}
