//! Embeddings of time and class.

use super::common::{Case, Input, Machine, Terms, assert_close, on_every_backend};
use langevin::Error;
use langevin::ops::embedding::Lookup;
use langevin::plan::{DType, Plan, TensorId};

#[test]
fn sinusoidal_embedding_is_within_1e_6_of_f64_up_to_t_1000() {
    let t: Vec<f32> = vec![0.0, 1.0, 17.0, 499.5, 999.0, 1000.0];
    for (dim, flip, shift) in [(2, false, 0.0), (8, true, 0.0), (33, false, 1.0), (128, true, 1.0)]
    {
        let case = Case::new(&[Input::image(&[6]).with(&t).fixed()], |p, x| {
            p.sinusoidal_embedding(x[0], dim, flip, shift, 10_000.0)
        });
        let half = dim / 2;
        let mut expected = Vec::new();
        for &t in &t {
            let phase = |i: usize| {
                let exponent = i as f64 / (half as f64 - f64::from(shift));
                f64::from(t) * (-(10_000f64.ln()) * exponent).exp()
            };
            let sines = (0..half).map(|i| phase(i).sin());
            let cosines = (0..half).map(|i| phase(i).cos());
            match flip {
                false => expected.extend(sines.chain(cosines)),
                true => expected.extend(cosines.chain(sines)),
            }
            expected.extend(vec![0.0; dim % 2]);
        }
        for threads in [1, 3] {
            assert_close("embedding", &case.run(threads, None).output, &expected, 1e-6, 1.0);
        }
    }
}

#[test]
fn fourier_embedding_is_within_1e_6_of_f64() {
    let t: Vec<f32> = vec![0.01, 0.5, 1.0, 50.0, 1348.0];
    for (half, flip, log) in [(1, false, true), (7, true, true), (16, false, false)] {
        let w = Input::parameter(&[half]).map(|v| 16.0 * v).fixed();
        let frequencies = w.values();
        let case = Case::new(&[Input::image(&[5]).with(&t).fixed(), w], |p, x| {
            p.fourier_embedding(x[0], x[1], flip, log)
        });
        let mut expected = Vec::new();
        for &t in &t {
            let t = if log { f64::from(t).ln() } else { f64::from(t) };
            let phase = |i: usize| std::f64::consts::TAU * t * f64::from(frequencies[i]);
            let sines = (0..half).map(|i| phase(i).sin());
            let cosines = (0..half).map(|i| phase(i).cos());
            match flip {
                false => expected.extend(sines.chain(cosines)),
                true => expected.extend(cosines.chain(sines)),
            }
        }
        assert_close("embedding", &case.run(2, None).output, &expected, 1e-6, 1.0);
    }
}

#[test]
fn sines_of_arguments_of_any_size_are_those_of_f64() {
    // Up to 2^128 times 2^119: an angle in f64 is a number with one sine, however large.
    let t: Vec<f32> = vec![0.0, 1e-30, 0.3, 1000.0, 1e5, 3.7e9, -1.1e12, 2.5e22, 3e38];
    let frequencies: [f32; 5] = [1.0, -0.37, 1e-9, 4.1e17, 6e35];
    let half = frequencies.len();
    let mut expected = Vec::new();
    for &t in &t {
        let phase = |i: usize| std::f64::consts::TAU * f64::from(t) * f64::from(frequencies[i]);
        expected.extend((0..half).map(|i| phase(i).sin()));
        expected.extend((0..half).map(|i| phase(i).cos()));
    }
    on_every_backend(|| {
        let w = Input::parameter(&[half]).with(&frequencies).fixed();
        let case = Case::new(&[Input::image(&[t.len()]).with(&t).fixed(), w], |p, x| {
            p.fourier_embedding(x[0], x[1], false, false)
        });
        assert_close("embedding", &case.run(1, None).output, &expected, 6e-8, 1.0);
    });
    let shift = |p: &mut Plan, x: TensorId| p.sinusoidal_embedding(x, 9, false, 0.0, 10_000.0);
    let mut expected = Vec::new();
    for &t in &t {
        let phase = |i: i32| f64::from(t) * (-(10_000f64.ln()) / 4.0 * f64::from(i)).exp();
        expected.extend((0..4).map(|i| phase(i).sin()).chain((0..4).map(|i| phase(i).cos())));
        expected.push(0.0);
    }
    on_every_backend(|| {
        // An angle of 1e38 is another one where the exponential differs in its last bit.
        let case = Case::new(&[Input::image(&[6]).with(&t[..6]).fixed()], |p, x| shift(p, x[0]));
        assert_close("embedding", &case.run(1, None).output, &expected[..54], 1e-6, 1.0);
    });
}

#[test]
fn lookup_matches_f64_and_sums_the_gradients_of_repeated_rows() {
    for (rows, dim) in [(1, 1), (5, 3), (11, 64), (10, 130)] {
        let index: Vec<u32> = [0, 3, 3, 10, 3].iter().map(|i| i % rows as u32).collect();
        let inputs = [Input::parameter(&[rows, dim]), Input::words(&[5], &index)];
        Case::new(&inputs, |p, t| p.lookup(t[0], t[1]).unwrap()).check(
            Terms { forward: 1, backward: 5 },
            |x| {
                x[1].iter()
                    .flat_map(|&i| x[0][i as usize * dim..(i as usize + 1) * dim].to_vec())
                    .collect()
            },
        );
    }
}

#[test]
fn lookup_refuses_an_index_outside_the_table() {
    let mut plan = Plan::new();
    let table = plan.transient("table", &[4, 2]);
    plan.keep(table);
    let index = plan.input("index", &[3], DType::U32);
    let y = plan.lookup(table, index).unwrap();
    plan.keep(y);
    let mut machine = Machine::new(plan, 1);
    machine.upload(table, &[0.0; 8]);
    machine.upload_u32(index, &[0, 4, 1]);
    let error = machine.try_run().unwrap_err();
    assert_eq!(error.to_string(), "class 4 of image 1 is out of range: the table has rows 0..4");
    assert!(matches!(Lookup { n: 1, rows: 4, dim: 2 }.check(&[4]), Err(Error::Usage(_))));
    assert!(Lookup { n: 1, rows: 4, dim: 2 }.check(&[3]).is_ok());
}
