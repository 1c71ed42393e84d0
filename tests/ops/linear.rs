//! Linear layers: against f64, and the same bits for a row alone or among others.

use langevin::backend::cpu::isa::Isa;
use langevin::backend::cpu::{Pool, conv2d, linear};
use langevin::ops::linear::Linear;
use langevin::ops::pack::{PackFor, PackWeight};
use langevin::plan::Mode;

use crate::common::{Case, Input, Terms, assert_same_bits, values};

fn reference(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let c_in = weight.len() / bias.len();
    let row = |x: &[f64]| -> Vec<f64> {
        let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        weight.chunks(c_in).zip(bias).map(|(w, b)| dot(w) + b).collect()
    };
    x.chunks(c_in).flat_map(row).collect()
}

#[test]
fn linear_is_right_at_odd_sizes() {
    for (rows, c_in, c_out) in
        [(1, 1, 1), (2, 7, 5), (13, 3, 33), (14, 16, 32), (15, 33, 31), (29, 5, 17), (3, 65, 1)]
    {
        let inputs = [
            Input::image(&[rows, c_in]),
            Input::parameter(&[c_out, c_in]),
            Input::parameter(&[c_out]),
        ];
        let terms = Terms { forward: c_in + 1, backward: rows.max(c_in).max(c_out) };
        Case::new(&inputs, |plan, t| plan.linear(t[0], t[1], Some(t[2])).expect("fits"))
            .check(terms, |x| reference(&x[0], &x[1], &x[2]));
    }
}

#[test]
fn linear_over_tokens_is_right() {
    let inputs = [Input::image(&[3, 5, 6]), Input::parameter(&[10, 6])];
    Case::new(&inputs, |plan, t| plan.linear(t[0], t[1], None).expect("fits"))
        .check(Terms { forward: 6, backward: 15 }, |x| reference(&x[0], &x[1], &[0.0; 10]));
}

#[test]
fn linear_rows_have_the_same_bits_alone_on_every_instruction_set() {
    let (rows, c_in, c_out) = (17, 50, 70);
    let pool = Pool::new(2);
    let (x, weight, bias) = (values(1, rows * c_in), values(2, c_in * c_out), values(3, c_out));
    let epilogue = conv2d::Epilogue { bias: Some(&bias), ..Default::default() };
    let run = |isa, x: &[f32]| {
        let op = Linear::new(x.len() / c_in, c_in, c_out);
        let pack = PackWeight::of(&linear::as_convolution(&op), PackFor::Forward);
        let mut packed = vec![f32::NAN; pack.packed_len()];
        conv2d::pack(&pool, &pack, &weight, &mut packed);
        let mut y = vec![f32::NAN; op.rows * c_out];
        let finish = linear::Finish { gate: None, epilogue };
        linear::forward(&pool, isa, &op, x, &packed, finish, &mut y, Mode::Write);
        y
    };
    let expected = run(Isa::detect(), &x);
    for isa in Isa::available() {
        assert_same_bits(&format!("y on {isa:?}"), &run(isa, &x), &expected);
        for (x, expected) in x.chunks(c_in).zip(expected.chunks(c_out)) {
            assert_same_bits(&format!("a row on {isa:?}"), &run(isa, x), expected);
        }
    }
}
