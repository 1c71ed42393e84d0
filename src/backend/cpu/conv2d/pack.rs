//! Weights in the order the driver reads them.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use crate::backend::cpu::isa::{Isa, multiversion};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::ops::pack::{PANEL, PackFor, PackWeight};

/// Packs weight `[groups * out, taps, in]`; see [`PackWeight`].
pub fn pack(pool: &Pool, op: &PackWeight, weight: &[f32], packed: &mut [f32]) {
    assert_eq!(weight.len(), op.weight_len(), "weight");
    assert_eq!(packed.len(), op.packed_len(), "packed weight");
    let packed = Parts::new(packed);
    match op.pass {
        PackFor::Forward => pool.run(op.groups * op.blocks() * op.taps, &|task| {
            // SAFETY: one task for each (panel, tap).
            let to = unsafe { packed.part(task * op.c_in * PANEL, op.c_in * PANEL) };
            let (panel, tap) = (task / op.taps, task % op.taps);
            pack_forward(Isa::detect(), op, weight, panel, tap, to);
        }),
        PackFor::BackwardData => {
            let chunks = op.c_out.div_ceil(PANEL);
            pool.run(op.groups * chunks, &|task| {
                let (group, first) = (task / chunks, task % chunks * PANEL);
                for out in first..(first + PANEL).min(op.c_out) {
                    pack_backward_data(op, weight, group, out, packed);
                }
            });
        }
    }
}

multiversion! {
    /// One tap of a panel: 32 rows of the weight, transposed.
    fn pack_forward(
        isa: Isa,
        op: &PackWeight,
        weight: &[f32],
        panel: usize,
        tap: usize,
        to: &mut [f32],
    ) {
        const LINE: usize = 16;
        let (group, first) = (panel / op.blocks(), panel % op.blocks() * PANEL);
        for half in [0, LINE] {
            let width = op.c_out.saturating_sub(first + half).min(LINE);
            for channel in (0..op.c_in).step_by(LINE) {
                let len = (op.c_in - channel).min(LINE);
                let mut square = [[0f32; LINE]; LINE];
                for (j, line) in square.iter_mut().enumerate().take(width) {
                    let out = group * op.c_out + first + half + j;
                    let from = &weight[(out * op.taps + tap) * op.c_in + channel..][..len];
                    match <&[f32; LINE]>::try_from(from) {
                        Ok(whole) => *line = *whole,
                        Err(_) => line[..len].copy_from_slice(from),
                    }
                }
                for (i, row) in
                    to[channel * PANEL..].chunks_exact_mut(PANEL).enumerate().take(len)
                {
                    for (to, line) in row[half..half + LINE].iter_mut().zip(&square) {
                        *to = line[i];
                    }
                }
            }
        }
    }
}

/// One output channel, spread over the panels of its group: the weight is read
/// in order, since its rows lie pages apart.
fn pack_backward_data(
    op: &PackWeight,
    weight: &[f32],
    group: usize,
    out: usize,
    packed: Parts<f32>,
) {
    let from = &weight[(group * op.c_out + out) * op.taps * op.c_in..][..op.taps * op.c_in];
    for (tap, from) in from.chunks_exact(op.c_in).enumerate() {
        for (block, from) in from.chunks(PANEL).enumerate() {
            let panel = group * op.blocks() + block;
            let at = panel * op.panel_len() + (tap * op.c_out + out) * PANEL;
            // SAFETY: one task for each output channel.
            let to = unsafe { packed.part(at, PANEL) };
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0.0);
        }
    }
}
