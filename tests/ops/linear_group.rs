//! Linear layers over the same rows, which CUDA's lowering makes one launch a pass: the
//! bits of each layer alone.

use langevin::ops::Op;
use langevin::plan::{DType, DiskLayout, Init, Plan, Role, TensorId, Wrt};

use super::common::{Machine, assert_close, assert_same_bits, in_half, on_every_backend, values};

struct Layers {
    rows: usize,
    c_in: usize,
    /// Outputs of each layer.
    columns: Vec<usize>,
}

impl Layers {
    /// y, d_weight and d_bias of each of the chosen layers, their d_x (twice), and the groups of
    /// the lowered plan.
    fn run(&self, chosen: &[usize]) -> (Vec<[Vec<f32>; 3]>, Vec<f32>, usize) {
        let (rows, c_in) = (self.rows, self.c_in);
        let mut plan = Plan::new();
        // Tensors to fill, with the seeds of their values.
        let mut set: Vec<(TensorId, u64)> = Vec::new();
        let mut weights: Vec<(TensorId, u64)> = Vec::new();
        let mut state = |plan: &mut Plan, name: String, shape: &[usize], seed: u64| {
            let id = plan.activation(name, shape, DType::F32, Role::State);
            set.push((id, seed));
            id
        };
        let half = state(&mut plan, "half of x".into(), &[rows, c_in], 1);
        let x = plan.scale(half, 2.0, 0.0);
        let (mut layers, mut seeds, mut wanted) = (Vec::new(), Vec::new(), vec![half]);
        for &i in chosen {
            let (c_out, seed) = (self.columns[i], 10 * (i as u64 + 1));
            let mut weight = |name: String, shape: &[usize], seed: u64| {
                let (layout, init) = (DiskLayout::Same, Init::Constant(0.0));
                let id = plan.parameter(&name, shape, layout, init, true);
                weights.push((id, seed));
                id
            };
            let w = weight(format!("w {i}"), &[c_out, c_in], seed);
            // Every third layer has no bias.
            let b = (i % 3 != 2).then(|| weight(format!("b {i}"), &[c_out], seed + 1));
            let y = plan.linear(x, w, b).expect("fits");
            plan.keep(y);
            let d_y = state(&mut plan, format!("d_y {i}"), &[rows, c_out], seed + 2);
            seeds.push((y, Some(d_y)));
            wanted.extend([Some(w), b].into_iter().flatten());
            layers.push((y, w, b));
        }
        plan.derive(&seeds, Wrt::Tensors(wanted)).expect("derives");
        let of = |id: TensorId| plan.gradient(id).expect("asked for");
        let outputs: Vec<_> = layers.iter().map(|&(y, w, b)| (y, of(w), b.map(of))).collect();
        let d_x = of(half);
        let mut machine = Machine::new(plan, 2);
        for (id, seed) in set.into_iter().chain(weights) {
            let len = machine.program.plan.tensor(id).len();
            machine.upload(id, &values(seed, len));
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        let is_group = |op: &Op| matches!(op, Op::LinearGroup(_));
        let groups = machine.program.plan.nodes.iter().filter(|n| is_group(&n.op)).count();
        let mut get = |id: Option<TensorId>| id.map_or(Vec::new(), |id| machine.download(id));
        let all = outputs.iter().map(|&(y, w, b)| [get(Some(y)), get(Some(w)), get(b)]).collect();
        (all, get(Some(d_x)), groups)
    }
}

#[test]
fn grouped_linear_layers_have_the_bits_of_each_alone() {
    on_every_backend(|| {
        for (rows, c_in) in [(1, 4), (3, 7), (40, 33), (200, 64)] {
            let layers = Layers { rows, c_in, columns: vec![5, 32, 33, 70] };
            let (together, d_x, groups) = layers.run(&[0, 1, 2, 3]);
            if groups == 0 {
                // The CPU runs each layer by itself.
                continue;
            }
            assert_eq!(groups, 3, "forward, to the data, to the weights");
            let mut sum: Option<Vec<f32>> = None;
            // The derived backward goes through the layers from the last to the first.
            for i in (0..layers.columns.len()).rev() {
                let (alone, part, groups) = layers.run(&[i]);
                assert_eq!(groups, 0);
                for (what, k) in [("y", 0), ("d_weight", 1), ("d_bias", 2)] {
                    let name = format!("{what} of layer {i}, {rows} rows of {c_in}");
                    assert_same_bits(&name, &together[i][k], &alone[0][k]);
                }
                sum = Some(match sum {
                    None => part,
                    Some(sum) => sum.iter().zip(&part).map(|(a, b)| a + b).collect(),
                });
            }
            let sum = sum.expect("four layers");
            assert_same_bits(&format!("d_x, {rows} rows of {c_in}"), &d_x, &sum);
        }
    });
}

/// Layers of whole chunks of 16 bytes run in tiles: any number of rows forward, and in bf16
/// and tf32 to the data as well.
#[test]
fn groups_of_many_rows_have_the_bits_of_each_layer_alone() {
    on_every_backend(|| {
        let layers = Layers { rows: 300, c_in: 40, columns: vec![32, 72, 136] };
        let (together, d_x, groups) = layers.run(&[0, 1, 2]);
        assert!(groups <= 1, "forward alone in f32, and none on the CPU: {groups}");
        let mut sum: Option<Vec<f32>> = None;
        for i in (0..3).rev() {
            let (alone, part, _) = layers.run(&[i]);
            for (what, k) in [("y", 0), ("d_weight", 1), ("d_bias", 2)] {
                assert_same_bits(&format!("{what} of layer {i}"), &together[i][k], &alone[0][k]);
            }
            sum = Some(match sum {
                None => part,
                Some(sum) => sum.iter().zip(&part).map(|(a, b)| a + b).collect(),
            });
        }
        assert_same_bits("d_x", &d_x, &sum.expect("three layers"));
    });
}

#[test]
fn groups_in_bf16_are_as_exact_as_the_layers_alone() {
    in_half(|| {
        for (rows, c_in) in [(3, 8), (200, 72), (300, 40)] {
            let layers = Layers { rows, c_in, columns: vec![32, 72, 136] };
            let (together, d_x, groups) = layers.run(&[0, 1, 2]);
            assert_eq!(groups, if rows <= 256 { 3 } else { 2 }, "{rows} rows");
            let mut sum = vec![0.0; rows * c_in];
            for (i, together) in together.iter().enumerate() {
                let (alone, part, groups) = layers.run(&[i]);
                assert_eq!(groups, 0);
                assert_same_bits(&format!("y of layer {i}"), &together[0], &alone[0][0]);
                // Splits of the rows are added up in another order.
                for k in [1, 2] {
                    let alone: Vec<f64> = alone[0][k].iter().map(|&v| f64::from(v)).collect();
                    assert_close(&format!("{k} of layer {i}"), &together[k], &alone, 1e-5, 0.0);
                }
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
            }
            // Each part is rounded to bf16, and so is their sum.
            assert_close("d_x", &d_x, &sum, 1.0 / 64.0, 0.0);
        }
    });
}

#[test]
fn more_layers_than_a_launch_takes_are_more_launches() {
    on_every_backend(|| {
        let layers = Layers { rows: 2, c_in: 8, columns: vec![8; 27] };
        let chosen: Vec<usize> = (0..27).collect();
        let (all, _, groups) = layers.run(&chosen);
        assert!(groups == 0 || groups == 6, "{groups}: 24 and 3 layers in each pass");
        assert!(all.iter().flatten().flatten().all(|v| v.is_finite()));
    });
}
