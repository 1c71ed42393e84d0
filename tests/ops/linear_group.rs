//! Linear layers over the same rows, which CUDA's lowering makes one launch a pass: the
//! bits of each layer alone.

use langevin::ops::Op;
use langevin::plan::{DType, Plan, Role, TensorId, Wrt};

use super::common::{Machine, assert_same_bits, on_every_backend, values};

struct Layers {
    rows: usize,
    c_in: usize,
    /// Outputs of each layer.
    columns: Vec<usize>,
}

impl Layers {
    /// y, d_weight and d_bias of each of the chosen layers, their d_x, and the groups of
    /// the lowered plan.
    fn run(&self, chosen: &[usize]) -> (Vec<[Vec<f32>; 3]>, Vec<f32>, usize) {
        let (rows, c_in) = (self.rows, self.c_in);
        let mut plan = Plan::new();
        let mut set: Vec<(TensorId, u64)> = Vec::new();
        let mut state = |plan: &mut Plan, name: String, shape: &[usize], seed: u64| {
            let id = plan.activation(name, shape, DType::F32, Role::State);
            set.push((id, seed));
            id
        };
        let x = state(&mut plan, "x".into(), &[rows, c_in], 1);
        let (mut layers, mut seeds, mut wanted) = (Vec::new(), Vec::new(), vec![x]);
        for &i in chosen {
            let (c_out, seed) = (self.columns[i], 10 * (i as u64 + 1));
            let w = state(&mut plan, format!("w {i}"), &[c_out, c_in], seed);
            // Every third layer has no bias.
            let b = (i % 3 != 2).then(|| state(&mut plan, format!("b {i}"), &[c_out], seed + 1));
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
        let d_x = of(x);
        let mut machine = Machine::new(plan, 2);
        for (id, seed) in set {
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
