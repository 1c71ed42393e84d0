//! What every kernel of every image takes of a multiprocessor, on six architectures.

use langevin::backend::cuda::entries::{IMAGES, Image};

use crate::counters::Gpu;
use crate::machine::{self, ARCHS, Resources};
use crate::table::Target::{AtMost, Is};
use crate::table::{Table, Target};

/// Images whose kernels read, compute and write element by element.
const ELEMENTWISE: [&str; 7] =
    ["pointwise", "broadcast", "concat", "dropout", "cast", "check", "axis_map"];

/// The promise for the registers of a kernel of an image, if there is one.
fn most_registers(image: &str, kernel: &str) -> Option<f64> {
    match image {
        "optimizer" if kernel.starts_with("adamw") => Some(64.0),
        image if image.starts_with("norm") && kernel.contains("group") => Some(64.0),
        image if ELEMENTWISE.contains(&image) => Some(40.0),
        _ => None,
    }
}

pub fn certify(table: &mut Table, _: &Gpu) {
    if let Some(why) = machine::missing() {
        table.not_measured(3, "registers and spills", why);
        return;
    }
    table.note("the worst of every image's kernels on sm_80, 86, 89, 90, 100, 120");
    for image in &IMAGES {
        let all: Vec<Found> = ARCHS.into_iter().flat_map(|arch| found(image, arch)).collect();
        let kernels = all.len() / ARCHS.len();
        let mut worst = |what: &str, of: fn(&Resources) -> u32, target: Option<Target>| {
            let most = all.iter().max_by_key(|f| of(&f.kernel)).expect("images have kernels");
            let value = f64::from(of(&most.kernel));
            let what = match value {
                0.0 => format!("{}, {kernels} kernels: {what}", image.name),
                _ => format!("{}: {what} ({} on sm_{})", image.name, most.kernel.name, most.arch),
            };
            match target {
                Some(target) => table.line(3, &what, value, target),
                None => table.value(3, &what, value),
            }
        };
        worst("spilled bytes", |k| k.spill_bytes, Some(Is(0.0)));
        worst("local memory of a thread", |k| k.stack_bytes, Some(Is(0.0)));
        worst("static shared bytes", |k| k.static_shared_bytes, None);
        registers(table, image.name, &all);
    }
}

/// One kernel on one architecture.
struct Found {
    kernel: Resources,
    arch: &'static str,
}

fn found(image: &Image, arch: &'static str) -> Vec<Found> {
    let compiled = machine::compile(image, arch);
    compiled.resources.iter().map(|kernel| Found { kernel: kernel.clone(), arch }).collect()
}

/// The most registers of the kernels that something is promised of, and of the others.
fn registers(table: &mut Table, image: &str, all: &[Found]) {
    let promise = |f: &&Found| most_registers(image, &f.kernel.name);
    let (bound, free): (Vec<&Found>, Vec<&Found>) = all.iter().partition(|f| promise(f).is_some());
    for part in [bound, free] {
        let Some(most) = part.iter().max_by_key(|f| f.kernel.registers) else { continue };
        let what = format!("{image}: registers ({} on sm_{})", most.kernel.name, most.arch);
        let value = f64::from(most.kernel.registers);
        match promise(most) {
            Some(target) => table.line(3, &what, value, AtMost(target)),
            None => table.value(3, &what, value),
        }
    }
}
