//! Items 1, 2 and 9 for norms, in bf16 at layers of ddpm-cifar10 and DiT-B/4. All zeros, on
//! which no kernel's path depends.

use langevin::ops::norm::{Domain, NormOperands};
use langevin::ops::pointwise::Activation;

use crate::attention::{accesses, measure};
use crate::counters::Gpu;
use crate::table::Table;
use crate::table::Target::AtMost;

/// Images, positions, channels and groups (none: a layer norm with scale and shift).
const NORMS: [(&str, [usize; 4]); 10] = [
    ("32x32x128", [1, 1024, 128, 32]),
    ("32x32x256", [1, 1024, 256, 32]),
    ("32x32x384", [1, 1024, 384, 32]),
    ("16x16x256", [1, 256, 256, 32]),
    ("16x16x512", [1, 256, 512, 32]),
    ("8x8x512, B = 1", [1, 64, 512, 32]),
    ("8x8x512, 16 of 128 images", [16, 64, 512, 32]),
    ("4x4x512, B = 1", [1, 16, 512, 32]),
    ("4x4x512, 16 of 128 images", [16, 16, 512, 32]),
    ("DiT-B/4 256x768", [1, 256, 768, 0]),
];

pub fn certify(table: &mut Table, gpu: &Gpu) {
    table.note("group norms with gamma, beta and SiLU; all that is read and written counts");
    table.note("B = 1: gamma, beta and their gradients alone are 8 and 16 bytes a channel, which");
    table.note("are 2 and 3 % at 8x8, 12 and 17 % at 4x4; several images of a batch share them");
    for (name, [n, spatial, channels, groups]) in NORMS {
        let (x, vector): (&[usize], &[usize]) = (&[n, spatial, channels], &[channels]);
        let both: &[usize] = &[n, 2 * channels];
        let launched = match groups {
            0 => measure(gpu, &[x, both], |p, t| {
                let operands = NormOperands { scale_shift: Some(t[1]), ..Default::default() };
                p.norm(t[0], Domain::Layer, 1e-6, operands)
            }),
            _ => measure(gpu, &[x, vector, vector], |p, t| {
                let (gamma, beta) = (Some(t[1]), Some(t[2]));
                let activation = Some(Activation::Silu);
                let operands = NormOperands { gamma, beta, activation, ..Default::default() };
                p.norm(t[0], Domain::Group(groups), 1e-6, operands)
            }),
        };
        let kind = if groups == 0 { "layer" } else { "group" };
        // Slices of groups of 12 channels do not fit.
        let least = if channels == 384 { 1.55 } else { 1.05 };
        for (pass, minimal) in [("forward", 4.0), ("backward", 6.0)] {
            let c = launched.of(&format!("norm_{pass}_{kind}"));
            let what = format!("{pass}, {name}");
            accesses(table, &what, c);
            let bytes = (c.load.bytes + c.store.bytes) / (n * spatial * channels) as f64;
            let text = format!("{what}: bytes requested an element / {minimal}");
            if n == 1 && spatial < 256 {
                table.value(9, &text, bytes / minimal);
            } else {
                table.line(9, &text, bytes / minimal, AtMost(least));
            }
        }
    }
}
